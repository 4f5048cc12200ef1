"""Progress of a study: a live table on a terminal, a line for each change elsewhere."""

import time
from collections import Counter
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from statistics import mean
from threading import RLock
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from mnist_lightning.errors import printable
from mnist_lightning.studies.plan import Training
from mnist_lightning.studies.process import Ending, Message

WAITING, RUNNING, FINISHED, FOUND, FAILED, STOPPED, PRUNED = (
    "waiting",
    "running",
    "finished",
    "was finished",
    "failed",
    "stopped",
    "pruned",
)
_OTHER_LINES = 7  # of a table: header, rules, summary, and what the terminal shows around it
_STYLES = {RUNNING: "bold", FINISHED: "green", FOUND: "green", FAILED: "red", WAITING: "dim"}
_ORDER = (RUNNING, FAILED, FINISHED, WAITING)  # which rows are shown first if the terminal is too low for all


@dataclass
class _Row:
    training: Training
    state: str = WAITING
    epoch: int = 0
    epochs: int | None = None
    accuracy: float | None = None
    began: float = 0.0  # start of the process
    first_epoch: int = 0  # of this process: a resumed training does not start at 0
    trained_since: float = 0.0
    updated: float = 0.0
    seconds: float | None = None  # duration of a training that ended

    def left(self, now: float) -> float | None:
        """Estimated seconds until the end of a training that runs; None if unknown."""
        done = self.epoch - self.first_epoch
        if self.state != RUNNING or done < 1 or not self.epochs or self.epochs < self.epoch:
            return None
        rate = (self.updated - self.trained_since) / done
        return max(0.0, rate * (self.epochs - self.epoch) - (now - self.updated))


class Progress(AbstractContextManager["Progress"]):
    """Shows the trainings of a study. Its methods may be called from several threads.

    Args:
        trainings: The trainings.
        console: Where to show them. Default: standard output.

    Attributes:
        jobs: Number of simultaneous trainings, to estimate the time left.
        more: Number of trainings that will be added.
    """

    def __init__(self, trainings: Iterable[Training] = (), console: Console | None = None) -> None:
        self._rows = {training: _Row(training) for training in trainings}
        self.jobs = 1
        self.more = 0
        self._console = console or Console(highlight=False)
        self._warnings: set[str] = set()
        self._lock = RLock()
        self._live = Live(
            console=self._console,
            get_renderable=self._table,
            refresh_per_second=2,
            auto_refresh=self._console.is_terminal,
            vertical_overflow="crop",
        )

    def __enter__(self) -> "Progress":
        """Shows the table, if there is a terminal."""
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Leaves the last state of the table."""
        if self._console.is_terminal:
            self._live.stop()
            self._console.print()

    def add(self, training: Training) -> None:
        """Adds a training to the table."""
        with self._lock:
            self._rows[training] = _Row(training)

    def found(self, training: Training, state: str = FOUND) -> None:
        """Notes that a training ended before this study.

        Args:
            training: The training.
            state: Word for the table.
        """
        with self._lock:
            self._rows[training].state = state
        self._say(f"{training.label}: {state}")

    def started(self, training: Training) -> None:
        """Notes that the process of a training starts."""
        with self._lock:
            row = self._rows[training]
            row.state, row.began = RUNNING, time.monotonic()
        self._say(f"{training.label}: started")

    def update(self, training: Training, message: Message) -> None:
        """Takes a message of a training."""
        now = time.monotonic()
        with self._lock:
            row = self._rows[training]
            row.epoch, row.updated = message["epoch"], now
            row.epochs = message["epochs"] if (message["epochs"] or -1) > 0 else None
            row.accuracy = message.get("val/acc", row.accuracy)
            if not row.trained_since:
                row.first_epoch, row.trained_since = row.epoch, now

    def ended(self, training: Training, ending: Ending, state: str | None = None) -> None:
        """Takes the end of a training.

        Args:
            training: The training.
            ending: Its end.
            state: Word for the table. Default: `stopped`, `failed` or `finished`.
        """
        now = time.monotonic()
        with self._lock:
            row = self._rows[training]
            row.state = state or (STOPPED if ending.is_stopped else FAILED if ending.error else FINISHED)
            row.seconds = now - row.began
            words = [f"{training.label}: {row.state}"]
            words += [f"validation accuracy {_percent(row.accuracy)}"] if row.accuracy is not None else []
            words += [ending.error] if row.state == FAILED else [_duration(row.seconds)]
            new = [warning for warning in ending.warnings if warning not in self._warnings]
            self._warnings |= set(new)
        for warning in new:  # of equal warnings of many trainings, one is enough
            self._console.print(Text(printable(f"warning: {training.label}: {warning}")), soft_wrap=True)
        self._say(", ".join(words))

    def _say(self, line: str) -> None:
        if not self._console.is_terminal:
            self._console.print(Text(printable(line)), soft_wrap=True)

    def _table(self) -> Group:
        with self._lock:
            rows, now = list(self._rows.values()), time.monotonic()
            shown = self._shown(rows)
            columns = ["config", "seed", "state", "epoch", "validation", "left"]
            folds = any(row.training.fold for row in rows)
            table = Table(
                *(columns[:2] + ["fold"] * folds + columns[2:]),
                box=SIMPLE_HEAD,
                show_edge=False,
                pad_edge=False,
            )
            for column in table.columns:
                column.no_wrap = True
            for column in table.columns[1:]:
                column.justify = "right"
            for row in shown:
                training = row.training
                left = row.left(now)
                cells = [
                    *(printable(training.name), str(training.seed), *([training.fold or ""] if folds else [])),
                    row.state,
                    f"{row.epoch}/{row.epochs or '?'}" if row.trained_since else "",
                    _percent(row.accuracy) if row.accuracy is not None else "",
                    _duration(left) if left is not None else "",
                ]
                table.add_row(*map(Text, cells), style=_STYLES.get(row.state, ""))
            return Group(table, Text(self._summary(rows, now)))

    def _shown(self, rows: list[_Row]) -> list[_Row]:
        """Rows that fit on the terminal, in their order."""
        room = max(3, self._console.height - _OTHER_LINES)
        if len(rows) <= room:
            return rows
        rank = {state: number for number, state in enumerate(_ORDER)}
        chosen = sorted(rows, key=lambda row: (rank.get(row.state, len(rank)), -row.updated))[:room]
        return [row for row in rows if row in chosen]

    def _summary(self, rows: list[_Row], now: float) -> str:
        counts = Counter(FINISHED if row.state == FOUND else row.state for row in rows)
        counts[WAITING] += self.more
        words = [f"{counts.pop(FINISHED, 0)} of {len(rows) + self.more} {FINISHED}"]
        words += [f"{count} {state}" for state, count in sorted(counts.items()) if count]
        left = self._left(rows, now)
        return ", ".join([*words, *([f"about {_duration(left)} left"] if left is not None else [])])

    def _left(self, rows: list[_Row], now: float) -> float | None:
        """Estimates the seconds until the end of the study; None if no training has told enough."""
        durations: dict[str, list[float]] = {}
        for row in rows:
            left = row.left(now)
            total = row.seconds if row.state in (FINISHED, PRUNED) else None if left is None else now - row.began + left
            if total is not None:
                durations.setdefault(row.training.name, []).append(total)
        every = [seconds for several in durations.values() for seconds in several]
        unfinished = [row for row in rows if row.state in (RUNNING, WAITING)]
        if not every or not unfinished:
            return None
        seconds = self.more * mean(every)
        for row in unfinished:
            spent = now - row.began if row.state == RUNNING else 0.0
            seconds += max(0.0, mean(durations.get(row.training.name, every)) - spent)
        return seconds / self.jobs


def _percent(value: Any) -> str:
    return f"{100 * value:.2f} %"


def _duration(seconds: float) -> str:
    """Formats seconds.

    Example:
        >>> _duration(9), _duration(75), _duration(7500)
        ('9 s', '1 min 15 s', '2 h 5 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"

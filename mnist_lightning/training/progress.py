"""Progress of a training: a bar on a terminal, one line an epoch elsewhere, messages in a study."""

import json
import sys
import time
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, RichProgressBar
from lightning.pytorch.callbacks.progress.rich_progress import (
    BatchesProcessedColumn,
    CustomBarColumn,
    RichProgressBarTheme,
)
from rich import get_console
from rich.progress import ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Column
from rich.text import Text

from mnist_lightning.lean import IdleInSteps
from mnist_lightning.training.supervision import in_study


def progress_callback(enabled: bool) -> Callback:
    """Returns a bar if standard output is a terminal, messages in a process of a study, and lines otherwise.

    Args:
        enabled: Whether a bar is wanted.
    """
    if in_study():
        return EpochMessages()
    is_terminal = sys.stdout.isatty() and not get_console().is_dumb_terminal
    return CalmProgressBar() if enabled and is_terminal else EpochLines()


class EpochLines(IdleInSteps):
    """Prints one line an epoch, in the first process."""

    def __init__(self) -> None:
        self._epoch = 0
        self._since = 0.0
        self._is_validated = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock: a training that is resumed in the middle of an epoch has no `on_train_epoch_start`."""
        self._begin(trainer)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prints the line of the previous epoch: its last metrics are logged after `on_train_epoch_end`."""
        if trainer.current_epoch > self._epoch:
            self._print(trainer)
            self._begin(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notes that the validation metrics are those of this epoch."""
        self._is_validated = not trainer.sanity_checking

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prints the line of the last epoch."""
        self._print(trainer)

    def _begin(self, trainer: Trainer) -> None:
        self._epoch, self._since, self._is_validated = trainer.current_epoch, time.monotonic(), False

    def _print(self, trainer: Trainer) -> None:
        if not trainer.is_global_zero:
            return
        metrics = grouped(trainer.callback_metrics)
        splits = [split for split in ("train", "val") if split in metrics and (split == "train" or self._is_validated)]
        words = [epoch_name(trainer, self._epoch), *(f"{split} {metrics[split]}" for split in splits)]
        seconds = time.monotonic() - self._since
        print(*words, f"{seconds:.{0 if seconds >= 100 else 1}f} s", sep="  ", flush=True)


class EpochMessages(EpochLines):
    """Prints a JSON object an epoch, and one at the start: number of completed epochs, all epochs, and the metrics."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reports the first epoch, which is not 0 if the training is resumed."""
        super().on_train_start(trainer, pl_module)
        if trainer.is_global_zero:
            self._send(trainer, self._epoch, {})

    def _print(self, trainer: Trainer) -> None:
        if trainer.is_global_zero:
            metrics = trainer.callback_metrics if self._is_validated else {}
            self._send(trainer, self._epoch + 1, {name: float(value) for name, value in metrics.items()})

    def _send(self, trainer: Trainer, epoch: int, metrics: Mapping[str, float]) -> None:
        print(json.dumps({"epoch": epoch, "epochs": trainer.max_epochs, **metrics}), flush=True)


class CalmProgressBar(IdleInSteps, RichProgressBar):
    """A progress bar that updates twice a second.

    Lightning's bar updates after every step, and its thread takes milliseconds of a core that the step needs.
    """

    def __init__(self) -> None:
        # The thread checks 20 times a second. Each split's metrics are on a line.
        super().__init__(refresh_rate=20, theme=RichProgressBarTheme(metrics_text_delimiter="\n"))
        self._due = 0.0

    def configure_columns(self, trainer: Trainer) -> list[ProgressColumn]:
        """Returns the columns left of the metrics."""
        width = get_console().width - 70  # a terminal prints ^C behind the bar: on a new line it would break the bar
        style, finished = self.theme.progress_bar, self.theme.progress_bar_finished
        return [
            TextColumn("{task.description}"),
            CustomBarColumn(bar_width=max(4, min(40, width)), complete_style=style, finished_style=finished),
            BatchesProcessedColumn(style=self.theme.batch_progress),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
            _Speed(),
        ]

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Returns the metrics by split, without the number of the run."""
        return dict(grouped(trainer.progress_bar_metrics))

    def on_train_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:  # type: ignore[override]
        """Updates the bar if half a second has passed."""
        if time.monotonic() >= self._due or trainer.is_last_batch:
            RichProgressBar.on_train_batch_end(self, trainer, *args, **kwargs)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Shows the last metrics of the previous epoch, which are logged after `on_train_epoch_end`."""
        self._update_metrics(trainer, pl_module)
        super().on_train_epoch_start(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Shows the final metrics, and leaves the bar on the screen."""
        self._update_metrics(trainer, pl_module)
        if self.progress is not None:
            self.progress.live.transient = False
        super().on_train_end(trainer, pl_module)

    def refresh(self, hard: bool = False) -> None:
        """Draws the bar if half a second has passed, or at the end."""
        now = time.monotonic()
        if hard or now >= self._due:
            self._due = now + 0.5
            super().refresh(hard)

    def _get_train_description(self, current_epoch: int) -> str:
        return epoch_name(self.trainer, current_epoch).capitalize()

    def _init_progress(self, trainer: Trainer) -> None:
        super()._init_progress(trainer)
        if self.progress is not None:
            self.progress.live.transient = True  # an interrupted training leaves no broken bar
        if self._metric_component is not None:
            self._metric_component._table_column = Column(no_wrap=True)  # the bar shrinks first


class _Speed(ProgressColumn):
    """Batches per second, as soon as they are known."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.1f} it/s" if task.speed else "", style="dim")


def epoch_name(trainer: Trainer, epoch: int) -> str:
    """Names an epoch, counted from 1, such as `epoch 5/5`."""
    last = trainer.max_epochs or -1
    return f"epoch {epoch + 1}/{last}" if last > 0 else f"epoch {epoch + 1}"


def grouped(metrics: Mapping[str, Any]) -> dict[str, str]:
    """Groups metrics by split: `{"val/loss": 0.12, "val/acc": 0.9}` becomes `{"val": "loss 0.1200 acc 90.0 %"}`."""
    groups: dict[str, list[str]] = {}
    for tag, value in sorted(metrics.items(), key=lambda metric: metric[0].rpartition("/")[0]):
        split, _, name = tag.rpartition("/")
        number = float(value)
        shown = f"{100 * number:.1f} %" if name == "acc" else f"{number:.4{'f' if abs(number) < 1 else 'g'}}"
        groups.setdefault(split or name, []).append(f"{name} {shown}" if split else shown)
    return {split: " ".join(words) for split, words in groups.items()}

"""Searches settings of a config that are best on the validation images."""

import json
import math
import os
import shlex
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean
from threading import Lock
from typing import TYPE_CHECKING, Any
from zlib import crc32

import yaml

from mnist_lightning.errors import InputError, one_line
from mnist_lightning.files import write_whole
from mnist_lightning.runs.run import ORIGINS
from mnist_lightning.runs.writing import lock, remove_unstarted
from mnist_lightning.studies import Metric
from mnist_lightning.studies.driver import machine, run_all
from mnist_lightning.studies.plan import ALL, Training, as_text, model_of, prepare_data
from mnist_lightning.studies.process import Ending, Message
from mnist_lightning.studies.progress import FOUND, PRUNED, Progress
from mnist_lightning.studies.space import Setting, parse_space, short_names
from mnist_lightning.studies.trials import COMPLETED, FAILED, Trial, Trials, check_optuna
from mnist_lightning.studies.variants import Variants

if TYPE_CHECKING:
    import optuna

_LABEL_WIDTH = 28  # characters of a trial in the table of the progress, which has 80 columns


@dataclass(frozen=True)
class SearchResult:
    """Result of a search.

    Attributes:
        trials: Trials that ended, by number.
        metric: Validation metric that was improved: `val/acc` or `val/loss`.
        space: Settings that were searched.
        importance: Share of the variance of the metric after `rung` epochs that each setting explains, the largest
            first; empty if unknown.
        rung: Number of epochs after which a trial may be pruned for the first time.
        folder: Folder of the trials' runs and of the journal.
        config_file: The best settings as a config, for `--config`. None if no trial was completed.
        log: Traceback of a failed training; empty if no failure is a bug.
    """

    trials: Sequence[Trial]
    metric: Metric
    space: Sequence[Setting]
    importance: dict[str, float]
    rung: int
    folder: Path
    config_file: Path | None
    log: str = field(default="", repr=False)

    @property
    def ranking(self) -> list[Trial]:
        """The completed trials, the best first. Of equal ones, the earlier is first. Repeated trials are left out."""
        completed = [trial for trial in self.trials if trial.state == COMPLETED and trial.repeats is None]
        sign = -1 if self.metric == "val/acc" else 1
        return sorted(completed, key=lambda trial: (sign * (trial.value or 0.0), trial.number))

    @property
    def settings(self) -> dict[str, Any]:
        """The best settings by option, such as `{"model.lr": 0.004}`, choices as text. Empty if no trial ended."""
        return dict(self.ranking[0].settings) if self.ranking else {}

    @property
    def value(self) -> float | None:
        """The metric with the best settings; None if no trial was completed."""
        return self.ranking[0].value if self.ranking else None


def search(
    config: str,
    space: Sequence[str],
    trials: int = 40,
    seeds: int = 1,
    metric: Metric = "val/acc",
    fit: Sequence[str] = (),
    jobs: int | None = None,
    address: str | None = None,
) -> SearchResult:
    """Searches settings of a config that are best on the validation images. The test images are not used.

    The first trial has the config's own settings, if the space contains them, so the result is never worse. Optuna
    proposes the settings of the others, and stops trials that fall behind. A trial's value is the metric of its last
    epoch, whose weights a training keeps: the mean over the seeds. Runs and journal are in
    `lightning_logs/search-EXPERIMENT`. A search that was stopped continues with the same call, and one with more trials
    adds to them.

    Args:
        config: Name of a config, or YAML file. `a+b` is config a with the changes of b.
        space: Settings to search: `NAME=LOW:HIGH`, `NAME=log:LOW:HIGH` for a logarithmic scale, or
            `NAME=VALUE,VALUE`. Values are integers if both bounds are, and else have four significant digits.
        trials: Number of trials, including those of earlier calls that did not fail.
        seeds: Number of seeds of a trial: 0, 1, ... Only the first one can be stopped early.
        metric: Metric of the last epoch to improve: a higher `val/acc`, or a lower `val/loss`.
        fit: More arguments of every `fit`.
        jobs: Number of simultaneous trainings. Default: the number of GPUs, or of cores.
        address: Address of a Ray cluster. Default: this machine, without Ray.

    Raises:
        InputError: If an argument cannot be used, or Optuna is not installed. Nothing is trained then.
    """
    check_optuna()
    if trials < 1:
        raise InputError(f"trials must be 1 or more, got {trials}")
    if seeds < 1:
        raise InputError(f"seeds must be 1 or more, got {seeds}")
    if config == ALL:
        raise InputError(f"a search takes one config, got {ALL}")
    settings = parse_space(space)
    variants = Variants(config, settings, fit)
    base = variants.base
    if address is None:
        prepare_data([base])
    folder = base.experiment
    with _locked(folder):
        first = {setting.name: setting.find(base.planned.settings.get(setting.name)) for setting in settings}
        if outside := [name for name, value in first.items() if value is None]:
            warnings.warn(
                f"the config's own {' and '.join(outside)} is not in the space, so the config itself is no trial",
                stacklevel=2,
            )
        journal = Trials(
            folder,
            _name(base, settings, seeds, metric),
            settings,
            maximize=metric == "val/acc",
            epochs=base.config["trainer"].get("max_epochs") or 1,
            first=None if outside else first,
        )
        log = _Search(variants, journal, seeds, metric).run(trials, jobs, address)
        result = SearchResult(journal.ended(), metric, settings, journal.importance(), journal.rung, folder, None, log)
        if not result.settings:
            return result
        best = folder / "best.yaml"
        write_whole(best, _best_config(result, config, fit))
        return replace(result, config_file=best)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keeps other processes from searching in a folder, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = lock(folder)
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _name(base: Training, space: Sequence[Setting], seeds: int, metric: Metric) -> str:
    """Names a search in the journal: another name is another search, and none of its trials count."""
    config = crc32(f"{base.planned.identity} {base.source}".encode())
    return f"{' '.join(sorted(map(str, space)))} by {metric}, seeds {seeds}, config {config:08x}"


def _best_config(result: SearchResult, config: str, fit: Sequence[str]) -> str:
    best = model_of(config, result.settings, fit)
    origins = {name: best.config[name] for name in ORIGINS if best.config.get(name)}
    start = yaml.safe_dump(origins) if origins else ""
    searched = " ".join(f"--search {shlex.quote(str(setting))}" for setting in result.space)
    lines = [
        f"{result.metric} {result.value:.6g}, the best of {len(result.trials)} trials of",
        one_line(
            f"mnist-lightning study {shlex.quote(config)} {searched} -- {shlex.join(fit)}".removesuffix(" -- "), 1000
        ),
    ]
    return "".join(f"# {line}\n" for line in lines) + start + best.shortened


class _Search:
    """Trains the trials.

    Args:
        variants: Makes their trainings.
        trials: The trials.
        seeds: Number of seeds.
        metric: Validation metric to improve.
    """

    def __init__(self, variants: Variants, trials: Trials, seeds: int, metric: Metric) -> None:
        self._variants, self._trials, self._seeds, self._metric = variants, trials, seeds, metric
        self._equal: defaultdict[str, Lock] = defaultdict(Lock)  # by settings
        self._lock = Lock()
        self._log = ""

    def run(self, count: int, jobs: int | None, address: str | None) -> str:
        """Continues unfinished trials, and starts new ones until there are enough.

        Args:
            count: Number of trials, without those that failed before.
            jobs: Number of simultaneous trainings. None for as many as pay.
            address: Address of a Ray cluster. None for this machine.

        Returns:
            Traceback of a failed training; empty if no failure is a bug.
        """
        ended = [trial for trial in self._trials.ended() if trial.state != FAILED]
        unfinished: list[int | None] = [*self._trials.unfinished()]
        to_do = unfinished + [None] * (count - len(unfinished) - len(ended))
        with Progress() as self._progress:
            for trial in ended:
                training = self._training(trial.number, trial.settings, 0)
                self._progress.add(training)
                self._progress.found(training, FOUND if trial.state == COMPLETED else PRUNED)
            if to_do:
                self._progress.more = len(to_do)
                remove_unstarted(self._variants.base.experiment)
                with machine(count, jobs, address) as self._backend:
                    self._progress.jobs = self._backend.jobs
                    run_all(self._backend, self._run_trial, to_do)
        return self._log

    def _run_trial(self, number: int | None) -> None:
        trial, settings = self._trials.start(number)
        with self._lock:
            self._progress.more -= 1
        with self._equal[json.dumps(settings)]:  # simultaneous trials with the same settings would train the same twice
            if self._trials.repeat(trial):
                return
            values = []
            for seed in range(self._seeds):
                value = self._value(trial, self._training(trial.number, settings, seed))
                if value is None:
                    return
                values.append(value)
            self._trials.complete(trial, mean(values))

    def _training(self, number: int, settings: Mapping[str, Any], seed: int) -> Training:
        return self._variants.training(trial_label(number, settings), settings, seed)

    def _value(self, trial: "optuna.Trial", training: Training) -> float | None:
        """Trains one seed of a trial. Returns its value, or None if the trial ended without one or was stopped."""
        if (value := self._trials.seed_value(trial, training.seed)) is not None:
            return value
        is_pruned = False

        def listener(message: Message) -> bool:
            nonlocal is_pruned
            self._progress.update(training, message)
            if training.seed == 0 and self._metric in message and not is_pruned:
                epoch, epochs = message["epoch"], message["epochs"]
                is_pruned = not self._trials.goes_on(trial, epoch, message[self._metric], is_last=epoch == epochs)
            return not is_pruned

        self._progress.add(training)
        self._progress.started(training)
        ending = self._backend.train(training, listener)
        if is_pruned:
            self._progress.ended(training, ending, PRUNED)
            return None
        if not (ending.error or ending.is_stopped):
            curve = [value for run in training.runs()[-1:] for value in run.curve(self._metric)]
            if not curve:
                raise InputError(f"a search needs {self._metric}, which the training of {training.label} did not log")
            value = curve[-1]
            if not math.isfinite(value):
                ending = Ending(f"its {self._metric} is {value}")
        self._progress.ended(training, ending)
        if ending.is_stopped:
            return None
        if ending.error:
            self._log = self._log or (ending.log if ending.is_bug else "")
            self._trials.fail(trial, ending.error)
            return None
        return self._trials.seed_value(trial, training.seed, value)


def trial_label(number: int, settings: Mapping[str, Any]) -> str:
    """Names a trial in at most 28 characters. Names of settings are shortened, or left out if that is not enough.

    Args:
        number: Number of the trial.
        settings: Settings by option.

    Example:
        >>> trial_label(3, {"model.lr": 0.01234, "model.weight_decay": 0.041})
        'trial 3: lr 0.012, we… 0.041'
        >>> trial_label(13, {"model.lr": 0.01234, "model.weight_decay": 0.041})
        'trial 13: 0.012, 0.041'
    """
    values = [f"{value:.2g}" if isinstance(value, float) else as_text(value) for value in settings.values()]
    names = short_names(settings)
    for length in range(max(map(len, names), default=0), 2, -1):
        shown = [name if len(name) <= length else f"{name[: length - 1]}…" for name in names]
        label = f"trial {number}: " + ", ".join(f"{n} {v}" for n, v in zip(shown, values, strict=True))
        if len(label) <= _LABEL_WIDTH:
            return label
    return one_line(f"trial {number}: {', '.join(values)}", _LABEL_WIDTH)

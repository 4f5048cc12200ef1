"""The verb `study`."""

import signal
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mnist_lightning.errors import InputError, StoppedError
from mnist_lightning.studies import Metric

if TYPE_CHECKING:  # `study --help` answers before these are imported
    from collections.abc import Iterator

    from rich.console import ConsoleOptions, RenderableType


@contextmanager
def explained_stop(way: str) -> "Iterator[None]":
    """Makes SIGTERM and SIGUSR1, which clusters send, stop a study like Ctrl-C.

    Args:
        way: How to continue.

    Raises:
        StoppedError: After Ctrl-C or one of the signals.
    """
    received = signal.SIGINT

    def stop(number: int, _: object) -> None:
        nonlocal received
        received = signal.Signals(number)
        raise KeyboardInterrupt

    for name in ("SIGTERM", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), stop)
    try:
        yield
    except KeyboardInterrupt:
        raise StoppedError(f"stopped by {received.name}; {way}", received) from None


@dataclass(frozen=True)
class StudyReport:
    """Result of a study: a report on its finished runs, and the trainings that failed.

    Attributes:
        report: Report on the finished runs; None if there is none.
        problems: One line for each training that failed.
        log: Traceback of a failed training; empty if no failure is a bug.
    """

    report: Any
    problems: Sequence[str] = ()
    log: str = field(default="", repr=False)

    def __rich_console__(self, _: Any, options: "ConsoleOptions") -> "Iterator[RenderableType]":
        from mnist_lightning.evaluation.page import unbroken

        if self.report is not None:
            yield self.report
        if self.log:
            yield unbroken(self.log)


def study_runs(
    *configs: str,
    seeds: int | None = None,
    set_: Sequence[str] = (),
    folds: int | None = None,
    jobs: int | None = None,
    address: str | None = None,
    search: Sequence[str] = (),
    trials: int | None = None,
    metric: Metric = "val/acc",
    output: str = "report",
    fit: Sequence[str] = (),
) -> Any:
    """Trains many configs with many seeds, and compares the runs.

    Each training is a `fit` in a process of its own, whose run lands in lightning_logs. Nothing is trained twice:
    finished runs are used, and runs that were stopped are resumed. After Ctrl-C, the same command continues.

    With --search, settings are proposed by Optuna and judged by validation. The test images are not used then.

    Args:
        configs: Names of configs or YAML files. a+b is config a with the changes of b; `all` stands for all shipped
            configs.
        seeds: Number of seeds: 0, 1, ... Default: 5, and 1 for a search.
        set_: Values to combine, such as model.lr=0.003,0.01. May be repeated; several make a grid.
        folds: Number of folds of a cross-validation of the training images, each trained with every seed.
        jobs: Number of simultaneous trainings, among which cores and GPUs are divided. Default: the number of GPUs, or
            of cores.
        address: Ray cluster to train on: auto, HOST:PORT, ray://HOST:PORT, or local to start Ray on this machine.
        search: Setting to search, as LOW:HIGH, log:LOW:HIGH or VALUE,VALUE, such as model.lr=log:1e-3:3e-2. May be
            repeated.
        trials: Number of trials of a search. Default: 40.
        metric: Validation metric that a search improves.
        output: Folder of the report.
        fit: Options of every `fit`, after --.

    Returns:
        The report, and the trainings that failed.

    Raises:
        InputError: If an argument cannot be used. Nothing is trained then.
    """
    if search:
        from mnist_lightning.studies.search_report import search_settings

        with explained_stop("the same command continues the search"):
            return search_settings(
                configs,
                search,
                40 if trials is None else trials,
                1 if seeds is None else seeds,
                metric,
                fit,
                jobs,
                address,
                set_,
                folds,
            )

    if trials is not None:
        raise InputError("--trials needs --search; a study trains each config with each of --seeds")
    from mnist_lightning.evaluation.compare.report import compare_runs
    from mnist_lightning.evaluation.page import report_folder
    from mnist_lightning.studies.driver import finished, train
    from mnist_lightning.studies.plan import trainings

    report_folder(output)
    planned = trainings(configs, 5 if seeds is None else seeds, folds, set_, fit)
    with explained_stop("the same command continues the study"):
        endings = train(planned, jobs, address)
    runs = finished(planned)
    failed = {training: ending for training, ending in endings.items() if ending.error}
    return StudyReport(
        compare_runs(*(str(run.folder) for run in runs), output=output) if runs else None,
        [f"{training.label}: {ending.error}" for training, ending in failed.items()],
        next((ending.log for ending in failed.values() if ending.is_bug), ""),
    )

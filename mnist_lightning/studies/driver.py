"""Trains many configs with many seeds."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TypeVar

from mnist_lightning.runs.run import Run
from mnist_lightning.runs.writing import remove_unstarted
from mnist_lightning.studies.local import LocalMachine
from mnist_lightning.studies.plan import Training, prepare_data, trainings
from mnist_lightning.studies.process import Backend, Ending, Message
from mnist_lightning.studies.progress import Progress

Item = TypeVar("Item")
Result = TypeVar("Result")


def study(
    *configs: str,
    seeds: int = 5,
    folds: int | None = None,
    settings: Sequence[str] = (),
    fit: Sequence[str] = (),
    jobs: int | None = None,
    address: str | None = None,
) -> list[Run]:
    """Trains every config with every seed, each by the command line's `fit` in a process of its own.

    Nothing is trained twice: finished runs with the same settings and seed are used, and runs that were stopped are
    resumed. The folders of the runs are the only state, so a study that was stopped continues with the same call.

    Args:
        configs: Names of configs or YAML files. `a+b` is config a with the changes of b; `all` stands for all shipped
            configs.
        seeds: Number of seeds: 0, 1, ...
        folds: Number of folds of a cross-validation, each trained with every seed. None for none.
        settings: Values to combine, such as `["model.lr=0.003,0.01", "trainer.max_epochs=5,10"]`.
        fit: More arguments of every `fit`.
        jobs: Number of simultaneous trainings. Default: the number of GPUs, or of cores. Cores, threads and GPUs are
            divided among them.
        address: Address of a Ray cluster. Default: this machine, without Ray.

    Returns:
        The finished runs, in the order of seeds, folds, configs and settings. A warning names each training that
        failed.

    Raises:
        InputError: If an argument cannot be used. Nothing is trained then.
    """
    planned = trainings(configs, seeds, folds, settings, fit)
    for training, ending in train(planned, jobs, address).items():
        if ending.error:
            warnings.warn(f"{training.label} failed: {ending.error}", stacklevel=2)
    return finished(planned)


def train(planned: Sequence[Training], jobs: int | None = None, address: str | None = None) -> dict[Training, Ending]:
    """Trains what is left of some trainings, several at once, and shows the progress.

    Args:
        planned: The trainings.
        jobs: Number of simultaneous trainings. None for as many as pay.
        address: Address of a Ray cluster. None for this machine.

    Returns:
        The end of each training that was not finished before.

    Raises:
        InputError: If an argument cannot be used.
        KeyboardInterrupt: After Ctrl-C, when all trainings have stopped.
    """
    if address is None:
        prepare_data(planned)
    left = [training for training in planned if training.finished() is None]
    with Progress(planned) as progress:
        for training in planned:
            if training not in left:
                progress.found(training)
        if not left:
            return {}
        with machine(len(planned), jobs, address) as backend:
            progress.jobs = backend.jobs
            for folder in {training.experiment for training in left}:
                remove_unstarted(folder)
            endings = run_all(backend, partial(train_one, backend, progress), left)
    return dict(zip(left, endings, strict=True))


@contextmanager
def machine(trainings: int, jobs: int | None, address: str | None) -> Iterator[Backend]:
    """Yields the place where the trainings of a study run.

    Args:
        trainings: Number of trainings of the study.
        jobs: Number of simultaneous trainings. None for as many as pay.
        address: Address of a Ray cluster. None for this machine.

    Raises:
        InputError: If an argument cannot be used, or there is no cluster.
    """
    if address is None:
        yield LocalMachine(trainings, jobs)
        return
    from mnist_lightning.studies.cluster import RayCluster

    cluster = RayCluster(address, trainings, jobs)
    try:
        yield cluster
    finally:
        cluster.close()


def run_all(backend: Backend, task: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """Runs a task for each item, as many at once as a backend has jobs.

    Ctrl-C, and an error of a task, stop the trainings of the backend.

    Args:
        backend: Runs the trainings of the tasks.
        task: Function of an item.
        items: The items.

    Returns:
        The results, in the order of the items.
    """
    with ThreadPoolExecutor(backend.jobs, thread_name_prefix="study") as pool:
        try:
            futures = [pool.submit(task, item) for item in items]
            for future in as_completed(futures):
                future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            backend.stop()
            raise
    return [future.result() for future in futures]


def train_one(backend: Backend, progress: Progress, training: Training) -> Ending:
    """Trains what is left of one training."""

    def listener(message: Message) -> bool:
        progress.update(training, message)
        return True

    progress.started(training)
    ending = backend.train(training, listener)
    if not (ending.error or ending.is_stopped or training.finished()):
        ending = replace(ending, error="fit ended without the results of a test")
    progress.ended(training, ending)
    return ending


def finished(planned: Iterable[Training]) -> list[Run]:
    """Returns the finished runs of some trainings."""
    return [run for training in planned if (run := training.finished())]

"""Trainings on a Ray cluster."""

import math
import os
import shutil
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

from mnist_lightning.data.sources import data_root
from mnist_lightning.errors import InputError, one_line
from mnist_lightning.runs.run import Run
from mnist_lightning.runs.writing import lock, pack, unpack
from mnist_lightning.studies.connection import connected, examine_nodes, open_mailbox
from mnist_lightning.studies.local import to_do
from mnist_lightning.studies.node import POLL, Outcome, train_apart, train_shared
from mnist_lightning.studies.plan import Training
from mnist_lightning.studies.process import Ending, Listener

_RETRIES = 3  # of a training whose node or worker dies
_PAUSE = 5  # seconds before a retry: the cluster must notice first that the node is dead
_GRACE = 90  # seconds until a training must have stopped and its run must have arrived


class RayCluster:
    """Runs each training as a Ray task, on any node. The driver needs no node of its own.

    A task has one CPU, and one GPU if the cluster has any. With `jobs`, the tasks share the CPUs, and the GPUs if there
    are fewer GPUs than jobs.

    If all nodes have the driver's working directory, trainings run in it, and those whose node dies are resumed.
    Otherwise a training runs in a temporary folder of its node, and its run comes back through Ray.

    Args:
        address: `auto` for the cluster that this machine belongs to, HOST:PORT of the head node, ray://HOST:PORT for
            Ray Client, or `local` to start Ray on this machine.
        trainings: Number of trainings of the study.
        jobs: Number of simultaneous trainings. None for as many as the cluster has CPUs, or GPUs.

    Attributes:
        jobs: Number of simultaneous trainings.
        cpus: Number of CPUs and CPU threads of each.
        gpus: Number of GPUs of each, 1 or less.
        is_shared: Whether all nodes share the driver's working directory.

    Raises:
        InputError: If Ray is not installed, there is no cluster at the address, or its nodes cannot train.
    """

    def __init__(self, address: str, trainings: int, jobs: int | None = None) -> None:
        if jobs is not None and jobs < 1:
            raise InputError(f"jobs must be 1 or more, got {jobs}")
        self._connection = ExitStack()
        self._connection.enter_context(connected(address))
        import ray

        api: Any = ray  # its types do not know all options
        try:
            nodes = [node for node in api.nodes() if node["Alive"]]
            resources = [node["Resources"] for node in nodes]
            self.jobs, self.cpus, self.gpus = shares(resources, min(jobs, max(1, trainings)) if jobs else None)
            self.jobs = min(self.jobs, max(1, trainings))
            if not self.jobs:
                raise InputError(f"the Ray cluster at {address} has no CPUs; start nodes with --num-cpus 1 or more")
            self.is_shared = examine_nodes(nodes)
            options = {"num_cpus": self.cpus, "num_gpus": self.gpus, "max_retries": 0, "scheduling_strategy": "SPREAD"}
            self._task = api.remote(**options)(train_shared if self.is_shared else train_apart)
            self._mailbox = open_mailbox(address)
        except BaseException:
            self.close()
            raise
        self._folder = Path.cwd()  # jsonargparse changes it while it reads a config, perhaps in another thread
        self._data = data_root(None).absolute()
        self._stopped = threading.Event()
        self._trainings: set[Training] = set()  # those that run

    def train(self, training: Training, listener: Listener) -> Ending:
        """Trains what is left of a training on a node. Returns when its run is in the folder of its experiment.

        Waits while the cluster has no free CPUs or GPUs, or another process works on the same training.

        Args:
            training: The training.
            listener: Takes its messages.
        """
        self._trainings.add(training)
        try:
            return self._train(training, listener)
        finally:
            self._trainings.remove(training)

    def stop(self) -> None:
        """Stops all trainings, so that they can be resumed, and waits until their runs have arrived."""
        self._stopped.set()
        deadline = time.monotonic() + _GRACE + _PAUSE
        while self._trainings and time.monotonic() < deadline:
            time.sleep(0.1)

    def close(self) -> None:
        """Disconnects from the cluster. Stops it if it was started with the address `local`."""
        self._connection.close()

    def _train(self, training: Training, listener: Listener) -> Ending:
        import ray.exceptions as ray_errors

        deaths = (
            ray_errors.WorkerCrashedError,
            ray_errors.NodeDiedError,
            ray_errors.LocalRayletDiedError,
            ray_errors.ObjectLostError,
            ray_errors.OutOfMemoryError,
        )
        warnings: list[str] = []
        while not self._stopped.is_set() and training.finished() is None:
            try:
                ending = self._attempt(training, listener)
            except deaths as error:
                cause = "was out of memory" if isinstance(error, ray_errors.OutOfMemoryError) else "died"
                if len(warnings) == _RETRIES:
                    error_line = f"its node or worker {cause}, {_RETRIES + 1} times"
                    return Ending(error_line, one_line(error), tuple(warnings))
                retry = f"(retry {len(warnings) + 1} of {_RETRIES})"
                warnings.append(f"its node or worker {cause}; the training was submitted again {retry}")
                self._stopped.wait(_PAUSE)
            except ray_errors.RayTaskError as error:
                return Ending(one_line(error.cause), str(error), tuple(warnings))
            except InputError as error:  # another process has just begun to resume the run
                return Ending(str(error), warnings=tuple(warnings))
            except (ray_errors.RayError, ConnectionError) as error:
                return Ending(f"the connection to the Ray cluster is lost: {one_line(error)}", warnings=tuple(warnings))
            else:
                return replace(ending, warnings=(*warnings, *ending.warnings))
        return Ending(warnings=tuple(warnings), is_stopped=self._stopped.is_set())

    def _attempt(self, training: Training, listener: Listener) -> Ending:
        """Trains on a node."""
        if self.is_shared:
            outcome = self._submit(training, listener, str(self._folder), str(self._data))
            training.source = outcome.source
            return outcome.ending
        if not to_do(training, self._stopped):
            return Ending(is_stopped=self._stopped.is_set())
        unfinished = next(reversed(training.runs()), None)
        with _locked(unfinished):
            outcome = self._submit(training, listener, None if unfinished is None else pack(unfinished))
            training.source = outcome.source
            if outcome.run is None:
                return outcome.ending
            try:
                folder = unpack(outcome.run, self._folder / training.experiment)
                if unfinished is not None and unfinished.folder is not None:
                    shutil.rmtree(unfinished.folder)
                    folder = folder.rename(unfinished.folder)
            except OSError as error:
                return replace(outcome.ending, error=f"cannot write to {training.experiment}: {error.strerror}")
        return _renamed(outcome.ending, outcome.folder, str(folder))

    def _submit(self, training: Training, listener: Listener, *place: Any) -> Outcome:
        """Submits a task, and passes its messages on until it ends."""
        import ray

        key = uuid4().hex
        task = self._task.remote(training, self.cpus, self._mailbox, key, *place)
        is_told = False  # to stop
        deadline = math.inf
        try:
            while True:
                is_done = bool(ray.wait([task], timeout=POLL)[0])
                messages = ray.get(self._mailbox.receive.remote(key))
                answers = [listener(message) for message in messages or ()]
                if not is_told and (self._stopped.is_set() or not all(answers)):
                    is_told, deadline = True, time.monotonic() + _GRACE
                    ray.get(self._mailbox.stop.remote(key))
                if is_done:
                    outcome: Outcome = ray.get(task)
                    return outcome
                if is_told and (messages is None or time.monotonic() > deadline):  # waits for a node, or hangs
                    ray.cancel(task, force=True)
        except BaseException as error:
            if is_told and isinstance(error, ray.exceptions.RayError):
                return Outcome(Ending(is_stopped=True))
            with suppress(Exception):
                ray.cancel(task, force=True)
            raise


def shares(nodes: Sequence[Mapping[str, float]], jobs: int | None) -> tuple[int, int, float]:
    """Divides the CPUs and GPUs of a cluster among trainings.

    By default, each has one CPU, however many there are, because a training gives the same bits only with the same
    number of threads.

    Args:
        nodes: Resources of each node, such as `{"CPU": 8, "GPU": 1}`.
        jobs: Number of simultaneous trainings. None for as many as possible.

    Returns:
        The number of simultaneous trainings, 0 if none is possible, and the CPUs and GPUs of each.

    Example:
        >>> shares([{"CPU": 8}, {"CPU": 4}], None)
        (12, 1, 0.0)
        >>> shares([{"CPU": 8}, {"CPU": 4}], 3)
        (3, 4, 0.0)
        >>> shares([{"CPU": 8, "GPU": 2}, {"CPU": 4}], 4)
        (4, 2, 0.5)
    """
    gpus = sum(node.get("GPU", 0) for node in nodes)
    sharers = max(1, math.ceil((jobs or 1) / gpus)) if gpus else 1  # trainings on each GPU

    def places(cpus: int) -> int:
        by_cpu = [int(node.get("CPU", 0) // cpus) for node in nodes]
        by_gpu = [int(node.get("GPU", 0) * sharers) for node in nodes]
        return sum(map(min, by_cpu, by_gpu) if gpus else by_cpu)

    gpu = math.floor(1e4 / sharers) / 1e4 if gpus else 0.0  # Ray counts in steps of 0.0001
    possible = places(1)
    if not possible or jobs is None:
        return possible, 1, gpu
    largest = int(max(node.get("CPU", 0) for node in nodes))
    return jobs, max((cpus for cpus in range(1, largest + 1) if places(cpus) >= jobs), default=1), gpu


@contextmanager
def _locked(run: Run | None) -> Iterator[None]:
    """Keeps other processes from resuming a run."""
    descriptor = None if run is None or run.folder is None else lock(run.folder)
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _renamed(ending: Ending, old: str, new: str) -> Ending:
    """Replaces the path of a run in all texts."""
    error, log, *warnings = (text.replace(old, new) for text in (ending.error, ending.log, *ending.warnings))
    return replace(ending, error=error, log=log, warnings=tuple(warnings))

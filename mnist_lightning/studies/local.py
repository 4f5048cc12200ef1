"""Trainings on this machine, several at once."""

import math
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from threading import Event, Lock

import torch

from mnist_lightning.errors import InputError
from mnist_lightning.runs.writing import is_locked, remove_without_checkpoint
from mnist_lightning.studies.plan import Training
from mnist_lightning.studies.process import Ending, FitProcess, Listener

_BYTES_PER_JOB = 1.5 * 2**30  # memory of a training


class LocalMachine:
    """Runs each training in a process of its own. Cores, threads and GPUs are divided among them.

    By default there are as many processes as GPUs, or as cores: these models are so small that two trainings of one
    thread each are faster than one after the other with two threads.

    Args:
        trainings: Number of trainings of the study. It must not depend on how many are left to do, because a training
            gives the same bits only with the same number of threads.
        jobs: Number of simultaneous trainings. None for as many as pay.

    Attributes:
        jobs: Number of simultaneous trainings.
        threads: Number of CPU threads of each.

    Raises:
        InputError: If `jobs` is less than 1.
    """

    def __init__(self, trainings: int, jobs: int | None = None) -> None:
        if jobs is not None and jobs < 1:
            raise InputError(f"jobs must be 1 or more, got {jobs}")
        cores, gpus = _cores(), _gpus()
        self.jobs = min(jobs or len(gpus) or min(cores, _jobs_in_memory()), max(1, trainings))
        given = os.environ.get("OMP_NUM_THREADS", "")
        self.threads = int(given) if given.isdecimal() else max(1, cores // self.jobs)
        self._folder = Path.cwd()  # jsonargparse changes it while it reads a config, perhaps in another thread
        self._shares: SimpleQueue[Sequence[str] | None] = SimpleQueue()
        for job in range(self.jobs):
            self._shares.put(_share(gpus, job, self.jobs))
        self._processes: set[FitProcess] = set()
        self._lock = Lock()
        self._stopped = Event()

    def train(self, training: Training, listener: Listener) -> Ending:
        """Trains what is left of a training: nothing, the rest of a run that was stopped, or all of it.

        Waits while another process works on the same training.

        Args:
            training: The training.
            listener: Takes its messages.
        """
        gpus = self._shares.get()
        try:
            arguments = to_do(training, self._stopped)
            if not arguments:
                return Ending(is_stopped=self._stopped.is_set())
            process = FitProcess(arguments, self._folder, self.threads, gpus)
            with self._lock:
                if self._stopped.is_set():
                    return Ending(is_stopped=True)
                self._processes.add(process)
            return process.run(listener)
        finally:
            self._shares.put(gpus)

    def stop(self) -> None:
        """Stops all trainings, so that they can be resumed."""
        self._stopped.set()
        with self._lock:
            for process in self._processes:
                process.terminate()
        for process in self._processes:
            process.stop()


def to_do(training: Training, stopped: Event) -> Sequence[str]:
    """Returns the arguments of the `fit` that completes a training; empty if there is a finished run.

    Waits while another process works on it.

    Args:
        training: The training.
        stopped: Ends the wait.
    """
    while not stopped.is_set():
        runs = training.runs()
        if any(run.is_finished for run in runs):
            return ()
        folders = [run.folder for run in runs if run.folder is not None]
        if any(map(is_locked, folders)):
            time.sleep(1)
            continue
        for run in runs:
            remove_without_checkpoint(run)
        resumable = [run for run in runs if run.checkpoint("last") is not None]
        return ("fit", "--ckpt_path", str(resumable[-1].folder)) if resumable else training.fit
    return ()


def _cores() -> int:
    """Number of cores that this process may use, also in a container."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with suppress(OSError, ValueError):  # no control groups, or no quota: "max"
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        cores = min(cores, math.ceil(int(quota) / int(period)))
    return cores


def _gpus() -> list[str]:
    """Names of the visible GPUs, for CUDA_VISIBLE_DEVICES."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else [str(index) for index in range(torch.cuda.device_count())]
    return names[: torch.cuda.device_count()]


def _share(gpus: Sequence[str], job: int, jobs: int) -> Sequence[str] | None:
    """GPUs of one of several simultaneous trainings. None to leave the choice to Lightning: there is no GPU."""
    if not gpus:
        return None
    start, end = (number * len(gpus) // jobs for number in (job, job + 1))
    return gpus[start:end] or [gpus[job % len(gpus)]]


def _jobs_in_memory() -> int:
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError):  # Windows
        return 1
    return max(1, int(total / _BYTES_PER_JOB))

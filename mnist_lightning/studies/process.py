"""One `fit` in a process of its own."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock, Thread
from typing import IO, Any, Protocol

from mnist_lightning.errors import one_line
from mnist_lightning.studies.plan import Training
from mnist_lightning.training.supervision import STUDY

_GRACE = 60  # seconds between SIGTERM and SIGKILL
_LOG_BYTES = 20_000  # of the end of standard error
_ERROR = "mnist-lightning: error: "
_WARNING = "mnist-lightning: warning: "

Message = Mapping[str, Any]  # of `training.progress.EpochMessages`
Listener = Callable[[Message], bool]  # takes the messages of a training, and returns whether it goes on


@dataclass(frozen=True)
class Ending:
    """How a `fit` ended.

    Attributes:
        error: What went wrong, in one line; empty if nothing did.
        log: End of standard error: the traceback of a bug.
        warnings: Warnings, one line each.
        is_stopped: Whether the study stopped it.
    """

    error: str = ""
    log: str = ""
    warnings: tuple[str, ...] = ()
    is_stopped: bool = False

    @property
    def is_bug(self) -> bool:
        """Whether the error has a traceback."""
        return bool(self.error) and "Traceback (most recent call last)" in self.log


class Backend(Protocol):
    """A place where trainings run.

    Attributes:
        jobs: Number of simultaneous trainings.
    """

    jobs: int

    def train(self, training: Training, listener: Listener) -> Ending:
        """Trains what is left of a training, and returns when its run is in the folder of its experiment."""

    def stop(self) -> None:
        """Stops all trainings, so that they can be resumed. Called from another thread than `train`."""


class FitProcess:
    """Runs `mnist-lightning fit` in a process of its own. It ends with this process, also after SIGKILL.

    Args:
        arguments: Arguments of the command line, the verb first.
        folder: Working directory.
        threads: Number of CPU threads.
        gpus: GPUs that the process sees, as in CUDA_VISIBLE_DEVICES. None for all.
    """

    def __init__(
        self, arguments: Sequence[str], folder: str | Path = ".", threads: int = 1, gpus: Sequence[str] | None = None
    ) -> None:
        self.arguments, self.folder, self.threads, self.gpus = arguments, folder, threads, gpus
        self._process: subprocess.Popen[str] | None = None
        self._is_stopped = False
        self._lock = Lock()

    def run(self, listener: Listener) -> Ending:
        """Starts the process and waits for its end.

        Args:
            listener: Takes the messages of the training, at its start and after each epoch, in another thread. If it
                returns False, the training is stopped.
        """
        # In a job of SLURM, Lightning would distribute the training over the job's tasks.
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
        environment = {**inherited, STUDY: "1", "OMP_NUM_THREADS": str(self.threads), "PYTHONUNBUFFERED": "1"}
        if self.gpus is not None:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(self.gpus)
        # -P: a file torch.py in the current folder must not shadow torch.
        command = [sys.executable, "-P", "-m", "mnist_lightning", *self.arguments]
        with tempfile.TemporaryFile() as log:
            with self._lock:
                if self._is_stopped:
                    return Ending(is_stopped=True)
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,  # its end tells the process to stop
                    stdout=subprocess.PIPE,
                    stderr=log,
                    cwd=self.folder,
                    env=environment,
                    text=True,
                    errors="replace",
                    start_new_session=True,  # Ctrl-C goes to the study alone
                )
            assert self._process.stdout is not None
            reader = Thread(target=self._read, args=(self._process.stdout, listener), daemon=True)
            reader.start()
            code = self._process.wait()
            with suppress(ProcessLookupError, PermissionError):  # processes of a distributed training
                os.killpg(self._process.pid, signal.SIGKILL)
            reader.join()
            for pipe in (self._process.stdin, self._process.stdout):
                pipe.close()  # type: ignore[union-attr]
            return replace(_ending(code, _end_of(log)), is_stopped=self._is_stopped and code != 0)

    def terminate(self) -> None:
        """Tells the training to stop after its current step, so that it can be resumed."""
        with self._lock:
            self._is_stopped = True
            if self._process is not None:
                self._process.terminate()

    def stop(self) -> None:
        """Stops the training and waits for its end. Kills it if it does not stop."""
        self.terminate()
        if self._process is not None:
            try:
                self._process.wait(_GRACE)
            except subprocess.TimeoutExpired:
                self._process.kill()

    def _read(self, lines: IO[str], listener: Listener) -> None:
        for line in lines:
            message = _message(line)
            if message is not None and not listener(message):
                Thread(target=self.stop, daemon=True).start()  # its wait must not keep this thread from reading


def _message(line: str) -> Message | None:
    with suppress(json.JSONDecodeError):  # another line, such as one that a callback of the user prints
        message = json.loads(line)
        return message if isinstance(message, dict) and "epoch" in message else None
    return None


def _end_of(log: IO[bytes]) -> str:
    log.seek(max(0, log.seek(0, os.SEEK_END) - _LOG_BYTES))
    return log.read().decode(errors="replace")


def _ending(code: int, log: str) -> Ending:
    lines = [line for line in log.splitlines() if line.strip()]
    warnings = tuple(line.removeprefix(_WARNING) for line in lines if line.startswith(_WARNING))
    if code == 0:
        return Ending(warnings=warnings)
    if code < 0:
        name = signal.Signals(-code).name
        cause = " (is the memory full?)" if name == "SIGKILL" else ""
        return Ending(f"the process was killed by {name}{cause}", log, warnings)
    errors = [line.removeprefix(_ERROR) for line in lines if line.startswith(_ERROR)]
    last = errors or [line for line in lines if not line.startswith(_WARNING)] or [f"exit code {code}"]
    return Ending(one_line(last[-1]), log, warnings)

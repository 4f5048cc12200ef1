"""A training in a process that a study started: it ends with the study, and reports its epochs to it."""

import os
import signal
import sys
from threading import Thread

STUDY = "MNIST_LIGHTNING_STUDY"  # environment variable, set in the processes of a study


def in_study() -> bool:
    """Whether a study started this process."""
    return bool(os.environ.get(STUDY))


def end_with_study() -> None:
    """Stops this process when the study's process ends, also by SIGKILL: that closes the pipe at standard input.

    The signal is SIGTERM, so a training stops as it does for `kill`, and can be resumed.
    """

    def watch() -> None:
        while os.read(sys.stdin.fileno(), 1024):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    Thread(target=watch, daemon=True, name="end with study").start()

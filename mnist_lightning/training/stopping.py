"""Signals that stop a training."""

import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch import LightningModule, Trainer

from mnist_lightning.errors import StoppedError
from mnist_lightning.lean import IdleInSteps
from mnist_lightning.runs.run import Run
from mnist_lightning.runs.writing import how_to_continue

# Of `kill` and of clusters: SLURM sends either before it ends a job.
_SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name)]


class StopSignals(IdleInSteps):
    """Makes the signals of clusters stop a training like Ctrl-C, in all processes.

    Lightning's own handler lets the command end with exit code 0, and calls a collective operation in the handler.

    Attributes:
        received: Number of the signal that stopped the training.
    """

    def __init__(self) -> None:
        self.received = int(signal.SIGINT)

    def _catch(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                signal.signal(number, self._stop)

    # Lightning installs its handlers before these hooks, and restores those of the process after the training.
    on_sanity_check_start = on_train_start = on_validation_start = on_test_start = on_predict_start = _catch

    def explain(self, trainer: Trainer) -> StoppedError | SystemExit:
        """Returns the error that ends the command: in the first process, it says how to resume the training."""
        if not trainer.is_global_zero:
            return SystemExit(128 + self.received)
        folder = trainer.loggers[0].log_dir if trainer.loggers else None
        way = f"; {how_to_continue(Run(folder))}" if folder and Path(folder).is_dir() else ""
        return StoppedError(f"stopped by {signal.Signals(self.received).name}{way}", self.received)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        raise KeyboardInterrupt


def without_requeue(plugins: Any) -> list[Any] | None:
    """Stops Lightning from requeueing a SLURM job: its checkpoint would lie outside of the run."""
    given = [] if plugins is None else plugins if isinstance(plugins, list) else [plugins]
    named = any(isinstance(plugin, ClusterEnvironment) for plugin in given)
    if not named and not TorchElasticEnvironment.detect() and SLURMEnvironment.detect():
        given = [*given, SLURMEnvironment(auto_requeue=False)]
    return given or None

"""Which checkpoints a training keeps, and how they are written and read."""

from pathlib import Path
from typing import Any

from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from mnist_lightning.files import save_tensors
from mnist_lightning.lean import IdleInSteps
from mnist_lightning.runs.checkpoint import read_checkpoint
from mnist_lightning.runs.run import Run


class BestCheckpoint(IdleInSteps, ModelCheckpoint):  # type: ignore[misc]
    """Keeps the checkpoint that is tested: of the epoch with the highest validation accuracy.

    A few thousand images often give several epochs the same accuracy. Lightning keeps the first of them, but with a
    falling learning rate the last one is trained better.
    """

    def __init__(self) -> None:
        super().__init__(monitor="val/acc", mode="max", filename=Run("").best.stem, enable_version_counter=False)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the best score. The checkpoint is that of this folder, also if the run was moved or copied."""
        best = Path(self.dirpath or "", Run("").best.name)
        if not state_dict["best_model_path"]:
            return
        if not best.is_file():
            rank_zero_warn(f"{best} is missing: the best of the following epochs replaces it")
            return
        here = {"dirpath": self.dirpath, "best_model_path": str(best), "kth_best_model_path": str(best)}
        super().load_state_dict({**state_dict, **here, "best_k_models": {str(best): state_dict["best_model_score"]}})

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keeps the last weights of a training without validation, so that each run has a checkpoint to test."""
        if not self.best_model_path and not self._should_skip_saving_checkpoint(trainer):
            self.best_model_path = str(Path(self.dirpath or "", Run("").best.name))
            self._save_checkpoint(trainer, self.best_model_path)

    def check_monitor_top_k(self, trainer: Trainer, current: Tensor | None = None) -> bool:
        """Counts an epoch as better if it equals the best one."""
        equal = current is not None and current == self.best_model_score
        return super().check_monitor_top_k(trainer, current) or trainer.strategy.reduce_boolean_decision(bool(equal))


class LastCheckpoint(IdleInSteps, ModelCheckpoint):  # type: ignore[misc]
    """Keeps the checkpoint of the last epoch.

    Lightning's `save_last` writes one only when there is a new best checkpoint, too.
    """

    def __init__(self) -> None:
        # Without the last argument, none is written in epochs without validation.
        super().__init__(filename=Run("").last.stem, enable_version_counter=False, save_on_train_epoch_end=True)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores nothing: there is one file, in this folder."""


def write_atomically(trainer: Trainer) -> None:
    """Makes a Trainer write and read checkpoints with `AtomicCheckpointIO`, unless it has a plugin for them."""
    if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:  # Lightning's default
        trainer.strategy.checkpoint_io = AtomicCheckpointIO()


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints atomically, and refuses damaged ones.

    Lightning writes to a temporary file that may lie on another disk, so its last move can be a copy that stops
    half-way, and it reads damaged files without an error.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Writes a checkpoint. Remote paths are left to Lightning."""
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
        else:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            save_tensors(checkpoint, Path(path))

    def load_checkpoint(self, path: str | Path, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Reads a checkpoint with `read_checkpoint`. Remote paths are left to Lightning."""
        return super().load_checkpoint(path, *args, **kwargs) if "://" in str(path) else read_checkpoint(Path(path))

"""Which checkpoint a training keeps, and how it is written and read."""

from pathlib import Path
from typing import Any

from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from mnist_lightning.files import save_tensors
from mnist_lightning.lean import IdleInSteps
from mnist_lightning.runs.checkpoint import read_checkpoint
from mnist_lightning.runs.run import Run


class LastCheckpoint(IdleInSteps, ModelCheckpoint):  # type: ignore[misc]
    """Keeps the checkpoint of the last epoch, which is tested. It has the averaged weights if the training averages.

    A few thousand validation images cannot tell the last epochs apart. The best of them is often an epoch before the
    learning rate has decreased, so no epoch is chosen.
    """

    def __init__(self) -> None:
        # Without the last argument, none is written in epochs without validation.
        super().__init__(filename=Run("").last.stem, enable_version_counter=False, save_on_train_epoch_end=True)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the path in this folder, also if the run was moved or copied."""
        last = Path(self.dirpath or "", Run("").last.name)
        if last.is_file():
            self.best_model_path = self.last_model_path = str(last)


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

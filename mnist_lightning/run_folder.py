"""The folder of a training: one training's alone, and every file in it whole."""

import contextlib
import errno
from pathlib import Path
from typing import Any

from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.core.saving import save_hparams_to_yaml
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from mnist_lightning.checkpoint import read_checkpoint
from mnist_lightning.errors import InputError
from mnist_lightning.files import replacing, write_whole
from mnist_lightning.sealed import save_sealed

# What a disk says that takes no more: full, over quota, over the largest size of a file, read-only, broken.
_TAKES_NO_MORE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}


class WholeCheckpoints(TorchCheckpointIO):
    """Lightning's way of writing and reading checkpoints, made safe against kills, full disks and rotten files.

    Lightning writes a checkpoint to a temporary file that may lie on another disk, so that the last move is a copy,
    which can end half-way; and it reads what is damaged without noticing.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Writes a checkpoint, whole or not at all."""
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
        else:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            save_sealed(checkpoint, Path(path))

    def load_checkpoint(self, path: str | Path, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Reads one as `read_checkpoint` does."""
        return super().load_checkpoint(path, *args, **kwargs) if "://" in str(path) else read_checkpoint(Path(path))


class RunLogger(TensorBoardLogger):
    """TensorBoard's files, in a folder that no other training has."""

    def _get_next_version(self) -> int:
        """Makes the folder. Lightning only looks which are there, and two trainings at once see the same."""
        version: int = super()._get_next_version()
        if rank_zero_only.rank:  # type: ignore[attr-defined]  # the other processes are told the first one's folder
            return version
        Path(self.root_dir).mkdir(parents=True, exist_ok=True)
        while True:
            try:
                Path(self.root_dir, f"version_{version}").mkdir()
            except FileExistsError:
                version += 1
            else:
                return version

    @rank_zero_only
    def save(self) -> None:
        """Writes `hparams.yaml` whole, where Lightning would write it in place."""
        path = Path(self.log_dir, self.NAME_HPARAMS_FILE)
        if path.parent.is_dir() and not path.exists():
            with replacing(path) as temporary:
                save_hparams_to_yaml(temporary, self.hparams)
        super().save()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Closes the files; after a failure it hides nothing, and leaves no folder that has nothing in it."""
        if status != "failed":
            return super().finalize(status)
        with contextlib.suppress(OSError):  # a full disk, which is why it failed
            super().finalize(status)
        with contextlib.suppress(OSError):  # not empty
            for folder in (self.log_dir, self.root_dir, self.save_dir):
                Path(folder).rmdir()
        return None


class RunConfig(SaveConfigCallback):
    """Writes `config.yaml` whole: half a config may be a valid one, of another training."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Lightning's hook."""
        folder = trainer.log_dir  # a broadcast: all processes must ask
        if trainer.is_global_zero and folder is not None and not self.already_saved:
            path = Path(folder, self.config_filename)
            if path.exists() and not self.overwrite:
                raise InputError(f"{path} is there already: a run needs a folder of its own")
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, self.parser.dump(self.config, skip_none=False).encode())
        self.already_saved = True


def explained(error: OSError, run: Path) -> OSError | InputError:
    """An error of a training, said for people where a disk takes no more: what is kept, and how to go on.

    Args:
        error: What was raised.
        run: The training's folder.
    """
    if error.errno not in _TAKES_NO_MORE:
        return error
    kept = [path for path in (run / "checkpoints" / "last.ckpt", run / "checkpoints" / "best.ckpt") if path.is_file()]
    way = "no checkpoint was written yet, so begin anew with the same command"
    if kept:
        epoch = read_checkpoint(kept[0])["epoch"]
        way = f"{kept[0].name} of epoch {epoch} is kept, so go on with mnist-lightning fit --ckpt_path {run}"
    return InputError(f"{error.filename or run} cannot be written: {error.strerror}. Make room; {way}")

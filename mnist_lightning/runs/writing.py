"""Writes the files of a training, each atomically, and explains full disks."""

import errno
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mnist_lightning.errors import InputError
from mnist_lightning.files import write_whole
from mnist_lightning.runs.checkpoint import read_checkpoint
from mnist_lightning.runs.predictions import save_predictions
from mnist_lightning.runs.run import Run

# `errno` values of a disk that cannot be written: full, over quota, over the largest file size, read-only, broken.
_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}


def write_config(run: Run, text: str, overwrite: bool) -> None:
    """Writes a run's config.

    Args:
        run: The run.
        text: YAML.
        overwrite: Whether the run may have a config already.

    Raises:
        InputError: If the run has a config and must not have one.
    """
    if run.config_file.exists() and not overwrite:
        raise InputError(f"{run.config_file} exists already: a new run needs a new folder")
    run.config_file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(run.config_file, text.encode())


def write_results(run: Run, summary: dict[str, Any], logits: NDArray[np.float32], labels: NDArray[np.int64]) -> None:
    """Writes a run's summary and test predictions; the summary last, because it marks the run as finished.

    Args:
        run: The run.
        summary: Metrics and facts.
        logits: float [N, 10], of the test images.
        labels: int64 [N].
    """
    save_predictions(run.predictions_file, logits, labels)
    write_whole(run.summary_file, (json.dumps(summary, indent=2) + "\n").encode())


def write_predictions(checkpoint: Path, logits: Tensor, labels: Tensor) -> Path:
    """Writes one row per image beside a checkpoint: index, label, predicted class and confidence.

    Args:
        checkpoint: The model's checkpoint.
        logits: float [N, 10].
        labels: int64 [N].

    Returns:
        The file.
    """
    confidence, predicted = logits.softmax(dim=1).max(dim=1)
    rows = zip(range(len(labels)), labels.tolist(), predicted.tolist(), confidence.tolist(), strict=True)
    lines = ["index,label,predicted,confidence", *(",".join(map(str, row)) for row in rows), ""]
    path = checkpoint.with_name("predictions.csv")
    write_whole(path, "\n".join(lines).encode())
    return path


def explain_disk_error(error: OSError, run: Run) -> OSError | InputError:
    """Explains a training's disk error: what was saved, and how to resume.

    Args:
        error: The error.
        run: The training's run.

    Returns:
        One line for the user, or the same error if the disk can be written.
    """
    if error.errno not in _DISK_ERRORS:
        return error
    way = "no checkpoint was saved yet; start again with the same command"
    if checkpoint := run.checkpoint("last"):
        epoch = read_checkpoint(checkpoint)["epoch"]
        way = f"{checkpoint.name} of epoch {epoch} is saved; resume with mnist-lightning fit --ckpt_path {run.folder}"
    return InputError(f"cannot write {error.filename or run.folder}: {error.strerror}. Free some space; {way}")

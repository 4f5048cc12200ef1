"""Writes the files of a training, each atomically, and explains full disks."""

import errno
import itertools
import json
import os
import shutil
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from zipfile import ZipFile

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mnist_lightning.errors import InputError
from mnist_lightning.files import writable, write_whole
from mnist_lightning.runs.checkpoint import read_checkpoint
from mnist_lightning.runs.predictions import save_predictions
from mnist_lightning.runs.run import Run

_COLUMNS = "index,label,predicted,confidence"
# `errno` values of a disk that cannot be written: full, over quota, over the largest file size, read-only, broken.
_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}


def lock(folder: Path) -> int | None:
    """Locks a run's folder, so that no other process trains in it. The lock ends with the process.

    Args:
        folder: The run's folder.

    Returns:
        A file descriptor that holds the lock until `os.close`. None if the file system or the platform has no locks.

    Raises:
        InputError: If another process holds the lock.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise InputError(f"another process trains in {folder}; wait until it ends, or stop it") from None
    except OSError:  # some network file systems
        os.close(descriptor)
        return None
    return descriptor


def is_locked(folder: Path) -> bool:
    """Whether another process trains in a run's folder."""
    try:
        descriptor = lock(folder)
    except InputError:
        return True
    if descriptor is not None:
        os.close(descriptor)
    return False


def remove_unstarted(experiment: Path) -> None:
    """Removes what trainings that were killed before their first step left in the folder of an experiment.

    Such a folder has no config, no checkpoint and no summary. A folder in which a process trains, or which holds any
    other file than TensorBoard's, is kept.
    """
    for folder in experiment.glob("version_*"):
        if folder.is_dir() and not Run(folder).exists and not is_locked(folder):
            files = [path for path in folder.rglob("*") if not path.is_dir()]
            if all(path.name.startswith(("events.out.tfevents", "hparams.yaml")) for path in files):
                shutil.rmtree(folder)


def remove_without_checkpoint(run: Run) -> None:
    """Removes a run that was stopped in its first epoch, so that nothing of it can be resumed."""
    if run.folder is not None and not run.is_finished and run.checkpoint("last") is None and not is_locked(run.folder):
        shutil.rmtree(run.folder)


def pack(run: Run) -> bytes:
    """Returns a run's folder as a zip archive."""
    assert run.folder is not None
    content = BytesIO()
    with ZipFile(content, "w") as archive:
        for path in sorted(run.folder.rglob("*")):
            if path.is_file():
                archive.write(path, path.relative_to(run.folder))
    return content.getvalue()


def unpack(content: bytes, experiment: Path) -> Path:
    """Adds a run from another machine to an experiment. No reader ever sees a part of it.

    Args:
        content: The run, as `pack` returns it.
        experiment: Folder of the experiment, which may not exist.

    Returns:
        The run's folder, the next free `version_N`.

    Raises:
        OSError: If the folder cannot be written.
    """
    experiment.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".", dir=experiment) as temporary:
        whole = Path(temporary, "run")
        with ZipFile(BytesIO(content)) as archive:
            archive.extractall(whole)
        for path in whole.rglob("*"):
            if path.is_file():
                with path.open("rb+") as file:
                    os.fsync(file.fileno())
        versions = [path.name.partition("_")[2] for path in experiment.glob("version_*")]
        for number in itertools.count(1 + max((int(name) for name in versions if name.isdecimal()), default=-1)):
            folder = experiment / f"version_{number}"
            with suppress(FileExistsError):
                folder.mkdir()  # claims the name: a training may look for one at the same time
                whole.replace(folder)
                return folder
    raise AssertionError


def write_config(run: Run, text: str) -> None:
    """Writes a run's config, YAML, when a training starts. A finished run that is trained longer is unfinished."""
    run.config_file.parent.mkdir(parents=True, exist_ok=True)
    run.summary_file.unlink(missing_ok=True)
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


def check_predictions_file(path: Path) -> None:
    """Checks that a file of predictions can be written and replaces nothing but an older one.

    Raises:
        InputError: If the file exists and is not a file of `write_predictions`, or its folder does not exist.
    """
    writable(str(path), [".csv", ".txt"])
    if path.exists() and not (path.is_file() and path.read_bytes().startswith(_COLUMNS.encode())):
        raise InputError(f"{path} exists and holds no predictions; choose another --output")


def write_predictions(path: Path, logits: Tensor, labels: Tensor) -> None:
    """Writes one row per image: index, label, predicted class and confidence.

    Args:
        path: File to write, CSV.
        logits: float [N, 10].
        labels: int64 [N].
    """
    confidence, predicted = logits.softmax(dim=1).max(dim=1)
    rows = zip(range(len(labels)), labels.tolist(), predicted.tolist(), confidence.tolist(), strict=True)
    lines = [_COLUMNS, *(",".join(map(str, row)) for row in rows), ""]
    write_whole(path, "\n".join(lines).encode())


def how_to_continue(run: Run) -> str:
    """Says which checkpoint of a stopped training is saved, and how to resume it."""
    checkpoint = run.checkpoint("last")
    if checkpoint is None:
        return "no checkpoint was saved yet; start again with the same command"
    epoch = read_checkpoint(checkpoint)["epoch"] + 1
    return f"{checkpoint.name} of epoch {epoch} is saved; resume with mnist-lightning fit --ckpt_path {run.folder}"


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
    file = os.fsdecode(error.filename or run.folder or "")
    return InputError(f"cannot write {file}: {error.strerror}. Free some space; {how_to_continue(run)}")

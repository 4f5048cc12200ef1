"""On-disk cache for tensors that are expensive to compute, memory-mapped when read."""

import contextlib
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from mnist_lightning.errors import InputError, one_line
from mnist_lightning.files import is_intact, save_tensors


def stored(file: str, folders: Sequence[Path], build: Callable[[], dict[str, Tensor]] | None) -> Path:
    """Finds a cached file, or builds it where it is missing or damaged.

    Args:
        file: File name, unique for its content.
        folders: Folders to search. A new file goes to the first writable one.
        build: Computes the content. If None, the file must exist and is not checked for damage.

    Returns:
        Path of the file.

    Raises:
        InputError: If no folder is writable, or the file is missing and `build` is None.
    """
    for folder in folders:
        path = folder / file
        if path.is_file():
            with contextlib.suppress(OSError):
                if build is None or is_intact(path):
                    return path
            warnings.warn(f"{path} is damaged and will be rebuilt", stacklevel=2)
    if build is None:
        raise InputError(f"there is no {file} in {' or '.join(map(str, folders))}: call prepare_data first")
    path = _writable(folders) / file
    save_tensors(build(), path)
    return path


def mapped(path: Path) -> dict[str, Tensor]:
    """Memory-maps a file of `stored`.

    Raises:
        InputError: If the file is missing or damaged.
    """
    try:
        return dict(torch.load(path, mmap=True, weights_only=True))
    except Exception as error:  # a damaged file can raise anything
        raise InputError(f"cannot read {path}: {one_line(error)}") from error


def _writable(folders: Sequence[Path]) -> Path:
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                return folder
    raise InputError(f"cannot write to {' or '.join(map(str, folders))}: permission denied")

"""Tensors that are dear to make, kept in a file: whole or not at all, checked, mapped to memory."""

import contextlib
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from mnist_lightning.errors import InputError, one_line
from mnist_lightning.sealed import is_whole, save_sealed


def stored(file: str, folders: Sequence[Path], build: Callable[[], dict[str, Tensor]] | None) -> Path:
    """The file of this name; made by `build` where there is none, or a damaged one.

    Args:
        file: Its name, which tells it from files of other graphs.
        folders: Where it may lie. It is written to the first folder that can be written to.
        build: Makes what is to be in it; if None, the file must be there, and is not checked.

    Raises:
        InputError: If no folder can be written to, or there is no file and no `build`.
    """
    for folder in folders:
        path = folder / file
        if path.is_file() and (build is None or _sound(path)):
            return path
    if build is None:
        raise InputError(f"there is no {file} in {' or '.join(map(str, folders))}: prepare_data first")
    path = _writable(folders) / file
    save_sealed(build(), path)
    return path


def mapped(path: Path) -> dict[str, Tensor]:
    """Opens a file of `stored`, without reading it: the tensors' memory is the file's.

    Raises:
        InputError: If the file is absent or damaged.
    """
    try:
        columns: dict[str, Tensor] = torch.load(path, mmap=True, weights_only=True)
    except Exception as error:  # a damaged file can raise anything
        raise InputError(f"{path} holds nothing that can be read: {one_line(error)}") from error
    return columns


def _sound(path: Path) -> bool:
    """Whether a file is what was written; says if it is not."""
    try:
        sound = is_whole(path)
    except OSError:
        sound = False
    if not sound:
        rank_zero_warn(f"{path} is damaged and made anew", category=UserWarning)
    return sound


def _writable(folders: Sequence[Path]) -> Path:
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                return folder
    raise InputError(f"nothing can be written to {' or '.join(map(str, folders))}: no permission")

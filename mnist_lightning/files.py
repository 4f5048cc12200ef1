"""Atomic files, and an integrity check for files of `torch.save`."""

import os
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from mnist_lightning.errors import InputError


def writable(output: str, suffixes: Sequence[str], inputs: Iterable[str | Path] = ()) -> Path:
    """Checks the path of an output file before the work for it begins.

    Args:
        output: Path of the file.
        suffixes: Accepted file suffixes.
        inputs: Files that must not be replaced because the command reads them. A folder stands for its files without an
            accepted suffix.

    Returns:
        The path.

    Raises:
        InputError: If the suffix is not accepted, the folder does not exist, or the file is an input, also by another
            name or link.

    Example:
        >>> writable("seven.gif", [".png", ".pdf"])
        Traceback (most recent call last):
        mnist_lightning.errors.InputError: output must end in .png or .pdf, got seven.gif
    """
    path = Path(output)
    if path.suffix not in suffixes:
        *first, last = suffixes
        raise InputError(f"output must end in {', '.join(first)} or {last}, got {output}")
    folder = path.absolute().parent
    if not folder.is_dir():
        raise InputError(f"cannot write {path.name}: there is no folder {folder}")
    if path.is_dir():
        raise InputError(f"output must be a file, got the folder {output}")
    if path.exists():
        for one in map(Path, inputs):
            files = (file for file in one.rglob("*") if file.suffix not in suffixes) if one.is_dir() else [one]
            if any(file.exists() and file.samefile(path) for file in files):
                raise InputError(f"output {output} would replace a file that this command reads; choose another name")
    return path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields the path of a temporary file, which replaces `path` when the block ends without an error.

    A reader sees the old file or the new one, even after a kill or a power failure. A killed process may leave its
    temporary file (`.NAME.*`) in the folder.

    Raises:
        OSError: If the file cannot be written. `filename` is `path`.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with replacing(Path(folder, "seven.txt")) as temporary:
        ...         _ = temporary.write_text("7")
        ...     Path(folder, "seven.txt").read_text()
        '7'
    """
    temporary = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        if error.filename and str(error.filename) != str(temporary):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        with suppress(OSError):  # already renamed, or never created
            temporary.unlink()


def write_whole(path: Path, content: bytes | str) -> None:
    """Writes a file atomically; see `replacing`. Text is written as UTF-8; what UTF-8 cannot hold is escaped.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_whole(Path(folder, "seven.txt"), b"7")
        ...     Path(folder, "seven.txt").read_bytes()
        b'7'
    """
    with replacing(path) as temporary:
        temporary.write_bytes(content.encode(errors="backslashreplace") if isinstance(content, str) else content)


def save_tensors(content: Any, path: Path) -> None:
    """Writes tensors and plain values with `torch.save`, atomically.

    Raises:
        OSError: If the file cannot be written.

    Example:
        >>> import tempfile, torch
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "seven.pt")
        ...     save_tensors({"seven": torch.tensor(7)}, path)
        ...     is_intact(path), torch.load(path, weights_only=True)
        (True, {'seven': tensor(7)})
    """
    import torch

    with replacing(path) as temporary:
        try:
            with temporary.open("wb") as file:
                torch.save(content, file)
        except RuntimeError as error:  # torch raises this one when it closes its archive on a full disk
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def is_intact(path: Path) -> bool:
    """Checks a file of `torch.save` against the checksums of its zip archive, which `torch.load` ignores.

    Raises:
        OSError: If the file cannot be read.
    """
    with path.open("rb") as file:
        try:
            with zipfile.ZipFile(file) as archive:
                return archive.testzip() is None
        except Exception:  # a damaged archive can raise anything
            return False

"""Files that are there whole or not at all."""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path
from uuid import uuid4

from mnist_lightning.errors import InputError

if sys.platform != "win32":
    import fcntl


def writable(output: str, suffixes: Sequence[str]) -> Path:
    """The path of a file to write, checked before the work for it is done.

    Args:
        output: The path.
        suffixes: What it may end in.

    Raises:
        InputError: If it ends in anything else, or its folder is not there.

    Example:
        >>> writable("seven.gif", [".png", ".pdf"])
        Traceback (most recent call last):
        mnist_lightning.errors.InputError: output is seven.gif; it must end in .png or .pdf
    """
    path = Path(output)
    if path.suffix not in suffixes:
        *first, last = suffixes
        raise InputError(f"output is {output}; it must end in {', '.join(first)} or {last}")
    folder = path.absolute().parent
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder} to write {path.name} to")
    return path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives the path of a file to write, which becomes `path` at the end, unless there is an error.

    Killed at any moment, or without power, it leaves the old file or the new one, never a part. What a killed process
    has left beside it is removed by the next that writes the same file.

    Raises:
        OSError: If it cannot be written; `filename` is `path`.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with replacing(Path(folder, "seven.txt")) as temporary:
        ...         _ = temporary.write_text("7")
        ...     Path(folder, "seven.txt").read_text()
        '7'
    """
    temporary, held = path, None
    try:
        _remove_abandoned(path)
        temporary, held = _claimed(path)
        yield temporary
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
        _sync(path.parent)
    except OSError as error:
        if error.filename and not Path(error.filename).name.startswith(f".{path.name}."):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        if temporary != path:
            temporary.unlink(missing_ok=True)
        if held is not None:
            os.close(held)


def _claimed(path: Path) -> tuple[Path, int | None]:
    """A file to write before it gets its name, locked for as long as its writer lives."""
    while True:
        # A name that no other process takes, on this machine or on one that shares the disk.
        temporary = path.with_name(f".{path.name}.{uuid4().hex}")
        if sys.platform == "win32":  # which cannot rename what is open
            return temporary, None
        held = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        with suppress(OSError):  # a file system without locks: nothing is removed from it
            fcntl.flock(held, fcntl.LOCK_EX)
        if temporary.exists():  # not taken for abandoned before it was locked
            return temporary, held
        os.close(held)


def _remove_abandoned(path: Path) -> None:
    """Removes what `_claimed` has given to writers of this file that are dead: nobody holds its lock."""
    if sys.platform == "win32":
        return
    for temporary in path.parent.glob(f".{escape(path.name)}.{'[0-9a-f]' * 32}"):
        with suppress(OSError), temporary.open("rb+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            temporary.unlink()


def _sync(folder: Path) -> None:
    """Has a file's new name written to the disk."""
    with suppress(OSError):  # not every system opens folders
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file; killed at any moment, it leaves the old file or the new one, never a part.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_whole(Path(folder, "seven.txt"), b"7")
        ...     Path(folder, "seven.txt").read_bytes()
        b'7'
    """
    with replacing(path) as temporary:
        temporary.write_bytes(content)

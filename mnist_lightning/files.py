"""Files that are there whole or not at all."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from mnist_lightning.errors import InputError


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

    Killed at any moment, it leaves the old file or the new one, never a part.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with replacing(Path(folder, "seven.txt")) as temporary:
        ...         _ = temporary.write_text("7")
        ...     Path(folder, "seven.txt").read_text()
        '7'
    """
    # A name that no other process takes, on this machine or on one that shares the disk.
    temporary = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


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

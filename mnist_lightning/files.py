"""Files that are there whole or not at all."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4


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

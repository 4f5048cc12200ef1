"""Atomic files, an integrity check for files of `torch.save`, and YAML of limited size."""

import os
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import yaml

from mnist_lightning.errors import InputError, one_line

_MAX_YAML = 2**18  # bytes; shipped configs have at most 2,000
_MAX_NODES = 50_000  # after aliases are expanded
_MAX_DEPTH = 50
_MAX_SCALAR = 3_500  # characters; Python refuses to print integers of more than 4,300 digits


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
        except RuntimeError as error:  # torch raises this one when it closes an archive that is not complete
            if isinstance(error.__context__, OSError | KeyboardInterrupt):  # a full disk, or a signal that stops it
                raise error.__context__ from None
            raise


def is_intact(path: Path) -> bool:
    """Checks a file of `torch.save` against the checksums of its zip archive, which `torch.load` ignores.

    Compressed files are refused: torch writes none, and a small one may unpack to terabytes.

    Raises:
        OSError: If the file cannot be read.
    """
    with path.open("rb") as file:
        try:
            with zipfile.ZipFile(file) as archive:
                kinds = {member.compress_type for member in archive.infolist()}
                return kinds == {zipfile.ZIP_STORED} and archive.testzip() is None
        except Exception:  # a damaged archive can raise anything
            return False


def read_yaml(path: Path) -> Any:
    """Reads a YAML file that may be hostile: in bounded time and memory, and without running code.

    Args:
        path: The file.

    Returns:
        The content; None for an empty file.

    Raises:
        InputError: If the file is not a regular file, not UTF-8, not valid YAML, too large, too deep, or its aliases
            are endless.
        OSError: If the file cannot be read.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "loop.yaml").write_text("&a [*a]")
        ...     read_yaml(Path(folder, "loop.yaml"))
        Traceback (most recent call last):
        mnist_lightning.errors.InputError: .../loop.yaml is not valid YAML: the alias *a refers to itself
    """
    if path.exists() and not path.is_file():  # opening a pipe would wait
        raise InputError(f"{path} is not a regular file")
    with path.open("rb") as file:
        content = file.read(_MAX_YAML + 1)
    try:
        if len(content) > _MAX_YAML:
            raise InputError(f"it has more than {_MAX_YAML // 2**10} KiB")
        text = content.decode()
        check_yaml(text)
        return yaml.safe_load(text)
    except UnicodeDecodeError:
        raise InputError(f"{path} is not valid YAML: it is not UTF-8 text") from None
    except Exception as error:  # constructors of YAML's types can raise anything
        details = one_line(error).replace('in "<unicode string>", ', "")
        raise InputError(f"{path} is not valid YAML: {details}") from error


def check_yaml(text: str) -> None:
    """Refuses YAML that is too deep or too large once its aliases are expanded, or endless.

    Raises:
        InputError: If a limit is exceeded.
        yaml.YAMLError: If the text is not YAML.
    """
    nodes = 0
    parents: list[tuple[str | None, int]] = []  # anchor of each open collection, and the nodes before it
    sizes: dict[str, int | None] = {}  # nodes of each anchor; None while its collection is open
    for event in yaml.parse(text, yaml.SafeLoader):
        if isinstance(event, yaml.CollectionEndEvent):
            anchor, before = parents.pop()
            sizes |= {anchor: nodes - before} if anchor else {}
        elif isinstance(event, yaml.NodeEvent):
            is_alias, is_leaf = isinstance(event, yaml.AliasEvent), isinstance(event, yaml.ScalarEvent)
            if is_leaf and len(event.value) > _MAX_SCALAR:
                raise InputError(f"a value has more than {_MAX_SCALAR:,} characters")
            size = sizes.get(event.anchor, 0) if is_alias else 1
            if size is None:
                raise InputError(f"the alias *{event.anchor} refers to itself")
            nodes += size
            if event.anchor and not is_alias:
                sizes[event.anchor] = 1 if is_leaf else None
            if not is_alias and not is_leaf:
                parents.append((event.anchor, nodes - 1))
        if nodes > _MAX_NODES or len(parents) > _MAX_DEPTH:
            raise InputError(f"it has more than {_MAX_NODES:,} values, or more than {_MAX_DEPTH} levels of nesting")

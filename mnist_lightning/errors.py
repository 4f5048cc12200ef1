"""Errors the user can fix."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """The user's input cannot be used. The command line prints the message on one line, without a traceback."""


class SourceUnavailableError(InputError):
    """A data source is neither on disk nor downloadable."""


class StoppedError(Exception):
    """A signal stopped the training. The command line prints the message and exits with 128 + `signal`.

    Args:
        message: State of the run, and how to resume it.
        signal: Number of the signal.
    """

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.signal = signal


def printable(text: object) -> str:
    r"""Escapes characters that a terminal would obey or that no file can hold, as `repr` does.

    Names come from strangers' files: they may hold control characters, line breaks, reversed writing directions and
    bytes that are not UTF-8.

    Example:
        >>> printable("cnn\x1b[31m\n")
        'cnn\\x1b[31m\\n'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def one_line(text: object, length: int = 300) -> str:
    r"""Puts a message on one line, escapes control characters, and shortens it.

    Args:
        text: Any message.
        length: Maximum number of characters.

    Example:
        >>> one_line("two\n  lines")
        'two lines'
        >>> one_line("\x1b[31mred")
        '\\x1b[31mred'
    """
    line = printable(" ".join(str(text).split()))
    return line if len(line) <= length else line[: length - 1] + "…"


def suggestion(word: str, known: Iterable[str]) -> str:
    """Suggests the known word closest to an unknown one, in either case, as the end of an error message.

    Args:
        word: The unknown word.
        known: All known words.

    Returns:
        The suggestion, or an empty string if no known word is close.

    Example:
        >>> suggestion("batch_sizes", ["batch_size", "seed"])
        '; did you mean batch_size?'
    """
    spellings = {name.lower(): name for name in known}
    similar = difflib.get_close_matches(word.lower(), spellings, n=1)
    return f"; did you mean {spellings[similar[0]]}?" if similar else ""

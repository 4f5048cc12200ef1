"""Errors that are the user's to mend: each message says what is wrong, where, and what would be right."""

import difflib
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import is_dataclass
from typing import Any, get_args, get_type_hints


class InputError(ValueError):
    """Something that the user gave cannot be used. The command line prints it in one line, without a traceback."""


class SourceUnavailableError(InputError):
    """A data source is neither on disk nor downloadable."""


def one_line(text: object, length: int = 300) -> str:
    r"""A message on one line, shortened.

    Example:
        >>> one_line("two\n  lines")
        'two lines'
    """
    line = " ".join(str(text).split())
    return line if len(line) <= length else line[: length - 1] + "…"


def suggestion(word: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown word: the known one that is most like it, if any is.

    Example:
        >>> suggestion("batch_sizes", ["batch_size", "seed"])
        '; did you mean batch_size?'
    """
    similar = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {similar[0]}?" if similar else ""


def refuse_nulls(where: str, cls: type, arguments: Mapping[str, Any]) -> None:
    """Refuses null for an argument that cannot be None: jsonargparse takes it for anything.

    Args:
        where: What the arguments are called.
        cls: The class that they are for.
        arguments: By their names; those of a dataclass may be nested.

    Raises:
        InputError: If one is null, and must not be.

    Example:
        >>> class Model:
        ...     def __init__(self, lr: float, name: str | None) -> None: ...
        >>> refuse_nulls("model", Model, {"name": None, "lr": None})
        Traceback (most recent call last):
        mnist_lightning.errors.InputError: model.lr is null, which it cannot be
    """
    hints: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        with suppress(NameError, TypeError):  # a class of the user's, with names that only a type checker sees
            hints |= get_type_hints(vars(base).get("__init__", object))
    for name, value in arguments.items():
        options = get_args(hints.get(name)) or (hints.get(name, Any),)
        if value is None and not {Any, None, type(None)} & set(options):
            raise InputError(f"{where}.{name} is null, which it cannot be")
        if isinstance(value, Mapping):
            for option in options:
                if isinstance(option, type) and is_dataclass(option):
                    refuse_nulls(f"{where}.{name}", option, value)


_NOISE = re.compile(
    r"Does not validate against|Subtypes:|Errors:|Given value|Expected a <class 'NoneType'>|Expected a path but"
)

_NO_CLASS = re.compile(  # the last two where there is something else than a name
    r"Not a valid subclass of|Expected (a )?dot import path string|argument of type '\w+' is not iterable|unhashable"
)


def plain_words(message: str, options: Iterable[str] = (), classes: Iterable[str] = ()) -> str:
    """One clear line out of what jsonargparse says in ten.

    It reports each branch of a nested type that did not fit. The first branch that is not about `null` or a file's
    path is the one that the user meant.

    Args:
        message: jsonargparse's message.
        options: Known names of options, to suggest from.
        classes: Known names of classes.

    Example:
        >>> plain_words('''Parser key "model":
        ...   Does not validate against any of the Union subtypes
        ...   Errors:
        ...     - Option 'lrr' is not accepted
        ...     - Expected a <class 'NoneType'>''', options=["lr"])
        'unknown option model.lrr; did you mean lr?'
    """
    keys: list[str] = []
    cause = ""
    for line in message.splitlines():
        text = line.strip().removeprefix("- ")
        if key := re.fullmatch(r'Parser key "(.+)":(.*)', text):
            keys.append(key[1])
            text = key[2].strip()
        if text and not _NOISE.match(text):
            cause = text
            break
    where = ".".join(keys)
    inside = f"{where}." if where else ""
    if unknown := re.fullmatch(r"Option '(.+)' is not accepted", cause):
        return f"unknown option {inside}{unknown[1]}{suggestion(unknown[1].split('.')[-1], options)}"
    from_a_parser_inside = r"unknown option (.+)|(\S+ is .+, expected .+|\S+ must be \w+)"
    if known_already := re.fullmatch(from_a_parser_inside, cause):
        return f"unknown option {inside}{known_already[1]}" if known_already[1] else f"{inside}{known_already[2]}"
    if unknown := re.fullmatch(r"Subcommand '.+' does not accept option '(.+)'", cause):
        return f"unknown option {unknown[1]}{suggestion(unknown[1], options)}"
    if unknown := re.fullmatch(r"[Uu]nrecognized arguments: --(\S+?)(=.*| .*)?", cause):
        return f"unknown option --{unknown[1]}{suggestion(unknown[1], options)}"
    if unknown := re.fullmatch(r"Expected a dot import path string: (.+)", cause):
        known = ", ".join(sorted(classes))
        return f"unknown {where} {unknown[1]}; there are {known}, or give the path of your own: module.Class"
    if known := ", ".join(sorted(classes)) if _NO_CLASS.match(cause) else "":
        return f"{where} names no class that fits; there are {known}, or give the path of your own: module.Class"
    if wrong := re.fullmatch(r"(?:([\w.]+): )?Expected an? <class '(\w+)'>", cause):
        return f"{inside}{wrong[1]} must be {wrong[2]}" if wrong[1] else f"{where} must be {wrong[2]}"
    if wrong := re.fullmatch(r"Expected (.+?)\. Got value: (.*)", cause):
        expected = wrong[1].replace("a typing.Literal", "one of ")
        expected = re.sub(r"<class '(.+?)'>", r"\1", expected)
        return f"{where} is {wrong[2]!r}, expected {expected}"
    if cause.startswith("Problems parsing config"):
        details = one_line(message.replace('in "<unicode string>", ', "").partition(":")[2])
        return f"the config is not valid YAML: {details}"
    if cause.startswith("Unexpected config"):
        return f"the config is not a mapping of options: {one_line(cause.partition(':')[2], 80)}"
    return f"{where}: {one_line(cause)}" if where else one_line(cause or message)

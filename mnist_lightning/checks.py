"""Checks of arguments: a wrong value is refused by name, before it silently means something else."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import is_dataclass
from math import inf
from os import PathLike
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from mnist_lightning.errors import InputError, one_line, suggestion

_TOO_LARGE = 2**60  # 8 times as much does not fit 64 bits
_LISTS = (list, tuple, Sequence)


def hints_of(cls: type) -> dict[str, Any]:
    """Returns the type hints of the arguments of a class, with those of its base classes.

    Hints that cannot be resolved are left out.
    """
    hints: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        # A hint may use names that only a type checker knows.
        with suppress(NameError, TypeError, AttributeError, SyntaxError):
            hints |= get_type_hints(vars(base).get("__init__", object))
    return hints


def check_types(hints: Mapping[str, Any], arguments: Mapping[str, Any]) -> None:
    """Refuses values that do not fit their type hints. Numbers, strings, literals and lists of them are checked.

    Args:
        hints: Type hints by name. Arguments without a hint are accepted.
        arguments: Values by name.

    Raises:
        InputError: If a value does not fit.

    Example:
        >>> check_types({"optimizer": Literal["sgd", "adam"], "widths": Sequence[int]}, {"widths": (64, 32)})
        >>> check_types({"optimizer": Literal["sgd", "adam"]}, {"optimizer": "SGD"})
        Traceback (most recent call last):
        mnist_lightning.errors.InputError: optimizer must be one of sgd, adam, got 'SGD'; did you mean sgd?
    """
    for name, value in arguments.items():
        hint = hints.get(name, Any)
        if not _fits(value, hint):
            similar = suggestion(value.lower(), _choices(hint)) if isinstance(value, str) else ""
            raise InputError(f"{name} must be {_words(hint)}, got {one_line(repr(value), 80)}{similar}")


def check_plain(arguments: Mapping[str, Any]) -> None:
    """Refuses values that checkpoints and summaries cannot hold.

    Args:
        arguments: Values by name.

    Raises:
        InputError: If a value is not a number, string, bool, None, or a list or mapping of these.
    """
    for name, value in arguments.items():
        if not _is_plain(value):
            raise InputError(
                f"{name} must be a number, a string, a bool, None, or a list or mapping of these, because checkpoints "
                f"store it; got {one_line(repr(value), 80)} ({type(value).__module__}.{type(value).__qualname__})"
            )


def at_least(minimum: float, **numbers: float | Sequence[float]) -> None:
    """Refuses numbers below a minimum, infinite numbers, NaN, and integers that torch cannot hold.

    Args:
        minimum: Smallest accepted number.
        **numbers: Numbers, or lists of numbers, by the name of the argument.

    Raises:
        InputError: If a number is not accepted.
    """
    for name, value in numbers.items():
        numbers_of = _each(value)
        if not all(minimum <= number < inf for number in numbers_of):
            finite = " and finite" if isinstance(value, float) else ""
            raise InputError(f"{name} must be {minimum} or more{finite}, got {value}")
        if any(isinstance(number, int) and number >= _TOO_LARGE for number in numbers_of):
            raise InputError(f"{name} must be below 2**60, got {value}")


def fraction(**numbers: float | Sequence[float]) -> None:
    """Refuses numbers below 0, numbers of 1 and more, and NaN.

    Args:
        **numbers: Numbers, or lists of numbers, by the name of the argument.

    Raises:
        InputError: If a number is not accepted.
    """
    for name, value in numbers.items():
        if not all(0 <= number < 1 for number in _each(value)):
            raise InputError(f"{name} must be at least 0 and below 1, got {value}")


def fold_of(text: str) -> tuple[int, int]:
    """Reads the name of a fold of a cross-validation.

    Args:
        text: `k/K` with 1 <= k <= K and K >= 2.

    Returns:
        Number k of the fold and number K of folds.

    Raises:
        InputError: If the text is no such name.

    Example:
        >>> fold_of("2/5")
        (2, 5)
    """
    # Leading zeros would give one fold several names.
    match = re.fullmatch(r"([1-9][0-9]{0,8})/([1-9][0-9]{0,8})", text)
    number, folds = map(int, match.groups()) if match else (0, 0)
    if not 1 <= number <= folds or folds < 2:
        raise InputError(f"fold must be k/K with 1 <= k <= K and K >= 2, such as 2/5, got {one_line(text, 80)}")
    return number, folds


def _each(value: float | Sequence[float]) -> Sequence[float]:
    return value if isinstance(value, Sequence) else [value]


def _fits(value: Any, hint: Any) -> bool:
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        return any(type(value) is type(choice) and value == choice for choice in args)
    if origin in (Union, UnionType):
        return any(_fits(value, option) for option in args)
    if origin in _LISTS:
        if not isinstance(value, (list, tuple)):
            return False
        if origin is tuple and args[-1] is not ...:
            return len(value) == len(args) and all(map(_fits, value, args))
        return all(_fits(each, args[0]) for each in value)
    if hint in (int, float):  # True is an int
        return isinstance(value, (int, hint)) and not isinstance(value, bool)
    if hint is str:
        return isinstance(value, (str, PathLike))
    if hint in (bool, NoneType) or (isinstance(hint, type) and is_dataclass(hint)):
        return isinstance(value, hint)
    return True


def _words(hint: Any) -> str:
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        return f"one of {', '.join(map(str, args))}"
    if origin in (Union, UnionType):
        return " or ".join(map(_words, args))
    if origin is tuple and args[-1] is not ...:
        return f"({', '.join(map(_words, args))})"
    if origin in _LISTS:
        return f"a list of {_words(args[0])}"
    return "None" if hint is NoneType else getattr(hint, "__name__", str(hint))


def _choices(hint: Any) -> Iterator[str]:
    """Strings of the literals in a hint."""
    for part in get_args(hint):
        if isinstance(part, str):
            yield part
        else:
            yield from _choices(part)


def _is_plain(value: Any) -> bool:
    if type(value) in (list, tuple):
        return all(map(_is_plain, value))
    if type(value) is dict:
        return all(isinstance(key, str) and _is_plain(each) for key, each in value.items())
    return type(value) in (int, float, str, bool, NoneType)

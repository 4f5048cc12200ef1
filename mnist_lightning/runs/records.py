"""Reads the summary and the config of a run, and checks once what the rest of the package relies on."""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mnist_lightning.errors import InputError, one_line
from mnist_lightning.files import read_yaml

CONFIG_PARTS = ("model", "data", "trainer")
_MAX_BYTES = 2**20  # of a summary; they have some 5,000
_MAX_DEPTH = 50
_LARGEST = 1e100  # keeps sums and products of numbers finite


class _Kind(NamedTuple):
    accepts: Callable[[Any], bool]
    words: str


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= _LARGEST  # false for NaN


def _is_amount(value: Any) -> bool:
    return _is_number(value) and value >= 0


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= _LARGEST


def _is_share(value: Any) -> bool:
    return _is_number(value) and 0 <= value <= 1


def _ten(accepts: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and len(value) == 10 and all(map(accepts, value))


_TEXT = _Kind(lambda value: isinstance(value, str), "a string")
_SEED = _Kind(lambda value: value is None or type(value) is int, "an integer or null")
_COUNT = _Kind(_is_count, "an integer of 0 or more")
_AMOUNT = _Kind(_is_amount, "a finite number of 0 or more")
_NUMBER = _Kind(_is_number, "a finite number")
_SHARE = _Kind(_is_share, "a number from 0 to 1")
_MAPPING = _Kind(lambda value: isinstance(value, dict), "a mapping")
_SPLIT = {
    "accuracy": _SHARE,
    "loss": _NUMBER,
    **dict.fromkeys(("precision", "recall", "f1"), _Kind(_ten(_is_share), "ten numbers from 0 to 1")),
    # Earlier versions wrote 3.0 for 3 if a class was missing.
    "support": _Kind(_ten(lambda value: _is_amount(value) and value == int(value)), "ten integers of 0 or more"),
}
_SUMMARY = {
    **dict.fromkeys(("experiment", "source", "model", "precision", "device"), _TEXT),
    **dict.fromkeys(("parameters", "layers", "best_epoch", "epochs", "steps", "batch_size", "devices"), _COUNT),
    **dict.fromkeys(("size_kib", "train_seconds"), _AMOUNT),
    **dict.fromkeys(("train", "val", "test", "data", "hyper_parameters", "versions"), _MAPPING),
    "seed": _SEED,
}


def read_summary(path: Path) -> dict[str, Any]:
    """Reads a run's summary.

    Args:
        path: The file.

    Returns:
        Metrics and facts; without those that are null, except the seed, where None means unknown.

    Raises:
        FileNotFoundError: If there is no file.
        InputError: If the file is damaged.
    """
    try:
        if path.exists() and not path.is_file():  # opening a pipe would wait
            raise InputError("it is not a regular file")
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
        if len(content) > _MAX_BYTES:
            raise InputError(f"it has more than {_MAX_BYTES // 2**10} KiB")
        return _checked_summary(json.loads(content))
    except FileNotFoundError:
        raise
    except Exception as error:  # anything may be in a stranger's file
        raise InputError(f"{path} is damaged: {one_line(error)}") from error


def _checked_summary(summary: Any) -> dict[str, Any]:
    _check("the summary", summary, _MAPPING)
    _check_tree(summary)
    summary = {name: value for name, value in summary.items() if value is not None or name == "seed"}
    if missing := [name for name in ("experiment", "source", "seed") if name not in summary]:
        raise InputError(f"it lacks {', '.join(missing)}")
    _check_all("", summary, _SUMMARY)
    for split in {"train", "val", "test"} & summary.keys():
        summary[split] = {name: value for name, value in summary[split].items() if value is not None}
        _check_all(f"{split}.", summary[split], _SPLIT)
    if "accuracy" not in summary.get("test", {}):
        raise InputError("it lacks test.accuracy")
    _check_all("data.", summary.get("data", {}), {"seed": _SEED})
    _check_all("hyper_parameters.", summary.get("hyper_parameters", {}), {"lr": _NUMBER})
    return dict(summary)


def read_config(path: Path) -> dict[str, Any]:
    """Reads a run's config.

    Args:
        path: The file.

    Returns:
        The config, whose model, data and trainer are mappings; empty if there is no file.

    Raises:
        InputError: If the file is damaged.
    """
    try:
        config: Any = read_yaml(path)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    try:
        _check("the config", config, _MAPPING)
        _check_tree(config)
        for name in CONFIG_PARTS:
            _check(name, config.get(name), _MAPPING)
            arguments = config[name]
            if "class_path" in arguments:
                _check(f"{name}.class_path", arguments["class_path"], _TEXT)
                _check(f"{name}.init_args", arguments.get("init_args") or {}, _MAPPING)
        _check("data.seed", (config["data"].get("init_args") or {}).get("seed"), _SEED)
    except ValueError as error:  # also strings that are no Unicode text
        raise InputError(f"{path} is damaged: {one_line(error)}") from error
    return dict(config)


def _check(name: str, value: Any, kind: _Kind) -> None:
    if not kind.accepts(value):
        raise InputError(f"{name} must be {kind.words}, got {one_line(repr(value), 40)}")


def _check_all(prefix: str, values: Mapping[str, Any], kinds: Mapping[str, _Kind]) -> None:
    for name in kinds.keys() & values.keys():
        _check(prefix + name, values[name], kinds[name])


def _check_tree(value: Any, depth: int = 0) -> None:
    """Refuses keys that are not strings, strings that cannot be printed, and nesting that exhausts the stack."""
    children: Iterable[Any] = ()
    if isinstance(value, str):
        value.encode()
    elif isinstance(value, dict):
        if odd := [key for key in value if not isinstance(key, str)]:
            raise InputError(f"keys must be strings, got {one_line(repr(odd[0]), 40)}")
        children = (*value, *value.values())
    elif isinstance(value, list | tuple | set):
        children = value
    if depth > _MAX_DEPTH:
        raise InputError(f"it has more than {_MAX_DEPTH} levels of nesting")
    for child in children:
        _check_tree(child, depth + 1)

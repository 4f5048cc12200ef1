"""Command-line arguments: one-line errors, and the names of configs."""

import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, NoReturn, get_args, get_type_hints

from jsonargparse import ArgumentParser

from mnist_lightning.errors import InputError, one_line, suggestion
from mnist_lightning.runs.finding import existing, find_run
from mnist_lightning.runs.run import Run


class OneLineParser(ArgumentParser):
    """An argument parser whose errors are one line that names the argument, its value and what is accepted."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raises an InputError in place of jsonargparse's message of ten lines."""
        own = {action.dest for action in self._actions}  # classes have parsers of their own
        raise InputError(plain_words(message, own | self.known_options(), self.known_classes(message))) from ex

    def known_options(self) -> set[str]:
        """Names of further options, for suggestions."""
        return set()

    def known_classes(self, message: str) -> Iterable[str]:
        """Names of classes that the argument in a message accepts."""
        return ()


_NOISE = re.compile(
    r"Does not validate against|Subtypes:|Errors:|Given value|Expected a <class 'NoneType'>|Expected a path but"
)
_UNKNOWN_OPTION = re.compile(
    r"Option '(.+)' is not accepted|Subcommand '.+' does not accept option '(.+)'"
    r"|[Uu]nrecognized arguments: --(\S+?)(?:[= ].*)?|unknown option (.+)"
)
_WRONG_TYPE = re.compile(r"(?:([\w.]+): )?Expected an? <class '(\w+)'>|(\S+ must be .+)")
_NO_CLASS = re.compile(
    r"Expected (?:a )?dot import path string(?:: (.+))?.*|Not a valid subclass of.*"
    r"|argument of type '\w+' is not iterable.*|.*unhashable.*"
)


def plain_words(message: str, options: Iterable[str] = (), classes: Iterable[str] = ()) -> str:
    """Extracts one clear line from an error message of jsonargparse.

    jsonargparse reports every branch of a nested type that does not fit. The first branch that is not about `null` or
    the path of a file names the cause.

    Args:
        message: jsonargparse's message.
        options: Known names of options, for suggestions.
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
    if match := _UNKNOWN_OPTION.fullmatch(cause):
        option = match[match.lastindex or 0]
        hint = suggestion(option, options) or suggestion(option.split(".")[-1], options)
        return f"unknown option {inside}{option}{hint if ';' not in option else ''}"
    if match := _WRONG_TYPE.fullmatch(cause):
        return f"{inside}{match[3]}" if match[3] else f"{inside}{match[1] or ''}".rstrip(".") + f" must be {match[2]}"
    if match := re.fullmatch(r"Expected (.+?)\. Got value: (.*)", cause):
        expected = re.sub(r"<class '(.+?)'>", r"\1", match[1].replace("a typing.Literal", "one of "))
        return f"{where} must be {expected}, got {match[2]!r}"
    if classes and (match := _NO_CLASS.fullmatch(cause)):
        problem = f"unknown {where} {match[1]}" if match[1] else f"{where} must name a class"
        return f"{problem}; use {', '.join(sorted(classes))} or the path of your own class, module.Class"
    if cause.startswith("Problems parsing config"):
        details = message.replace('in "<unicode string>", ', "").partition(":")[2]
        return f"the config is not valid YAML: {one_line(details)}"
    if cause.startswith("Unexpected config"):
        return f"the config must be a mapping of options, got {one_line(cause.partition(':')[2], 80)}"
    return f"{where}: {one_line(cause)}" if where else one_line(cause or message)


def refuse_nulls(where: str, cls: type, arguments: Mapping[str, Any]) -> None:
    """Refuses null for arguments that do not accept None: jsonargparse accepts it for every type.

    Args:
        where: Name of the arguments' group.
        cls: Class that takes the arguments.
        arguments: Values by name. The values of a dataclass may be nested.

    Raises:
        InputError: If an argument is null and must not be.

    Example:
        >>> class Model:
        ...     def __init__(self, lr: float, name: str | None) -> None: ...
        >>> refuse_nulls("model", Model, {"name": None, "lr": None})
        Traceback (most recent call last):
        mnist_lightning.errors.InputError: model.lr must not be null
    """
    hints: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        with suppress(NameError, TypeError):  # the class may use names that only a type checker knows
            hints |= get_type_hints(vars(base).get("__init__", object))
    for name, value in arguments.items():
        options = get_args(hints.get(name)) or (hints.get(name, Any),)
        if value is None and not {Any, None, type(None)} & set(options):
            raise InputError(f"{where}.{name} must not be null")
        for option in options if isinstance(value, Mapping) else ():
            if isinstance(option, type) and is_dataclass(option):
                refuse_nulls(f"{where}.{name}", option, value)


def with_configs(args: list[str]) -> list[str]:
    """Replaces names of shipped configs by their paths. Adds a run's config if only its checkpoint is given.

    Args:
        args: Arguments of the command line, the verb first.
    """
    args = list(args)
    for index, word in enumerate(args):
        flag, equals, value = word.partition("=")
        if flag in ("-c", "--config") and equals:
            args[index] = f"{flag}={_config_file(value)}"
        elif word in ("-c", "--config") and index + 1 < len(args):
            args[index + 1] = str(_config_file(args[index + 1]))
    flags = {word.partition("=")[0] for word in args}
    if "--ckpt_path" in flags and not flags & {"-c", "--config", "--model", "--model.class_path"}:
        index = next(i for i, word in enumerate(args) if word.partition("=")[0] == "--ckpt_path")
        _, equals, value = args[index].partition("=")
        value = value if equals else "".join(args[index + 1 : index + 2])
        if value in ("", "null"):  # the verb says that it needs a checkpoint
            return args
        path = existing(value)
        run = Run.of(path) if path.is_file() else find_run(path)
        if run is None or not run.config_file.is_file():
            raise InputError(f"{path} is not part of a run with a config; name its model and data with --config")
        args[index : index + 2 - len(equals)] = ["--ckpt_path", str(path if path.is_file() else run.folder)]
        return [args[0], "--config", str(run.config_file), *args[1:]]
    return args


def _config_file(name: str) -> Path:
    """Finds a config file by its path or, for a shipped config, by its name.

    Raises:
        InputError: If there is no such config.
    """
    package = Path(__file__).parent
    shipped = next(folder for folder in (package / "configs", package.parent / "configs") if folder.is_dir())
    for path in (Path(name), shipped / f"{name}.yaml", shipped / "published" / f"{name}.yaml"):
        if path.is_file():
            return path
    names = ", ".join(sorted(path.stem for path in shipped.rglob("*.yaml")))
    raise InputError(f"there is no config {name}; give a file or one of {names}")

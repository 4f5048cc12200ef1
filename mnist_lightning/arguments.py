"""Command-line arguments: one-line errors, and the names of configs."""

import difflib
import re
import traceback
from collections.abc import Iterable, Mapping
from dataclasses import is_dataclass
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, NoReturn, get_args

import yaml
from jsonargparse import ArgumentParser, get_loader, set_loader

from mnist_lightning.checks import hints_of
from mnist_lightning.errors import InputError, one_line, suggestion
from mnist_lightning.files import check_yaml, read_yaml
from mnist_lightning.runs.finding import existing, find_run, run_to_resume
from mnist_lightning.runs.run import Run


def _load_yaml(text: str) -> Any:
    try:
        check_yaml(text)
    except InputError as error:
        raise yaml.YAMLError(str(error)) from error
    return get_loader("yaml")(text)


set_loader("bounded_yaml", _load_yaml, (yaml.YAMLError,))


class OneLineParser(ArgumentParser):
    """An argument parser whose errors are one line that names the argument, its value and what is accepted."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # An option's value may name a file, too.
        super().__init__(*args, **{"prog": "mnist-lightning", "parser_mode": "bounded_yaml", **kwargs})

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


_UNKNOWN_OPTION = re.compile(
    r"Option '(.+)' is not accepted|Subcommand '.+' does not accept option '(.+)'"
    r"|[Uu]nrecognized arguments: --(\S+?)(?:[= ].*)?|unknown option (.+)"
)
_NOISE = re.compile(r"Does not validate against|Errors:|Expected a <class 'NoneType'>|Expected a path but")
_WRONG_TYPE = re.compile(r"(?:([\w.]+): )?Expected an? (<class '[\w.]+'>|typing\.Literal\[.*\])(?:\. Got value: (.*))?")
_NO_CLASS = re.compile(
    r"Expected (?:a )?dot import path string(?:: (.+))?.*|Not a valid subclass of.*"
    r"|argument of type '\w+' is not iterable.*|.*unhashable.*"
)
_CLASS_PATH = re.compile(
    r"Problem with given class_path '(.+)'|class_path='([\w.]+)'|'class_path': '([\w.]+)'|([\w.]+\.\w+)"
)
_ARGPARSE = {
    r"the following arguments are required: (.+)": r"the argument \1 is missing",
    r"unrecognized arguments: (.+)": r"unknown argument \1",
    r"argument (?:-\w/)?(--[\w.]+): expected one argument": r"\1 needs a value",
    r"argument (--[\w.]+): ignored explicit argument (.+)": r"\1 takes no value, got \2",
}
_RUNS = ("--ckpt_path", "--init_from")  # options whose value is a run
_TYPES = {
    "int": "an int",
    "float": "a float",
    "str": "a string",
    "bool": "true|false",
    "list": "a list",
    "Sequence": "a list",
    "Iterable": "a list",
    "dict": "a mapping",
    "NoneType": "null",
}


def plain_words(message: str, options: Iterable[str] = (), classes: Iterable[str] = ()) -> str:
    """Extracts one clear line from an error message of jsonargparse.

    jsonargparse reports every branch of a nested type that does not fit. A branch that says more than "another type is
    expected" names the cause. If there is none, the value has the wrong type, and all types are named.

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
    causes: list[str] = []
    types = value = ""
    for line in message.splitlines():
        text = line.strip().removeprefix("- ")
        if key := re.fullmatch(r'Parser key "(.+)":(.*)', text):
            keys += [key[1]] if keys[-1:] != [key[1]] else []
            text = key[2].strip()
        if text.startswith("Subtypes: "):
            types = text
        elif text.startswith("Given value: "):  # the end of the innermost type's report
            value = text.partition(": ")[2]
            break
        elif text and not _NOISE.match(text) and not text.startswith("Given value type"):
            causes.append(text)
    specific = [cause for cause in causes if not _WRONG_TYPE.fullmatch(cause)]
    cause = next(iter(specific or causes), "")
    where = ".".join(keys)
    inside = f"{where}." if where else ""
    if match := _UNKNOWN_OPTION.fullmatch(cause):
        option = match[match.lastindex or 0]
        hint = suggestion(option, options) or suggestion(option.split(".")[-1], options)
        return f"unknown option {inside}{option}{hint if ';' not in option else ''}"
    if match := _WRONG_TYPE.fullmatch(cause):
        name = inside + match[1] if match[1] else where
        return f"{name} must be {_accepted(types or match[2], match[3] or value)}"
    if match := re.fullmatch(r"\S+ must be .+", cause):
        return f"{inside}{cause}"
    if classes and (match := _NO_CLASS.fullmatch(cause)):
        if not match[1]:
            return f"{where} must name a class; use {_names_of(classes)}"
        return f"unknown {where} {match[1]}; use {_names_of(classes)}{suggestion(match[1], classes)}"
    for pattern, words in _ARGPARSE.items():
        if match := re.fullmatch(pattern, cause):
            return f"{where}: {match.expand(words)}" if where else match.expand(words)
    if cause.startswith("Problems parsing config"):
        details = message.replace('in "<unicode string>", ', "").partition(":")[2]
        return f"the config is not valid YAML: {one_line(details)}"
    if cause.startswith("Unexpected config"):
        return f"the config must be a mapping of options, got {one_line(cause.partition(':')[2], 80)}"
    if cause.startswith("Unable to load config"):
        reasons = [text for text in specific if not text.startswith("Unable")]
        return f"{where}: {one_line(': '.join([cause, *reasons[:1]]))}"
    if path := _CLASS_PATH.match(cause) or _CLASS_PATH.search(value):
        name = path[path.lastindex or 0]
        if where and Path(name).is_file():
            return f"{where} {name} is not a config or a class: {one_line(' '.join(specific))}"
        if where and (problem := _import_problem(name)):
            return f"{where} {name} cannot be imported: {problem}"
        if base := cause.partition("Import path does not correspond to a subclass of ")[2]:
            return f"{where} {name} is not a subclass of {base}"
        if not name.startswith("mnist_lightning."):
            return f"{where or name}: {one_line(cause)}"
    return f"{where}: {one_line(cause)}" if where else one_line(cause or message)


def _accepted(types: str, value: str) -> str:
    """Names the accepted types and values, and the value that was given instead."""
    literals = [word.strip("'\" ") for group in re.findall(r"Literal\[(.*?)\]", types) for word in group.split(", ")]
    classes = [name.split(".")[-1] for name in re.findall(r"<class '([\w.]+)'>", types)]
    lists = ["list"] if re.search(r"\b(list|tuple|Sequence|Iterable)\[", types) else []
    mappings = ["dict"] if re.search(r"\b(dict|Mapping)\[", types) else []
    names = [word for name in (*lists, *mappings, *classes) for word in _TYPES.get(name, f"a {name}").split("|")]
    *first, last = dict.fromkeys([*literals, *names])
    value = "null" if value == "None" else re.sub(r"NestedArg\(key='.*?', val='?(.*?)'?\)", r"\1", value)
    accepted = f"{', '.join(first)} or {last}" if first else last
    return f"{'one of ' if literals else ''}{accepted}, got {value!r}{suggestion(value, literals)}"


def _names_of(classes: Iterable[str]) -> str:
    return f"{', '.join(sorted(classes))} or the path of your own class, module.Class"


def _import_problem(path: str) -> str:
    """Says why a class cannot be imported: the import's own error and its line. Empty if it can be imported."""
    try:
        resolve_name(path)
    except Exception as error:  # a module can raise anything
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.name == "<module>"]
        place = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
        module = path.partition(".")[0]
        missing = isinstance(error, ModuleNotFoundError) and error.name == module
        hint = f"; run the command in the folder of {module}.py" if missing else ""
        return f"{type(error).__name__}: {one_line(error)}{hint or place}"
    return ""


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
    hints = hints_of(cls)
    for name, value in arguments.items():
        options = get_args(hints.get(name)) or (hints.get(name, Any),)
        if value is None and not {Any, None, type(None)} & set(options):
            raise InputError(f"{where}.{name} must not be null")
        for option in options if isinstance(value, Mapping) else ():
            if isinstance(option, type) and is_dataclass(option):
                refuse_nulls(f"{where}.{name}", option, value)


def with_configs(args: list[str]) -> list[str]:
    """Replaces names of shipped configs by their paths. Adds a run's config if only the run is given.

    Args:
        args: Arguments of the command line, the verb first.

    Raises:
        InputError: If an option lacks its value, or a config or checkpoint does not exist or cannot be read.
    """
    paths = ("-c", "--config", *_RUNS)
    words: list[str] = []  # with the value of each path as a word of its own
    for word in args:
        flag, equals, value = word.partition("=")
        words += [flag, value] if equals and flag in paths else [word]
    config = None
    for index, (flag, value) in enumerate(zip(words, [*words[1:], "--"], strict=True)):
        if "\0" in flag:
            raise InputError(f"an argument contains a null byte: {flag}")
        if flag in (*paths, "--model") and (not value or value.startswith("--")):
            values = _models() if flag == "--model" else "a run" if flag in _RUNS else _configs()
            raise InputError(f"{flag} needs a value: {values}")
        if flag in ("-c", "--config"):
            words[index + 1] = str(_config_file(value))
        elif flag in _RUNS:
            path = _existing_run(value)
            find = run_to_resume if words[0] == "fit" and flag == "--ckpt_path" else find_run
            run = Run.of(path) if path.is_file() else find(path)
            config = run.config_file if run is not None and run.config_file.is_file() else config
            words[index + 1] = str(path if run is None or path.is_file() else run.folder)
    if set(_RUNS) <= set(words):
        raise InputError("--ckpt_path continues a run, and --init_from starts another one; give one of them")
    names_model = {word.partition("=")[0] for word in words} & {"-c", "--config", "--model", "--model.class_path"}
    for flag in _RUNS:
        if flag in words:  # last, because a config has these options, too
            index = words.index(flag)
            words = [*words[:index], *words[index + 2 :], *words[index : index + 2]]
    if "--ckpt_path" in words and config is None and not names_model:
        raise InputError(f"{words[-1]} is not part of a run with a config; name its model and data with --config")
    return words if names_model or config is None else [words[0], "--config", str(config), *words[1:]]


def _models() -> str:
    from mnist_lightning import models

    return _names_of(models.__all__)


def _configs() -> str:
    return f"{', '.join(shipped_configs())} or a YAML file"


def explain_missing_model(verb: str) -> str:
    """Says how to name the model that a verb of Lightning's command line needs."""
    if verb == "fit":
        return f"fit needs --config ({_configs()}) or --model ({_models()})"
    way = "outside a run's folder, add its --config or --model"
    return f"{verb} needs a trained model: --ckpt_path RUN_FOLDER or CHECKPOINT.ckpt; {way}"


def _existing_run(value: str) -> Path:
    try:
        return existing(value)
    except InputError:
        raise InputError(f"there is no run or checkpoint {value}{_similar_path(value)}") from None


def _similar_path(path: str) -> str:
    """Suggests an existing path, as the end of an error message."""
    similar = Path()
    for part in Path(path).parts:
        names = [other.name for other in similar.iterdir()] if similar.is_dir() else []
        match = difflib.get_close_matches(part, names, n=1)
        if not (similar / part).exists() and not match:
            return ""
        similar /= part if (similar / part).exists() else match[0]
    return f"; did you mean {similar}?"


def shipped_configs() -> dict[str, Path]:
    """Shipped configs by name, the main ones first."""
    package = Path(__file__).parent
    folder = next(folder for folder in (package / "configs", package.parent / "configs") if folder.is_dir())
    paths = [*sorted(folder.glob("*.yaml")), *sorted(folder.glob("published/*.yaml"))]
    return {path.stem: path for path in paths}


def _config_file(name: str) -> Path:
    """Finds a config file by its path or, for a shipped config, by its name.

    Raises:
        InputError: If there is no such config, or it is not a YAML mapping.
    """
    shipped = shipped_configs()
    path = Path(name) if Path(name).is_file() else shipped.get(name.removeprefix("published/"))
    if path is None:
        problem = f"{name} is a folder, not a config" if name and Path(name).is_dir() else f"there is no config {name}"
        raise InputError(f"{problem}{suggestion(name, shipped)}; give a YAML file or one of {', '.join(shipped)}")
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise InputError(f"the config {path} must be a mapping of options, got {one_line(content, 80) or 'nothing'}")
    return path

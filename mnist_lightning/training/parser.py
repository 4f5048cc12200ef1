"""The parser of `fit`, `validate`, `test` and `predict`: its errors, its help, and checks of its values."""

import inspect
import os
import re
from argparse import SUPPRESS
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from lightning.pytorch import Trainer, callbacks, loggers, plugins
from lightning.pytorch.accelerators import AcceleratorRegistry
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.strategies import StrategyRegistry

from mnist_lightning import models
from mnist_lightning.arguments import OneLineParser, explain_missing_model
from mnist_lightning.data.graphs import MNISTSuperpixelsDataModule
from mnist_lightning.data.images import MNISTDataModule
from mnist_lightning.errors import InputError, one_line, suggestion
from mnist_lightning.help import OPTIONS

_PROFILERS = ("simple", "advanced", "pytorch", "xla")
_MAX_DEVICES = 1024  # on CPUs, Lightning would start any number of processes
_MAX_NAME = 200  # bytes of a folder's name; file systems accept 255


class TrainerParser(OneLineParser, LightningArgumentParser):
    """Lightning's parser, with errors on one line, and help without cut sentences."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"usage": SUPPRESS, **kwargs})  # Lightning's usage fills the screen

    def parse_args(self, *args: Any, **kwargs: Any) -> Any:
        """Parses arguments. A file that is no text is named on one line."""
        try:
            return super().parse_args(*args, **kwargs)
        except UnicodeDecodeError as error:
            raise InputError(f"a file that an option names is not UTF-8 text: {one_line(error)}") from error
        except ValueError as error:
            if "null byte" in str(error):  # in a path
                raise InputError(one_line(error)) from error
            raise

    def add_class_arguments(
        self, class_type: type, nested_key: str | None = None, *args: Any, **kwargs: Any
    ) -> list[str]:
        """Adds the arguments of a class, under a heading and with whole sentences."""
        added: list[str] = super().add_class_arguments(class_type, nested_key, **kwargs)
        self._describe(nested_key or class_type.__name__, class_type)
        return added

    def add_subclass_arguments(self, baseclass: Any, nested_key: str, *args: Any, **kwargs: Any) -> Any:
        """Adds an argument for a class, under a heading and with whole sentences."""
        added = super().add_subclass_arguments(baseclass, nested_key, *args, **kwargs)
        self._describe(nested_key, baseclass)
        return added

    def add_method_arguments(self, class_type: type, method_name: str, *args: Any, **kwargs: Any) -> list[str]:
        """Adds the arguments of a method, under a heading and with whole sentences."""
        added: list[str] = super().add_method_arguments(class_type, method_name, *args, **kwargs)
        self._describe(method_name, getattr(class_type, method_name))
        self.description = None  # the first line of what is described just now
        own = {name: text for name, _, text, verbs in OPTIONS if method_name in verbs}
        for action in self._actions:
            if not action.dest.startswith("trainer."):
                action.help = own.get(action.dest, action.help)
        return added

    def _describe(self, name: str, documented: Callable[..., Any]) -> None:
        """Replaces the heading, a docstring's first line, which may end within a sentence."""
        group = (self.groups or {})[name]
        group.title = f"Arguments of {documented.__name__}"
        docstring = inspect.getdoc(documented) or inspect.getdoc(documented.__init__) or ""
        group.description = plain_help(docstring.partition("\n\n")[0])
        for action in group._group_actions:
            action.help = plain_help(action.help or "")

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Explains how to name a model."""
        missing = re.fullmatch(r"the following arguments are required: (\w+)\.model", message)
        if missing or "mnist_lightning.Classifier is abstract" in message:
            raise InputError(explain_missing_model(missing[1] if missing else "fit")) from ex
        own = r"--\1, or one of --\1.OPTION, needs a value"  # the arguments of a class are not told apart
        super().error(re.sub("argument --(model|data): expected one argument", own, message), ex)

    def known_options(self) -> set[str]:
        """Options of the Trainer."""
        return {f"trainer.{name}" for name in inspect.signature(Trainer).parameters}

    def known_classes(self, message: str) -> Iterable[str]:
        """Models, data modules, or Lightning's loggers, callbacks and plugins, for the argument in a message."""
        known = {
            "model": models.__all__,
            "data": [MNISTDataModule.__name__, MNISTSuperpixelsDataModule.__name__],
            "trainer.logger": loggers.__all__,
            "trainer.callbacks": callbacks.__all__,
            "trainer.plugins": plugins.__all__,
        }
        key = re.match(r'Parser key "([\w.]+)"', message)
        return known.get(key[1], ()) if key else ()


def plain_help(text: str) -> str:
    r"""Turns a description in reStructuredText into plain sentences, the last one with its full stop.

    Example:
        >>> plain_help("See :class:`~torch.nn.Linear` and\n``x``")
        'See `Linear` and `x`.'
    """
    text = re.sub(r":\w+:`~?(?:[\w.]*\.)?(\w+)`", r"`\1`", " ".join(text.split())).replace("``", "`")
    return text if not text or text.endswith((".", "!", "?")) else f"{text}."


def check_settings(verb: str, experiment: str, trainer: Mapping[str, Any]) -> None:
    """Checks values that would fail late, or with another library's message.

    Args:
        verb: The verb.
        experiment: Name of the experiment.
        trainer: Arguments of the Trainer.

    Raises:
        InputError: If a value is not accepted.
    """
    if verb == "fit":
        _check_name(experiment)
    accepted: dict[str, Iterable[str]] = {
        "accelerator": ["auto", "gpu", *sorted(AcceleratorRegistry.available_accelerators())],
        "strategy": ["auto", *StrategyRegistry.available_strategies()],
        "profiler": _PROFILERS,
    }
    for name, values in accepted.items():
        value = trainer[name]
        if isinstance(value, str) and value.lower() not in values:
            hint = suggestion(value, values)
            raise InputError(f"trainer.{name} must be one of {', '.join(values)}, got {value!r}{hint}")
    for name in ("max_epochs", "max_steps") if verb == "fit" else ():
        value = trainer[name]
        if value is not None and (value == 0 or value < -1):
            raise InputError(f"trainer.{name} must be 1 or more, or -1 for no limit, got {value}")
    if str(trainer["devices"]).isdigit() and int(trainer["devices"]) > _MAX_DEVICES:
        raise InputError(f"trainer.devices must be at most {_MAX_DEVICES}, got {trainer['devices']}")
    if trainer["barebones"] and verb == "fit":
        raise InputError("trainer.barebones true turns off all that a run records; use lightning.Trainer in Python")
    if trainer["limit_train_batches"] == 0:
        raise InputError("trainer.limit_train_batches must be above 0, got 0: nothing would be trained")
    if trainer["accumulate_grad_batches"] < 1:
        raise InputError(f"trainer.accumulate_grad_batches must be 1 or more, got {trainer['accumulate_grad_batches']}")


def _check_name(experiment: str) -> None:
    # Lightning's loggers replace variables: $HOME would be another folder.
    plain = Path(experiment).name == experiment == os.path.expandvars(experiment) and experiment.isprintable()
    if not plain or not experiment.strip() or experiment == "..":
        rule = "without separators, control characters and variables"
        raise InputError(f"experiment must be the name of one folder, {rule}, got {experiment!r}")
    if (length := len(os.fsencode(experiment))) > _MAX_NAME:
        raise InputError(f"experiment must be a name of at most {_MAX_NAME} bytes, got {length}")

"""The space of a search: a range or a list of values for each setting."""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mnist_lightning.errors import InputError
from mnist_lightning.studies.plan import as_text, setting_values

if TYPE_CHECKING:
    from optuna.trial import Trial

_SETTING = re.compile(r"((?:model|data|trainer)\.[\w.]*\w)=(.+)", re.DOTALL)
_RANGE = re.compile(r"(log:)?([^:,]+):([^:,]+)")
_DIGITS = 4  # significant digits of a value of a range


@dataclass(frozen=True)
class Range:
    """Numbers from a lowest to a highest one. They are integers if both bounds are.

    Attributes:
        name: Option, such as `model.lr`.
        low: Lowest value.
        high: Highest value.
        log: Whether the logarithm is uniformly distributed instead of the value.
    """

    name: str
    low: float
    high: float
    log: bool = False

    @property
    def is_integer(self) -> bool:
        """Whether the values are integers."""
        return isinstance(self.low, int)

    @property
    def examples(self) -> tuple[float, ...]:
        """Values that tell whether `fit` accepts the range: its bounds."""
        return self.low, self.high

    def suggest(self, trial: "Trial") -> float:
        """Asks Optuna for a value."""
        if self.is_integer:
            return trial.suggest_int(self.name, int(self.low), int(self.high), log=self.log)
        return trial.suggest_float(self.name, self.low, self.high, log=self.log)

    def rounded(self, value: float) -> float:
        """Rounds a value to four significant digits, so that a table shows exactly the value of the training."""
        return value if self.is_integer else min(max(float(f"{value:.{_DIGITS}g}"), self.low), self.high)

    def find(self, value: Any) -> float | None:
        """Returns a value of a config as one of the range, or None if the range does not contain it."""
        is_number = isinstance(value, int if self.is_integer else int | float) and not isinstance(value, bool)
        return value if is_number and self.low <= value <= self.high else None

    def __str__(self) -> str:
        return f"{self.name}={'log:' if self.log else ''}{self.low}:{self.high}"


@dataclass(frozen=True)
class Choices:
    """Values that have no order.

    Attributes:
        name: Option, such as `model.activation`.
        examples: The values as text, because Optuna takes no lists.
    """

    name: str
    examples: tuple[str, ...]

    @property
    def log(self) -> bool:
        """False: the values have no order."""
        return False

    def suggest(self, trial: "Trial") -> str:
        """Asks Optuna for a value."""
        return trial.suggest_categorical(self.name, self.examples)

    def rounded(self, value: str) -> str:
        """Returns the value."""
        return value

    def find(self, value: Any) -> str | None:
        """Returns a value of a config as one of the choices, or None if it is none of them."""
        return next((text for text in self.examples if _equal(text, as_text(value))), None)

    def __str__(self) -> str:
        return f"{self.name}={','.join(self.examples)}"


Setting = Range | Choices


def parse_space(texts: Sequence[str]) -> list[Setting]:
    """Reads the settings of a search.

    Args:
        texts: `NAME=LOW:HIGH`, `NAME=log:LOW:HIGH` or `NAME=VALUE,VALUE`, each for another setting.

    Raises:
        InputError: If one is malformed or repeated, or there is none.

    Example:
        >>> print(*parse_space(["model.lr=log:1e-3:3e-2", "model.widths=[64],[256,128]"]))
        model.lr=log:0.001:0.03 model.widths=[64],[256, 128]
    """
    space = [_parse(text) for text in texts]
    names = [setting.name for setting in space]
    if repeated := [name for name in names if names.count(name) > 1]:
        raise InputError(f"{repeated[0]} is searched twice; give one range or list of values")
    if not space:
        raise InputError("a search needs a setting, such as model.lr=log:1e-3:3e-2")
    return space


def short_names(names: Iterable[str]) -> list[str]:
    """Shortens names of settings to their last part, where that tells them apart.

    Example:
        >>> short_names(["model.lr", "data.augment.shift", "model.shift"])
        ['lr', 'data.augment.shift', 'model.shift']
    """
    names = list(names)
    last = [name.split(".")[-1] for name in names]
    return [short if last.count(short) == 1 else name for name, short in zip(names, last, strict=True)]


def _parse(text: str) -> Setting:
    match = _SETTING.fullmatch(text.strip())
    if match is None:
        raise InputError(
            "a setting to search is NAME=LOW:HIGH, NAME=log:LOW:HIGH or NAME=VALUE,VALUE, and NAME is model.OPTION, "
            f"data.OPTION or trainer.OPTION; got {text!r}"
        )
    name = match[1].replace(".init_args.", ".")
    if bounds := _RANGE.fullmatch(match[2]):
        return _range(name, bounds[2].strip(), bounds[3].strip(), bool(bounds[1]))
    choices = tuple(map(as_text, setting_values(text, name, match[2])))
    if len(choices) < 2 or len(set(choices)) < len(choices):
        raise InputError(f"{name} needs a range, such as 0:0.1, or two different values or more; got {match[2]!r}")
    return Choices(name, choices)


def _range(name: str, low: str, high: str, log: bool) -> Range:
    is_integer = all(re.fullmatch(r"[+-]?\d+", bound) for bound in (low, high))
    try:
        bounds = [int(bound) if is_integer else float(bound) for bound in (low, high)]
    except ValueError:
        bounds = []
    shown = f"got {'log:' if log else ''}{low}:{high}"
    if not all(map(math.isfinite, bounds)) or not bounds:
        raise InputError(f"the bounds of {name} must be numbers, {shown}")
    if bounds[0] >= bounds[1]:
        raise InputError(f"the lower bound of {name} must be less than the upper one, {shown}")
    if log and bounds[0] <= 0:
        raise InputError(f"the lower bound of {name} must be more than 0 on a logarithmic scale, {shown}")
    return Range(name, bounds[0], bounds[1], log)


def _equal(one: str, other: str) -> bool:
    try:
        return one == other or float(one) == float(other)  # 1e-3 and 0.001
    except ValueError:
        return False

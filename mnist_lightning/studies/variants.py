"""Trainings that differ from one config in a few settings."""

from collections.abc import Mapping, Sequence, Set
from dataclasses import replace
from typing import Any

from mnist_lightning.errors import InputError
from mnist_lightning.runs.run import flat
from mnist_lightning.studies.plan import Training, as_text, model_of
from mnist_lightning.studies.space import Range, Setting

UNTESTED = "trainer.limit_test_batches"  # 0 in the trials of a search


class Variants:
    """Makes the trainings of a search's trials.

    The arguments of `fit` are read here only: its parser changes the working directory of the whole process for a
    moment, in which no training may be started by another thread. So the settings of a trial are put together from
    those of the bounds and choices.

    Args:
        config: Name of a config.
        space: Settings that change.
        fit: More arguments of every `fit`.

    Attributes:
        base: Training of the config itself, as a trial.

    Raises:
        InputError: If `fit` does not accept an argument, a bound or a choice, or a setting does not change the
            training.
    """

    def __init__(self, config: str, space: Sequence[Setting], fit: Sequence[str]) -> None:
        given = {word.partition("=")[0].removeprefix("--").replace(".init_args.", ".") for word in fit}
        for setting in space:
            if setting.name in given:
                raise InputError(f"--{setting.name} cannot be an option of a search of {setting.name}")
            if setting.name == UNTESTED:
                raise InputError(f"{UNTESTED} cannot be searched, because trials are not tested")
            if setting.name.endswith("class_path"):
                raise InputError(f"{setting.name} cannot be searched; search the settings of each class")
        experiment = f"search-{model_of(config, {}, fit).config['experiment']}"
        # Later arguments win: the runs of trials are not tested, and have a folder of their own.
        options = (*fit, "--experiment", experiment, f"--{UNTESTED}", "0")
        self.base = model_of(config, {}, options)
        self._values = flat("", self.base.config)
        self._effects = {setting.name: self._effect(setting, config, options) for setting in space}

    def training(self, name: str, settings: Mapping[str, Any], seed: int) -> Training:
        """Makes the training of a trial.

        Args:
            name: Name of the training.
            settings: Settings by option.
            seed: Seed.
        """
        effects = [(self._effects[option], value) for option, value in settings.items()]
        removed = {key for effect, value in effects for key in effect.removed(value)}
        values = {key: value for key, value in self._values.items() if key not in removed}
        for effect, _ in effects:
            values |= effect.shared
        for effect, value in effects:  # last, because what one setting shares may contain another one's default
            values |= effect.own(value)
        changes = [word for option, value in settings.items() for word in (f"--{option}", as_text(value))]
        arguments = (*self.base.arguments, *changes)
        return replace(self.base, name=name, seed=seed, arguments=arguments, config=_nested(values))

    def _effect(self, setting: Setting, config: str, options: Sequence[str]) -> "_Effect":
        # As options, because those that a study cannot have are refused.
        several = [model_of(config, {}, (*options, f"--{setting.name}", as_text(each))) for each in setting.examples]
        if len({training.planned.identity for training in several}) < 2:
            raise InputError(f"{setting.name} does not change the training, so it cannot be searched")
        return _Effect(setting, self._values, [flat("", training.config) for training in several])


class _Effect:
    """What a setting changes in a flat config.

    Args:
        setting: The setting.
        base: The config without the setting.
        several: The config with each of the setting's examples.

    Attributes:
        shared: Changes that do not depend on the setting's value, such as defaults of a mapping that was null.

    Raises:
        InputError: If a number of a range changes several values.
    """

    def __init__(self, setting: Setting, base: Mapping[str, Any], several: Sequence[Mapping[str, Any]]) -> None:
        self._base, self._several = base, dict(zip(setting.examples, several, strict=True))
        keys = dict.fromkeys(key for each in several for key in each)
        self._own = [
            key for key in keys if any(key not in each or each[key] != several[0].get(key) for each in several)
        ]
        changed = {key: value for key, value in several[0].items() if key not in base or base[key] != value}
        self.shared = {key: value for key, value in changed.items() if key not in self._own}
        self._type: type | None = None
        if isinstance(setting, Range):
            if len(self._own) != 1:
                raise InputError(f"{setting.name} changes several settings, so it cannot be searched as a range")
            self._type = type(several[0][self._own[0]])

    def removed(self, value: Any) -> Set[str]:
        """Keys of the config that do not exist with a value of the setting."""
        return self._base.keys() - self._example(value).keys()

    def own(self, value: Any) -> dict[str, Any]:
        """What a value of the setting changes."""
        if self._type is not None:
            return {self._own[0]: self._type(value)}
        example = self._example(value)
        return {key: example[key] for key in self._own if key in example}

    def _example(self, value: Any) -> Mapping[str, Any]:
        return next(iter(self._several.values())) if self._type is not None else self._several[value]


def _nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Undoes `flat`.

    Example:
        >>> _nested({"model.lr": 0.1, "model.width": 8, "seed": 0})
        {'model': {'lr': 0.1, 'width': 8}, 'seed': 0}
    """
    result: dict[str, Any] = {}
    for name, value in values.items():
        *parents, last = name.split(".")
        mapping = result
        for parent in parents:
            mapping = mapping.setdefault(parent, {})
        mapping[last] = value
    return result

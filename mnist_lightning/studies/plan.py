"""The trainings of a study: configs x settings x folds x seeds."""

import copy
import json
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from mnist_lightning.arguments import shipped_configs
from mnist_lightning.errors import InputError
from mnist_lightning.runs.finding import runs_at
from mnist_lightning.runs.run import Run
from mnist_lightning.training.settings import fit_settings

ALL = "all"  # stands for every shipped config that names a model
# Options of `fit` that a study sets itself, or that leave no run.
_REFUSED = {
    "--seed_everything": "use --seeds",
    "--data.fold": "use --folds",
    "--data.init_args.fold": "use --folds",
    "--ckpt_path": "a study finds the runs to resume by itself",
    "--config": "name configs before --, such as lenet+mse",
    "-c": "name configs before --, such as lenet+mse",
    "--trainer.logger": "a study needs the folders of its runs",
    "--trainer.fast_dev_run": "it leaves no run; use --trainer.limit_train_batches and --trainer.max_epochs",
    "--trainer.enable_checkpointing": "a study needs the checkpoints of its runs",
}


@dataclass(eq=False)
class Training:
    """One training of a study.

    Attributes:
        name: Name of the config, with the settings that tell it from others, such as `lenet, lr 0.01`.
        seed: Seed.
        arguments: Arguments of `fit`, without the verb.
        config: All settings, as in the config of a run, without seed and fold.
        shortened: Model, data and trainer as YAML, without the settings that have their default.
        fold: Fold k/K; None for no cross-validation.
        source: Data source that is really used, if `prepare_data` had to fall back.
    """

    name: str
    seed: int
    arguments: tuple[str, ...]
    config: dict[str, Any]
    shortened: str
    fold: str | None = None
    source: str | None = None

    @cached_property
    def planned(self) -> Run:
        """The run that the training will leave, without its folder's number."""
        config = copy.deepcopy(self.config)
        config["seed_everything"] = self.seed
        if self.fold:
            config["data"]["init_args"]["fold"] = self.fold
        return Run.planned(config)

    @property
    def experiment(self) -> Path:
        """Folder of the experiment, which may not exist."""
        assert self.planned.folder is not None
        return self.planned.folder

    @property
    def label(self) -> str:
        """Name, fold and seed: `lenet, lr 0.01, fold 1/5, seed 0`."""
        return ", ".join([self.name, *([f"fold {self.fold}"] if self.fold else []), f"seed {self.seed}"])

    @property
    def fit(self) -> tuple[str, ...]:
        """Arguments of `fit`, the verb first, for a new run."""
        fold = ("--data.fold", self.fold) if self.fold else ()
        return ("fit", *self.arguments, *fold, "--seed_everything", str(self.seed))

    def runs(self) -> list[Run]:
        """Finds the runs of this training on disk: those with the same settings, seed and source, oldest first."""
        runs = runs_at(self.experiment, []) if self.experiment.is_dir() else []
        return [run for run in runs if _identity(run) == self.planned.identity and self._has_source(run)]

    def finished(self) -> Run | None:
        """The latest finished run of this training."""
        return next((run for run in reversed(self.runs()) if run.is_finished), None)

    def _has_source(self, run: Run) -> bool:
        """Whether a finished run was trained on the training's source: a fallback may have replaced it."""
        source = self.source or self.config["data"].get("init_args", {}).get("source")
        try:
            return source is None or not run.is_finished or run.source == source
        except InputError:  # a damaged summary
            return False


def prepare_data(several: Sequence[Training]) -> None:
    """Downloads and prepares the data of trainings once, before several processes need them.

    Missing data are no error here: those of one config may be, and its trainings say so.
    """
    by_data: dict[str, list[Training]] = {}
    for training in several:
        by_data.setdefault(json.dumps(training.config["data"], sort_keys=True, default=str), []).append(training)
    for group in by_data.values():
        with warnings.catch_warnings(), suppress(InputError, OSError):
            warnings.simplefilter("ignore")
            data = fit_settings(group[0].arguments).data
            data.prepare_data()
            for training in group:
                training.source = getattr(data, "source", None)


_identities: dict[tuple[Path, int], str | None] = {}  # by config file and time; reading YAML is slow


def _identity(run: Run) -> str | None:
    try:
        key = run.config_file.resolve(), run.config_file.stat().st_mtime_ns
        if key not in _identities:
            _identities[key] = run.identity
        return _identities[key]
    except (InputError, OSError):  # damaged, or removed meanwhile
        return None


def trainings(
    configs: Sequence[str],
    seeds: int = 5,
    folds: int | None = None,
    settings: Sequence[str] = (),
    options: Sequence[str] = (),
) -> list[Training]:
    """Lists the trainings of a study, and checks their settings.

    Args:
        configs: Names of configs or YAML files. `a+b` is config a with the changes of b; `all` stands for all shipped
            configs.
        seeds: Number of seeds: 0, 1, ...
        folds: Number of folds of a cross-validation. None for none.
        settings: Values to combine, such as `model.lr=0.003,0.01`.
        options: More arguments of every `fit`.

    Returns:
        The trainings, seed by seed, so that a study that is stopped has compared all configs.

    Raises:
        InputError: If an argument cannot be used.
    """
    if seeds < 1:
        raise InputError(f"seeds must be 1 or more, got {seeds}")
    if folds is not None and folds < 2:
        raise InputError(f"folds must be 2 or more, got {folds}")
    parts = [f"{k}/{folds}" for k in range(1, folds + 1)] if folds else [None]
    grid = [dict(values) for values in product(*map(_choices, settings))]
    models = [model_of(config, values, options, parts[0]) for config in config_names(configs) for values in grid]
    several = [replace(model, seed=seed, fold=fold) for seed in range(seeds) for fold in parts for model in models]
    return list({(each.experiment, each.planned.identity): each for each in several}.values())


def config_names(configs: Sequence[str]) -> list[str]:
    """Expands `all`, and removes repetitions.

    Raises:
        InputError: If there is no config, or a shipped config only changes others.
    """
    shipped = shipped_configs()
    if not configs:
        raise InputError(f"a study needs a config: {', '.join(shipped)}, a YAML file, or {ALL}")
    complete = [name for name, path in shipped.items() if "class_path" in path.read_text(encoding="utf-8")]
    for config in configs:
        if config in shipped and config not in complete:
            raise InputError(f"{config} names no model, because it changes another config, as in lenet+{config}")
    return list(dict.fromkeys(name for config in configs for name in (complete if config == ALL else [config])))


def model_of(config: str, values: Mapping[str, Any], options: Sequence[str], fold: str | None = None) -> Training:
    """Makes the training of a config with seed 0, and checks its settings.

    Args:
        config: Name of a config, or several joined by `+`.
        values: Settings that change the config, by option: `{"model.lr": 0.01}`.
        options: More arguments of `fit`.
        fold: Fold k/K, to check whether the data module has folds. The training has none.

    Raises:
        InputError: If an argument cannot be used.
    """
    for word in options:
        if reason := _REFUSED.get(word.partition("=")[0]):
            raise InputError(f"{word.partition('=')[0]} cannot be an option of a study: {reason}")
    names = [argument for name in _split(config) for argument in ("--config", name)]
    changes = [argument for name, value in values.items() for argument in (f"--{name}", as_text(value))]
    arguments = (*names, *options, *changes)
    read = fit_settings([*arguments, *(("--data.fold", fold) if fold else ())])
    if fold:
        read.config["data"]["init_args"]["fold"] = None
    experiment = str(read.config["experiment"])
    shown = [f"{name.split('.')[-1]} {as_text(value)}" for name, value in values.items()]
    return Training(", ".join([experiment, *shown]), 0, arguments, read.config, read.shortened)


def _split(config: str) -> list[str]:
    """Splits `a+b`, unless a file has that name."""
    return [config] if Path(config).is_file() else config.split("+")


def _choices(setting: str) -> list[tuple[str, Any]]:
    """Splits `model.lr=0.003,0.01` into `[("model.lr", 0.003), ("model.lr", 0.01)]`.

    Example:
        >>> _choices("model.widths=[64],[256,128]")
        [('model.widths', [64]), ('model.widths', [256, 128])]
    """
    name, _, text = setting.partition("=")
    return [(name, value) for value in setting_values(setting, name, text)]


def setting_values(setting: str, name: str, text: str) -> list[Any]:
    """Reads the values of a setting, separated by commas.

    Args:
        setting: The whole argument, for error messages.
        name: Name of the setting.
        text: Values as YAML, such as `0.003,0.01`.

    Raises:
        InputError: If there is no name, no value or an empty value, or the name is not an option of a model, data or
            trainer.
    """
    try:
        values = yaml.safe_load(f"[{text}]") if text.strip() else []
    except yaml.YAMLError:
        values = []
    part, _, option = name.removeprefix("--").partition(".")
    if part not in ("model", "data", "trainer") or not option or not values or name.startswith("--"):
        raise InputError(
            f"a setting is model.OPTION, data.OPTION or trainer.OPTION = VALUE,VALUE, such as "
            f"model.lr=0.003,0.01; got {setting!r}"
        )
    return list(values)


def as_text(value: Any) -> str:
    """Writes a value as an argument of `fit`."""
    return value if isinstance(value, str) else json.dumps(value)

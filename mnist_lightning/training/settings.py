"""Settings of a training, read and checked without training."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import yaml
from lightning.pytorch import LightningDataModule

from mnist_lightning.arguments import with_configs
from mnist_lightning.runs.records import CONFIG_PARTS
from mnist_lightning.training.command import CLI


@dataclass(frozen=True)
class FitSettings:
    """Settings of a training.

    Attributes:
        config: All settings, as in the config of a run.
        data: The data module, whose data are not read yet.
        shortened: Model, data and trainer as YAML, without the settings that have their default. `--config` takes it.
    """

    config: dict[str, Any]
    data: LightningDataModule
    shortened: str


def fit_settings(arguments: Sequence[str]) -> FitSettings:
    """Reads arguments of `fit`, and makes the model and the data module, which check their values.

    Args:
        arguments: Arguments of the command line, without the verb.

    Raises:
        InputError: If an argument or a config cannot be used.
    """
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore", DeprecationWarning)  # between Lightning, torch and jsonargparse
        command = _Settings(with_configs(["fit", *arguments]))
        parser, config = command._parser("fit"), command.config.fit
        whole, shortened = (yaml.safe_load(parser.dump(config, skip_none=False, skip_default=s)) for s in (False, True))
    parts = {name: shortened[name] for name in CONFIG_PARTS if name in shortened}
    return FitSettings(whole, command.datamodule, yaml.safe_dump(parts, sort_keys=False))


class _Settings(CLI):
    """The command line up to the trainer."""

    def _set_seed(self) -> None:
        """Keeps the seed of this process."""

    def instantiate_trainer(self, **kwargs: Any) -> None:  # type: ignore[override]
        """Makes none, because it would create the run's folder."""

    def _run_subcommand(self, subcommand: str) -> None:
        """Trains nothing."""

"""`mnist-lightning fit`, `validate`, `test` and `predict`: Lightning's command line with this package's defaults."""

import gc
import inspect
import logging
import os
import warnings
from collections.abc import Iterable
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.callbacks import Callback, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn

from mnist_lightning import models
from mnist_lightning.arguments import OneLineParser, plain_words, refuse_nulls, with_configs
from mnist_lightning.classifier import Classifier
from mnist_lightning.data.graphs import MNISTSuperpixelsDataModule
from mnist_lightning.data.images import MNISTDataModule
from mnist_lightning.errors import InputError, SourceUnavailableError, one_line
from mnist_lightning.evaluation.metrics import Metrics, metrics, metrics_table
from mnist_lightning.evaluation.page import print_result
from mnist_lightning.runs.checkpoint import find_checkpoint, read_checkpoint
from mnist_lightning.runs.run import LOGS, Run
from mnist_lightning.runs.writing import explain_disk_error, write_predictions
from mnist_lightning.training.checkpoints import AtomicCheckpointIO, BestCheckpoint, LastCheckpoint
from mnist_lightning.training.progress import CalmProgressBar
from mnist_lightning.training.recording import RunConfig, RunRecorder
from mnist_lightning.training.reproducibility import ReproducibleEpochs
from mnist_lightning.training.tensorboard import RunLogger, TensorBoardFigures

_MAX_DEVICES = 1024  # on CPUs, Lightning would start any number of processes


def run(args: list[str]) -> None:
    """Runs `fit`, `validate`, `test` or `predict`.

    Args:
        args: Arguments of the command line, the verb first.

    Raises:
        InputError: If an argument, config or checkpoint cannot be used.
    """
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        CLI(with_configs(args))
    except MisconfigurationException as error:
        raise InputError(str(error)) from error
    except SourceUnavailableError as error:
        raise InputError(f"{error}, or use --data.fallback digits") from error
    if torch.distributed.is_initialized():  # threads that outlive the process group would abort the process
        torch.distributed.destroy_process_group()


class TrainerParser(OneLineParser, LightningArgumentParser):
    """Lightning's parser, with errors on one line."""

    def known_options(self) -> set[str]:
        """Options of the Trainer."""
        return {f"trainer.{name}" for name in inspect.signature(Trainer).parameters}

    def known_classes(self, message: str) -> Iterable[str]:
        """Data modules for `data`, models otherwise."""
        data_modules = [MNISTDataModule.__name__, MNISTSuperpixelsDataModule.__name__]
        return data_modules if message.startswith('Parser key "data"') else models.__all__


class CLI(LightningCLI):
    """Lightning's command line.

    Args:
        args: Arguments of the command line, with paths of configs.
    """

    def __init__(self, args: list[str]) -> None:
        self.verb = next(word for word in args if word in LightningCLI.subcommands())
        super().__init__(
            Classifier,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            parser_class=TrainerParser,
            parser_kwargs={"prog": "mnist-lightning"},
            trainer_defaults={"max_epochs": 10},
            save_config_callback=RunConfig,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            args=args,
        )

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """The called verb only, because each parser is slow to build; without options that this package decides."""
        skipped = {"weights_only", "verbose", "return_predictions"}  # checkpoints are always read safely
        return {self.verb: LightningCLI.subcommands()[self.verb] | skipped}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds the name of the experiment, and the default data module."""
        parser.add_argument(
            "--experiment",
            type=str | None,
            default=None,
            help=f"Name of the experiment; the run goes to {LOGS}/EXPERIMENT/version_N. Default: the config's name.",
        )
        parser.set_defaults({"data": {"class_path": "mnist_lightning.MNISTDataModule"}})

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parses the arguments, without Lightning's warning that they differ from those of the process."""
        try:
            self.config = parser.parse_args(args)
        except ValueError as error:
            if "null byte" in str(error):  # in a path
                raise InputError(one_line(error)) from error
            raise
        gc.freeze()  # cli.py turned the garbage collector off for the imports
        gc.enable()

    def _set_seed(self) -> None:
        try:
            super()._set_seed()
        except ValueError as error:
            raise InputError(f"seed_everything: {error}") from error

    def _parse_ckpt_path(self) -> None:
        """Lets the checkpoint's model arguments win, with a warning. Lightning lets them win silently."""
        verb = self.config.subcommand
        config = self.config[verb]
        if not config.ckpt_path:
            if verb != "fit":
                raise InputError(f"{verb} needs a trained model: --ckpt_path RUN_FOLDER or CHECKPOINT.ckpt")
            return
        path = find_checkpoint(config.ckpt_path, "last" if verb == "fit" else "best")
        checkpoint = read_checkpoint(path)
        config.ckpt_path = str(path)
        trained, requested = checkpoint["classifier"].split(".")[-1], config.model.class_path.split(".")[-1]
        if trained != requested:
            raise InputError(f"{path} contains a {trained}, but --model is {requested}")
        for name, value in checkpoint["hyper_parameters"].items():
            given = config.model.init_args.get(name, value)
            if name != "compile" and _plain(given) != _plain(value):
                rank_zero_warn(f"--model.{name} {given} is ignored: the checkpoint's model has {value}")
                config.model.init_args[name] = value

    def before_instantiate_classes(self) -> None:
        """Names the experiment. Only `fit` writes a config."""
        config = self.config[self.subcommand]
        if self.subcommand != "fit":
            self.save_config_callback = None
            warnings.filterwarnings("ignore", ".*The dirpath has changed from.*")  # no checkpoint is written
        elif config.ckpt_path:
            self.save_config_kwargs = {"overwrite": True}
        if config.experiment is None:
            names = "-".join(Path(str(file)).stem for file in config.config or [])
            config.experiment = names or config.model.class_path.split(".")[-1].lower()

    def instantiate_classes(self) -> None:
        """Turns a constructor's refusal of a value into one line."""
        config = self.config[self.subcommand]
        for part in ("model", "data"):
            if config[part] is not None:
                component = config[part].as_dict()
                refuse_nulls(part, resolve_name(component["class_path"]), component.get("init_args", {}))
        if not hasattr(config.trainer, "as_dict"):
            raise InputError(f"trainer must be a mapping of options, got {one_line(config.trainer, 80)}")
        refuse_nulls("trainer", Trainer, config.trainer.as_dict())
        try:
            super().instantiate_classes()
        except ValueError as error:
            raise InputError(plain_words(str(error))) from error

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Adds the callbacks of every run, and the logger."""
        trainer = self._get(self.config_init, "trainer")
        given = trainer["callbacks"] or []
        callbacks: list[Callback] = []
        if trainer["enable_progress_bar"] is not False and not any(isinstance(c, ProgressBar) for c in given):
            callbacks.append(CalmProgressBar())
        if self.subcommand == "fit":
            seed = int(os.environ.get("PL_GLOBAL_SEED", 0))
            self.recorder = RunRecorder(self._get(self.config_init, "experiment"), seed)
            callbacks += [ReproducibleEpochs(seed), self.recorder, TensorBoardFigures()]
            self.best = BestCheckpoint()
            if trainer["enable_checkpointing"] is not False:
                callbacks += [self.best, LastCheckpoint()]
        if trainer["logger"] in (None, True):
            kwargs["logger"] = self._logger(trainer["default_root_dir"]) if self.subcommand == "fit" else False
        self.trainer_defaults["callbacks"] = callbacks
        if str(trainer["devices"]).isdigit() and int(trainer["devices"]) > _MAX_DEVICES:
            raise InputError(f"trainer.devices must be at most {_MAX_DEVICES}, got {trainer['devices']}")
        if trainer["accumulate_grad_batches"] < 1:
            raise InputError(
                f"trainer.accumulate_grad_batches must be 1 or more, got {trainer['accumulate_grad_batches']}"
            )
        try:
            instance = super().instantiate_trainer(**kwargs)
        except (TypeError, OverflowError) as error:  # raised by Lightning for a wrong number of devices
            raise InputError(str(error)) from error
        if type(instance.strategy.checkpoint_io) is TorchCheckpointIO:  # Lightning's default; a plugin is kept
            instance.strategy.checkpoint_io = AtomicCheckpointIO()
        return instance

    def _logger(self, root: Any) -> RunLogger:
        """Logs to a new folder, or to the folder of a resumed run."""
        checkpoint = self._get(self.config_init, "ckpt_path")
        resumed = Run.of(checkpoint) if checkpoint else None
        if resumed is not None and resumed.folder is not None:
            folder = resumed.folder
            return RunLogger(folder.parent.parent, folder.parent.name, folder.name, default_hp_metric=False)
        # An absolute path, because checkpoints store it and a run may be resumed from another folder.
        logs = Path(root or ".").absolute() / LOGS
        return RunLogger(logs, self._get(self.config_init, "experiment"), default_hp_metric=False)

    def _run_subcommand(self, subcommand: str) -> None:
        """Explains disk errors of a training."""
        try:
            super()._run_subcommand(subcommand)
        except OSError as error:
            if subcommand != "fit" or not self.trainer.loggers:
                raise
            raise explain_disk_error(error, Run(self.trainer.loggers[0].log_dir or ".")) from error

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        kwargs = super()._prepare_subcommand_kwargs(subcommand)
        kwargs["weights_only"] = True
        if subcommand in ("validate", "test"):
            kwargs["verbose"] = False
        return kwargs

    def after_fit(self) -> None:
        """Tests the checkpoint with the best validation accuracy, once."""
        tested = self.best.best_model_path
        if not tested:  # checkpoints are off
            return
        self.trainer.test(self.model, self.datamodule, ckpt_path=tested, weights_only=True, verbose=False)
        self._print(metrics_table(self.recorder.metrics, f"{self.recorder.experiment}: {self._title()}"))
        self._print(self.trainer.log_dir)

    def after_validate(self) -> None:
        """Prints the metrics."""
        self._print(metrics_table({"val": self._metrics("val")}, self._title()))

    def after_test(self) -> None:
        """Prints the metrics."""
        self._print(metrics_table({"test": self._metrics("test")}, self._title()))

    def after_predict(self) -> None:
        """Writes the predictions beside the checkpoint."""
        logits, labels = self.model.predictions["predict"]
        if self.trainer.is_global_zero:
            path = write_predictions(Path(self._get(self.config_init, "ckpt_path")), logits, labels)
            self._print(f"{len(labels):,} predictions: {path}")

    @rank_zero_only
    def _print(self, result: object) -> None:
        print_result(result)

    def _metrics(self, split: str) -> Metrics:
        logits, labels = self.model.predictions[split]
        return metrics(logits, labels, float(self.model.loss(logits, labels)))

    def _title(self) -> str:
        source = getattr(self.datamodule, "source", type(self.datamodule).__name__)
        return f"{type(self.model).__name__} on {source}"


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value

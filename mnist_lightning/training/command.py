"""`mnist-lightning fit`, `validate`, `test` and `predict`: Lightning's command line with this package's defaults."""

import gc
import logging
import re
import sys
from argparse import SUPPRESS
from pathlib import Path
from pkgutil import resolve_name
from tempfile import TemporaryDirectory
from typing import Any

import torch
import yaml
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    Callback,
    LearningRateFinder,
    ModelCheckpoint,
    ModelSummary,
    ProgressBar,
)
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn

from mnist_lightning.arguments import plain_words, refuse_nulls, with_configs
from mnist_lightning.classifier import Classifier
from mnist_lightning.data.images import MNISTDataModule
from mnist_lightning.errors import InputError, SourceUnavailableError, StoppedError, one_line
from mnist_lightning.evaluation.page import print_result
from mnist_lightning.help import OPTIONS
from mnist_lightning.models import GNN
from mnist_lightning.runs.checkpoint import data_in, find_checkpoint, read_checkpoint
from mnist_lightning.runs.finding import existing
from mnist_lightning.runs.resuming import FinishedError, check_data, check_processes, check_resume
from mnist_lightning.runs.run import LOGS, ORIGINS, Run
from mnist_lightning.runs.writing import check_predictions_file, explain_disk_error, write_predictions
from mnist_lightning.training.callbacks import record
from mnist_lightning.training.checkpoints import LastCheckpoint, write_atomically
from mnist_lightning.training.distillation import Distillation
from mnist_lightning.training.failures import fails_first, refusal
from mnist_lightning.training.finetuning import InitialWeights
from mnist_lightning.training.layers import LayerTable
from mnist_lightning.training.parser import TrainerParser, check_settings
from mnist_lightning.training.progress import progress_callback
from mnist_lightning.training.recording import RunConfig, RunRecorder
from mnist_lightning.training.result import Result, evaluation_table
from mnist_lightning.training.stopping import StopSignals, without_requeue
from mnist_lightning.training.supervision import in_study
from mnist_lightning.training.tensorboard import RunLogger


def run(args: list[str]) -> None:
    """Runs `fit`, `validate`, `test` or `predict`.

    Args:
        args: Arguments of the command line, the verb first.

    Raises:
        InputError: If an argument, config or checkpoint cannot be used.
    """
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("lightning.pytorch.profilers").setLevel(logging.INFO)  # their reports
    logging.getLogger("lightning.pytorch.tuner").setLevel(logging.CRITICAL)  # RunRecorder reports the learning rate
    try:
        CLI(with_configs(args))
    except FinishedError as finished:
        print_result(str(finished))
    except StoppedError:
        raise
    except Exception as error:
        if not fails_first():
            sys.exit(2)
        if isinstance(error, SourceUnavailableError):
            raise InputError(f"{error}, or use --data.fallback digits") from error
        if explanation := refusal(error):
            raise InputError(explanation) from error
        raise
    if torch.distributed.is_initialized():  # threads that outlive the process group would abort the process
        torch.distributed.destroy_process_group()


class CLI(LightningCLI):
    """Lightning's command line.

    Args:
        args: Arguments of the command line, with paths of configs.
    """

    def __init__(self, args: list[str]) -> None:
        self.verb = next(word for word in args if word in LightningCLI.subcommands())
        self.resumed: Run | None = None
        self.temporary: TemporaryDirectory[str] | None = None
        self.signals = StopSignals()
        super().__init__(
            Classifier,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            parser_class=TrainerParser,
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
        """Adds arguments of this package, and the default data module."""
        texts = {name: text for name, _, text, _ in OPTIONS}
        for name in (*ORIGINS, "experiment"):  # other verbs than fit find the origins in a run's config
            text = texts[name] if self.verb == "fit" or name == "experiment" else SUPPRESS
            parser.add_argument(f"--{name}", type=str | None, default=None, help=text)
        if self.verb == "test":
            parser.add_argument("--shifts", type=bool, default=False)
        if self.verb == "predict":
            parser.add_argument("--output", default="predictions.csv", help="File of the predictions (.csv).")
        parser.set_defaults({"data": {"class_path": "mnist_lightning.MNISTDataModule"}})

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parses the arguments, without Lightning's warning that they differ from those of the process."""
        self.config = parser.parse_args(args)
        gc.freeze()  # cli.py turned the garbage collector off for the imports
        gc.enable()

    def _set_seed(self) -> None:
        try:
            super()._set_seed()
        except ValueError as error:
            raise InputError(f"seed_everything: {error}") from error

    def _parse_ckpt_path(self) -> None:
        """Finds the checkpoint. Refuses arguments of `fit` that do not continue its run, before anything is written."""
        verb = self.config.subcommand
        config = self.config[verb]
        if not config.ckpt_path:
            if verb != "fit":
                raise InputError(f"{verb} needs a trained model: --ckpt_path RUN_FOLDER or CHECKPOINT.ckpt")
            if config.init_from:
                config.init_from = str(find_checkpoint(config.init_from).absolute())
            if config.distill_from:
                config.distill_from = str(existing(config.distill_from).absolute())
            return
        path = find_checkpoint(config.ckpt_path, "last" if verb == "fit" else "tested")
        checkpoint = read_checkpoint(path)
        config.ckpt_path = str(path)
        trained, requested = checkpoint["classifier"].split(".")[-1], config.model.class_path.split(".")[-1]
        if trained != requested:
            raise InputError(f"{path} contains a {trained}, but --model is {requested}")
        if verb == "fit":
            self._resume(path, checkpoint)
        for name, value in checkpoint["hyper_parameters"].items():
            given = config.model.init_args.get(name, value)
            if name != "compile" and _plain(given) != _plain(value):
                rank_zero_warn(f"--model.{name} {given} is ignored: the checkpoint's model has {value}")
                config.model.init_args[name] = value

    def _resume(self, path: Path, checkpoint: dict[str, Any]) -> None:
        run = Run.of(path)
        if run is None:
            raise InputError(f"{path} is not in a run's folder; start another training from it with --init_from {path}")
        self.config.fit.experiment = self.config.fit.experiment or run.full_config.get("experiment")
        check_resume(run, yaml.safe_load(self._parser("fit").dump(self.config.fit, skip_none=False)), checkpoint)
        self.resumed, self._checkpoint = run, checkpoint

    def before_instantiate_classes(self) -> None:
        """Names the experiment. Only `fit` writes a config."""
        config = self.config[self.subcommand]
        if self.subcommand != "fit":
            self.save_config_callback = None
        if self.subcommand == "predict":
            check_predictions_file(Path(config.output))
        if config.experiment is None:
            names = "+".join(Path(str(file)).stem for file in config.config or [])
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
        check_settings(str(self.subcommand), config.experiment, config.trainer.as_dict())
        try:
            super().instantiate_classes()
        except ValueError as error:
            raise InputError(plain_words(str(error))) from error

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Adds the callbacks of every run, and the logger."""
        trainer = self._get(self.config_init, "trainer")
        given = trainer["callbacks"] or []
        given = given if isinstance(given, list) else [given]
        if self._get(self.config_init, "ckpt_path"):  # a resumed training keeps its learning rate
            given = [callback for callback in given if not isinstance(callback, LearningRateFinder)]
        kwargs["callbacks"] = given
        if any(isinstance(callback, BatchSizeFinder) for callback in given):
            raise InputError(
                "BatchSizeFinder is not supported, because its size is not in the config; set --data.batch_size"
            )
        callbacks: list[Callback] = []
        if in_study() or not any(isinstance(c, ProgressBar) for c in given):
            callbacks.append(progress_callback(trainer["enable_progress_bar"] is not False))
            kwargs["enable_progress_bar"] = isinstance(callbacks[0], ProgressBar)
        if trainer["enable_model_summary"] is not False and not any(isinstance(c, ModelSummary) for c in given):
            callbacks.append(LayerTable())
        if self.subcommand == "fit":
            seed = False if self._get(self.config_init, "seed_everything") is False else None
            recorded = record(self._get(self.config_init, "experiment"), seed)
            self.recorder = next(callback for callback in recorded if isinstance(callback, RunRecorder))
            self.last = next(callback for callback in recorded if isinstance(callback, LastCheckpoint))
            if (source := self._get(self.config_init, "init_from")) and not self.resumed:
                initial = InitialWeights(source, self.model)
                self.recorder.init_from = initial.facts
                callbacks.append(initial)
            if teachers := self._get(self.config_init, "distill_from"):
                callbacks.append(Distillation(teachers))
            checkpoints = trainer["enable_checkpointing"] is not False
            callbacks += [c for c in recorded if checkpoints or not isinstance(c, ModelCheckpoint)]
        callbacks.append(self.signals)
        kwargs |= self._logging(trainer["logger"], trainer["default_root_dir"])
        kwargs["plugins"] = without_requeue(trainer["plugins"])
        self.trainer_defaults["callbacks"] = callbacks
        # From a command line, processes start as with ddp: spawned and forked ones cannot return what they recorded.
        if isinstance(trainer["strategy"], str):
            kwargs["strategy"] = re.sub(r"^ddp_(spawn|fork|notebook)", "ddp", trainer["strategy"])
        elif isinstance(trainer["strategy"], DDPStrategy):
            trainer["strategy"]._start_method = "popen"
        try:
            instance = super().instantiate_trainer(**kwargs)
        except (TypeError, OverflowError) as error:  # raised by Lightning for a wrong number of devices
            raise InputError(str(error)) from error
        write_atomically(instance)
        return instance

    def _logging(self, loggers: Any, root: Any) -> dict[str, Any]:
        """Chooses the loggers, and the folder of files without a better place.

        `fit` always logs to its run's folder, and also with the user's loggers. Without a logger, a temporary folder
        takes all files.
        """
        if self.subcommand != "fit":
            return {"logger": False}
        if loggers is False:
            if self.resumed:
                raise InputError("a resumed run is continued in its folder; omit --trainer.logger false")
            self.temporary = TemporaryDirectory(prefix="mnist-lightning-")
            return {"logger": False, "default_root_dir": self.temporary.name}
        logs = Path(root or ".").absolute() / LOGS  # absolute, for processes in other folders
        own = RunLogger(self.resumed.folder if self.resumed else None, logs, self._get(self.config_init, "experiment"))
        others = [] if loggers in (None, True) else loggers if isinstance(loggers, list) else [loggers]
        return {"logger": [own, *others], "default_root_dir": str(logs)}

    def _run_subcommand(self, subcommand: str) -> None:
        """Runs the verb. Says how to resume a training that was stopped, or whose disk is full."""
        try:
            super()._run_subcommand(subcommand)
        except OSError as error:
            if subcommand != "fit" or not self.trainer.loggers:
                raise
            raise explain_disk_error(error, Run(self.trainer.loggers[0].log_dir or ".")) from error
        except (KeyboardInterrupt, SystemExit) as stop:
            if not (self.trainer.interrupted or isinstance(stop, KeyboardInterrupt)):
                raise
            raise self.signals.explain(self.trainer) from None
        finally:
            for logger in self.trainer.loggers:
                if isinstance(logger, RunLogger):
                    logger.release()
            if self.temporary:
                self.temporary.cleanup()

    def before_fit(self) -> None:
        """Compares the data and the processes of a resumed run with those before. Its folder is untouched so far."""
        if self.resumed is None or rank_zero_only.rank:  # type: ignore[attr-defined]
            return
        recorder = self._checkpoint.get("callbacks", {}).get("RunRecorder", {})
        check_processes(self.resumed, recorder.get("processes"), self.trainer.num_devices * self.trainer.num_nodes)
        if isinstance(self.datamodule, MNISTDataModule) and (saved := data_in(self._checkpoint)):
            self.datamodule.prepare_data()
            self.datamodule.setup("fit")
            check_data(self.resumed, saved, self.datamodule.state_dict())

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        kwargs = super()._prepare_subcommand_kwargs(subcommand)
        kwargs["weights_only"] = True
        if subcommand in ("validate", "test"):
            kwargs["verbose"] = False
        return kwargs

    def after_fit(self) -> None:
        """Tests the last checkpoint once, and prints the result."""
        if self._get(self.config_init, "trainer")["fast_dev_run"]:
            return
        self.trainer.profiler = PassThroughProfiler()  # type: ignore[attr-defined]  # the report is of the training
        tested = self.last.best_model_path or None  # checkpoints may be off
        self.trainer.test(self.model, self.datamodule, ckpt_path=tested, weights_only=True, verbose=False)
        folder = self.trainer.log_dir  # a broadcast, which all processes must take part in
        if not self.trainer.is_global_zero or folder is None:
            return
        if not self.recorder.metrics:
            self._print(f"The run was not tested, because --trainer.limit_test_batches is 0: {folder}")
            return
        explain = "connectivity" if isinstance(self.model, GNN) else "gradcam"
        kept = None if self.temporary else Path(folder)
        self._print(Result(self.recorder.metrics, Run(folder).summary, kept, explain))
        if self.temporary:
            self._print("Nothing was kept, because --trainer.logger is false.")

    def after_validate(self) -> None:
        """Prints the metrics."""
        self._print(evaluation_table("val", self.model, self.datamodule))

    def after_test(self) -> None:
        """Prints the metrics."""
        self._print(evaluation_table("test", self.model, self.datamodule))
        if self._get(self.config_init, "shifts") and self.trainer.is_global_zero:
            self._print(evaluation_table("test", self.model, self.datamodule, shifts=True))

    def after_predict(self) -> None:
        """Writes the predictions."""
        logits, labels = self.model.predictions["predict"]
        if self.trainer.is_global_zero:
            path = Path(self._get(self.config_init, "output"))
            write_predictions(path, logits, labels)
            self._print(f"{len(labels):,} predictions: {path}")

    @rank_zero_only
    def _print(self, result: object) -> None:
        print_result(result)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value

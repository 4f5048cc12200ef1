"""The command line: translates, decides nothing."""

import contextlib
import ctypes
import importlib
import inspect
import logging
import os
import re
import sys
import threading
import warnings
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, NoReturn

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.callbacks import Callback, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn
from rich.console import Console

import mnist_lightning
from mnist_lightning import models
from mnist_lightning.callbacks import (
    BestCheckpoint,
    CalmProgressBar,
    LastCheckpoint,
    NoProfiler,
    ReproducibleEpochs,
    RunFiles,
    TensorBoardFigures,
)
from mnist_lightning.checkpoint import find_checkpoint, read_checkpoint
from mnist_lightning.classifier import Classifier
from mnist_lightning.config_names import with_configs
from mnist_lightning.data.graphs import MNISTSuperpixelsDataModule
from mnist_lightning.data.images import MNISTDataModule
from mnist_lightning.errors import InputError, one_line, plain_words, refuse_nulls
from mnist_lightning.evaluation.metrics import Metrics, metrics, metrics_table
from mnist_lightning.files import write_whole
from mnist_lightning.run_folder import RunConfig, RunLogger, WholeCheckpoints, explained

LOGS = "lightning_logs"
_MOST_DEVICES = 1024  # on CPUs, each is a process, and Lightning would start any number of them

# What can be done with checkpoints and runs: the function of each verb, imported when it is needed.
VERBS = {
    "compare": "mnist_lightning.evaluation.report.write_report",
    "robustness": "mnist_lightning.evaluation.robustness_report.write_robustness",
    "explore": "mnist_lightning.evaluation.data_report.write_data_report",
    "connectivity": "mnist_lightning.explain.command.write_connectivity",
    "gradcam": "mnist_lightning.explain.gradcam.write_gradcam",
    "classify": "mnist_lightning.deploy.classify.classify_pictures",
    "export": "mnist_lightning.deploy.export.export_model",
    "app": "mnist_lightning.deploy.app.serve",
}

# Lightning's advice on problems that this package does not have.
_IRRELEVANT = (
    r".*does not have many workers.*",  # a batch takes 0.1 ms
    r".*is smaller than the logging interval.*",  # the rest of an epoch is logged at its end
    r".*Checkpoint directory .* exists and is not empty.*",  # a resumed run goes on in its folder
    r".*callbacks used to create the checkpoint need to be provided.*",  # testing needs none of them
    r".*pickle protocol.*weights_only Unpickler.*",  # what it does not support, it refuses
    r".*recommended to use `Trainer\(devices=1.*",  # our samplers do not repeat images
    r".*is not supported by the model summary.*",  # its size is that of the weights, which are 32 bits
    r".*LeafSpec.*is deprecated.*",  # between Lightning and torch
    r".*JsonargparseDeprecationWarning.*",  # between Lightning and jsonargparse
    r".*was deprecated in v4\.\d+\.0 and will be removed in v5\.0\.0.*",
    r".*trace to be incorrect.*",  # the graph in TensorBoard is of one example
    r".*could be decompression bomb.*",  # larger pictures than we take are refused by name
    r".*(EXIF|Palette images with Transparency).*",  # Pillow's opinions of metadata
    r".*`torch.jit.*deprecated.*",  # TensorBoard's graph is traced by torch's own writer
)


def main(args: list[str] | None = None) -> None:
    """Runs the command line; wrong input ends it with one line and exit code 2.

    Args:
        args: By default those of the process.
    """
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in _IRRELEVANT:
        warnings.filterwarnings("ignore", message)
    _keep_freed_memory()
    if not torch.cuda.is_available():
        # Lightning has torch ask the driver's library for GPUs, and Adam asks in every step: 70 µs to find none.
        os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "0"
    threading.excepthook = _thread_failed
    warnings.formatwarning = lambda message, *_: f"mnist-lightning: warning: {one_line(message, 1000)}\n"
    args = sys.argv[1:] if args is None else args
    try:
        if args and args[0] in VERBS:
            _run_verb(args[0], args[1:])
        else:
            CLI(with_configs(args))
    except (InputError, MisconfigurationException) as error:
        sys.stderr.write(f"mnist-lightning: error: {one_line(error, 1000)}\n")
        sys.exit(2)
    except OSError as error:
        if error.filename is None:
            raise
        sys.stderr.write(f"mnist-lightning: error: {error.filename}: {error.strerror}\n")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)  # what shells say of it; what was written is whole
    if torch.distributed.is_initialized():  # its threads would abort the process that ends with them alive
        torch.distributed.destroy_process_group()


def _thread_failed(failure: threading.ExceptHookArgs) -> None:
    """Leaves TensorBoard's thread that writes silent about a full disk: the next event raises the same error again."""
    if not (isinstance(failure.exc_value, OSError) and type(failure.thread).__name__ == "_AsyncWriterThread"):
        threading.__excepthook__(failure)


def _keep_freed_memory() -> None:
    """Tells glibc to keep the memory of large tensors, which the next step needs again.

    By default it goes back to the kernel and comes again page by page: a quarter of ResNet's training step on a CPU,
    and more of DenseNet's (benchmarks/README.md).
    """
    with contextlib.suppress(OSError, AttributeError):  # not Linux, or another C library
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(-3, 32 * 2**20)  # M_MMAP_THRESHOLD, at its highest
        mallopt(-1, 2**30)  # M_TRIM_THRESHOLD


class _Parser(LightningArgumentParser):
    """Says in one line what is wrong with the arguments."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        own = {action.dest for action in self._actions}  # a model's or a data module's: each has its parser
        options = own | {f"trainer.{name}" for name in inspect.signature(Trainer).parameters}
        data_modules = [MNISTDataModule.__name__, MNISTSuperpixelsDataModule.__name__]
        classes = data_modules if message.startswith('Parser key "data"') else _models()
        raise InputError(plain_words(message, options, classes)) from ex


def _run_verb(verb: str, args: list[str]) -> None:
    """Translates arguments to the verb's function, and prints what it returns: the file that it wrote, or answers."""
    module, _, name = VERBS[verb].rpartition(".")
    function = getattr(importlib.import_module(module), name)
    parser = _Parser(prog=f"mnist-lightning {verb}", description=_summary(function))
    parameters = inspect.signature(function).parameters.values()
    several = [parameter.name for parameter in parameters if parameter.kind is parameter.VAR_POSITIONAL]
    flags = {parameter.name for parameter in parameters if parameter.default is False}
    for name in several:  # jsonargparse leaves these out
        parser.add_argument(name, nargs="*", default=[], help=_argument(function, name))
    for name in flags:  # and wants a value for these
        parser.add_argument(f"--{name}", action="store_true", help=_argument(function, name))
    parser.add_function_arguments(function, as_group=False, as_positional=True, skip={*flags})
    arguments = parser.parse_args(args).as_dict()
    first = [value for name in several for value in arguments.pop(name)]
    result = function(*first, **arguments)
    if result is not None:
        _print(result)
    if problems := getattr(result, "problems", []):  # with some of what was given; the rest is done
        sys.stderr.writelines(f"mnist-lightning: error: {one_line(problem, 1000)}\n" for problem in problems)
        sys.exit(1)


def _summary(function: Any) -> str:
    return str(inspect.getdoc(function)).partition("\n\nArgs:")[0]


def _argument(function: Any, name: str) -> str:
    """What the docstring says of an argument."""
    found = re.search(rf"^ *{name}: (.+)$", str(inspect.getdoc(function)), re.MULTILINE)
    return found[1] if found else ""


def _models() -> dict[str, type[Classifier]]:
    return {name: getattr(models, name) for name in models.__all__}


class CLI(LightningCLI):
    """`fit`, `validate`, `test` and `predict`."""

    def __init__(self, args: list[str]) -> None:
        super().__init__(
            Classifier,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            parser_class=_Parser,
            parser_kwargs={
                "prog": "mnist-lightning",
                "description": "Train, compare and look inside classifiers of handwritten digits.",
                "epilog": f"Over checkpoints and runs: {', '.join(VERBS)} (mnist-lightning VERB --help).",
                "version": mnist_lightning.__version__,
            },
            trainer_defaults={"max_epochs": 10},
            save_config_callback=RunConfig,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            args=args,
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Lightning's verbs, without the options that we decide: checkpoints are always read safely."""
        ours = {"weights_only", "verbose", "return_predictions"}
        return {verb: skipped | ours for verb, skipped in LightningCLI.subcommands().items()}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds the run's name, and our data as the default."""
        parser.add_argument(
            "--experiment",
            type=str | None,
            default=None,
            help=f"Name of the run, which lands in {LOGS}/EXPERIMENT/version_N. By default the config's name.",
        )
        parser.set_defaults({"data": {"class_path": "mnist_lightning.MNISTDataModule"}})

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parses the arguments given, without Lightning's warning that they are not the process's."""
        try:
            self.config = parser.parse_args(args)
        except ValueError as error:
            if "null byte" in str(error):  # a path that no system takes
                raise InputError(one_line(error)) from error
            raise

    def _set_seed(self) -> None:
        try:
            super()._set_seed()
        except ValueError as error:
            raise InputError(f"seed_everything: {error}") from error

    def _parse_ckpt_path(self) -> None:
        """In place of Lightning's, which lets the checkpoint's model arguments win without a word."""
        verb = self.config.subcommand
        config = self.config[verb]
        if not config.ckpt_path:
            if verb != "fit":
                raise InputError(f"{verb} needs a trained model: --ckpt_path RUN_FOLDER or CHECKPOINT.ckpt")
            return
        path = find_checkpoint(config.ckpt_path, "last" if verb == "fit" else "best")
        checkpoint = read_checkpoint(path)
        config.ckpt_path = str(path)
        trained, asked = checkpoint["classifier"].split(".")[-1], config.model.class_path.split(".")[-1]
        if trained != asked:
            raise InputError(f"{path} holds a {trained}, but --model is {asked}")
        for name, value in checkpoint["hyper_parameters"].items():
            given = config.model.init_args.get(name, value)
            if name != "compile" and _plain(given) != _plain(value):
                rank_zero_warn(f"--model.{name} {given} is ignored: the checkpoint's model has {value}")
                config.model.init_args[name] = value

    def before_instantiate_classes(self) -> None:
        """Names the run; only `fit` writes its config down."""
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
        """A value that a constructor does not take is the user's to mend."""
        config = self.config[self.subcommand]
        for part in ("model", "data"):
            if config[part] is not None:
                component = config[part].as_dict()
                refuse_nulls(part, resolve_name(component["class_path"]), component.get("init_args", {}))
        if not hasattr(config.trainer, "as_dict"):
            raise InputError(f"trainer is {one_line(config.trainer, 80)}; it must be a mapping of options")
        refuse_nulls("trainer", Trainer, config.trainer.as_dict())
        try:
            super().instantiate_classes()
        except ValueError as error:
            raise InputError(plain_words(str(error))) from error

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Adds the callbacks that every run has, and the logger."""
        trainer = self._get(self.config_init, "trainer")
        given = trainer["callbacks"] or []
        callbacks: list[Callback] = []
        if trainer["enable_progress_bar"] is not False and not any(isinstance(c, ProgressBar) for c in given):
            callbacks.append(CalmProgressBar())
        if self.subcommand == "fit":
            seed = int(os.environ.get("PL_GLOBAL_SEED", 0))
            self.run_files = RunFiles(self._get(self.config_init, "experiment"), seed)
            callbacks += [ReproducibleEpochs(seed), self.run_files, TensorBoardFigures()]
            self.best = BestCheckpoint()
            if trainer["enable_checkpointing"] is not False:
                callbacks += [self.best, LastCheckpoint()]
        if trainer["logger"] in (None, True):
            kwargs["logger"] = self._logger(trainer["default_root_dir"]) if self.subcommand == "fit" else False
        if trainer["profiler"] is None:
            kwargs["profiler"] = NoProfiler()
        self.trainer_defaults["callbacks"] = callbacks
        if str(trainer["devices"]).isdigit() and int(trainer["devices"]) > _MOST_DEVICES:
            raise InputError(f"trainer.devices is {trainer['devices']}; it can be {_MOST_DEVICES} at the most")
        if trainer["accumulate_grad_batches"] < 1:
            raise InputError(f"trainer.accumulate_grad_batches is {trainer['accumulate_grad_batches']}; 1 is the least")
        try:
            made = super().instantiate_trainer(**kwargs)
        except (TypeError, OverflowError) as error:  # Lightning's words for a wrong number of devices
            raise InputError(str(error)) from error
        if type(made.strategy.checkpoint_io) is TorchCheckpointIO:  # Lightning's default, and nobody's choice
            made.strategy.checkpoint_io = WholeCheckpoints()
        return made

    def _logger(self, root: Any) -> RunLogger:
        """A new folder for a new run; a resumed run goes on in its own."""
        checkpoint = self._get(self.config_init, "ckpt_path")
        if checkpoint and Path(checkpoint).parent.name == "checkpoints":
            run = Path(checkpoint).absolute().parents[1]
            return RunLogger(run.parent.parent, name=run.parent.name, version=run.name, default_hp_metric=False)
        # Absolute, because the checkpoints remember their folder, and a run may be resumed from elsewhere.
        logs = Path(root or ".").absolute() / LOGS
        return RunLogger(logs, name=self._get(self.config_init, "experiment"), default_hp_metric=False)

    def _run_subcommand(self, subcommand: str) -> None:
        """Says what a full disk has spared."""
        try:
            super()._run_subcommand(subcommand)
        except OSError as error:
            if subcommand != "fit" or not self.trainer.loggers:
                raise
            raise explained(error, Path(self.trainer.loggers[0].log_dir or ".")) from error

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        kwargs = super()._prepare_subcommand_kwargs(subcommand)
        kwargs["weights_only"] = True
        if subcommand in ("validate", "test"):
            kwargs["verbose"] = False
        return kwargs

    def after_fit(self) -> None:
        """Tests the checkpoint that validation has chosen, once."""
        chosen = self.best.best_model_path
        if not chosen:  # checkpoints are off
            return
        self.trainer.test(self.model, self.datamodule, ckpt_path=chosen, weights_only=True, verbose=False)
        _print_metrics(self.run_files.metrics, f"{self.run_files.experiment}: {self._title()}")
        _print(f"{self.trainer.log_dir}")

    def after_validate(self) -> None:
        """Shows the result."""
        _print_metrics({"val": self._metrics("val")}, self._title())

    def after_test(self) -> None:
        """Shows the result."""
        _print_metrics({"test": self._metrics("test")}, self._title())

    def after_predict(self) -> None:
        """Writes the answers beside the checkpoint: one row an image."""
        logits, labels = self.model.predictions["predict"]
        confidence, predicted = logits.softmax(dim=1).max(dim=1)
        path = Path(self._get(self.config_init, "ckpt_path")).with_name("predictions.csv")
        if self.trainer.is_global_zero:
            rows = zip(range(len(labels)), labels.tolist(), predicted.tolist(), confidence.tolist(), strict=True)
            lines = ["index,label,predicted,confidence", *(",".join(map(str, row)) for row in rows), ""]
            write_whole(path, "\n".join(lines).encode())
        _print(f"{len(labels):,} predictions: {path}")

    def _metrics(self, split: str) -> Metrics:
        logits, labels = self.model.predictions[split]
        return metrics(logits, labels, float(self.model.loss(logits, labels)))

    def _title(self) -> str:
        source = getattr(self.datamodule, "source", type(self.datamodule).__name__)
        return f"{type(self.model).__name__} on {source}"


@rank_zero_only
def _print(text: Any) -> None:
    Console(soft_wrap=True, highlight=False).print(text)


@rank_zero_only
def _print_metrics(splits: dict[str, Metrics], title: str) -> None:
    console = Console()
    if not console.is_terminal:  # a pipe or a file has no width that the table would have to fit
        console.width = 160
    console.print(metrics_table(splits, title))


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value

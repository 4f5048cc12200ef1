"""Records a training in its run folder: config, metrics, seconds and test predictions."""

import json
import platform
import time
from dataclasses import asdict, is_dataclass
from enum import Enum
from importlib.metadata import version
from pathlib import Path
from typing import Any
from zlib import crc32

import torch
import yaml
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import LearningRateFinder
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from mnist_lightning.classifier import Classifier
from mnist_lightning.data.images import MNISTDataModule
from mnist_lightning.errors import InputError
from mnist_lightning.evaluation.metrics import Metrics, metrics
from mnist_lightning.evaluation.page import print_result
from mnist_lightning.lean import IdleInSteps
from mnist_lightning.runs.predictions import predict
from mnist_lightning.runs.run import Run
from mnist_lightning.runs.writing import write_config, write_results
from mnist_lightning.training.checkpoints import LastCheckpoint, write_atomically

# Settings that change the trained weights. Without a config, they tell models apart.
_DATA_SETTINGS = ("batch_size", "val_size", "stratify", "fold", "seed", "augment")
_TRAINER_SETTINGS = (
    *("max_epochs", "max_steps", "limit_train_batches"),
    *("accumulate_grad_batches", "gradient_clip_val", "gradient_clip_algorithm"),
)
_PACKAGES = ("mnist-lightning", "torch", "torchvision", "lightning", "numpy")


class RunConfig(IdleInSteps, SaveConfigCallback):
    """Writes the run's config atomically: half a config may be a valid config of another training."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Does nothing: before the checkpoint is restored, a resumed training may be refused."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the config, in the first process."""
        folder = trainer.log_dir  # a broadcast, which all processes must take part in
        if trainer.is_global_zero and folder is not None:
            # Lightning's Timer has an Enum as a default, which YAML doesn't know.
            yaml.SafeDumper.add_multi_representer(Enum, lambda dumper, member: dumper.represent_data(member.value))
            config = self.config.clone()
            del config["ckpt_path"]  # with it, the config would resume the run instead of repeating it
            write_config(Run(folder), self.parser.dump(config, skip_none=False))


class RunRecorder(IdleInSteps):
    """Measures the training, and writes the run's summary and test predictions after the test.

    The tested checkpoint is also evaluated on the training and validation images, without augmentation. Its temperature
    is fitted on the validation images and added to the checkpoint.

    Args:
        experiment: Name of the experiment, or None for the name of the model's class.
        seed: Seed of the run; None if it has none.

    Attributes:
        metrics: Metrics by split, available after the test.
        init_from: Origin of the initial weights, as in `InitialWeights.facts`; None for random weights.
    """

    def __init__(self, experiment: str | None, seed: int | None) -> None:
        self.experiment = experiment
        self._trainer: Trainer | None = None
        self.seed = seed
        self.init_from: dict[str, Any] | None = None
        self.metrics: dict[str, Metrics] = {}
        self._seconds = 0.0
        self._since = 0.0
        self._processes = 1
        self._found_lr: float | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuses a training that cannot be recorded, before anything is written."""
        if not isinstance(pl_module, Classifier):
            raise InputError(f"a run needs a Classifier, got {type(pl_module).__name__}; use Classifier.of(module)")
        if self._trainer not in (None, trainer):
            raise InputError("these callbacks record another Trainer's run; call record() for each Trainer")
        own_folder = trainer.loggers or Path(trainer.default_root_dir).resolve() != Path.cwd()
        if _checkpoint(trainer) is not None and not own_folder and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            raise InputError("a run needs a folder of its own; use a logger, or name a default_root_dir")
        self._trainer = trainer
        self.experiment = self.experiment or pl_module.architecture.__name__.lower()
        write_atomically(trainer)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuses to overwrite a finished run."""
        last = _checkpoint(trainer)
        run = Run(Path(str(last.dirpath)).parent) if last is not None else None
        if run is not None and run.is_finished and not trainer.ckpt_path:
            raise InputError(f"{run.folder} holds a finished run; use a new Trainer, or another version")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock. Reports the rate of a `LearningRateFinder`, and starts the schedule from it."""
        self._processes = trainer.world_size
        finder = next((c for c in trainer.callbacks if isinstance(c, LearningRateFinder)), None)  # type: ignore[attr-defined]
        if finder is not None and finder.optimal_lr is not None:
            self._found_lr = finder.optimal_lr.suggestion()
            trainer.strategy.setup_optimizers(trainer)  # it would only change the rate of the first step
            if trainer.is_global_zero:
                found = "no rate: it needs more steps" if self._found_lr is None else f"{self._found_lr:.3g}"
                print_result(f"LearningRateFinder found {found}; the training uses {pl_module.hparams['lr']:.3g}")
        self._since = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Adds the seconds of the epoch, including its validation."""
        now = time.perf_counter()
        self._seconds += now - self._since
        self._since = now

    def state_dict(self) -> dict[str, Any]:
        """Keeps facts for a resumed training. The number of processes must not change."""
        facts = {"processes": self._processes, "init_from": self.init_from, "found_lr": self._found_lr}
        return {"seconds": self._seconds, **facts}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the facts. Older checkpoints have the seconds only."""
        self._seconds = state_dict["seconds"]
        self.init_from, self._found_lr = state_dict.get("init_from"), state_dict.get("found_lr")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the files, in the first process."""
        assert isinstance(pl_module, Classifier)
        last = _checkpoint(trainer)
        saved = Path(last.best_model_path).resolve() if last is not None and last.best_model_path else None
        tested = Path(trainer.ckpt_path).resolve() if trainer.ckpt_path else None
        if tested != saved or (saved is None and last is not None):
            rank_zero_warn('this test is not recorded; a run is, when you test its last checkpoint: ckpt_path="last"')
            return
        folder = saved.parent.parent if saved else trainer.log_dir  # a broadcast, which all processes must take part in
        if not trainer.is_global_zero or folder is None:
            return
        data = own_data(trainer)
        predictions = {} if data is None else {s: _predictions(trainer, pl_module, data, s) for s in ("train", "val")}
        predictions["test"] = pl_module.predictions["test"]
        self.metrics = {s: metrics(*each, float(pl_module.loss(*each))) for s, each in predictions.items()}
        logits, labels = (part.numpy() for part in predictions["test"])
        write_results(Run(folder), self._summary(trainer, pl_module, data), logits, labels)
        if saved and "val" in predictions and predictions["val"][0].isfinite().all():
            from mnist_lightning.evaluation.calibration import save_temperature  # slow to import

            save_temperature(saved, *predictions["val"], str(trainer.precision))

    def _summary(self, trainer: Trainer, model: Classifier, data: MNISTDataModule | None) -> dict[str, Any]:
        return {
            "experiment": self.experiment,
            "model": model.architecture.__name__,
            "source": source_name(trainer),
            "seed": self.seed,
            **{split: asdict(values) for split, values in self.metrics.items()},
            "parameters": sum(p.numel() for p in model.parameters()),
            "size_kib": round(sum(t.numel() * t.element_size() for t in model.state_dict().values()) / 1024, 1),
            "layers": sum(isinstance(m, (nn.Linear, nn.Conv2d)) for m in model.modules()),
            "epochs": trainer.fit_loop.epoch_progress.current.completed,
            "steps": trainer.fit_loop.epoch_loop.global_step,
            "train_seconds": round(self._seconds, 2),
            "batch_size": data.batch_size if data else None,
            "hyper_parameters": {**model.hparams, **_plain_module(model)},
            **({"found_lr": self._found_lr} if self._found_lr else {}),
            "data": _data_settings(trainer.datamodule),  # type: ignore[attr-defined]
            "trainer": {name: getattr(trainer, name) for name in _TRAINER_SETTINGS},
            "precision": str(trainer.precision),
            "devices": trainer.world_size,
            "device": device_name(model.device),
            "cpu_threads": torch.get_num_threads(),
            "init_from": self.init_from,
            "versions": {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}},
        }


def _checkpoint(trainer: Trainer) -> LastCheckpoint | None:
    return next((c for c in trainer.checkpoint_callbacks if isinstance(c, LastCheckpoint)), None)


def _plain_module(model: Classifier) -> dict[str, Any]:
    """Fingerprint of a plain module, whose arguments are unknown."""
    return {} if model.architecture is type(model) else {"module": f"{crc32(repr(model).encode()):08x}"}


def _data_settings(data: LightningDataModule | None) -> dict[str, Any]:
    own = isinstance(data, MNISTDataModule)
    settings = {name: getattr(data, name) for name in _DATA_SETTINGS} if own else dict(getattr(data, "hparams", {}))
    # Augmentations and other objects become plain values.
    plain: dict[str, Any] = json.loads(json.dumps(settings, default=lambda x: vars(x) if is_dataclass(x) else str(x)))
    return {"class": type(data).__name__, **plain}


def _predictions(trainer: Trainer, model: Classifier, data: MNISTDataModule, split: str) -> tuple[Tensor, Tensor]:
    with trainer.precision_plugin.forward_context():
        return predict(model, data.batches(split, model.device))


def own_data(trainer: Trainer) -> MNISTDataModule | None:
    """Returns the trainer's data module if it is one of this package, which can be evaluated and drawn."""
    data: LightningDataModule | None = trainer.datamodule  # type: ignore[attr-defined]
    return data if isinstance(data, MNISTDataModule) else None


def source_name(trainer: Trainer) -> str:
    """Returns the name of the data source, or the class of a custom data module or data set."""
    data = trainer.datamodule  # type: ignore[attr-defined]
    if data is None:  # plain data loaders
        data = getattr(trainer.test_dataloaders, "dataset", trainer.test_dataloaders)
    return data.source if isinstance(data, MNISTDataModule) else type(data).__name__


def device_name(device: torch.device) -> str:
    """Returns the name of a GPU, or of the processor with its number of cores."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")  # platform.processor() is empty or "x86_64" on Linux
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]}, {len(names)} cores" if names else platform.processor() or platform.machine()

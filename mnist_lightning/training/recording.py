"""Records a training in its run folder: config, metrics, seconds and test predictions."""

import platform
import time
from dataclasses import asdict
from enum import Enum
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import LearningRateFinder
from lightning.pytorch.cli import SaveConfigCallback
from torch import Tensor, nn

from mnist_lightning.classifier import Classifier
from mnist_lightning.data.images import MNISTDataModule
from mnist_lightning.evaluation.metrics import Metrics, metrics
from mnist_lightning.evaluation.page import print_result
from mnist_lightning.lean import IdleInSteps
from mnist_lightning.runs.checkpoint import read_checkpoint
from mnist_lightning.runs.predictions import predict
from mnist_lightning.runs.run import Run
from mnist_lightning.runs.writing import write_config, write_results

_PACKAGES = ("mnist-lightning", "torch", "torchvision", "lightning", "numpy")


class RunConfig(IdleInSteps, SaveConfigCallback):
    """Writes the run's config atomically: half a config may be a valid config of another training."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Writes the config once, in the first process."""
        folder = trainer.log_dir  # a broadcast, which all processes must take part in
        if trainer.is_global_zero and folder is not None and not self.already_saved:
            # Lightning's Timer has an Enum as a default, which YAML doesn't know.
            yaml.SafeDumper.add_multi_representer(Enum, lambda dumper, member: dumper.represent_data(member.value))
            write_config(Run(folder), self.parser.dump(self.config, skip_none=False), self.overwrite)
        self.already_saved = True


class RunRecorder(IdleInSteps):
    """Measures the training, and writes the run's summary and test predictions after the test.

    The tested checkpoint is also evaluated on the training and validation images, without augmentation. Its temperature
    is fitted on the validation images and added to the checkpoint.

    Args:
        experiment: Name of the experiment.
        seed: Seed of the run.

    Attributes:
        metrics: Metrics by split, available after the test.
    """

    def __init__(self, experiment: str, seed: int) -> None:
        self.experiment = experiment
        self.seed = seed
        self.metrics: dict[str, Metrics] = {}
        self._seconds = 0.0
        self._since = 0.0
        self._found_lr: float | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock. Reports the rate of a `LearningRateFinder`, and starts the schedule from it."""
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
        """Keeps the seconds and the learning rate found for a resumed training."""
        return {"seconds": self._seconds, "found_lr": self._found_lr}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the seconds and the learning rate."""
        self._seconds = state_dict["seconds"]
        self._found_lr = state_dict.get("found_lr")  # older checkpoints have none

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the files, in the first process."""
        assert isinstance(pl_module, Classifier)
        folder = trainer.log_dir  # a broadcast, which all processes must take part in
        if not trainer.is_global_zero or folder is None:
            return
        data = own_data(trainer)
        predictions = {} if data is None else {s: _predictions(trainer, pl_module, data, s) for s in ("train", "val")}
        predictions["test"] = pl_module.predictions["test"]
        self.metrics = {s: metrics(*each, float(pl_module.loss(*each))) for s, each in predictions.items()}
        logits, labels = (part.numpy() for part in predictions["test"])
        write_results(Run(folder), self._summary(trainer, pl_module, data), logits, labels)
        if "val" in predictions and trainer.ckpt_path and predictions["val"][0].isfinite().all():
            from mnist_lightning.evaluation.calibration import save_temperature  # slow to import

            save_temperature(Path(trainer.ckpt_path), *predictions["val"], str(trainer.precision))

    def _summary(self, trainer: Trainer, model: Classifier, data: MNISTDataModule | None) -> dict[str, Any]:
        tested = trainer.ckpt_path
        return {
            "experiment": self.experiment,
            "model": type(model).__name__,
            "source": source_name(trainer),
            "seed": self.seed,
            **{split: asdict(values) for split, values in self.metrics.items()},
            "parameters": sum(p.numel() for p in model.parameters()),
            "size_kib": round(sum(t.numel() * t.element_size() for t in model.state_dict().values()) / 1024, 1),
            "layers": sum(isinstance(m, (nn.Linear, nn.Conv2d)) for m in model.modules()),
            "best_epoch": int(read_checkpoint(Path(tested))["epoch"]) if tested else None,
            "epochs": trainer.fit_loop.epoch_progress.current.completed,
            "steps": trainer.fit_loop.epoch_loop.global_step,
            "train_seconds": round(self._seconds, 2),
            "batch_size": data.batch_size if data else None,
            "hyper_parameters": dict(model.hparams),
            **({"found_lr": self._found_lr} if self._found_lr else {}),
            "precision": str(trainer.precision),
            "devices": trainer.world_size,
            "device": device_name(model.device),
            "cpu_threads": torch.get_num_threads(),
            "versions": {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}},
        }


def _predictions(trainer: Trainer, model: Classifier, data: MNISTDataModule, split: str) -> tuple[Tensor, Tensor]:
    with trainer.precision_plugin.forward_context():
        return predict(model, data.batches(split, model.device))


def own_data(trainer: Trainer) -> MNISTDataModule | None:
    """Returns the trainer's data module if it is one of this package, which can be evaluated and drawn."""
    data: LightningDataModule | None = trainer.datamodule  # type: ignore[attr-defined]
    return data if isinstance(data, MNISTDataModule) else None


def source_name(trainer: Trainer) -> str:
    """Returns the name of the data source, or the class of a custom data module."""
    data = own_data(trainer)
    return data.source if data else type(trainer.datamodule).__name__  # type: ignore[attr-defined]


def device_name(device: torch.device) -> str:
    """Returns the name of a GPU, or of the processor with its number of cores."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")  # platform.processor() is empty or "x86_64" on Linux
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]}, {len(names)} cores" if names else platform.processor() or platform.machine()

"""What runs beside training: reproducible epochs, run files, figures for TensorBoard."""

import json
import platform
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.fabric.utilities.apply_func import move_data_to_device
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.profilers import PassThroughProfiler
from torch import Tensor, nn

from mnist_lightning.checkpoint import read_checkpoint
from mnist_lightning.classifier import Classifier
from mnist_lightning.data.images import MNISTDataModule, mixed_seed
from mnist_lightning.evaluation.metrics import Metrics, metrics
from mnist_lightning.evaluation.predictions import predict, save_predictions
from mnist_lightning.files import write_whole
from mnist_lightning.models import GNN

if TYPE_CHECKING:  # drawing is imported when there is something to draw
    from matplotlib.figure import Figure

_PACKAGES = ("mnist-lightning", "torch", "torchvision", "lightning", "numpy")


class _IdleInSteps(Callback):
    """Has nothing to do within a step: Lightning leaves out what is None, and calls each callback six times a step."""

    on_train_batch_start = None  # type: ignore[assignment]
    on_train_batch_end = None  # type: ignore[assignment]
    on_before_zero_grad = None  # type: ignore[assignment]
    on_before_backward = None  # type: ignore[assignment]
    on_after_backward = None  # type: ignore[assignment]
    on_before_optimizer_step = None  # type: ignore[assignment]


class ReproducibleEpochs(_IdleInSteps):
    """Seeds dropout's random numbers anew in every epoch.

    A checkpoint does not hold the generators' state: without this, a resumed run would draw others.

    Args:
        seed: The run's seed.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lightning's hook."""
        torch.manual_seed(mixed_seed(self.seed, trainer.current_epoch, trainer.global_rank))


class NoProfiler(PassThroughProfiler):
    """Measures nothing, as Lightning's default does, which makes a generator for each of the 70 hooks of a step."""

    _nothing = nullcontext()

    def profile(self, action_name: str) -> AbstractContextManager[None]:  # type: ignore[override]
        """Lightning's hook."""
        return self._nothing


class CalmProgressBar(RichProgressBar):
    """Follows the training twice a second.

    Lightning's follows every step and is drawn as often as its thread wakes up, which takes milliseconds of a core that
    the step needs.
    """

    def __init__(self) -> None:
        super().__init__(refresh_rate=20)  # times a second that its thread looks whether there is something to draw
        self._due = 0.0

    def on_train_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Lightning's hook."""
        if time.monotonic() >= self._due or trainer.is_last_batch:
            super().on_train_batch_end(trainer, *args, **kwargs)

    def refresh(self, hard: bool = False) -> None:
        """Lightning's; what is left out is drawn at the next time, or when the bar stops."""
        now = time.monotonic()
        if hard or now >= self._due:
            self._due = now + 0.5
            super().refresh(hard)


class BestCheckpoint(_IdleInSteps, ModelCheckpoint):  # type: ignore[misc]
    """Keeps `best.ckpt`: of the epochs with the highest validation accuracy, the last.

    A few thousand images often give several epochs the same accuracy. Lightning keeps the first of them; where the
    learning rate falls to the end, the last is trained better.
    """

    def __init__(self) -> None:
        super().__init__(monitor="val/acc", mode="max", filename="best", enable_version_counter=False)

    def check_monitor_top_k(self, trainer: Trainer, current: Tensor | None = None) -> bool:
        """Lightning's hook: an epoch as good as the best is taken as better."""
        equal = current is not None and current == self.best_model_score
        return super().check_monitor_top_k(trainer, current) or trainer.strategy.reduce_boolean_decision(bool(equal))


class LastCheckpoint(_IdleInSteps, ModelCheckpoint):  # type: ignore[misc]
    """Keeps `last.ckpt`, of the epoch that has just ended."""

    def __init__(self) -> None:
        super().__init__(filename="last", enable_version_counter=False)


class RunFiles(_IdleInSteps):
    """Measures the training and writes `summary.json` and `test_predictions.npz` after the test.

    Training and validation are evaluated again, as the test set was: undistorted, with the chosen checkpoint. Its
    temperature is fitted on validation and written beside it.

    Args:
        experiment: The run's name.
        seed: The run's seed.
    """

    def __init__(self, experiment: str, seed: int) -> None:
        self.experiment = experiment
        self.seed = seed
        self.metrics: dict[str, Metrics] = {}
        self._seconds = 0.0
        self._since = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock."""
        self._since = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Adds the epoch, its validation included, to what earlier parts of the run have taken."""
        now = time.perf_counter()
        self._seconds += now - self._since
        self._since = now

    def state_dict(self) -> dict[str, Any]:
        """A resumed run goes on counting."""
        return {"seconds": self._seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Lightning's hook."""
        self._seconds = state_dict["seconds"]

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the files; only the first process does."""
        assert isinstance(pl_module, Classifier)
        folder = trainer.log_dir  # a broadcast: all processes must ask
        if not trainer.is_global_zero or folder is None:
            return
        data = _data(trainer)
        predictions = {} if data is None else {s: _predictions(trainer, pl_module, data, s) for s in ("train", "val")}
        predictions["test"] = pl_module.predictions["test"]
        self.metrics = {s: metrics(*each, float(pl_module.loss(*each))) for s, each in predictions.items()}
        save_predictions(Path(folder, "test_predictions.npz"), *predictions["test"])
        summary = json.dumps(self._summary(trainer, pl_module, data), indent=2) + "\n"
        write_whole(Path(folder, "summary.json"), summary.encode())
        if "val" in predictions and trainer.ckpt_path and predictions["val"][0].isfinite().all():
            from mnist_lightning.evaluation.calibration import save_temperature  # not needed to start

            save_temperature(Path(trainer.ckpt_path), *predictions["val"], str(trainer.precision))

    def _summary(self, trainer: Trainer, model: Classifier, data: MNISTDataModule | None) -> dict[str, Any]:
        parameters = sum(p.numel() for p in model.parameters())
        size = sum(t.numel() * t.element_size() for t in model.state_dict().values())
        return {
            "experiment": self.experiment,
            "model": type(model).__name__,
            "source": _source(trainer),
            "seed": self.seed,
            **{split: asdict(values) for split, values in self.metrics.items()},
            "parameters": parameters,
            "size_kib": round(size / 1024, 1),
            "layers": sum(isinstance(m, (nn.Linear, nn.Conv2d)) for m in model.modules()),
            "best_epoch": _best_epoch(trainer),
            "epochs": trainer.fit_loop.epoch_progress.current.completed,
            "steps": trainer.fit_loop.epoch_loop.global_step,
            "train_seconds": round(self._seconds, 2),
            "batch_size": data.batch_size if data else None,
            "hyper_parameters": dict(model.hparams),
            "precision": str(trainer.precision),
            "devices": trainer.world_size,
            "device": _device_name(model.device),
            "cpu_threads": torch.get_num_threads(),
            "versions": {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}},
        }


def _predictions(trainer: Trainer, model: Classifier, data: MNISTDataModule, split: str) -> tuple[Tensor, Tensor]:
    with trainer.precision_plugin.forward_context():
        return predict(model, data.batches(split, model.device))


def _data(trainer: Trainer) -> MNISTDataModule | None:
    """Our data module, whose splits can be evaluated and drawn; None for somebody else's."""
    data = trainer.datamodule  # type: ignore[attr-defined]
    return data if isinstance(data, MNISTDataModule) else None


def _source(trainer: Trainer) -> str:
    data = _data(trainer)
    return data.source if data else type(trainer.datamodule).__name__  # type: ignore[attr-defined]


def _best_epoch(trainer: Trainer) -> int | None:
    path = trainer.ckpt_path  # of the test that has just ended
    return int(read_checkpoint(Path(path))["epoch"]) if path else None


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")  # platform.processor() is empty or "x86_64" on Linux
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]}, {len(names)} cores" if names else platform.processor() or platform.machine()


class TensorBoardFigures(_IdleInSteps):
    """Fills TensorBoard: chart layout and model graph at the start, figures and hyper-parameters after the test."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Puts train and validation of one quantity on one chart, and draws the model."""
        logger = _tensorboard(trainer)
        if logger is None:
            return
        charts = {
            name: ["Multiline", [f"train/{tag}", f"val/{tag}", f"test/{tag}"]]
            for name, tag in (("loss", "loss"), ("accuracy", "acc"))
        }
        logger.experiment.add_custom_scalars({"training": charts})
        example = pl_module.example_input_array
        if example is not None:  # not by Lightning's log_graph, which would draw it again for the test
            compiled, pl_module._compiled_call_impl = pl_module._compiled_call_impl, None  # cannot be traced
            logger.experiment.add_graph(pl_module, move_data_to_device(example, pl_module.device))
            pl_module._compiled_call_impl = compiled

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws what the model has right and wrong."""
        logger = _tensorboard(trainer)
        if logger is None:
            return
        from mnist_lightning.evaluation import figures

        assert isinstance(pl_module, Classifier)
        data = _data(trainer)
        step = trainer.fit_loop.epoch_loop.global_step
        logits, labels = pl_module.predictions["test"]
        drawn = {"confusion matrix": figures.confusion_matrix(logits, labels)}
        if data is not None:
            images = data.images_and_labels("test")[0]
            drawn["training samples"] = figures.samples(*data.images_and_labels("train"))
            drawn["confident mistakes"] = figures.confident_mistakes(images, logits, labels)
            drawn["right answers"] = figures.right_answers(images, logits, labels)
            if isinstance(pl_module, GNN):
                drawn["connectivity"] = _connectivity_of_each_class(pl_module, data)
        for name, figure in drawn.items():
            logger.experiment.add_figure(f"figures/{name}", figure, step)
        hyper_parameters = {
            "model": type(pl_module).__name__,
            "source": _source(trainer),
            **({"batch_size": data.batch_size} if data else {}),
            "precision": str(trainer.precision),
            "epochs": trainer.fit_loop.epoch_progress.current.completed,
            **{name: _plain(value) for name, value in pl_module.hparams.items()},
        }
        logger.log_hyperparams(hyper_parameters, _final_metrics(trainer), step)


def _connectivity_of_each_class(model: GNN, data: MNISTDataModule) -> "Figure":
    """Why the model says what it says of the first test digit of each class."""
    from mnist_lightning.explain.connectivity import connectivity
    from mnist_lightning.explain.drawings import connectivity_sheet

    images, labels = data.images_and_labels("test")
    first = [int((labels == digit).nonzero()[0]) for digit in torch.unique(labels)]
    with torch.inference_mode(False), torch.enable_grad():  # Lightning tests without gradients
        return connectivity_sheet([connectivity(model, images[i], int(labels[i])) for i in first])


def _final_metrics(trainer: Trainer) -> dict[str, float]:
    """Accuracy and loss of the chosen checkpoint on all splits, as `RunFiles` has measured them."""
    results = next((c.metrics for c in trainer.callbacks if isinstance(c, RunFiles)), {})  # type: ignore[attr-defined]
    return {
        f"final/{split}_{name}": value
        for split, values in results.items()
        for name, value in (("acc", values.accuracy), ("loss", values.loss))
    }


def _plain(value: Any) -> str | float | bool:
    """A value that TensorBoard's table of hyper-parameters can show."""
    return value if isinstance(value, (str, int, float, bool)) else str(value)


def _tensorboard(trainer: Trainer) -> TensorBoardLogger | None:
    loggers = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
    return loggers[0] if loggers and trainer.is_global_zero else None

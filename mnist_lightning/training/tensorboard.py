"""Loggers: a folder of its own for every training, charts, figures and hyper-parameters."""

import contextlib
import copy
import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from lightning.fabric.utilities.apply_func import move_data_to_device
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from mnist_lightning.classifier import Classifier
from mnist_lightning.data.images import MNISTDataModule
from mnist_lightning.lean import IdleInSteps
from mnist_lightning.models import GNN
from mnist_lightning.runs.run import LOGS
from mnist_lightning.runs.writing import lock
from mnist_lightning.training.recording import RunRecorder, own_data, source_name

if TYPE_CHECKING:  # matplotlib is imported when there is a figure to draw
    from matplotlib.figure import Figure


class RunLogger(TensorBoardLogger):
    """TensorBoard's logger, in a folder that no other training uses.

    Args:
        run: Folder of a run to continue. None to make a new folder.
        logs: Folder of a new run's experiment folder.
        experiment: Name of a new run's experiment.
    """

    def __init__(self, run: Path | None = None, logs: Path | str = LOGS, experiment: str = "default") -> None:
        self._lock: int | None = None
        if run is None:
            super().__init__(logs, experiment, default_hp_metric=False)
        else:
            super().__init__(run.parent.parent, run.parent.name, run.name, default_hp_metric=False)
            self._hold()

    def _hold(self) -> None:
        if not rank_zero_only.rank:  # type: ignore[attr-defined]  # the first process writes
            self._lock = lock(Path(self.log_dir))

    def release(self) -> None:
        """Lets other processes train in the folder."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _get_next_version(self) -> int:
        """Creates the folder. Lightning only looks for a free number, and two trainings may find the same."""
        version: int = super()._get_next_version()
        if rank_zero_only.rank:  # type: ignore[attr-defined]  # other processes receive the first one's folder
            return version
        Path(self.root_dir).mkdir(parents=True, exist_ok=True)
        while True:
            try:
                Path(self.root_dir, f"version_{version}").mkdir()
            except FileExistsError:
                version += 1
            else:
                self._version = version
                self._hold()
                return version

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Closes the files. After a failure, raises no second error and removes empty folders."""
        if status != "failed":
            return super().finalize(status)
        with contextlib.suppress(OSError):  # a full disk, the cause of the failure
            super().finalize(status)
        with contextlib.suppress(OSError):  # not empty
            for folder in (self.log_dir, self.root_dir, self.save_dir):
                Path(folder).rmdir()
        return None


class TensorBoardFigures(IdleInSteps):
    """Adds chart layout and model graph at the start, figures, hyper-parameters and final metrics after the test.

    Every logger gets what it can show: the layout and the graph are TensorBoard's, figures need `log_image`.
    """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Puts train and validation curves on one chart, and adds the model's graph."""
        boards = [logger for logger in _loggers(trainer) if isinstance(logger, TensorBoardLogger)]
        charts = {
            name: ["Multiline", [f"train/{tag}", f"val/{tag}", f"test/{tag}"]]
            for name, tag in (("loss", "loss"), ("accuracy", "acc"))
        }
        example = pl_module.example_input_array
        for board in boards:
            board.experiment.add_custom_scalars({"training": charts})
            if example is not None:  # Lightning's log_graph would add the graph again for the test
                compiled, pl_module._compiled_call_impl = pl_module._compiled_call_impl, None  # cannot be traced
                example = trainer.precision_plugin.convert_input(move_data_to_device(example, pl_module.device))
                board.experiment.add_graph(pl_module, example)
                pl_module._compiled_call_impl = compiled

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Adds figures of right and wrong answers, hyper-parameters and final metrics."""
        if not _loggers(trainer):
            return
        assert isinstance(pl_module, Classifier)
        data = own_data(trainer)
        hyper_parameters = {
            "model": pl_module.architecture.__name__,
            "source": source_name(trainer),
            **({"batch_size": data.batch_size} if data else {}),
            "precision": str(trainer.precision),
            "epochs": trainer.fit_loop.epoch_progress.current.completed,
            **{k: v if isinstance(v, (str, int, float, bool)) else str(v) for k, v in pl_module.hparams.items()},
        }
        step = trainer.fit_loop.epoch_loop.global_step
        figures = _figures(pl_module, data)
        for logger in _loggers(trainer):
            for name, figure in figures.items():
                if isinstance(logger, TensorBoardLogger):
                    logger.experiment.add_figure(f"figures/{name}", figure, step)
                elif hasattr(logger, "log_image"):
                    logger.log_image(f"figures/{name}", [figure], step=step)
            if isinstance(logger, TensorBoardLogger):
                logger.log_hyperparams(hyper_parameters, _final_metrics(trainer), step)
            else:
                logger.log_hyperparams(hyper_parameters)
                logger.log_metrics(_final_metrics(trainer), step)


def _figures(model: Classifier, data: MNISTDataModule | None) -> "dict[str, Figure]":
    from mnist_lightning.evaluation import charts

    logits, labels = model.predictions["test"]
    figures = {"confusion matrix": charts.confusion_matrix(logits, labels)}
    if data is not None:
        images = data.images_and_labels("test")[0]
        figures["training samples"] = charts.samples(*data.images_and_labels("train"))
        figures["confident mistakes"] = charts.confident_mistakes(images, logits, labels)
        figures["right answers"] = charts.right_answers(images, logits, labels)
        if isinstance(model, GNN):
            figures["connectivity"] = _connectivity_of_each_class(model, data)
    return figures


def _connectivity_of_each_class(model: GNN, data: MNISTDataModule) -> "Figure":
    """Explains the first test digit of each class."""
    from mnist_lightning.explain.connectivity import connectivity
    from mnist_lightning.explain.figures import connectivity_sheet

    images, labels = data.images_and_labels("test")
    first = [int((labels == digit).nonzero()[0]) for digit in torch.unique(labels)]
    with torch.inference_mode(False), torch.enable_grad():  # Lightning tests without gradients
        model = copy.deepcopy(model).float()  # the training may have another precision
        return connectivity_sheet([connectivity(model, images[i], int(labels[i])) for i in first])


def _final_metrics(trainer: Trainer) -> dict[str, float]:
    """Accuracy and loss of the tested checkpoint on all splits, as measured by `RunRecorder`."""
    results = next((c.metrics for c in trainer.callbacks if isinstance(c, RunRecorder)), {})  # type: ignore[attr-defined]
    return {
        f"final/{split}_{name}": value
        for split, values in results.items()
        for name, value in (("acc", values.accuracy), ("loss", values.loss))
    }


def _loggers(trainer: Trainer) -> list[Logger]:
    return trainer.loggers if trainer.is_global_zero else []

"""Results of trainings and evaluations on a screen."""

import os
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mnist_lightning.classifier import Classifier
from mnist_lightning.data.images import MNISTDataModule
from mnist_lightning.data.public_superpixels import PUBLIC
from mnist_lightning.errors import InputError
from mnist_lightning.evaluation.metrics import Metrics, metrics, metrics_table
from mnist_lightning.evaluation.page import Table, line, unbroken

if TYPE_CHECKING:
    from rich.console import ConsoleOptions, RenderableType

_SPLITS = {"test": "test", "val": "validation", "train": "training"}


def evaluation_table(split: str, model: Classifier, data: object, shifts: bool = False) -> Table:
    """Makes the table of `validate` and `test`: a row per digit.

    Args:
        split: `val` or `test`.
        model: The model, after the evaluation.
        data: Data module of the evaluation.
        shifts: Whether to classify the digits again, averaged over five positions.

    Raises:
        InputError: If the data have no images to shift.
    """
    logits, labels = model.predictions[split]
    source = getattr(data, "source", type(data).__name__)
    if shifts:
        if not isinstance(data, MNISTDataModule) or data.source == PUBLIC:
            raise InputError(f"shifts need images, which {source} does not have")
        logits = model.classify(data.images_and_labels(split)[0], shifts=True)
        source += ", mean of five positions"
    results = metrics(logits, labels, float(model.loss(logits, labels)))
    return metrics_table({split: results}, f"{type(model).__name__} on {source}")


@dataclass(frozen=True)
class Result:
    """The main results of a training, at most 20 lines that fit 80 columns. Paths are never wrapped.

    Attributes:
        metrics: Metrics of the tested checkpoint by split; at least `test`.
        facts: Facts about the run, as in `Run.summary`.
        folder: Folder of the run. None for a run without one.
        explain: Verb that explains the model's predictions.
    """

    metrics: Mapping[str, Metrics]
    facts: Mapping[str, Any]
    folder: Path | None
    explain: str = "gradcam"

    def __rich_console__(self, _: Any, options: "ConsoleOptions") -> "Iterator[RenderableType]":
        from rich.text import Text

        from mnist_lightning.evaluation.statistics import wilson_interval

        facts, test = self.facts, self.metrics["test"]
        images = sum(test.support)
        low, high = wilson_interval(round(test.accuracy * images), images)
        yield ""
        yield line(f"{facts['experiment']}: {facts['model']} on {facts['source']}, {images:,} test images", options)
        interval = f"95 % interval {100 * low:.2f} to {100 * high:.2f} % (Wilson)"
        yield Text.assemble((f"test accuracy {100 * test.accuracy:.2f} %", "bold"), f"   {interval}")
        yield ""
        shown = [split for split in _SPLITS if split in self.metrics]
        rows = {
            "": [_SPLITS[split] for split in shown],
            "accuracy": [f"{100 * self.metrics[split].accuracy:.2f} %" for split in shown],
            "error": [f"{100 * (1 - self.metrics[split].accuracy):.2f} %" for split in shown],
            "loss": [f"{self.metrics[split].loss:.4f}" for split in shown],
        }
        for name, cells in rows.items():
            yield f"{name:13}{''.join(f'{cell:>13}' for cell in cells)}".rstrip()
        yield ""
        occurring = [digit for digit, count in enumerate(test.support) if count]
        worst = sorted(occurring, key=lambda digit: test.f1[digit])[:3]
        yield f"{'lowest F1':13} {', '.join(f'digit {digit}: {100 * test.f1[digit]:.2f} %' for digit in worst)}"
        yield f"{'parameters':13} {facts['parameters']:,}"
        yield f"{'training':13} {facts['train_seconds']:,.1f} s"
        if self.folder is None:
            return
        folder = min(os.path.relpath(self.folder), str(self.folder.absolute()), key=len)
        yield unbroken(f"{'run':13} {folder}")
        yield "next:"
        run = shlex.quote(folder)
        for command in (f"compare {run}", f"{self.explain} {run}", f"classify {run} my_digit.png"):
            yield unbroken(f"  mnist-lightning {command}")

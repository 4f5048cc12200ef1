"""Accuracy, loss, and precision, recall and F1 of each class."""

from dataclasses import dataclass

from torch import Tensor

from mnist_lightning.data.sources import CLASSES
from mnist_lightning.evaluation.page import Table


@dataclass(frozen=True)
class Metrics:
    """Metrics of one split. Lists have one entry per class.

    Attributes:
        accuracy: Share of correctly classified images.
        loss: Mean loss.
        precision: Precision of each class; 0 for a class that is never predicted.
        recall: Recall of each class; 0 for a class without images.
        f1: F1 score of each class.
        support: Number of images of each class.
    """

    accuracy: float
    loss: float
    precision: list[float]
    recall: list[float]
    f1: list[float]
    support: list[int]


def metrics(logits: Tensor, labels: Tensor, loss: float) -> Metrics:
    """Computes the metrics of a split.

    Args:
        logits: Logits, float [N, 10].
        labels: Labels, int64 [N].
        loss: Mean loss of the split, which depends on the training's loss function.

    Example:
        >>> import torch
        >>> metrics(torch.eye(10)[[3, 3, 5]], torch.tensor([3, 5, 5]), loss=0.0).accuracy
        0.6666666666666666
    """
    from sklearn.metrics import precision_recall_fscore_support

    predicted = logits.argmax(dim=1)
    scores = precision_recall_fscore_support(labels.numpy(), predicted.numpy(), labels=range(CLASSES), zero_division=0)
    accuracy = (predicted == labels).sum().item() / len(labels)
    precision, recall, f1, support = (by_class.tolist() for by_class in scores)
    return Metrics(accuracy, loss, precision, recall, f1, list(map(int, support)))  # floats, if a class is missing


def metrics_table(splits: dict[str, Metrics], title: str) -> Table:
    """Makes a table with four columns per split: one row per digit, then accuracy and loss.

    Args:
        splits: Metrics by the name of the split. On a narrow terminal only the first is shown.
        title: Title of the table.
    """
    columns = [["digit", *map(str, range(CLASSES)), "accuracy", "loss"]]
    for name, split in splits.items():
        rates = (split.precision, split.recall, split.f1)
        precision, recall, f1 = ([f"{100 * rate:.2f}" for rate in by_class] for by_class in rates)
        columns += [
            [f"{name} precision", *precision, f"{100 * split.accuracy:.2f} %", f"{split.loss:.4f}"],
            [f"{name} recall", *recall, "", ""],
            [f"{name} F1", *f1, "", ""],
            [f"{name} support", *(f"{count:,}" for count in split.support), f"{sum(split.support):,}", ""],
        ]
    header, *rows = zip(*columns, strict=True)
    return Table(title, header, rows, narrow=5)

"""Accuracy, loss, and precision, recall and F1 of every digit."""

from dataclasses import dataclass

from rich.table import Table
from torch import Tensor

from mnist_lightning.classifier import CLASSES


@dataclass(frozen=True)
class Metrics:
    """What a model's predictions on one split are worth. Lists have one entry a digit.

    Precision is 0 for a digit that is never predicted, recall is 0 for one that never occurs.
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
        logits: [N, 10].
        labels: int64 [N].
        loss: The mean loss, which depends on what the model was trained with.

    Example:
        >>> import torch
        >>> metrics(torch.eye(10)[[3, 3, 5]], torch.tensor([3, 5, 5]), loss=0.0).accuracy
        0.6666666666666666
    """
    from sklearn.metrics import precision_recall_fscore_support

    predicted = logits.argmax(dim=1)
    precision, recall, f1, support = precision_recall_fscore_support(
        labels.numpy(), predicted.numpy(), labels=range(CLASSES), zero_division=0.0
    )
    return Metrics(
        accuracy=(predicted == labels).sum().item() / len(labels),
        loss=loss,
        precision=precision.tolist(),
        recall=recall.tolist(),
        f1=f1.tolist(),
        support=support.tolist(),
    )


def metrics_table(splits: dict[str, Metrics], title: str) -> Table:
    """A table with a column group for each split: one row a digit, then accuracy and loss.

    Args:
        splits: Metrics by the name of the split.
        title: Stands above the table.
    """
    table = Table(title=title, title_justify="left")
    table.add_column("digit", justify="right")
    for index, name in enumerate(splits):
        for column in ("precision", "recall", "F1", "support"):
            table.add_column(f"{name}\n{column}", justify="right", style="" if index % 2 else "bold")
    for digit in range(CLASSES):
        cells = []
        for split in splits.values():
            rates = (split.precision[digit], split.recall[digit], split.f1[digit])
            cells += [f"{100 * rate:.2f}" for rate in rates] + [f"{split.support[digit]:,}"]
        table.add_row(str(digit), *cells, end_section=digit == CLASSES - 1)
    totals = [[f"{100 * s.accuracy:.2f} %", "", "", f"{sum(s.support):,}"] for s in splits.values()]
    table.add_row("accuracy", *(cell for cells in totals for cell in cells))
    losses = [[f"{s.loss:.4f}", "", "", ""] for s in splits.values()]
    table.add_row("loss", *(cell for cells in losses for cell in cells))
    return table

import torch
from rich.console import Console

from mnist_lightning.evaluation.metrics import metrics, metrics_table

# Two 0s right, a 0 taken for a 1, a 1 right, a 2 taken for a 1; no other digit occurs.
LABELS = torch.tensor([0, 0, 0, 1, 2])
LOGITS = torch.eye(10)[[0, 0, 1, 1, 1]]


def test_by_hand() -> None:
    result = metrics(LOGITS, LABELS, loss=0.5)
    assert result.accuracy == 3 / 5
    assert result.precision[:3] == [1, 1 / 3, 0]
    assert result.recall[:3] == [2 / 3, 1, 0]
    assert result.f1[:3] == [0.8, 0.5, 0]
    assert result.support == [3, 1, 1] + [0] * 7


def test_the_table_shows_every_split_side_by_side() -> None:
    result = metrics(LOGITS, LABELS, loss=0.1234)
    console = Console(width=160)
    with console.capture() as captured:
        console.print(metrics_table({"train": result, "val": result, "test": result}, "MLP on digits"))
    text = captured.get()
    assert text.count("precision") == 3
    assert text.count("60.00 %") == 3
    assert text.count("0.1234") == 3
    assert text.count("66.67") == 3  # recall of 0

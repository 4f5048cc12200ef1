import torch

from mnist_lightning.evaluation.metrics import metrics, metrics_table

# Two 0s are correct, a 0 is classified as 1, a 1 is correct, a 2 is classified as 1. No other digit occurs.
LABELS = torch.tensor([0, 0, 0, 1, 2])
LOGITS = torch.eye(10)[[0, 0, 1, 1, 1]]


def test_metrics() -> None:
    result = metrics(LOGITS, LABELS, loss=0.5)
    assert result.accuracy == 3 / 5
    assert result.precision[:3] == [1, 1 / 3, 0]
    assert result.recall[:3] == [2 / 3, 1, 0]
    assert result.f1[:3] == [0.8, 0.5, 0]
    assert result.support == [3, 1, 1] + [0] * 7


def test_table_has_four_columns_per_split() -> None:
    result = metrics(LOGITS, LABELS, loss=0.1234)
    table = metrics_table({"train": result, "val": result}, "MLP on digits")
    columns = dict(zip(table.header, zip(*table.rows, strict=True), strict=True))
    assert table.title == "MLP on digits"
    assert table.narrow == 5  # the digits and the first split
    assert list(columns) == [
        "digit",
        *(f"{s} {c}" for s in ("train", "val") for c in ("precision", "recall", "F1", "support")),
    ]
    assert columns["digit"] == (*map(str, range(10)), "accuracy", "loss")
    assert columns["val precision"][:3] + columns["val precision"][-2:] == (
        "100.00",
        "33.33",
        "0.00",
        "60.00 %",
        "0.1234",
    )
    assert columns["train recall"][0] == "66.67"
    assert columns["train support"][:3] + columns["train support"][-2:] == ("3", "1", "1", "5", "")

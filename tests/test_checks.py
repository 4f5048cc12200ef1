"""Wrong arguments are refused when an object is made, from Python as from the command line."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pytest
import torch

from mnist_lightning import (
    CNN,
    GNN,
    MLP,
    Augmentation,
    DenseNet,
    EfficientNet,
    InputError,
    LeNet5,
    MNISTDataModule,
    MNISTSuperpixelsDataModule,
    PositionAugmentation,
    ResNet,
)
from mnist_lightning.data.appearance import Appearance
from mnist_lightning.evaluation.robustness.report import measure_robustness

if TYPE_CHECKING:
    from decimal import Decimal


class Own(MLP):
    """A model of a user."""

    def __init__(self, head: Literal["linear", "mlp"] = "linear", extra: Any = None, **training: Any) -> None:
        super().__init__(**training)


class Unresolved(MLP):
    """Its hint is known to a type checker only."""

    def __init__(self, extra: "Decimal | None" = None, **training: Any) -> None:
        super().__init__(**training)


NOT_STORED = (
    "must be a number, a string, a bool, None, or a list or mapping of these, because checkpoints store it; got"
)


@pytest.mark.parametrize(
    ("make", "arguments", "message"),
    [
        # Misspelt choices, which used to mean the default or something else
        (MLP, {"optimizer": "SGD"}, "optimizer must be one of sgd, adam, adamw, adadelta, got 'SGD'; did you mean"),
        (MLP, {"loss": "crossentropy"}, "loss must be one of cross_entropy, mse, got 'crossentropy'; did you mean"),
        (MLP, {"schedule": "linear"}, "schedule must be one of constant, step, cosine, onecycle, exponential, got"),
        (MLP, {"activation": "ReLU"}, "activation must be one of relu, sigmoid, tanh, got 'ReLU'; did you mean relu?"),
        (GNN, {"pooling": "sum"}, "pooling must be one of mean, max, mean+max, got 'sum'"),
        (GNN, {"conv": "GCN"}, "conv must be one of kernel, gcn, gat, gin, gatedgcn, got 'GCN'; did you mean gcn?"),
        (
            CNN,
            {"batch_norm": "poolled"},
            "batch_norm must be bool or one of pooled, got 'poolled'; did you mean pooled",
        ),
        (CNN, {"dense_activation": "elu"}, "dense_activation must be one of relu, sigmoid, tanh or None, got 'elu'"),
        (LeNet5, {"pooling": "avg2"}, "pooling must be one of avg, max, got 'avg2'; did you mean avg?"),
        (Own, {"head": "MLP"}, "head must be one of linear, mlp, got 'MLP'; did you mean mlp?"),
        (Own, {"optimizer": "SGD"}, "optimizer must be one of sgd, adam, adamw, adadelta, got 'SGD'"),
        (Unresolved, {"optimizer": "SGD"}, "optimizer must be one of sgd, adam, adamw, adadelta, got 'SGD'"),
        (measure_robustness, {"severities": "al"}, "severities must be one of published, all, got 'al'"),
        # Wrong types
        (MLP, {"widths": "64"}, "widths must be a list of int, got '64'"),
        (MLP, {"widths": 64}, "widths must be a list of int, got 64"),
        (MLP, {"widths": [64.0]}, "widths must be a list of int, got [64.0]"),
        (MLP, {"lr": "0.1"}, "lr must be float, got '0.1'"),
        (MLP, {"lr": True}, "lr must be float, got True"),
        (MLP, {"dropout": None}, "dropout must be float, got None"),
        (MLP, {"batch_norm": 1}, "batch_norm must be bool, got 1"),
        (MLP, {"betas": [0.9]}, "betas must be (float, float), got [0.9]"),
        (CNN, {"kernel_size": 3.0}, "kernel_size must be int or a list of int, got 3.0"),
        (MNISTDataModule, {"val_size": True}, "val_size must be int or float, got True"),
        (MNISTDataModule, {"augment": {"rotate": 3}}, "augment must be Augmentation or None, got {'rotate': 3}"),
        (MNISTDataModule, {"augment": PositionAugmentation()}, "augment must be Augmentation or None"),
        (MNISTSuperpixelsDataModule, {"augment": Augmentation()}, "augment must be PositionAugmentation or None"),
        (Augmentation, {"rotate": "15"}, "augment.rotate must be float, got '15'"),
        (Augmentation, {"appearance": {}}, "augment.appearance must be Appearance or None, got {}"),
        (Appearance, {"patches": 0.5}, "augment.appearance.patches must be int, got 0.5"),
        # Values that a checkpoint cannot hold
        (Own, {"extra": Path("folder")}, f"extra {NOT_STORED} PosixPath('folder') (pathlib.PosixPath)"),
        (Own, {"extra": [1, {"a": torch.nn.ReLU()}]}, f"extra {NOT_STORED} [1, {{'a': ReLU()}}] (builtins.list)"),
        (Own, {"extra": torch.zeros(1)}, f"extra {NOT_STORED} tensor([0.])"),
        (Own, {"extra": len}, f"extra {NOT_STORED} <built-in function len>"),
        (Own, {"extra": {1: "a"}}, f"extra {NOT_STORED} {{1: 'a'}}"),
        (MLP, {"lr": np.float64(0.1)}, f"lr {NOT_STORED} np.float64(0.1) (numpy.float64)"),
        # Numbers out of range
        (MLP, {"lr": float("inf")}, "lr must be positive and finite, got inf"),
        (MLP, {"betas": [2, 0.9]}, "betas must be at least 0 and below 1, got [2, 0.9]"),
        (MLP, {"weight_decay": float("nan")}, "weight_decay must be 0 or more and finite, got nan"),
        (MLP, {"widths": [8, -1]}, "widths must be 1 or more, got [8, -1]"),
        (MLP, {"dropout": 1.5}, "dropout must be at least 0 and below 1, got 1.5"),
        (CNN, {"kernel_size": 0}, "kernel_size must be 1 or more, got 0"),
        (CNN, {"widths": [0]}, "widths must be 1 or more, got [0]"),
        (CNN, {"dense_dropout": -0.1}, "dense_dropout must be at least 0 and below 1, got -0.1"),
        (ResNet, {"channels": [0], "blocks": [1]}, "channels must be 1 or more, got [0]"),
        (ResNet, {"channels": [8], "blocks": [0]}, "blocks must be 1 or more, got [0]"),
        (DenseNet, {"growth_rate": 0}, "growth_rate must be 1 or more, got 0"),
        (DenseNet, {"compression": 0.0}, "compression must be above 0 and at most 1, got 0.0"),
        (DenseNet, {"blocks": [1] * 5}, "blocks must be at most 4, each on half the side of the last"),
        (EfficientNet, {"channels": [8]}, "channels, blocks and expansion need one entry per stage, for 1 to 4 stages"),
        (EfficientNet, {"expansion": [1, 0, 1]}, "expansion must be 1 or more, got [1, 0, 1]"),
        (EfficientNet, {"fused": -1}, "fused must be 0 or more, got -1"),
        (EfficientNet, {"squeeze": 0.0}, "squeeze must be above 0 and at most 1, got 0.0"),
        (GNN, {"depth": -2}, "depth must be 1 or more, got -2"),
        (MNISTDataModule, {"batch_size": 10**24}, "batch_size must be below 2**60, got 1000000000000000000000000"),
        (MNISTDataModule, {"fold": 2}, "fold must be str or None, got 2"),
        (MNISTDataModule, {"fold": "02/5"}, "fold must be k/K with 1 <= k <= K and K >= 2, such as 2/5, got 02/5"),
        (MNISTDataModule, {"fold": "1/9999999999"}, "fold must be k/K with 1 <= k <= K and K >= 2, such as 2/5, got"),
        (MNISTDataModule, {"val_size": float("nan")}, "val_size must be 1 or more images, or a fraction"),
        (Augmentation, {"elastic": float("inf")}, "augment.elastic must be 0 or more and finite, got inf"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_wrong_arguments(make: Callable[..., Any], arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"^{re.escape(message)}") as refused:
        make(**arguments)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("make", "arguments"),
    [
        (MLP, {"optimizer": "sgd", "loss": "mse", "schedule": "step", "lr": 1, "betas": [0, 0.9], "dropout": 0}),
        (MLP, {"widths": ()}),
        (CNN, {"batch_norm": "pooled", "dense_activation": None, "kernel_size": (2, 4, 28)}),
        (GNN, {"pooling": "max", "conv": "gcn"}),
        (LeNet5, {"pooling": "max"}),
        (ResNet, {"channels": (1,) * 6, "blocks": (1,) * 6}),
        (DenseNet, {"growth_rate": 1, "blocks": [1] * 4, "stem": 1, "compression": 0.1}),
        (EfficientNet, {"channels": [1] * 4, "blocks": [1] * 4, "expansion": [1] * 4, "squeeze": 1}),
        (Own, {"head": "mlp", "extra": {"depths": [1, 2.5, None], "name": ("a", True)}}),
        (Unresolved, {"extra": None, "lr": 0.1}),
        (MNISTDataModule, {"val_size": 0.5, "seed": None, "root": Path("data"), "augment": Augmentation()}),
        (MNISTDataModule, {"fold": "2/2"}),
        (MNISTSuperpixelsDataModule, {"augment": PositionAugmentation(), "val_size": 3}),
        (Augmentation, {"rotate": 15, "appearance": Appearance(patches=0)}),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_right_arguments(make: Callable[..., Any], arguments: dict[str, Any]) -> None:
    made = make(**arguments)
    if isinstance(made, (MLP, CNN, LeNet5, ResNet, DenseNet, EfficientNet)):
        assert made.eval().classify(torch.zeros(1, 28, 28, dtype=torch.uint8)).shape == (1, 10)


def test_a_model_that_no_checkpoint_can_hold_is_refused_before_training(
    monkeypatch: pytest.MonkeyPatch, fails: Callable[..., str]
) -> None:
    Path("pathnet.py").write_text(
        "from pathlib import Path\nfrom mnist_lightning import MLP\n\n\nclass PathNet(MLP):\n"
        '    def __init__(self, folder: Path = Path("a"), **training):\n        super().__init__(**training)\n'
    )
    monkeypatch.syspath_prepend(".")
    error = fails("fit", "--model", "pathnet.PathNet", "--data.source", "digits")
    assert f"folder {NOT_STORED} PosixPath('a')" in error
    assert not Path("lightning_logs").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model.betas", "[2,0.9]"], "betas must be at least 0 and below 1, got"),
        (
            ["--data.stratify", "true", "--data.val_size", "0.001"],
            "stratify needs at least one training and one validation image of each class: val_size must select 10 to "
            "1,427 of the 1,437 images of digits",
        ),
    ],
    ids=["betas", "stratify"],
)
def test_the_command_line_refuses_numbers_out_of_range(
    options: Sequence[str], message: str, fails: Callable[..., str]
) -> None:
    assert message in fails("fit", "--model", "MLP", "--data.source", "digits", *options)

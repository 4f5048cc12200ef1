"""The models of earlier reports have exactly the parameters that were reported."""

import pytest
import torch
import yaml
from conftest import CONFIGS
from torch import nn

from mnist_lightning import models

REPORTED = {
    "softmax": 7_850,
    "sigmoid_mlp": 79_510,
    "simple_nn": 109_386,
    "cnn_batchnorm": 131_530,
    "wide_nn": 623_290,
    "simple_cnn": 592_074,
    "larger_cnn": 59_933,
}


def build(name: str) -> nn.Module:
    model = yaml.safe_load((CONFIGS / "published" / f"{name}.yaml").read_text())["model"]
    built: nn.Module = getattr(models, model["class_path"])(**model["init_args"])
    return built


def reported_way(model: nn.Module) -> int:
    """The reports count batch norm's running statistics as parameters."""
    statistics = [b for name, b in model.named_buffers() if "running" in name]
    return sum(t.numel() for t in [*model.parameters(), *statistics])


@pytest.mark.parametrize(("name", "parameters"), REPORTED.items())
def test_parameters(name: str, parameters: int) -> None:
    assert reported_way(build(name)) == parameters


# mse.yaml has no model of its own.
UNREPORTED = {path.stem for path in (CONFIGS / "published").glob("*.yaml")} - REPORTED.keys() - {"mse"}


@pytest.mark.parametrize("name", sorted(UNREPORTED))
def test_models_without_a_reported_number_classify(name: str) -> None:
    assert build(name)(torch.rand(2, 1, 28, 28)).shape == (2, 10)

"""Models of earlier reports have exactly the reported number of parameters."""

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
    "pytorch_example": 1_199_882,
}


def build(name: str) -> nn.Module:
    config = yaml.safe_load((CONFIGS / "published" / f"{name}.yaml").read_text())["model"]
    model: nn.Module = getattr(models, config["class_path"])(**config["init_args"])
    return model


def reported_count(model: nn.Module) -> int:
    """Counts parameters as the reports do, with the running statistics of batch norm."""
    statistics = [b for name, b in model.named_buffers() if "running" in name]
    return sum(t.numel() for t in [*model.parameters(), *statistics])


@pytest.mark.parametrize(("name", "parameters"), REPORTED.items())
def test_number_of_parameters(name: str, parameters: int) -> None:
    assert reported_count(build(name)) == parameters


# mse.yaml sets no model.
UNREPORTED = {path.stem for path in (CONFIGS / "published").glob("*.yaml")} - REPORTED.keys() - {"mse"}


@pytest.mark.parametrize("name", sorted(UNREPORTED))
def test_models_without_a_reported_number_run(name: str) -> None:
    assert build(name)(torch.rand(2, 1, 28, 28)).shape == (2, 10)

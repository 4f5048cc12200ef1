"""Multilayer perceptron."""

from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor, nn

from mnist_lightning.classifier import CLASSES, Classifier, Standardize

Activation = Literal["relu", "sigmoid", "tanh"]
ACTIVATIONS: dict[Activation, type[nn.Module]] = {"relu": nn.ReLU, "sigmoid": nn.Sigmoid, "tanh": nn.Tanh}


def dense_layers(
    features: int, widths: Sequence[int], activation: Activation, batch_norm: bool, dropout: float
) -> nn.Sequential:
    """Hidden layers (linear, batch norm, activation, dropout) of these widths, and the linear layer to the logits.

    Args:
        features: Inputs of the first layer.
        widths: Units of each hidden layer; none is a linear classifier.
        activation: Of the hidden layers.
        batch_norm: Normalises each hidden layer before its activation.
        dropout: Probability of leaving out a hidden unit.
    """
    layers: list[nn.Module] = []
    for width in widths:
        layers.append(nn.Linear(features, width))
        if batch_norm:
            layers.append(nn.BatchNorm1d(width))
        layers.append(ACTIVATIONS[activation]())
        if dropout:
            layers.append(nn.Dropout(dropout))
        features = width
    return nn.Sequential(*layers, nn.Linear(features, CLASSES))


class MLP(Classifier):
    """Multilayer perceptron (Rumelhart, Hinton and Williams 1986).

    Args:
        widths: Units of each hidden layer; `[]` is multinomial logistic regression.
        activation: Of the hidden layers.
        batch_norm: Batch normalisation before each activation (Ioffe and Szegedy 2015).
        dropout: Probability of leaving out a hidden unit (Srivastava et al. 2014).
        **training: Loss, optimiser and schedule, as in `Classifier`.

    Example:
        >>> sum(p.numel() for p in MLP(widths=[128, 64]).parameters())
        109386
    """

    def __init__(
        self,
        widths: Sequence[int] = (128, 64),
        activation: Activation = "relu",
        batch_norm: bool = False,
        dropout: float = 0.0,
        **training: Any,
    ) -> None:
        super().__init__(**training)
        self.standardize = Standardize()
        self.dense = dense_layers(28 * 28, widths, activation, batch_norm, dropout)

    def forward(self, images: Tensor) -> Tensor:
        """Maps images [B, 1, 28, 28] in [0, 1] to logits [B, 10]."""
        logits: Tensor = self.dense(self.standardize(images).flatten(1))
        return logits

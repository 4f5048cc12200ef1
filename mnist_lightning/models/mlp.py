"""Multilayer perceptron."""

from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor, nn

from mnist_lightning.checks import at_least, fraction
from mnist_lightning.classifier import CLASSES, Classifier, Standardize

Activation = Literal["relu", "sigmoid", "tanh"]
ACTIVATIONS: dict[Activation, type[nn.Module]] = {"relu": nn.ReLU, "sigmoid": nn.Sigmoid, "tanh": nn.Tanh}


def dense_layers(
    features: int, widths: Sequence[int], activation: Activation, batch_norm: bool, dropout: float
) -> nn.Sequential:
    """Builds hidden layers (linear, batch norm, activation, dropout) and the linear layer to the logits.

    Args:
        features: Number of input features.
        widths: Number of units in each hidden layer. An empty list gives a linear classifier.
        activation: Activation function of the hidden layers.
        batch_norm: Whether to add batch norm before each activation.
        dropout: Dropout probability of the hidden units.
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
        widths: Number of units in each hidden layer; `[]` gives multinomial logistic regression.
        activation: Activation function of the hidden layers.
        batch_norm: Whether to add batch norm before each activation (Ioffe and Szegedy 2015).
        dropout: Dropout probability of the hidden units (Srivastava et al. 2014).
        **training: Loss, optimiser and schedule, as in `Classifier`.

    Raises:
        InputError: If an argument is out of range.

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
        at_least(1, widths=widths)
        fraction(dropout=dropout)
        self.standardize = Standardize()
        self.dense = dense_layers(28 * 28, widths, activation, batch_norm, dropout)

    def forward(self, images: Tensor) -> Tensor:
        """Maps images [B, 1, 28, 28] in [0, 1] to logits [B, 10]."""
        logits: Tensor = self.dense(self.standardize(images).flatten(1))
        return logits

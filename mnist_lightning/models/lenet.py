"""LeNet-5."""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from mnist_lightning.classifier import CLASSES, Classifier, Standardize
from mnist_lightning.models.mlp import ACTIVATIONS, Activation


class LeNet5(Classifier):
    """LeNet-5, with the paper's layers and widths.

    Source: LeCun, Bottou, Bengio and Haffner 1998, "Gradient-based learning applied to document recognition",
    section II.B. Four details follow current practice instead of the paper. C3 is connected to all maps of S2, not to a
    hand-picked subset. The subsampling layers have no weights. Tanh is not scaled. The output layer is linear, for a
    softmax; the paper uses distances to stylised digits.

    Args:
        activation: Activation function; the paper uses `tanh`.
        pooling: Subsampling by the mean (`avg`, as in the paper) or the maximum (`max`).
        **training: Loss, optimiser and schedule, as in `Classifier`.

    Example:
        >>> sum(p.numel() for p in LeNet5().parameters())
        61706
    """

    def __init__(
        self, activation: Activation = "tanh", pooling: Literal["avg", "max"] = "avg", **training: Any
    ) -> None:
        super().__init__(**training)
        subsampling = nn.AvgPool2d if pooling == "avg" else nn.MaxPool2d
        self.standardize = Standardize()
        self.c1 = nn.Conv2d(1, 6, 5, padding=2)  # pads 28x28 images to the paper's 32x32
        self.s2 = subsampling(2)
        self.c3 = nn.Conv2d(6, 16, 5)
        self.s4 = subsampling(2)
        self.c5 = nn.Linear(16 * 5 * 5, 120)  # equivalent to the paper's 5x5 convolution of 5x5 maps
        self.f6 = nn.Linear(120, 84)
        self.output = nn.Linear(84, CLASSES)
        self.activation = ACTIVATIONS[activation]()
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        """Maps images [B, 1, 28, 28] in [0, 1] to logits [B, 10]."""
        maps = self.s2(self.activation(self.c1(self.standardize(images))))
        maps = self.s4(self.activation(self.c3(maps)))
        units = self.activation(self.c5(maps.flatten(1)))
        logits: Tensor = self.output(self.activation(self.f6(units)))
        return logits

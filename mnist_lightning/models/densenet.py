"""Densely connected network."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mnist_lightning.checks import at_least
from mnist_lightning.classifier import CLASSES, Classifier, Standardize
from mnist_lightning.errors import InputError
from mnist_lightning.models.resnet import average_pool, conv

_MAX_BLOCKS = 4  # on maps of 14x14, 7x7, 3x3 and 1x1


def _norm_relu_conv(inputs: int, outputs: int, kernel_size: int) -> list[nn.Module]:
    return [nn.BatchNorm2d(inputs), nn.ReLU(), conv(inputs, outputs, kernel_size)]


class DenseLayer(nn.Module):
    """Batch norm, ReLU, 1x1 convolution to 4k maps, batch norm, ReLU, 3x3 convolution to k maps (section 3).

    Args:
        inputs: Number of input channels.
        growth_rate: Number of feature maps k that the layer adds.
    """

    def __init__(self, inputs: int, growth_rate: int) -> None:
        super().__init__()
        width = 4 * growth_rate
        self.layers = nn.Sequential(*_norm_relu_conv(inputs, width, 1), *_norm_relu_conv(width, growth_rate, 3))

    def forward(self, maps: Tensor) -> Tensor:
        """Maps feature maps [B, inputs, S, S] to [B, inputs + k, S, S]."""
        return torch.cat([maps, self.layers(maps)], dim=1)


class DenseNet(Classifier):
    """DenseNet-BC (Huang, Liu, van der Maaten and Weinberger 2017, "Densely connected convolutional networks").

    The stem suits 28x28 images: a 3x3 convolution and max-pooling, so the first block works on 14x14.

    Args:
        growth_rate: Number of feature maps k that each layer adds.
        blocks: Number of layers in each dense block.
        stem: Number of channels before the first block.
        compression: Fraction of the feature maps that a transition keeps (theta in the paper).
        **training: Loss, optimiser and schedule, as in `Classifier`.

    Raises:
        InputError: If an argument is out of range.

    Example:
        >>> DenseNet()(torch.rand(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        growth_rate: int = 16,
        blocks: Sequence[int] = (4, 4, 4),
        stem: int = 32,
        compression: float = 0.5,
        **training: Any,
    ) -> None:
        super().__init__(**training)
        at_least(1, growth_rate=growth_rate, blocks=blocks, stem=stem)
        if not 0 < compression <= 1:
            raise InputError(f"compression must be above 0 and at most 1, got {compression}")
        if len(blocks) > _MAX_BLOCKS:
            raise InputError(f"blocks must be at most {_MAX_BLOCKS}, each on half the side of the last, got {blocks}")
        layers: list[nn.Module] = [Standardize(), conv(1, stem, 3), nn.MaxPool2d(2)]
        width = stem
        for index, count in enumerate(blocks):
            if index > 0:  # transition layer
                kept = max(1, int(width * compression))
                layers += [*_norm_relu_conv(width, kept, 1), nn.AvgPool2d(2)]
                width = kept
            for _ in range(count):
                layers.append(DenseLayer(width, growth_rate))
                width += growth_rate
        self.features = nn.Sequential(*layers, nn.BatchNorm2d(width), nn.ReLU())
        self.output = nn.Linear(width, CLASSES)
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        """Maps images [B, 1, 28, 28] in [0, 1] to logits [B, 10]."""
        logits: Tensor = self.output(average_pool(self.features(images)))
        return logits

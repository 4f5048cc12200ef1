"""Residual network."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mnist_lightning.checks import at_least
from mnist_lightning.classifier import CLASSES, Classifier, Standardize
from mnist_lightning.errors import InputError


def conv(inputs: int, outputs: int, kernel_size: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """Builds a padded convolution without bias, for networks with batch norm.

    The initialisation is for ReLU: He et al. 2015 ("Delving deep into rectifiers", section 2.2, forward case).
    """
    layer = nn.Conv2d(inputs, outputs, kernel_size, stride, padding=kernel_size // 2, groups=groups, bias=False)
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    return layer


def conv_norm(inputs: int, outputs: int, kernel_size: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """Builds a convolution (see `conv`) and its batch norm."""
    return [conv(inputs, outputs, kernel_size, stride, groups), nn.BatchNorm2d(outputs)]


def average_pool(maps: Tensor) -> Tensor:
    """Averages feature maps [B, C, S, S] over all pixels, to [B, C].

    With `maps.mean(dim=(2, 3))`, the gradient would be channels-first, which makes the backward pass of the batch norm
    before it four to nine times as slow on a CPU.
    """
    return maps.permute(0, 2, 3, 1).flatten(1, 2).mean(dim=1)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al. 2016, figure 2).

    If the shape changes, the shortcut is a projection (option B of section 3.3).

    Args:
        inputs: Number of input channels.
        outputs: Number of output channels.
        stride: Stride of the first convolution and of the projection.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        first, second = conv_norm(inputs, outputs, 3, stride), conv_norm(outputs, outputs, 3)
        self.residual = nn.Sequential(*first, nn.ReLU(), *second)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(*conv_norm(inputs, outputs, 1, stride))

    def forward(self, maps: Tensor) -> Tensor:
        """Maps feature maps [B, inputs, S, S] to [B, outputs, S / stride, S / stride]."""
        return torch.relu(self.residual(maps) + self.shortcut(maps))


class ResNet(Classifier):
    """ResNet of basic blocks (He, Zhang, Ren and Sun 2016, "Deep residual learning for image recognition").

    The design follows the CIFAR-10 networks of section 4.2. The stem halves the resolution as in the ImageNet networks:
    14x14 is enough for digits and four times as fast.

    Args:
        channels: Number of channels in each stage. Each stage after the first halves the resolution.
        blocks: Number of basic blocks in each stage.
        **training: Loss, optimiser and schedule, as in `Classifier`.

    Raises:
        InputError: If `channels` is empty, or differs from `blocks` in length, or a number is below 1.

    Example:
        >>> ResNet()(torch.rand(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """

    def __init__(self, channels: Sequence[int] = (32, 64), blocks: Sequence[int] = (1, 1), **training: Any) -> None:
        super().__init__(**training)
        if len(channels) != len(blocks) or not channels:
            raise InputError(f"channels and blocks need one entry per stage, got {len(channels)} and {len(blocks)}")
        at_least(1, channels=channels, blocks=blocks)
        width = channels[0]
        self.stem = nn.Sequential(Standardize(), *conv_norm(1, width, 3), nn.MaxPool2d(2), nn.ReLU())
        stages: list[nn.Module] = []
        for stage, (outputs, count) in enumerate(zip(channels, blocks, strict=True)):
            for block in range(count):
                stages.append(BasicBlock(width, outputs, stride=2 if stage > 0 and block == 0 else 1))
                width = outputs
        self.stages = nn.Sequential(*stages)
        self.output = nn.Linear(width, CLASSES)
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        """Maps images [B, 1, 28, 28] in [0, 1] to logits [B, 10]."""
        maps = self.stages(self.stem(images))
        logits: Tensor = self.output(average_pool(maps))
        return logits

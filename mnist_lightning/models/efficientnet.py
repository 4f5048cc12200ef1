"""EfficientNet."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mnist_lightning.checks import at_least
from mnist_lightning.classifier import CLASSES, Classifier, Standardize
from mnist_lightning.errors import InputError
from mnist_lightning.models.resnet import average_pool, conv, conv_norm

_MAX_STAGES = 4  # on maps of 14x14, 7x7, 3x3 and 1x1


class SqueezeExcitation(nn.Module):
    """Scales each channel by a factor from 0 to 1 (Hu, Shen and Sun 2018, "Squeeze-and-excitation networks").

    Two dense layers compute the factors from the means of all channels (section 3). The hidden activation is SiLU.

    Args:
        channels: Number of channels.
        hidden: Number of hidden units.
    """

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.scale = nn.Sequential(nn.Linear(channels, hidden), nn.SiLU(), nn.Linear(hidden, channels), nn.Sigmoid())

    def forward(self, maps: Tensor) -> Tensor:
        """Maps feature maps [B, channels, S, S] to the same shape."""
        factors: Tensor = self.scale(average_pool(maps))
        return maps * factors[:, :, None, None]


def _conv_norm_silu(inputs: int, outputs: int, kernel_size: int, groups: int = 1) -> list[nn.Module]:
    return [*conv_norm(inputs, outputs, kernel_size, groups=groups), nn.SiLU()]


class MBConv(nn.Module):
    """Inverted bottleneck (Sandler et al. 2018, "MobileNetV2", section 3.3) with squeeze-and-excitation.

    A 1x1 convolution to more channels, a depthwise 3x3 convolution, squeeze-and-excitation, and a 1x1 convolution
    without activation. If the number of channels does not change, there is a shortcut.

    The fused block (Tan and Le 2021, "EfficientNetV2", section 3.2) replaces the first three by a 3x3 convolution. With
    an expansion of 1, that convolution is the whole block.

    Args:
        inputs: Number of input channels.
        outputs: Number of output channels.
        expansion: Hidden channels per input channel. With 1 there is no 1x1 convolution to more channels.
        squeeze: Hidden units of the squeeze-and-excitation per input channel. Unused in a fused block.
        fused: Whether the block is fused.
    """

    def __init__(self, inputs: int, outputs: int, expansion: int, squeeze: float, fused: bool = False) -> None:
        super().__init__()
        width = inputs * expansion
        if fused and expansion == 1:
            layers = _conv_norm_silu(inputs, outputs, 3)
        elif fused:
            layers = [*_conv_norm_silu(inputs, width, 3), *conv_norm(width, outputs, 1)]
        else:
            layers = _conv_norm_silu(inputs, width, 1) if expansion > 1 else []
            layers += _conv_norm_silu(width, width, 3, groups=width)
            layers += [SqueezeExcitation(width, max(1, int(inputs * squeeze))), *conv_norm(width, outputs, 1)]
        self.residual = nn.Sequential(*layers)
        self.has_shortcut = inputs == outputs

    def forward(self, maps: Tensor) -> Tensor:
        """Maps feature maps [B, inputs, S, S] to [B, outputs, S, S]."""
        residual: Tensor = self.residual(maps)
        return maps + residual if self.has_shortcut else residual


class EfficientNet(Classifier):
    """EfficientNet (Tan and Le 2019, "EfficientNet: Rethinking model scaling for convolutional neural networks").

    The stages of MBConv blocks follow table 1, for 28x28 images. The stem halves the resolution by max-pooling, so the
    first stage works on 14x14. Max-pooling also replaces the strided depthwise convolutions, because their backward
    pass in bfloat16 on a CPU takes 8 to 19 times as long as without stride.

    Args:
        channels: Number of channels in each stage. Each stage after the first halves the resolution.
        blocks: Number of MBConv blocks in each stage.
        expansion: Hidden channels of a block per input channel, in each stage.
        squeeze: Hidden units of the squeeze-and-excitation per input channel of the block.
        fused: Number of blocks, from the first, that are fused as in EfficientNetV2. Dense convolutions cost little
            where there are few channels.
        **training: Loss, optimiser and schedule, as in `Classifier`.

    Raises:
        InputError: If `channels`, `blocks` and `expansion` differ in length, or an argument is out of range.

    Example:
        >>> EfficientNet()(torch.rand(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        channels: Sequence[int] = (32, 64, 112),
        blocks: Sequence[int] = (1, 2, 2),
        expansion: Sequence[int] = (1, 3, 3),
        squeeze: float = 0.25,
        fused: int = 0,
        **training: Any,
    ) -> None:
        super().__init__(**training)
        if not len(channels) == len(blocks) == len(expansion) or not 0 < len(channels) <= _MAX_STAGES:
            raise InputError(
                f"channels, blocks and expansion need one entry per stage, for 1 to {_MAX_STAGES} stages; got "
                f"{len(channels)}, {len(blocks)} and {len(expansion)}"
            )
        at_least(1, channels=channels, blocks=blocks, expansion=expansion)
        at_least(0, fused=fused)
        if not 0 < squeeze <= 1:
            raise InputError(f"squeeze must be above 0 and at most 1, got {squeeze}")
        width = channels[0]
        layers: list[nn.Module] = [Standardize(), conv(1, width, 3), nn.MaxPool2d(2), nn.BatchNorm2d(width), nn.SiLU()]
        for stage, (outputs, count, factor) in enumerate(zip(channels, blocks, expansion, strict=True)):
            if stage > 0:
                layers.append(nn.MaxPool2d(2))
            for block in range(count):
                is_fused = sum(blocks[:stage]) + block < fused
                layers.append(MBConv(width, outputs, factor, squeeze, is_fused))
                width = outputs
        self.features = nn.Sequential(*layers)
        self.output = nn.Linear(width, CLASSES)
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        """Maps images [B, 1, 28, 28] in [0, 1] to logits [B, 10]."""
        logits: Tensor = self.output(average_pool(self.features(images)))
        return logits

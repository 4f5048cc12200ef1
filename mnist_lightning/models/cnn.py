"""Plain convolutional network."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mnist_lightning.checks import at_least, fraction
from mnist_lightning.classifier import Classifier, Standardize
from mnist_lightning.errors import InputError
from mnist_lightning.models.mlp import ACTIVATIONS, Activation, dense_layers


def _per_block(blocks: int, **sizes: int | Sequence[int]) -> list[Sequence[int]]:
    """Repeats single sizes for each block.

    Raises:
        InputError: If there is another number of sizes than blocks.
    """
    several = {name: [size] * blocks if isinstance(size, int) else size for name, size in sizes.items()}
    for name, size in several.items():
        if len(size) != blocks:
            raise InputError(f"{name} must be one number or one per block ({blocks}), got {len(size)}")
    return list(several.values())


class CNN(Classifier):
    """Blocks of convolution, batch norm, max-pooling and activation, then dense layers.

    Pooling comes before the activation, which then has a quarter of the values to process. The result is the same,
    because all activations on offer are increasing functions.

    Args:
        channels: Number of output channels of each block's convolution.
        kernel_size: Kernel size, one for all blocks or one per block.
        padding: `same` keeps the resolution, `valid` is no padding.
        crop: Number of pixels to cut off at each edge. Nearly all digits of MNIST leave 4 pixels blank.
        batch_norm: Whether to add batch norm after each convolution. `pooled` adds it after the max-pooling, where it
            has a quarter of the values to normalise.
        pool: Kernel size and stride of the max-pooling, one for all blocks or one per block. 1 is no pooling.
        activation: Activation function of the blocks.
        dropout: Dropout probability of the features between the blocks and the dense layers.
        widths: Number of units in each hidden dense layer.
        dense_activation: Activation function of the dense layers, or None for that of the blocks.
        dense_dropout: Dropout probability of the units in the hidden dense layers.
        standardize: Whether to standardise the images, see `Standardize`.
        **training: Loss, optimiser and schedule, as in `Classifier`.

    Raises:
        InputError: If an argument is out of range, or the blocks leave no pixels.

    Example:
        >>> model = CNN(channels=[30, 15], kernel_size=[5, 3], padding="valid", batch_norm=False, widths=[128, 50])
        >>> sum(p.numel() for p in model.parameters())
        59933
    """

    def __init__(
        self,
        channels: Sequence[int] = (32, 64, 64),
        kernel_size: int | Sequence[int] = 3,
        padding: Literal["same", "valid"] = "same",
        crop: int = 0,
        batch_norm: bool | Literal["pooled"] = True,
        pool: int | Sequence[int] = 2,
        activation: Activation = "relu",
        dropout: float = 0.0,
        widths: Sequence[int] = (128,),
        dense_activation: Activation | None = None,
        dense_dropout: float = 0.0,
        standardize: bool = True,
        **training: Any,
    ) -> None:
        super().__init__(**training)
        sizes, pools = _per_block(len(channels), kernel_size=kernel_size, pool=pool)
        at_least(1, channels=channels, kernel_size=kernel_size, pool=pool, widths=widths)
        fraction(dropout=dropout, dense_dropout=dense_dropout)
        if not 0 <= crop < 14:
            raise InputError(f"crop must be from 0 to 13, less than half of the image, got {crop}")
        self.crop = crop
        blocks: list[nn.Module] = [Standardize() if standardize else nn.Identity()]
        inputs, side = 1, 28 - 2 * crop
        for outputs, size, pooled in zip(channels, sizes, pools, strict=True):
            norm = [nn.BatchNorm2d(outputs)] if batch_norm else []
            pooling = [nn.MaxPool2d(pooled)] if pooled > 1 else []
            between = [*pooling, *norm] if batch_norm == "pooled" else [*norm, *pooling]
            blocks += [nn.Conv2d(inputs, outputs, size, padding=padding), *between, ACTIVATIONS[activation]()]
            inputs, side = outputs, (side if padding == "same" else side - size + 1) // pooled
        if side < 1:
            raise InputError(f"kernel_size {kernel_size}, pool {pool} and crop {crop} leave no pixels; remove blocks")
        if dropout:
            blocks.append(nn.Dropout(dropout))
        self.features = nn.Sequential(*blocks)
        self.dense = dense_layers(inputs * side * side, widths, dense_activation or activation, False, dense_dropout)
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        """Maps images [B, 1, 28, 28] in [0, 1] to logits [B, 10]."""
        kept = slice(self.crop, 28 - self.crop)
        logits: Tensor = self.dense(self.features(images[..., kept, kept]).flatten(1))
        return logits

"""Plain convolutional network."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mnist_lightning.classifier import Classifier, Standardize
from mnist_lightning.errors import InputError
from mnist_lightning.models.mlp import ACTIVATIONS, Activation, dense_layers


class CNN(Classifier):
    """Blocks of convolution, batch norm, max-pooling and activation; then dense layers.

    Pooling comes before the activation: for the activations offered, all of them increasing, the result is the
    same, at a quarter of the work.

    Args:
        channels: Output channels of each block's convolution.
        kernel_size: Side of the kernels, one for all blocks or one for each.
        padding: `same` keeps the side of the picture, `valid` pads nothing.
        crop: Pixels that are cut off at each edge; nearly all of MNIST's digits leave four of them free.
        batch_norm: Batch normalisation after each convolution; `pooled`: after the max-pooling, where a quarter of
            the values are left to be normalised.
        pool: Side and stride of the max-pooling; 1 for none.
        activation: Of the blocks.
        dropout: Probability of leaving out a feature between the blocks and the dense layers.
        widths: Units of each hidden dense layer.
        dense_activation: Of the dense layers; the blocks' if not given.
        dense_dropout: Probability of leaving out a unit of a hidden dense layer.
        **training: Loss, optimiser and schedule, as in `Classifier`.

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
        pool: int = 2,
        activation: Activation = "relu",
        dropout: float = 0.0,
        widths: Sequence[int] = (128,),
        dense_activation: Activation | None = None,
        dense_dropout: float = 0.0,
        **training: Any,
    ) -> None:
        super().__init__(**training)
        sizes = [kernel_size] * len(channels) if isinstance(kernel_size, int) else kernel_size
        if len(sizes) != len(channels):
            raise InputError(f"kernel_size has {len(sizes)} entries for {len(channels)} blocks; give one or one each")
        if min([pool, *channels, *sizes]) < 1:
            raise InputError("channels, kernel_size and pool are numbers of 1 or more")
        if not 0 <= crop < 14:
            raise InputError(f"crop is {crop}; it must be at least 0 and below 14, half of the picture")
        self.crop = crop
        blocks: list[nn.Module] = [Standardize()]
        inputs, side = 1, 28 - 2 * crop
        for outputs, size in zip(channels, sizes, strict=True):
            side = (side if padding == "same" else side - size + 1) // pool
            if side < 1:
                raise InputError(
                    f"nothing is left of the picture after kernel_size {size}, pool {pool} and crop {crop}"
                )
            blocks.append(nn.Conv2d(inputs, outputs, size, padding=padding))
            if batch_norm is True:
                blocks.append(nn.BatchNorm2d(outputs))
            if pool > 1:
                blocks.append(nn.MaxPool2d(pool))
            if batch_norm == "pooled":
                blocks.append(nn.BatchNorm2d(outputs))
            blocks.append(ACTIVATIONS[activation]())
            inputs = outputs
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

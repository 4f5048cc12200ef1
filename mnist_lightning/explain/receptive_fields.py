"""Positions of a convolutional model's feature map units on the input image."""

from collections import Counter
from functools import partial
from itertools import dropwhile
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mnist_lightning.classifier import Classifier
from mnist_lightning.explain.private import private

SIDE = 28  # pixels of a digit


class Grid(NamedTuple):
    """Centres of the receptive fields of a feature map's units, along one axis of the image.

    Attributes:
        units: Number of units along the axis.
        first: Pixel at the centre of unit 0.
        step: Distance of neighbouring centres in pixels.
    """

    units: int
    first: float
    step: float

    def weights(self) -> Tensor:
        """Weights of bilinear interpolation, float [28, units]. The map falls to 0 beyond its outermost units."""
        centres = self.first + self.step * torch.arange(self.units)
        return (1 - (torch.arange(SIDE)[:, None] - centres).abs() / self.step).clamp_min(0)

    def resized(self, units: int) -> "Grid":
        """Returns the grid of a feature map that covers the same part of the image with another number of units."""
        step = self.step * self.units / units
        return Grid(units, self.first + (step - self.step) / 2, step)

    def behind(self, layer: nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d, axis: int, units: int) -> "Grid":
        """Returns the grid of a layer's output, given the grid of its input.

        Args:
            layer: Convolution or pooling.
            axis: Axis of the image: 0 for rows, 1 for columns.
            units: Number of output units along the axis.
        """
        sizes = (layer.kernel_size, layer.stride, getattr(layer, "dilation", 1))
        kernel, stride, dilation = (_along(axis, size) for size in sizes)
        reach = dilation * (kernel - 1)
        same = reach // 2 if layer.padding == "same" else 0
        padding = same if isinstance(layer.padding, str) else _along(axis, layer.padding)
        return Grid(units, self.first + self.step * (reach / 2 - padding), self.step * stride)


def _along(axis: int, sizes: int | tuple[int, ...]) -> int:
    return sizes[axis] if isinstance(sizes, tuple) else sizes


def spatial_layers(model: Classifier) -> dict[nn.Module, tuple[Grid, Grid]]:
    """Finds the modules that output feature maps of more than one unit, from the first convolution on.

    Modules that are called more than once are left out. The function runs the model on one blank digit. It computes the
    grids of convolutions and poolings from their arguments. All other changes of size are assumed to be uniform: a crop
    or a padding of the image before the first module, a resampling of the maps after it.

    Returns:
        The grids along rows and columns of each module, in the order of execution.
    """
    # Keyed by the number of units: maps of one size share their grid, because models add and concatenate them.
    known: tuple[dict[int, Grid], dict[int, Grid]] = ({}, {})
    layers: dict[nn.Module, tuple[Grid, Grid]] = {}
    calls: Counter[nn.Module] = Counter()

    def grid(axis: int, maps: Tensor) -> Grid:
        grids, units = known[axis], maps.shape[2 + axis]
        if not grids:
            grids[units] = Grid(units, (SIDE - units) / 2, 1)
        elif units not in grids:
            grids[units] = list(grids.values())[-1].resized(units)
        return grids[units]

    def record(module: nn.Module, _: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        calls[module] += 1
        if not all(isinstance(maps, Tensor) and maps.ndim == 4 for maps in (*inputs[:1], output)):
            return
        for axis in (0, 1):
            before, units = grid(axis, inputs[0]), output.shape[2 + axis]
            if isinstance(module, (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)):
                known[axis][units] = before.behind(module, axis, units)
        if min(output.shape[2:]) > 1:
            layers[module] = (grid(0, output), grid(1, output))

    own, copies = private(model)
    for module, private_module in copies.items():
        if private_module is not own:
            private_module.register_forward_hook(partial(record, module))
    own.eval().classify(torch.zeros(1, SIDE, SIDE, dtype=torch.uint8))
    convolved = dropwhile(lambda layer: not isinstance(layer[0], nn.Conv2d), layers.items())
    return {module: grids for module, grids in convolved if calls[module] == 1}  # Captum needs a single output

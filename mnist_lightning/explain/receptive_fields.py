"""Where on the picture the units of a convolutional model's maps look."""

from collections import Counter
from itertools import dropwhile
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mnist_lightning.classifier import Classifier

SIDE = 28  # pixels of a digit


class Grid(NamedTuple):
    """Where the units of maps look, along one axis of the picture: unit i at pixel `first + i * step`."""

    units: int
    first: float
    step: float

    def weights(self) -> Tensor:
        """Float [28, units], of bilinear interpolation; beyond the outermost units the map falls to 0."""
        centres = self.first + self.step * torch.arange(self.units)
        return (1 - (torch.arange(SIDE)[:, None] - centres).abs() / self.step).clamp_min(0)

    def resized(self, units: int) -> "Grid":
        """Of maps with more or fewer units, that cover the same part of the picture."""
        step = self.step * self.units / units
        return Grid(units, self.first + (step - self.step) / 2, step)

    def behind(self, layer: nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d, axis: int, units: int) -> "Grid":
        """Of the maps that a layer makes of these, along an axis (0 or 1)."""
        kernel, stride, dilation = (
            _along(axis, value) for value in (layer.kernel_size, layer.stride, getattr(layer, "dilation", 1))
        )
        reach = dilation * (kernel - 1)
        same = reach // 2 if layer.padding == "same" else 0
        padding = same if isinstance(layer.padding, str) else _along(axis, layer.padding)
        return Grid(units, self.first + self.step * (reach / 2 - padding), self.step * stride)


def _along(axis: int, sizes: int | tuple[int, ...]) -> int:
    return sizes[axis] if isinstance(sizes, tuple) else sizes


def spatial_layers(model: Classifier) -> dict[nn.Module, tuple[Grid, Grid]]:
    """Modules that give maps of more than one unit, from the first convolution on, in the order in which they end.

    Returns:
        For each module, where its units look: along the rows and along the columns. Convolutions and poolings say it
        themselves. What else changes the size of maps is taken to do so evenly: to crop or pad the picture before the
        first module, to stretch or shrink maps after it.
    """
    # By the number of units: maps of one size look at the same places, or they could be neither added nor joined.
    known: tuple[dict[int, Grid], dict[int, Grid]] = ({}, {})
    found: dict[nn.Module, tuple[Grid, Grid]] = {}
    uses: Counter[nn.Module] = Counter()

    def grid(axis: int, maps: Tensor) -> Grid:
        grids, units = known[axis], maps.shape[2 + axis]
        if not grids:
            grids[units] = Grid(units, (SIDE - units) / 2, 1)
        elif units not in grids:
            grids[units] = list(grids.values())[-1].resized(units)
        return grids[units]

    def note(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        uses[module] += 1
        if not all(isinstance(maps, Tensor) and maps.ndim == 4 for maps in (*inputs[:1], output)):
            return
        for axis in (0, 1):
            before, units = grid(axis, inputs[0]), output.shape[2 + axis]
            if isinstance(module, (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)):
                known[axis][units] = before.behind(module, axis, units)
        if min(output.shape[2:]) > 1:
            found[module] = (grid(0, output), grid(1, output))

    hooks = [module.register_forward_hook(note) for module in model.modules() if module is not model]
    try:
        model.classify(torch.zeros(1, SIDE, SIDE, dtype=torch.uint8))
    finally:
        for hook in hooks:
            hook.remove()
    convolved = dropwhile(lambda layer: not isinstance(layer[0], nn.Conv2d), found.items())
    return {module: grids for module, grids in convolved if uses[module] == 1}  # of two outputs Captum takes either

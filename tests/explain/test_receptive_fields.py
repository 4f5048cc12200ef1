from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mnist_lightning import CNN, DenseNet, EfficientNet, LeNet5, ResNet
from mnist_lightning.classifier import Classifier
from mnist_lightning.explain.receptive_fields import Grid, spatial_layers


@pytest.mark.parametrize(
    ("build", "grid"),
    [
        (lambda: CNN(channels=[4, 4, 4], widths=[]), Grid(3, 3.5, 8)),  # the last pooling drops a row and a column
        (lambda: CNN(channels=[4, 4], kernel_size=[5, 3], padding="valid", crop=2, widths=[]), Grid(4, 7.5, 4)),
        (lambda: LeNet5(), Grid(5, 5.5, 4)),
        (lambda: ResNet(channels=[4], blocks=[1]), Grid(14, 0.5, 2)),
        (lambda: ResNet(channels=[4, 4], blocks=[1, 1]), Grid(7, 0.5, 4)),
        (lambda: DenseNet(growth_rate=4, blocks=[1, 1], stem=4), Grid(7, 1.5, 4)),
        (lambda: EfficientNet(channels=[4, 4], blocks=[1, 1], expansion=[1, 2]), Grid(7, 1.5, 4)),
    ],
)
def test_grid_gives_the_centres_of_receptive_fields(build: Callable[[], Classifier], grid: Grid) -> None:
    model = build().eval()
    for parameter in model.parameters():
        nn.init.uniform_(parameter, 0.01, 0.1)  # with bright images, all units are active and no gradient cancels
    layers = spatial_layers(model)
    layer = list(layers)[-1]
    assert layers[layer] == (grid, grid)
    outputs: list[Tensor] = []
    hook = layer.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    pixels = (0.5 + 0.5 * torch.rand(64, 1, 28, 28)).requires_grad_()
    model(pixels)
    hook.remove()
    unit = grid.units // 2
    (gradient,) = torch.autograd.grad(outputs[0][:, :, unit, unit - 1].sum(), pixels)
    rows, columns = (gradient.abs().sum(dim=(0, 1, axis)).nonzero()[:, 0] for axis in (3, 2))
    for field, place in ((rows, unit), (columns, unit - 1)):
        first, last = int(field[0]), int(field[-1])
        if first > 0 and last < 27:  # the image's edge does not cut the field
            assert (first + last) / 2 == grid.first + place * grid.step
        else:
            assert first <= grid.first + place * grid.step <= last


def test_layers_in_order_of_execution_without_repeated_modules() -> None:
    model = LeNet5().eval()  # it calls its activation four times
    assert list(spatial_layers(model)) == [model.c1, model.s2, model.c3, model.s4]


def test_maps_resized_by_functions() -> None:
    class Functional(Classifier):
        def __init__(self, **training: Any) -> None:
            super().__init__(**training)
            self.conv, self.pool = nn.Conv2d(1, 1, 3, padding=1), nn.AvgPool2d(2)

        def forward(self, images: Tensor) -> Tensor:
            maps = nn.functional.max_pool2d(self.conv(nn.functional.pad(images, (2, 2, 2, 2))), 4)
            return self.pool(maps).flatten(1)[:, :10]

    layers = spatial_layers(Functional().eval())
    assert list(layers.values()) == [(grid, grid) for grid in (Grid(32, -2, 1), Grid(4, 1.5, 8))]

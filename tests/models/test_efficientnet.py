import pytest
import torch
from torch import nn

from mnist_lightning import EfficientNet
from mnist_lightning.models.efficientnet import MBConv, SqueezeExcitation
from mnist_lightning.models.resnet import average_pool


def test_stages_halve_the_resolution() -> None:
    model = EfficientNet(channels=[4, 6, 8, 10], blocks=[2, 1, 1, 1], expansion=[1, 2, 2, 2])
    shapes = []
    for block in model.features:
        if isinstance(block, MBConv):
            block.register_forward_hook(lambda _, __, maps: shapes.append(tuple(maps.shape[1:])))
    assert model(torch.rand(2, 1, 28, 28)).shape == (2, 10)
    assert shapes == [(4, 14, 14), (4, 14, 14), (6, 7, 7), (8, 3, 3), (10, 1, 1)]


@pytest.mark.parametrize("expansion", [1, 3])
def test_block_is_an_inverted_bottleneck(expansion: int) -> None:
    block = MBConv(4, 6, expansion, squeeze=0.5)
    convolutions = [layer for layer in block.residual if isinstance(layer, nn.Conv2d)]
    width = 4 * expansion
    expected = [(4, width, 1), (width, width, width), (width, 6, 1)][expansion == 1 :]  # no 1x1 convolution first
    assert [(c.in_channels, c.out_channels, c.groups) for c in convolutions] == expected


@pytest.mark.parametrize(("expansion", "sizes"), [(1, [(4, 6, 3)]), (3, [(4, 12, 3), (12, 6, 1)])])
def test_fused_block_has_a_dense_convolution(expansion: int, sizes: list[tuple[int, int, int]]) -> None:
    layers = MBConv(4, 6, expansion, squeeze=0.5, fused=True).residual
    convolutions = [layer for layer in layers if isinstance(layer, nn.Conv2d)]
    assert [(c.in_channels, c.out_channels, c.kernel_size[0]) for c in convolutions] == sizes
    assert {c.groups for c in convolutions} == {1}


@pytest.mark.parametrize("fused", [0, 1, 2, 9])
def test_the_first_blocks_are_fused(fused: int) -> None:
    blocks = [layer for layer in EfficientNet(fused=fused).features if isinstance(layer, MBConv)]
    depthwise = [any(isinstance(layer, SqueezeExcitation) for layer in block.residual) for block in blocks]
    assert depthwise == [index >= fused for index in range(5)]


def test_shortcut_of_blocks_that_keep_the_channels() -> None:
    maps = torch.rand(3, 4, 5, 5)
    for outputs in (4, 6):
        block = MBConv(4, outputs, expansion=2, squeeze=0.25).eval()
        nn.init.zeros_(block.residual[-1].weight)  # type: ignore[arg-type]
        assert torch.equal(block(maps), maps if outputs == 4 else torch.zeros(3, 6, 5, 5))


def test_squeeze_excitation_scales_channels_by_their_means() -> None:
    layer, maps = SqueezeExcitation(4, hidden=2), torch.rand(3, 4, 5, 5)
    factors = layer(maps) / maps
    torch.testing.assert_close(factors, factors[:, :, :1, :1].expand_as(factors))
    assert ((factors > 0) & (factors < 1)).all()
    shuffled = maps.flatten(2)[..., torch.randperm(25)].view_as(maps)
    torch.testing.assert_close(layer(shuffled) / shuffled, factors)


def test_average_pool_keeps_the_gradient_channels_last() -> None:
    maps = torch.rand(3, 4, 5, 5).to(memory_format=torch.channels_last).requires_grad_()
    pooled = average_pool(maps)
    torch.testing.assert_close(pooled, maps.mean(dim=(2, 3)))
    (gradient,) = torch.autograd.grad(pooled, maps, torch.rand(3, 4))
    assert gradient.is_contiguous(memory_format=torch.channels_last)

import pytest
import torch

from mnist_lightning import CNN, InputError


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("pool", [1, 2, 3])
@pytest.mark.parametrize("kernel_size", [3, [5, 4]])
def test_the_dense_layers_fit_the_blocks(padding: str, pool: int, kernel_size: int | list[int]) -> None:
    model = CNN(channels=[3, 5], padding=padding, pool=pool, kernel_size=kernel_size)  # type: ignore[arg-type]
    assert model(torch.rand(2, 1, 28, 28)).shape == (2, 10)


def test_pooling_before_the_activation_changes_nothing() -> None:
    model = CNN(channels=[4], batch_norm=False, activation="tanh", widths=[]).eval()
    images = torch.rand(3, 1, 28, 28)
    standardize, convolution, pool, activation = model.features
    textbook = pool(activation(convolution(standardize(images))))
    torch.testing.assert_close(model.features(images), textbook)


def test_building_leaves_the_running_statistics_alone() -> None:
    statistics = [b for name, b in CNN().named_buffers() if "running_mean" in name]
    assert not any(b.any() for b in statistics)


def test_shapes_that_cannot_be_are_refused() -> None:
    with pytest.raises(InputError, match="kernel_size has 2 entries for 3 blocks"):
        CNN(channels=[4, 4, 4], kernel_size=[3, 3])
    with pytest.raises(InputError, match="nothing is left of the picture"):
        CNN(channels=[4, 4, 4, 4], padding="valid")
    with pytest.raises(InputError, match="crop is 14"):
        CNN(crop=14)


def test_the_edge_that_is_cut_off_is_not_seen() -> None:
    model = CNN(channels=[4], crop=3, batch_norm="pooled").eval()
    images = torch.rand(2, 1, 28, 28)
    framed = torch.ones_like(images)
    framed[..., 3:25, 3:25] = images[..., 3:25, 3:25]
    assert torch.equal(model(images), model(framed))
    framed[..., 3, 3] = 5
    assert not torch.equal(model(images), model(framed))


def test_normalising_what_is_pooled() -> None:
    standardize, convolution, pool, norm, activation = CNN(channels=[4], batch_norm="pooled", widths=[]).features
    maps = norm(pool(convolution(standardize(torch.rand(8, 1, 28, 28)))))
    torch.testing.assert_close(maps.mean(dim=(0, 2, 3)), torch.zeros(4), atol=1e-5, rtol=0)
    assert maps.shape == activation(maps).shape == (8, 4, 14, 14)

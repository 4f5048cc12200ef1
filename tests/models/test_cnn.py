from typing import Any

import pytest
import torch

from mnist_lightning import CNN, InputError


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("pool", [1, 2, 3, [1, 2]])
@pytest.mark.parametrize("kernel_size", [3, [5, 4]])
def test_dense_layers_fit_the_blocks(padding: str, pool: int | list[int], kernel_size: int | list[int]) -> None:
    model = CNN(channels=[3, 5], padding=padding, pool=pool, kernel_size=kernel_size)  # type: ignore[arg-type]
    assert model(torch.rand(2, 1, 28, 28)).shape == (2, 10)


def test_pooling_before_activation_equals_pooling_after() -> None:
    model = CNN(channels=[4], batch_norm=False, activation="tanh", widths=[]).eval()
    images = torch.rand(3, 1, 28, 28)
    standardize, convolution, pool, activation = model.features
    pooled_after = pool(activation(convolution(standardize(images))))
    torch.testing.assert_close(model.features(images), pooled_after)


def test_init_does_not_change_running_statistics() -> None:
    statistics = [b for name, b in CNN().named_buffers() if "running_mean" in name]
    assert not any(b.any() for b in statistics)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kernel_size": [3, 3]}, r"kernel_size must be one number or one per block \(3\), got 2"),
        ({"channels": [4] * 4, "padding": "valid"}, "kernel_size 3, pool 2 and crop 0 leave no pixels"),
        ({"channels": [4, 0, 4]}, r"channels must be 1 or more, got \[4, 0, 4\]"),
        ({"pool": 0}, "pool must be 1 or more, got 0"),
        ({"pool": [2, 2]}, r"pool must be one number or one per block \(3\), got 2"),
        ({"crop": 14}, "crop must be from 0 to 13, less than half of the image, got 14"),
    ],
)
def test_invalid_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        CNN(**{"channels": [4] * 3, **arguments})


@pytest.mark.parametrize("arguments", [{}, {"kernel_size": [3, 3, 3]}, {"pool": 1, "crop": 13}, {"pool": [1, 1, 2]}])
def test_valid_arguments(arguments: dict[str, Any]) -> None:
    assert CNN(**{"channels": [4] * 3, **arguments})(torch.rand(2, 1, 28, 28)).shape == (2, 10)


def test_cropped_pixels_have_no_effect() -> None:
    model = CNN(channels=[4], crop=3, batch_norm="pooled").eval()
    images = torch.rand(2, 1, 28, 28)
    framed = torch.ones_like(images)
    framed[..., 3:25, 3:25] = images[..., 3:25, 3:25]
    assert torch.equal(model(images), model(framed))
    framed[..., 3, 3] = 5
    assert not torch.equal(model(images), model(framed))


def test_images_are_standardised_unless_disabled() -> None:
    first, second = (CNN(channels=[4], standardize=standardize) for standardize in (True, False))
    second.load_state_dict(first.state_dict())
    images = torch.rand(2, 1, 28, 28)
    torch.testing.assert_close(second((images - 0.1307) / 0.3081), first(images))
    assert not torch.allclose(second(images), first(images))


def test_batch_norm_after_pooling() -> None:
    standardize, convolution, pool, norm, activation = CNN(channels=[4], batch_norm="pooled", widths=[]).features
    maps = norm(pool(convolution(standardize(torch.rand(8, 1, 28, 28)))))
    torch.testing.assert_close(maps.mean(dim=(0, 2, 3)), torch.zeros(4), atol=1e-5, rtol=0)
    assert maps.shape == activation(maps).shape == (8, 4, 14, 14)

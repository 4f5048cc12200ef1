import math
from typing import Any

import pytest
import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from mnist_lightning import Augmentation, InputError, PositionAugmentation

ZERO = {"rotate": 0.0, "scale": 0.0, "shear": 0.0, "shift": 0.0}


def draw(augmentation: Augmentation, count: int, seed: int = 0) -> Tensor:
    return augmentation.draw(count, Generator().manual_seed(seed))


def spot(row: int, column: int) -> Tensor:
    """3x3 square at a position."""
    image = torch.zeros(1, 1, 28, 28)
    image[0, 0, row - 1 : row + 2, column - 1 : column + 2] = 1
    return image


def centre(image: Tensor) -> tuple[float, float]:
    """Row and column of the centre of mass, relative to the image centre."""
    positions = torch.arange(28) - 13.5
    weights = image[0, 0] / image.sum()
    return (weights.sum(1) @ positions).item(), (weights.sum(0) @ positions).item()


def test_zero_ranges_do_not_change_the_image() -> None:
    images = torch.rand(4, 1, 28, 28)
    identity = Augmentation(**ZERO)
    torch.testing.assert_close(identity(images, draw(identity, 4)), images, atol=1e-5, rtol=0)


def test_rotation_angle() -> None:
    rotate = Augmentation(**{**ZERO, "rotate": 90.0})
    noise = torch.tensor([[0.5, 0, 0, 0, 0]])  # half of the range: 45 degrees
    row, column = centre(rotate(spot(14, 22), noise))
    before_row, before_column = centre(spot(14, 22))
    assert math.hypot(row, column) == pytest.approx(math.hypot(before_row, before_column), abs=0.2)
    angle = math.degrees(math.atan2(row, column) - math.atan2(before_row, before_column))
    assert abs(angle) == pytest.approx(45, abs=1)


def test_scale_shift_and_shear() -> None:
    scale = Augmentation(**{**ZERO, "scale": 0.2})
    torch.testing.assert_close(
        centre(scale(spot(14, 20), torch.tensor([[0, 1.0, 0, 0, 0]])))[1],
        centre(spot(14, 20))[1] * 1.2,
        atol=0.1,
        rtol=0,
    )
    shift = Augmentation(**{**ZERO, "shift": 0.25})
    row, column = centre(shift(spot(14, 14), torch.tensor([[0, 0, 0, 1.0, -1.0]])))
    assert (row - 0.5, column - 0.5) == pytest.approx((7, -7), abs=0.05)
    shear = Augmentation(**{**ZERO, "shear": 0.3})
    up, down = (centre(shear(spot(r, 14), torch.tensor([[0, 0, 1.0, 0, 0]])))[1] - 0.5 for r in (6, 22))
    assert up - down == pytest.approx(0.3 * 16, abs=0.2)


def test_affine_map_matches_affine_grid() -> None:
    augmentation = Augmentation()
    images, noise = torch.rand(8, 1, 28, 28), draw(augmentation, 8)
    grid = F.affine_grid(augmentation._inverse_maps(noise), [8, 1, 28, 28], align_corners=False)
    expected = F.grid_sample(images, grid, align_corners=False)
    torch.testing.assert_close(augmentation(images, noise), expected, atol=1e-4, rtol=0)


def test_elastic_displacement_size_and_smoothness() -> None:
    elastic = Augmentation(**ZERO, elastic=1.5)
    column = torch.linspace(0, 1, 28).expand(500, 1, 28, 28).contiguous()  # the value of a pixel is its original column
    moved = (elastic(column, draw(elastic, 500)) - column)[..., 6:22, 6:22] * 27
    assert moved.mean().abs() < 0.1
    assert 0.7 < moved.std() < 1.5  # interpolation reduces the variance
    neighbours = (moved[..., 1:] - moved[..., :-1]).abs().mean()
    assert neighbours < 0.3 * moved.abs().mean()  # smooth


def test_same_seed_same_distortion() -> None:
    augmentation = Augmentation(elastic=1.0)
    images = torch.rand(5, 1, 28, 28)
    first, again, other = (augmentation(images, draw(augmentation, 5, seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first[0] - images[0], first[1] - images[1])  # images are distorted independently


def test_draw_range_and_mean() -> None:
    noise = draw(Augmentation(), 10_000)
    assert noise.shape == (10_000, 5)
    assert noise.min() >= -1
    assert noise.max() < 1
    assert noise.mean(dim=0).abs().max() < 0.03


@pytest.mark.parametrize("ranges", [{"rotate": -1}, {"shear": math.inf}, {"elastic": math.nan}, {"scale": 1.0}])
def test_invalid_ranges(ranges: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"augment.{next(iter(ranges))} must be"):
        Augmentation(**ranges)


def test_ranges_at_their_limits() -> None:
    Augmentation(rotate=0, shear=1e9, elastic=0, scale=0.999)
    PositionAugmentation(rotate=0, jitter=1e9, intensity=0, scale=0.999)


def moved(augmentation: PositionAugmentation, pos: list[list[float]], *uniform: float) -> Tensor:
    """Node positions after augmentation with these random numbers, without jitter."""
    noise = (torch.tensor([uniform]), torch.zeros(len(pos), 2))
    batch = torch.zeros(len(pos), dtype=torch.long)
    return augmentation(torch.ones(len(pos), 2), torch.tensor(pos), batch, noise)[1]


def test_positions_rotate_about_the_image_centre() -> None:
    rotate = PositionAugmentation(rotate=90, scale=0, shear=0, shift=0)
    torch.testing.assert_close(moved(rotate, [[0.5, 0.5]], 0.7, 0, 0, 0, 0, 0), torch.tensor([[0.5, 0.5]]))
    (row, column), before = moved(rotate, [[0.5, 0.8]], 1, 0, 0, 0, 0, 0)[0].tolist(), (0.5, 0.8)
    assert math.hypot(row - 0.5, column - 0.5) == pytest.approx(before[1] - before[0])
    assert column == pytest.approx(0.5, abs=1e-6)


def test_positions_scale_shear_and_shift() -> None:
    scale = PositionAugmentation(rotate=0, scale=0.2, shear=0, shift=0)
    torch.testing.assert_close(moved(scale, [[0.5, 1.0]], 0, 1, 0, 0, 0, 0), torch.tensor([[0.5, 1.1]]))
    shear = PositionAugmentation(rotate=0, scale=0, shear=0.3, shift=0)
    torch.testing.assert_close(moved(shear, [[1.0, 0.5]], 0, 0, 1, 0, 0, 0), torch.tensor([[1.0, 0.65]]))
    shift = PositionAugmentation(rotate=0, scale=0, shear=0, shift=0.1)
    torch.testing.assert_close(moved(shift, [[0.5, 0.5]], 0, 0, 0, 1, -1, 0), torch.tensor([[0.6, 0.4]]))


def test_maps_differ_between_graphs_and_jitter_between_nodes() -> None:
    augmentation = PositionAugmentation(jitter=0.01)
    batch = torch.arange(2).repeat_interleave(1000)
    pos = torch.full((2000, 2), 0.5)
    x, moved = augmentation(torch.ones(2000, 2), pos, batch, augmentation.draw(2, 2000, Generator().manual_seed(0)))
    first, second = moved.split(1000)
    assert (first.mean(0) - second.mean(0)).abs().max() > 0.01
    torch.testing.assert_close(first.std(0), torch.tensor([0.01, 0.01]), atol=0.001, rtol=0)
    assert len(x[:, 0].unique()) == 2
    assert (x[:, 1] == 1).all()


def test_zero_ranges_do_not_change_graphs() -> None:
    identity = PositionAugmentation(**ZERO, jitter=0, intensity=0)
    x, pos, batch = torch.rand(9, 2), torch.rand(9, 2), torch.zeros(9, dtype=torch.long)
    new = identity(x, pos, batch, identity.draw(1, 9, Generator().manual_seed(0)))
    torch.testing.assert_close(new, (x, pos))


def test_moments_move_like_the_pixels() -> None:
    augmentation, generator = PositionAugmentation(jitter=0), Generator().manual_seed(1)
    pixels, v = torch.rand(50, 2, generator=generator), torch.rand(50, generator=generator)

    def node(pixels: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        (r, c), pos = (pixels - pixels.mean(0)).unbind(1), pixels.mean(0, keepdim=True)
        moments = [(v * each).mean() for each in (r, c, r * r, r * c, c * c)]
        return torch.stack([v.mean(), torch.tensor(0.1), v.std(correction=0), *moments])[None], pos

    noise = augmentation.draw(1, 1, generator)
    x, pos = augmentation(*node(pixels, v), torch.zeros(1, dtype=torch.long), noise)
    every = torch.zeros(50, dtype=torch.long)
    moved = augmentation(torch.ones(50, 2), pixels, every, (noise[0], torch.zeros(50, 2)))[1]
    brighter = v * (1 + noise[0][0, 5] * augmentation.intensity)
    torch.testing.assert_close((x, pos), node(moved, brighter))


@pytest.mark.parametrize("ranges", [{"rotate": -1}, {"jitter": math.inf}, {"intensity": math.nan}, {"scale": 1.0}])
def test_invalid_position_ranges(ranges: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"augment.{next(iter(ranges))} must be"):
        PositionAugmentation(**ranges)


def test_displacement_of_one_corner() -> None:
    displace = Augmentation(**ZERO, corners=1.0)
    images = torch.zeros(1, 1, 28, 28)
    images[0, 0, 3:25, 3:25] = 1
    noise = torch.zeros(1, 5 + 8)
    noise[0, 5 + 3] = 8.0  # the lower right corner is sampled 8 pixels further right
    after = displace(images, noise)[0, 0]
    width = (after > 0.5).sum(dim=1)
    assert width[4] == pytest.approx(22, abs=1)
    assert width[23] == pytest.approx(22 - 6, abs=2)
    assert torch.equal((after > 0.5).float().argmax(dim=1)[4:24], torch.full((20,), 3))

import math
from typing import Any

import pytest
import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from mnist_lightning import Augmentation, InputError, PositionAugmentation

STILL = {"rotate": 0.0, "scale": 0.0, "shear": 0.0, "shift": 0.0}


def drawn(augmentation: Augmentation, count: int, seed: int = 0) -> Tensor:
    return augmentation.draw(count, Generator().manual_seed(seed))


def spot(row: int, column: int) -> Tensor:
    """A small blob, well inside the image."""
    image = torch.zeros(1, 1, 28, 28)
    image[0, 0, row - 1 : row + 2, column - 1 : column + 2] = 1
    return image


def centre(image: Tensor) -> tuple[float, float]:
    """Row and column of the centre of mass, from the image's middle."""
    places = torch.arange(28) - 13.5
    weights = image[0, 0] / image.sum()
    return (weights.sum(1) @ places).item(), (weights.sum(0) @ places).item()


def test_ranges_of_zero_leave_the_image_as_it_is() -> None:
    images = torch.rand(4, 1, 28, 28)
    still = Augmentation(**STILL)
    torch.testing.assert_close(still(images, drawn(still, 4)), images, atol=1e-5, rtol=0)


def test_rotation_turns_by_the_angle_drawn() -> None:
    turn = Augmentation(**{**STILL, "rotate": 90.0})
    numbers = torch.tensor([[0.5, 0, 0, 0, 0]])  # half of the range: 45 degrees
    row, column = centre(turn(spot(14, 22), numbers))
    before_row, before_column = centre(spot(14, 22))
    assert math.hypot(row, column) == pytest.approx(math.hypot(before_row, before_column), abs=0.2)
    angle = math.degrees(math.atan2(row, column) - math.atan2(before_row, before_column))
    assert abs(angle) == pytest.approx(45, abs=1)


def test_scale_shift_and_shear_move_as_far_as_drawn() -> None:
    grow = Augmentation(**{**STILL, "scale": 0.2})
    torch.testing.assert_close(
        centre(grow(spot(14, 20), torch.tensor([[0, 1.0, 0, 0, 0]])))[1],
        centre(spot(14, 20))[1] * 1.2,
        atol=0.1,
        rtol=0,
    )
    move = Augmentation(**{**STILL, "shift": 0.25})
    row, column = centre(move(spot(14, 14), torch.tensor([[0, 0, 0, 1.0, -1.0]])))
    assert (row - 0.5, column - 0.5) == pytest.approx((7, -7), abs=0.05)
    lean = Augmentation(**{**STILL, "shear": 0.3})
    up, down = (centre(lean(spot(r, 14), torch.tensor([[0, 0, 1.0, 0, 0]])))[1] - 0.5 for r in (6, 22))
    assert up - down == pytest.approx(0.3 * 16, abs=0.2)


def test_the_map_is_that_of_torchs_affine_grid() -> None:
    augmentation = Augmentation()
    images, numbers = torch.rand(8, 1, 28, 28), drawn(augmentation, 8)
    grid = F.affine_grid(augmentation._inverse_maps(numbers), [8, 1, 28, 28], align_corners=False)
    expected = F.grid_sample(images, grid, align_corners=False)
    torch.testing.assert_close(augmentation(images, numbers), expected, atol=1e-4, rtol=0)


def test_elastic_displacements_have_the_size_asked_for() -> None:
    elastic = Augmentation(**STILL, elastic=1.5)
    column = torch.linspace(0, 1, 28).expand(500, 1, 28, 28).contiguous()  # its value tells where a pixel came from
    moved = (elastic(column, drawn(elastic, 500)) - column)[..., 6:22, 6:22] * 27
    assert moved.mean().abs() < 0.1
    assert 0.7 < moved.std() < 1.5  # interpolation between the grid's points takes some away
    neighbours = (moved[..., 1:] - moved[..., :-1]).abs().mean()
    assert neighbours < 0.3 * moved.abs().mean()  # smooth


def test_the_same_seed_gives_the_same_distortion() -> None:
    augmentation = Augmentation(elastic=1.0)
    images = torch.rand(5, 1, 28, 28)
    first, again, other = (augmentation(images, drawn(augmentation, 5, seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first[0] - images[0], first[1] - images[1])  # each image its own


def test_draws_stay_in_their_ranges() -> None:
    numbers = drawn(Augmentation(), 10_000)
    assert numbers.shape == (10_000, 5)
    assert numbers.min() >= -1
    assert numbers.max() < 1
    assert numbers.mean(dim=0).abs().max() < 0.03


@pytest.mark.parametrize("wrong", [{"rotate": -1}, {"shear": math.inf}, {"elastic": math.nan}, {"scale": 1.0}])
def test_ranges_that_cannot_be_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"augment.{next(iter(wrong))}"):
        Augmentation(**wrong)


def moved(augmentation: PositionAugmentation, pos: list[list[float]], *uniform: float) -> Tensor:
    """Where a graph's nodes go with these random numbers."""
    numbers = (torch.tensor([uniform]), torch.zeros(len(pos), 2))
    batch = torch.zeros(len(pos), dtype=torch.long)
    return augmentation(torch.ones(len(pos), 2), torch.tensor(pos), batch, numbers)[1]


def test_positions_turn_about_the_middle_as_images_do() -> None:
    turn = PositionAugmentation(rotate=90, scale=0, shear=0, shift=0)
    torch.testing.assert_close(moved(turn, [[0.5, 0.5]], 0.7, 0, 0, 0, 0, 0), torch.tensor([[0.5, 0.5]]))
    (row, column), before = moved(turn, [[0.5, 0.8]], 1, 0, 0, 0, 0, 0)[0].tolist(), (0.5, 0.8)
    assert math.hypot(row - 0.5, column - 0.5) == pytest.approx(before[1] - before[0])
    assert column == pytest.approx(0.5, abs=1e-6)


def test_positions_grow_lean_and_shift_as_far_as_drawn() -> None:
    grow = PositionAugmentation(rotate=0, scale=0.2, shear=0, shift=0)
    torch.testing.assert_close(moved(grow, [[0.5, 1.0]], 0, 1, 0, 0, 0, 0), torch.tensor([[0.5, 1.1]]))
    lean = PositionAugmentation(rotate=0, scale=0, shear=0.3, shift=0)
    torch.testing.assert_close(moved(lean, [[1.0, 0.5]], 0, 0, 1, 0, 0, 0), torch.tensor([[1.0, 0.65]]))
    shift = PositionAugmentation(rotate=0, scale=0, shear=0, shift=0.1)
    torch.testing.assert_close(moved(shift, [[0.5, 0.5]], 0, 0, 0, 1, -1, 0), torch.tensor([[0.6, 0.4]]))


def test_each_graph_has_its_own_map_and_each_node_its_own_jitter() -> None:
    augmentation = PositionAugmentation(jitter=0.01)
    batch = torch.arange(2).repeat_interleave(1000)
    pos = torch.full((2000, 2), 0.5)
    x, places = augmentation(torch.ones(2000, 2), pos, batch, augmentation.draw(2, 2000, Generator().manual_seed(0)))
    first, second = places.split(1000)
    assert (first.mean(0) - second.mean(0)).abs().max() > 0.01
    torch.testing.assert_close(first.std(0), torch.tensor([0.01, 0.01]), atol=0.001, rtol=0)
    assert len(x[:, 0].unique()) == 2
    assert (x[:, 1] == 1).all()


def test_positions_without_ranges_stay() -> None:
    still = PositionAugmentation(**STILL, jitter=0, intensity=0)
    x, pos, batch = torch.rand(9, 2), torch.rand(9, 2), torch.zeros(9, dtype=torch.long)
    new = still(x, pos, batch, still.draw(1, 9, Generator().manual_seed(0)))
    torch.testing.assert_close(new, (x, pos))


@pytest.mark.parametrize("wrong", [{"rotate": -1}, {"jitter": math.inf}, {"intensity": math.nan}, {"scale": 1.0}])
def test_ranges_of_positions_that_cannot_be_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"augment.{next(iter(wrong))}"):
        PositionAugmentation(**wrong)


def test_corners_move_each_its_own_way_and_the_middle_a_quarter_as_far() -> None:
    pull = Augmentation(**STILL, corners=1.0)
    images = torch.zeros(1, 1, 28, 28)
    images[0, 0, 3:25, 3:25] = 1
    numbers = torch.zeros(1, 5 + 8)
    numbers[0, 5 + 3] = 8.0  # the lower right corner takes its pixels from eight pixels to the right
    after = pull(images, numbers)[0, 0]
    width = (after > 0.5).sum(dim=1)
    assert width[4] == pytest.approx(22, abs=1)
    assert width[23] == pytest.approx(22 - 6, abs=2)
    assert torch.equal((after > 0.5).float().argmax(dim=1)[4:24], torch.full((20,), 3))

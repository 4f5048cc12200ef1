from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import label
from torch import Generator, Tensor

from mnist_lightning import InputError
from mnist_lightning.data.appearance import Appearance
from mnist_lightning.data.augment import Augmentation
from mnist_lightning.data.sources import read

RANGES = ("jitter", "curves", "clutter", "filter", "tone", "waves", "noise", "patches")
ZERO: dict[str, Any] = {**dict.fromkeys(RANGES, 0), "strokes": False, "threshold": False}


@pytest.fixture(scope="module")
def images() -> Tensor:
    return read("digits", train=True)[0][:300].unsqueeze(1).float() / 255


def changed(images: Tensor, seed: int = 0, **ranges: float) -> Tensor:
    appearance = Appearance(**{**ZERO, **ranges})
    return appearance(images, appearance.draw(len(images), Generator().manual_seed(seed)))


def is_changed(after: Tensor, before: Tensor) -> Tensor:
    return (after != before).flatten(1).any(dim=1)


def test_same_noise_same_images(images: Tensor) -> None:
    before = images.clone()
    appearance = Appearance()
    noise = appearance.draw(300, Generator().manual_seed(0))
    after = appearance(images, noise)
    assert torch.equal(images, before)
    assert torch.equal(after, appearance(images, noise))
    assert torch.equal(noise, appearance.draw(300, Generator().manual_seed(0)))
    assert not torch.equal(noise, appearance.draw(300, Generator().manual_seed(1)))
    assert after.shape == images.shape
    assert after.min() >= 0
    assert after.max() <= 1
    share = is_changed(after, images).float().mean().item()
    assert 0.4 < share < 0.6  # half stay unchanged, and each of the ten changes skips half of the others
    assert torch.equal(changed(images), images)


@pytest.mark.parametrize(
    ("name", "value", "share"),
    [
        ("jitter", 1, 0.25),
        ("strokes", True, 0.25),
        ("threshold", True, 0.25),
        ("curves", 1, 0.25),
        ("clutter", 1, 0.17),  # pieces are often background
        ("filter", 1, 0.35),
        ("tone", 0.8, 0.25),
        ("waves", 0.5, 0.25),
        ("noise", 0.4, 0.25),
        ("patches", 1, 0.25),
    ],
)
def test_share_of_changed_images(name: str, value: float, share: float, images: Tensor) -> None:
    changes = is_changed(changed(images, **{name: value}), images)
    assert changes.float().mean().item() == pytest.approx(share, abs=0.07)


def test_jitter_moves_pixels_independently_of_their_neighbours() -> None:
    ramp = (torch.arange(28) / 28).expand(400, 1, 28, 28).contiguous()
    after = changed(ramp, jitter=1)
    moved = (after - ramp)[is_changed(after, ramp)][:, 0, 4:-4, 4:-4] * 28  # in pixels, along the rows
    assert moved.std().item() == pytest.approx((1 / 3) ** 0.5, abs=0.05)  # of a uniform deviation up to 1
    neighbours = torch.stack([moved[..., :-1].flatten(), moved[..., 1:].flatten()])
    assert abs(torch.corrcoef(neighbours)[0, 1].item()) < 0.02


def test_strokes_are_eroded_dilated_or_hollow() -> None:
    square = torch.zeros(400, 1, 28, 28)
    square[:, :, 10:16, 10:16] = 1
    after = changed(square, strokes=True)
    assert set(after.unique().tolist()) == {0, 1}
    sizes = {int(size) for size in after[is_changed(after, square)].flatten(1).sum(dim=1)}
    eroded, dilated, wide = 5 * 5, 7 * 7, 8 * 8
    assert sizes == {eroded, dilated, wide, wide - 36, 36 - 4 * 4, dilated - 36}


def test_threshold_makes_images_black_and_white(images: Tensor) -> None:
    after = changed(images, threshold=True)
    levels = after[is_changed(after, images)].unique()
    assert levels.tolist() == [0, 1]


def test_curves_are_thin_and_connected() -> None:
    black = torch.zeros(300, 1, 28, 28)
    after = changed(black, curves=1)
    drawn = after[is_changed(after, black)][:, 0] > 0
    for line in drawn[:50].numpy():
        _, pieces = label(line, np.ones((3, 3)))
        assert pieces == 1
    assert drawn.flatten(1).sum(dim=1).float().mean() < 80


def test_clutter_comes_from_other_images(images: Tensor) -> None:
    points = torch.zeros(2, 1, 28, 28)
    points[0, 0, 14, 14] = 0.5  # may appear in the other image only, up to 10 pixels away
    clutter = torch.zeros(28, 28)
    for seed in range(1000):
        after = changed(points, seed, clutter=1)
        assert torch.equal(after[0], points[0])
        assert after[1].sum() in (0, 0.5)
        clutter += after[1, 0]
    rows, columns = clutter.nonzero().unbind(dim=1)
    assert rows.numel() > 5
    assert (rows.min() >= 4) & (columns.min() >= 4) & (rows.max() <= 24) & (columns.max() <= 24)


def test_tone_is_linear_with_a_minimum_contrast(images: Tensor) -> None:
    ramp = torch.linspace(0, 1, 784).view(1, 1, 28, 28).repeat(500, 1, 1, 1)
    after = changed(ramp, tone=1).flatten(1)
    contrast = after[:, -1] - after[:, 0]
    assert contrast.abs().min() > 0.149
    assert (contrast < 0).any()
    inside = (after > 0.01) & (after < 0.99)
    line = after[:, :1] + contrast[:, None] * torch.linspace(0, 1, 784)
    assert ((after - line).abs() < 1e-3)[inside].float().mean() > 0.9  # the rest is clipped to [0, 1]


def test_noise_and_waves_have_zero_mean() -> None:
    grey = torch.full((400, 1, 28, 28), 0.5)
    for name, limit in (("noise", 0.1), ("waves", 0.1)):
        after = changed(grey, **{name: limit})
        assert after.mean().item() == pytest.approx(0.5, abs=0.005)
        deviations = after.flatten(1).std(dim=1)
        assert 0.02 < deviations[is_changed(after, grey)].mean() < 0.12


def test_patches_are_uniformly_grey(images: Tensor) -> None:
    after = changed(images, patches=1)
    for index in is_changed(after, images).nonzero().flatten().tolist()[:20]:
        differing = after[index] != images[index]
        greys = after[index][differing].unique()
        assert len(greys) == 1


def test_batch_of_one(images: Tensor) -> None:
    appearance = Appearance()
    assert appearance(images[:1], appearance.draw(1, Generator().manual_seed(0))).shape == (1, 1, 28, 28)


def test_appearance_comes_after_distortion_with_separate_noise(images: Tensor) -> None:
    plain = Augmentation(elastic=1, corners=2)
    both = Augmentation(elastic=1, corners=2, appearance=Appearance())
    noise = both.draw(300, Generator().manual_seed(0))
    distorted = plain(images, noise[:, : 5 + 32 + 8])
    assert torch.equal(both(images, noise), Appearance()(distorted, noise[:, 5 + 32 + 8 :]))


@pytest.mark.parametrize("name", RANGES)
def test_invalid_range(name: str) -> None:
    with pytest.raises(InputError, match=rf"augment.appearance.{name} must be 0 or more, got -1"):
        Appearance(**{name: -1})


def test_invalid_tone() -> None:
    with pytest.raises(InputError, match=r"augment.appearance.tone must be at most 1, got 2"):
        Appearance(tone=2)


def test_ranges_at_their_limits() -> None:
    Appearance(**ZERO)
    Appearance(tone=1)

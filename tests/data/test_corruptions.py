from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from skimage.feature import canny
from skimage.transform import AffineTransform, warp
from torch import Tensor

from mnist_lightning import InputError
from mnist_lightning.data.corruptions import CORRUPTIONS, PUBLISHED, _height_maps, corrupt, read_mnist_c
from mnist_lightning.data.sources import read

DETERMINISTIC = {"scale", "brightness", "stripe", "canny_edges"}


@pytest.fixture(scope="module")
def images() -> Tensor:
    return read("digits", train=False)[0][:40]


def distance(one: Tensor, other: Tensor) -> float:
    return (one.float() - other.float()).abs().mean().item()


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_all_corruptions(corruption: str, images: Tensor) -> None:
    before = images.clone()
    corrupted = corrupt(images, corruption)
    assert corrupted.dtype == torch.uint8
    assert corrupted.shape == images.shape
    assert torch.equal(images, before)
    assert distance(corrupted, images) > 1
    assert torch.equal(corrupt(images, corruption, severity=0), images)
    assert torch.equal(corrupt(images, corruption, PUBLISHED[corruption]), corrupted)
    assert torch.equal(corrupt(images, corruption), corrupted)
    assert torch.equal(corrupt(images, corruption, seed=1), corrupted) == (corruption in DETERMINISTIC)
    assert corrupt(images[:0], corruption).shape == (0, 28, 28)


@pytest.mark.parametrize("corruption", sorted({*CORRUPTIONS} - {"spatter", "fog", "motion_blur"}))
def test_higher_severity_changes_more(corruption: str, images: Tensor) -> None:
    # Excluded: spatter's drops become smaller, fog becomes rougher, and motion blur is limited by the image's edge.
    distances = [distance(corrupt(images, corruption, severity), images) for severity in range(6)]
    assert distances == sorted(distances)


def test_result_is_independent_of_later_images(images: Tensor) -> None:
    many = images.repeat(13, 1, 1)[:501]
    assert torch.equal(corrupt(many, "impulse_noise")[:500], corrupt(many[:500], "impulse_noise"))
    assert not torch.equal(corrupt(many, "impulse_noise")[500], corrupt(many[:1], "impulse_noise")[0])


def test_shot_noise_has_discrete_levels(images: Tensor) -> None:
    noisy = corrupt(images, "shot_noise")
    assert set(noisy.unique().tolist()) == {0, 85, 170, 255}
    assert noisy[images == 0].max() == 0


def test_impulse_noise_is_half_black_half_white(images: Tensor) -> None:
    grey = torch.full((200, 28, 28), 128, dtype=torch.uint8)
    noisy = corrupt(grey, "impulse_noise")
    for value, share in ((0, 0.085), (128, 0.83), (255, 0.085)):
        assert (noisy == value).float().mean().item() == pytest.approx(share, abs=0.003)


@pytest.mark.parametrize("corruption", ["glass_blur", "motion_blur"])
def test_blur_preserves_total_intensity(corruption: str, images: Tensor) -> None:
    total = images.float().sum().item()
    assert corrupt(images, corruption).float().sum().item() == pytest.approx(total, rel=0.03)


def test_motion_blur_extends_to_one_side() -> None:
    point = torch.zeros(50, 28, 28, dtype=torch.uint8)
    point[:, 14, 20] = 255
    smeared = corrupt(point, "motion_blur")
    rows, columns = smeared.float().sum(2), smeared.float().sum(1)
    assert columns[:, 21:].max() == 0
    assert (smeared[:, 14, 20] == 59).all()  # 255 times the largest weight of half a Gaussian of sigma 3: 59.86
    assert rows[:, :14].max() > 0
    assert rows[:, 15:].max() > 0  # angles have both signs
    assert (rows.sum(1) > 240).all()


def test_motion_blur_keeps_uniform_areas() -> None:
    greys = torch.arange(256, dtype=torch.uint8)[:, None, None].expand(256, 28, 28)
    assert torch.equal(corrupt(greys, "motion_blur"), greys)  # no grey level is lost by rounding down


@pytest.mark.parametrize(("severity", "taller"), [(2, 1.086), (5, 1.851)])
def test_shear_makes_digits_taller(severity: int, taller: float) -> None:
    bar = torch.zeros(4, 28, 28, dtype=torch.uint8)
    bar[:, 8:20] = 255
    height = corrupt(bar, "shear", severity)[:, :, 14].float().sum(1) / 255
    assert height.numpy() == pytest.approx(12 * taller, rel=0.002)


def test_affine_corruptions_match_scikit_image(images: Tensor) -> None:
    def about_centre(matrix: list[list[float]]) -> AffineTransform:
        linear = np.array(matrix)
        centre = np.full(2, 13.5)
        return AffineTransform(np.block([[linear, (centre - linear @ centre)[:, None]], [np.zeros((1, 2)), np.eye(1)]]))

    def rotation(angle: float) -> list[list[float]]:
        return [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]

    matrices: dict[str, Callable[[int], list[list[float]]]] = {
        "rotate": lambda sign: rotation(0.4 * sign),
        "shear": lambda sign: [[1, -np.sin(0.4 * sign)], [0, np.cos(0.4 * sign)]],
        "scale": lambda sign: [[1 / 0.7, 0], [0, 1 / 0.7]],
    }
    for corruption, matrix in matrices.items():
        corrupted = corrupt(images, corruption).numpy()
        for image, actual in zip(images.numpy()[:5], corrupted, strict=False):
            both = [255 * warp(image / 255, about_centre(matrix(sign)), order=1) for sign in (-1, 1)]
            assert min(np.abs(actual - expected).max() for expected in both) <= 1


def test_translate_shifts_both_axes_by_three_pixels(images: Tensor) -> None:
    padded = torch.nn.functional.pad(images, (3, 3, 3, 3))
    corrupted = corrupt(images, "translate")
    shifts = set()
    for index in range(len(images)):
        for row, column in ((0, 0), (0, 6), (6, 0), (6, 6)):
            if torch.equal(corrupted[index], padded[index, row : row + 28, column : column + 28]):
                shifts.add((row, column))
                break
        else:
            pytest.fail(f"image {index} has another shift")
    assert len(shifts) == 4


def test_brightness_adds_half(images: Tensor) -> None:
    expected = (images.float() + 127.5).clip(0, 255)
    assert (corrupt(images, "brightness").float() - expected).abs().max() <= 0.5


def test_stripe_inverts_seven_columns_at_each_edge(images: Tensor) -> None:
    striped = corrupt(images, "stripe")
    assert torch.equal(striped[:, :, 7:21], images[:, :, 7:21])
    assert torch.equal(striped[:, :, :7], 255 - images[:, :, :7])
    assert torch.equal(striped[:, :, 21:], 255 - images[:, :, 21:])


def test_fog_leaves_a_quarter_of_the_contrast(images: Tensor) -> None:
    foggy = corrupt(images, "fog").float() / 255
    lit = images.amax((1, 2), keepdim=True).float() / 255
    digit = images.float() / 255 * lit / (lit + 3)
    cloud = foggy - digit
    assert cloud.min() > -0.01
    assert (cloud <= lit * 3 / (lit + 3) + 0.01).all()
    rough = (cloud[:, :, 1:] - cloud[:, :, :-1]).abs().mean()
    assert rough < 0.02
    assert cloud.mean((1, 2)).std() > 0.05


def test_height_maps_match_a_pointwise_implementation() -> None:
    side, decay, count = 8, 1.4, 2
    actual = _height_maps(count, np.random.default_rng(3), decay, side)
    random = np.random.default_rng(3)
    heights = np.zeros((count, side, side))
    amplitude, step = 100.0, side
    while step >= 2:
        half, points = step // 2, side // step
        old = heights.copy()
        for rows, columns in ((half, half), (0, half), (half, 0)):
            noise = random.random((count, points, points), np.float32) * 2 - 1
            for i in range(points):
                for j in range(points):
                    row, column = i * step + rows, j * step + columns
                    if rows and columns:
                        near = [(row + a, column + b) for a in (-half, half) for b in (-half, half)]
                    else:
                        near = [(row - half, column), (row + half, column), (row, column - half), (row, column + half)]
                    source = old if rows and columns else heights
                    four = [source[:, r % side, c % side] for r, c in near]
                    heights[:, row, column] = sum(four) / 4 + amplitude**2 * noise[:, i, j]
        step, amplitude = half, amplitude / decay
    low, high = heights.min((1, 2), keepdims=True), heights.max((1, 2), keepdims=True)
    assert np.allclose(actual, (heights - low) / (high - low), atol=1e-4)


def test_spatter_adds_grey_drops(images: Tensor) -> None:
    spattered = corrupt(images, "spatter")
    changed = spattered != images
    assert 0.1 < changed.float().mean() < 0.5
    background = spattered[(images == 0) & changed]
    assert background.min() >= 50
    assert background.max() == 63


@pytest.mark.parametrize("corruption", ["dotted_line", "zigzag"])
def test_lines_only_brighten(corruption: str, images: Tensor) -> None:
    lines = corrupt(images, corruption).int() - images.int()
    assert lines.min() == 0
    assert (lines.amax((1, 2)) > 200).float().mean() > 0.9
    assert lines[:, :, :2].max() == 0
    share = (lines > 0).any(dim=1).float().mean(dim=0)  # of images with a line in each column
    if corruption == "dotted_line":
        assert share[[4, 5, 8, 9, 24, 25]].max() == 0
        assert share[[2, 3, 6, 7, 22, 23]].min() > 0.7
    else:
        assert share[3:24].min() > 0.7


def test_canny_edges_match_scikit_image(images: Tensor) -> None:
    expected = np.stack([canny(image / 255) for image in images.numpy()[:5]])
    assert np.mean(corrupt(images[:5], "canny_edges").numpy() == 255 * expected) > 0.999  # float32 against float64


def test_invalid_arguments_are_rejected(images: Tensor) -> None:
    with pytest.raises(InputError, match=r"unknown corruption 'fogg', expected one of .*; did you mean fog"):
        corrupt(images, "fogg")
    for severity in (-1, 6):
        with pytest.raises(InputError, match=f"severity must be 0 to 5, got {severity}"):
            corrupt(images, "fog", severity)
    with pytest.raises(InputError, match=r"must be torch.uint8 \[N, 28, 28\], got torch.float32 \[40, 28, 28\]"):
        corrupt(images / 255, "fog")


def test_public_files(tmp_path: Path, images: Tensor) -> None:
    folder = tmp_path / "mnist_c" / "fog"
    with pytest.raises(InputError, match=r"there is no .*test_images.npy; unpack mnist_c.zip"):
        read_mnist_c("fog", tmp_path)
    folder.mkdir(parents=True)
    np.save(folder / "test_images.npy", images.numpy()[..., None])
    np.save(folder / "test_labels.npy", np.arange(40) % 10)
    read_images, labels = read_mnist_c("fog", tmp_path)
    assert torch.equal(read_images, images)
    assert labels.tolist() == [i % 10 for i in range(40)]
    np.save(folder / "test_labels.npy", np.arange(39))
    with pytest.raises(InputError, match=r"holds images uint8 \[40, 28, 28, 1\] and labels \[39\]"):
        read_mnist_c("fog", tmp_path)
    content = (folder / "test_images.npy").read_bytes()
    (folder / "test_images.npy").write_bytes(content[:1000])
    with pytest.raises(InputError, match="is damaged"):
        read_mnist_c("fog", tmp_path)
    np.save(folder / "test_images.npy", np.array([object()]), allow_pickle=True)  # unpickling could run code
    with pytest.raises(InputError, match="is damaged"):
        read_mnist_c("fog", tmp_path)

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage

from mnist_lightning import InputError
from mnist_lightning.data.sources import read
from mnist_lightning.data.unknowns import available_unknowns, unknown_images

DIGITS, LABELS = read("digits", train=False)
SYNTHETIC = ["noise", "blank", "letters", "rotated"]


def write_idx(path: Path, values: np.ndarray) -> None:
    header = bytes([0, 0, 8, values.ndim]) + b"".join(size.to_bytes(4, "big") for size in values.shape)
    path.write_bytes(header + values.astype(np.uint8).tobytes())


@pytest.fixture
def fashion(tmp_path: Path) -> Path:
    """Data root with random test images in the layout of Fashion-MNIST."""
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    write_idx(raw / "t10k-images-idx3-ubyte", np.random.default_rng(0).integers(256, size=(2500, 28, 28)))
    write_idx(raw / "t10k-labels-idx1-ubyte", np.arange(2500) % 10)
    return tmp_path


@pytest.mark.parametrize("name", SYNTHETIC)
def test_seed_determines_the_images(name: str) -> None:
    first = unknown_images(name, DIGITS, LABELS, seed=0)
    assert first.dtype == torch.uint8
    assert first.shape[1:] == (28, 28)
    assert torch.equal(first, unknown_images(name, DIGITS, LABELS, seed=0))
    if name != "rotated":  # only 182 digits can be rotated, so all are used
        assert len(first) == 2000
        assert not torch.equal(first, unknown_images(name, DIGITS, LABELS, seed=1))
    assert len(torch.unique(first.flatten(1), dim=0)) == len(first)  # duplicates would distort error rates


def test_noise_is_uniform() -> None:
    counts = torch.bincount(unknown_images("noise", DIGITS, LABELS).flatten().long(), minlength=256)
    assert counts.float().std() / counts.float().mean() < 0.03


def test_blank_images_are_black_with_sensor_noise() -> None:
    blank = unknown_images("blank", DIGITS, LABELS).float()
    assert blank.max() < 128
    assert blank.mean(dim=(1, 2)).max() < 10
    assert (blank == 0).float().mean() > 0.5


def test_rotated_digits_no_longer_resemble_digits() -> None:
    rotated = unknown_images("rotated", DIGITS, LABELS)
    rotatable = [image for image, label in zip(DIGITS, LABELS.tolist(), strict=True) if label in (2, 3, 4, 5, 7)]
    np.testing.assert_array_equal(rotated, np.stack([np.rot90(image) for image in rotatable]))


def test_rotated_digits_are_sampled_from_a_large_set() -> None:
    digits, labels = DIGITS.repeat(20, 1, 1), LABELS.repeat(20)
    first, second = (unknown_images("rotated", digits, labels, seed) for seed in (0, 1))
    assert len(first) == 2000
    assert not torch.equal(first, second)


def test_letters_are_in_mnist_format() -> None:
    letters = unknown_images("letters", DIGITS, LABELS).numpy()
    centres = np.array([ndimage.center_of_mass(letter) for letter in letters])
    assert np.abs(centres - 14).max() < 3
    assert np.abs(centres.mean(axis=0) - 14).max() < 0.7
    heights = [np.ptp(np.flatnonzero((letter > 60).any(axis=1))) + 1 for letter in letters]
    assert 16 < np.median(heights) < 22
    assert 0.08 < letters.mean() / 255 < 0.25


def test_sets_on_disk_are_available(fashion: Path, tmp_path: Path) -> None:
    assert sorted(available_unknowns(str(tmp_path / "empty"))) == sorted(SYNTHETIC)
    assert sorted(available_unknowns(str(fashion))) == sorted([*SYNTHETIC, "fashion_mnist"])
    images = unknown_images("fashion_mnist", DIGITS, LABELS, root=str(fashion))
    stored = {image.tobytes() for image in read("fashion_mnist", fashion, train=False)[0].numpy()}
    assert len({image.tobytes() for image in images.numpy()} & stored) == 2000


def test_damaged_files_do_not_count_as_missing(fashion: Path) -> None:
    file = fashion / "FashionMNIST" / "raw" / "t10k-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(InputError, match="is damaged"):
        available_unknowns(str(fashion))


def test_missing_and_unknown_sets_are_rejected() -> None:
    with pytest.raises(InputError, match="kmnist needs"):
        unknown_images("kmnist", DIGITS, LABELS)
    with pytest.raises(InputError, match=r"unknown out-of-distribution set 'letter', .*; did you mean letters"):
        unknown_images("letter", DIGITS, LABELS)

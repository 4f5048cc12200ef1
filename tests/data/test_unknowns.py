from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage

from mnist_lightning import InputError
from mnist_lightning.data.sources import read
from mnist_lightning.data.unknowns import available_unknowns, unknown_images

DIGITS, LABELS = read("digits", train=False)
DRAWN = ["noise", "blank", "letters", "rotated"]


def write_idx(path: Path, values: np.ndarray) -> None:
    header = bytes([0, 0, 8, values.ndim]) + b"".join(size.to_bytes(4, "big") for size in values.shape)
    path.write_bytes(header + values.astype(np.uint8).tobytes())


@pytest.fixture
def fashion(tmp_path: Path) -> Path:
    """A root with test images that could be Fashion-MNIST's."""
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    write_idx(raw / "t10k-images-idx3-ubyte", np.random.default_rng(0).integers(256, size=(2500, 28, 28)))
    write_idx(raw / "t10k-labels-idx1-ubyte", np.arange(2500) % 10)
    return tmp_path


@pytest.mark.parametrize("name", DRAWN)
def test_the_seed_decides(name: str) -> None:
    first = unknown_images(name, DIGITS, LABELS, seed=0)
    assert first.dtype == torch.uint8
    assert first.shape[1:] == (28, 28)
    assert torch.equal(first, unknown_images(name, DIGITS, LABELS, seed=0))
    if name != "rotated":  # of 182 digits that can be turned there is no choice
        assert len(first) == 2000
        assert not torch.equal(first, unknown_images(name, DIGITS, LABELS, seed=1))
    assert len(torch.unique(first.flatten(1), dim=0)) == len(first)  # pictures that are the same have no rates


def test_noise_is_uniform() -> None:
    counts = torch.bincount(unknown_images("noise", DIGITS, LABELS).flatten().long(), minlength=256)
    assert counts.float().std() / counts.float().mean() < 0.03


def test_blank_pictures_are_black_but_for_the_sensor() -> None:
    blank = unknown_images("blank", DIGITS, LABELS).float()
    assert blank.max() < 128
    assert blank.mean(dim=(1, 2)).max() < 10
    assert (blank == 0).float().mean() > 0.5


def test_rotated_digits_are_those_that_then_are_none() -> None:
    rotated = unknown_images("rotated", DIGITS, LABELS)
    turnable = [image for image, label in zip(DIGITS, LABELS.tolist(), strict=True) if label in (2, 3, 4, 5, 7)]
    np.testing.assert_array_equal(rotated, np.stack([np.rot90(image) for image in turnable]))


def test_of_many_digits_a_sample_is_turned() -> None:
    digits, labels = DIGITS.repeat(20, 1, 1), LABELS.repeat(20)
    one, other = (unknown_images("rotated", digits, labels, seed) for seed in (0, 1))
    assert len(one) == 2000
    assert not torch.equal(one, other)


def test_letters_are_as_mnist_would_have_them() -> None:
    letters = unknown_images("letters", DIGITS, LABELS).numpy()
    centres = np.array([ndimage.center_of_mass(letter) for letter in letters])
    assert np.abs(centres - 14).max() < 3
    assert np.abs(centres.mean(axis=0) - 14).max() < 0.7
    heights = [np.ptp(np.flatnonzero((letter > 60).any(axis=1))) + 1 for letter in letters]
    assert 16 < np.median(heights) < 22
    assert 0.08 < letters.mean() / 255 < 0.25


def test_what_is_on_disk_is_available(fashion: Path, tmp_path: Path) -> None:
    assert sorted(available_unknowns(str(tmp_path / "empty"))) == sorted(DRAWN)
    assert sorted(available_unknowns(str(fashion))) == sorted([*DRAWN, "fashion_mnist"])
    images = unknown_images("fashion_mnist", DIGITS, LABELS, root=str(fashion))
    there = {image.tobytes() for image in read("fashion_mnist", fashion, train=False)[0].numpy()}
    assert len({image.tobytes() for image in images.numpy()} & there) == 2000


def test_damage_is_named_and_not_taken_for_absence(fashion: Path) -> None:
    file = fashion / "FashionMNIST" / "raw" / "t10k-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(InputError, match="is damaged"):
        available_unknowns(str(fashion))


def test_sets_that_are_not_there() -> None:
    with pytest.raises(InputError, match="kmnist needs"):
        unknown_images("kmnist", DIGITS, LABELS)
    with pytest.raises(InputError, match=r"no set of unknown pictures is called letter: .*; did you mean letters"):
        unknown_images("letter", DIGITS, LABELS)

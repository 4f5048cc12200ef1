"""A named source -> uint8 images and int64 labels; the only place that knows the files.

`fetch` may use the network and `read` never does, so one process can fetch and all can read. Files lie where
torchvision puts them (`ROOT/MNIST/raw/train-images-idx3-ubyte`), so a folder that it filled serves as it is.
Nothing half-written ever gets its final name, and nothing on disk is replaced unasked.
"""

import hashlib
import math
import os
import random
import struct
import threading
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

from mnist_lightning.data.download import download
from mnist_lightning.errors import InputError, SourceUnavailableError, one_line, suggestion


class _Archive(NamedTuple):
    """What torchvision downloads for one source."""

    dataset: str  # torchvision's class, and its folder under the root
    files: tuple[str, ...]  # training images, training labels, test images, test labels
    sums: Mapping[str, str] = MappingProxyType({})  # MD5 of each file; where empty, those noted at the download hold
    options: Mapping[str, str] = MappingProxyType({})  # what EMNIST's class must be told besides
    transposed: bool = False  # images are stored column by column
    tests: int | None = None  # so many, from the first, are the test set; None: all


_MNIST = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}
_QMNIST = [f"qmnist-{p}-{k}" for p in ("train", "test") for k in ("images-idx3-ubyte", "labels-idx2-int")]
_EMNIST = [f"emnist-digits-{file.replace('t10k', 'test')}" for file in _MNIST]
_ARCHIVES = {
    "mnist": _Archive("MNIST", tuple(_MNIST), _MNIST),
    "fashion_mnist": _Archive("FashionMNIST", tuple(_MNIST)),
    "kmnist": _Archive("KMNIST", tuple(_MNIST)),
    "qmnist": _Archive("QMNIST", tuple(_QMNIST), tests=10_000),  # MNIST's 10,000, before 50,000 more
    "emnist_digits": _Archive("EMNIST", tuple(_EMNIST), options={"split": "digits"}, transposed=True),
}
# The end of a file's name tells what it must hold: magic number and bytes per item.
_IDX = {"idx3-ubyte": (0x0803, 1), "idx1-ubyte": (0x0801, 1), "idx2-int": (0x0C02, 4)}
_SUMS = "MD5SUMS"  # beside the raw files, where `md5sum --check` understands it too
_FETCHING = threading.Lock()  # downloads set socket's default timeout, which belongs to the whole process

SOURCES: tuple[str, ...] = (*_ARCHIVES, "digits")  # and folder:PATH


def data_root(root: str | Path | None) -> Path:
    """Return the folder that holds the data: `root`, else `$MNIST_LIGHTNING_DATA`, else `data`."""
    return Path(root or os.environ.get("MNIST_LIGHTNING_DATA") or "data").expanduser()


def fetch(source: str, root: str | Path | None = None) -> None:
    """Make sure that the files of `source` are on disk, downloading those that are not.

    Damaged files stay as they are: `read` finds them. Without a network, it gives up after 8 seconds.

    Args:
        source: One of `SOURCES`, or `folder:PATH`.
        root: See `data_root`.

    Raises:
        SourceUnavailableError: If files are neither on disk nor downloadable.
        InputError: If there is no such source, or the folder cannot be read.
    """
    if (archive := _archive(source)) is None:
        return
    folder = data_root(root)
    raw = folder / archive.dataset / "raw"
    with _FETCHING:
        if missing := _missing(raw, archive.files):
            place = partial(_place, raw=raw, files=archive.files)
            if failures := download(archive.dataset, archive.options, folder, place):
                raise _unavailable(source, raw, missing, f"not there, and no download: {'; '.join(failures)}")


def read(source: str, root: str | Path | None = None, *, train: bool) -> tuple[Tensor, Tensor]:
    """Read the training or the test part of `source`, without any network.

    Args:
        source: One of `SOURCES`, or `folder:PATH` with one sub-folder of pictures a class. Sub-folders named
            `0` to `9` are their own labels, others are numbered in sorted order. If PATH holds `train` and
            `test`, these are the parts; otherwise a seventh of each class is the test set, always the same.
        root: See `data_root`.
        train: Which part.

    Returns:
        Images, uint8 `[N, 28, 28]`, light on dark; and labels, int64 `[N]`.

    Raises:
        SourceUnavailableError: If files are not on disk.
        InputError: If there is no such source, or a file is damaged or not what it should be.

    Example:
        >>> images, labels = read("digits", train=False)
        >>> images.shape, images.dtype, labels.dtype
        (torch.Size([360, 28, 28]), torch.uint8, torch.int64)
        >>> len(read("digits", train=True)[0])
        1437
    """
    archive = _archive(source)
    try:
        if archive is not None:
            return _read(source, archive, data_root(root) / archive.dataset / "raw", train)
        return _digits(train) if source == "digits" else _folder(Path(source[7:]).expanduser(), train)
    except OSError as error:
        raise InputError(f"{error.filename or source} cannot be read: {error.strerror or error}") from error


def _archive(source: str) -> _Archive | None:
    """Return what to download for `source`: None for `digits` and `folder:PATH`."""
    if source in _ARCHIVES:
        return _ARCHIVES[source]
    if source == "digits" or (source.startswith("folder:") and source != "folder:"):
        return None
    known = f"there are {', '.join(SOURCES)} and folder:PATH"
    raise InputError(f"unknown data source {source!r}: {known}{suggestion(source, SOURCES)}")


def _missing(raw: Path, files: Iterable[str]) -> list[str]:
    try:
        there = {path.name for path in raw.iterdir()}  # takes no forbidden folder for an empty one, as exists() may
    except FileNotFoundError:
        there = set()
    except OSError as error:
        raise InputError(f"{raw} cannot be read: {error.strerror or error}") from error
    return [file for file in files if file not in there]


def _unavailable(source: str, raw: Path, missing: list[str], why: str) -> SourceUnavailableError:
    return SourceUnavailableError(
        f"{source} needs {', '.join(missing)} in {raw} ({why}): put them there, set --data.root or "
        "$MNIST_LIGHTNING_DATA to a folder that has them, or use --data.fallback digits"
    )


def _place(fresh: Path, raw: Path, files: tuple[str, ...]) -> None:
    """Move the missing files from where torchvision has put them."""
    raw.mkdir(parents=True, exist_ok=True)
    (fresh / _SUMS).write_text("".join(f"{_md5(fresh / file)}  {file}\n" for file in files))
    for file in (_SUMS, *_missing(raw, files)):  # sums first: stopped half-way, the next fetch brings the rest
        (fresh / file).replace(raw / file)


def _read(source: str, archive: _Archive, raw: Path, train: bool) -> tuple[Tensor, Tensor]:
    files = archive.files[:2] if train else archive.files[2:]
    if missing := _missing(raw, files):
        raise _unavailable(source, raw, missing, "not there")
    sums = archive.sums
    if not sums and (raw / _SUMS).exists():
        lines = [line.split() for line in (raw / _SUMS).read_text(errors="replace").splitlines()]
        sums = {line[1]: line[0] for line in lines if len(line) == 2}
    images, labels = (_decode(raw / file, sums.get(file)) for file in files)
    labels = labels.long() if labels.ndim == 1 else labels[:, 0].long()  # QMNIST's other columns: writer and form
    if images.shape[1:] != (28, 28) or len(images) != len(labels):
        raise InputError(
            f"{raw / files[0]} holds images {list(images.shape)} for {len(labels)} labels, not [N, 28, 28]"
        )
    if labels.min() < 0 or labels.max() > 9:
        raise InputError(f"{raw / files[1]} holds labels from {labels.min()} to {labels.max()}, not 0 to 9")
    if not train and archive.tests:
        images, labels = images[: archive.tests].clone(), labels[: archive.tests].clone()
    return images.transpose(1, 2).contiguous() if archive.transposed else images, labels


def _decode(path: Path, md5: str | None) -> Tensor:
    """Decode an IDX file whose header, size and (where it is known) checksum are right."""
    from torchvision.datasets.mnist import read_sn3_pascalvincent_tensor

    magic, width = _IDX[path.name[path.name.index("idx") :]]
    axes = magic & 0xFF
    with path.open("rb") as file:
        header = file.read(4 + 4 * axes)
        size = file.seek(0, os.SEEK_END)
    damage = ""
    if len(header) != 4 + 4 * axes or header[:4] != magic.to_bytes(4, "big"):
        damage = f"expected an IDX header {magic:08x}, found {header[:4].hex() or 'nothing'} in {size} bytes"
    elif size != (expected := len(header) + width * math.prod(struct.unpack(f">{axes}I", header[4:]))):
        damage = f"expected {expected} bytes, found {size}"
    elif size == len(header):
        damage = "expected items, found none"
    elif md5 and (found := _md5(path)) != md5:
        damage = f"expected MD5 {md5}, found {found}"
    if damage:
        raise InputError(f"{path} is damaged ({damage}): delete it and run again to fetch it anew")
    return torch.as_tensor(read_sn3_pascalvincent_tensor(str(path)))


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _digits(train: bool) -> tuple[Tensor, Tensor]:
    """Bring scikit-learn's 1,797 digits of 8x8 to 28x28 in MNIST's manner; the last 360 are the test set.

    Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits (UCI, 1998), the test set, by
    13 people. Who wrote which is not recorded, but digits fewer than some 140 places apart are more alike
    than others of their class, as if one person followed another. So a contiguous split shares few writers.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    # MNIST's digits fill 20x20, so 8 pixels become 20; margins of 6, now 15, leave room to cut out 28x28.
    ink = pad(torch.from_numpy(digits.images).float() / 16, (6, 6, 6, 6))
    ink = interpolate(ink[:, None], size=(50, 50), mode="bicubic", antialias=True)[:, 0]
    # Enlarging blurs. These levels restore MNIST's mean intensity (0.13) and share of blank pixels (0.81).
    ink = ((ink - 0.35) / 0.5).clip(0, 1)
    places = torch.arange(50.0)
    row, column = ((ink.sum(axis) @ places / ink.sum((1, 2))).round().long() for axis in (2, 1))
    frame = torch.arange(28) - 14  # MNIST's centre of mass is pixel 14
    each = torch.arange(len(ink))[:, None, None]
    ink = ink[each, (row[:, None] + frame)[:, :, None], (column[:, None] + frame)[:, None, :]]
    part = slice(-360) if train else slice(-360, None)
    return (ink[part] * 255).round().to(torch.uint8), torch.from_numpy(digits.target[part]).long()


def _folder(path: Path, train: bool) -> tuple[Tensor, Tensor]:
    """Read one sub-folder of pictures per class, in a fixed random order: any stretch is a fair sample."""
    divided = (path / "train").is_dir() and (path / "test").is_dir()
    here = path / ("train" if train else "test") if divided else path
    classes = _visible(here, folders=True)
    names = {folder.name for folder in classes}
    if not 2 <= len(names) <= 10:
        raise InputError(f"{here} holds {len(names)} sub-folders, not 2 to 10, one for each class")
    if divided and any({f.name for f in _visible(path / p, folders=True)} != names for p in ("train", "test")):
        raise InputError(f"{path / 'train'} and {path / 'test'} hold different classes (sub-folders)")
    numbered = names <= set("0123456789")
    chance = random.Random(0)
    pictures: list[tuple[Path, int]] = []
    for position, folder in enumerate(classes):
        files = _visible(folder)
        if len(files) < (least := 1 if divided else 2):
            raise InputError(f"{folder} holds {len(files)} pictures, and {least} are the least")
        if not divided:
            chance.shuffle(files)
            tests = max(1, round(len(files) / 7))
            files = files[tests:] if train else files[:tests]
        pictures += [(file, int(folder.name) if numbered else position) for file in files]
    chance.shuffle(pictures)
    images = torch.stack([read_picture(file) for file, _ in pictures])
    return images, torch.tensor([label for _, label in pictures])


def _visible(folder: Path, folders: bool = False) -> list[Path]:
    return sorted(p for p in folder.iterdir() if not p.name.startswith(".") and (p.is_dir() or not folders))


def read_picture(path: Path) -> Tensor:
    """Read a picture of any size and mode as grey 28x28, its shape kept, on black.

    Args:
        path: A file in any of Pillow's formats.

    Returns:
        uint8 `[28, 28]`.

    Raises:
        InputError: If it cannot be read.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as file:
            if file.mode == "F" and not np.isfinite(np.asarray(file)).all():
                raise ValueError("its pixels are not all finite numbers")
            picture = file.convert("RGBA")
            if file.mode.startswith("I"):  # 16 bits, which Pillow clips to 8 instead of scaling
                picture = Image.fromarray((np.asarray(file) / 257).astype(np.uint8)).convert("RGBA")
        black = Image.new("RGBA", picture.size, "black")  # shows where the picture is transparent
        grey = Image.alpha_composite(black, picture).convert("L")
        return torch.from_numpy(np.array(ImageOps.pad(grey, (28, 28))))
    except Exception as error:  # Pillow raises a dozen kinds; after any of them this is no picture
        raise InputError(f"{path} is no picture that can be read: {one_line(error)}") from error

"""Reads a named source as uint8 images and int64 labels. Only this module knows the files.

`fetch` may use the network and `read` never does, so one process can fetch and all can read. Files use torchvision's
layout (`ROOT/MNIST/raw/train-images-idx3-ubyte`), so a folder filled by torchvision works unchanged. Files get their
final names only when they are complete, and data files on disk are never overwritten.
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
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

from mnist_lightning.data.download import download
from mnist_lightning.errors import InputError, SourceUnavailableError, suggestion


class _Archive(NamedTuple):
    """A source that torchvision can download."""

    dataset: str  # torchvision's class, and its folder under the root
    files: tuple[str, ...]  # training images, training labels, test images, test labels
    checksums: Mapping[str, str] = {}  # MD5 by file; if empty, the file MD5SUMS applies
    options: Mapping[str, str] = {}  # extra arguments of torchvision's class
    transposed: bool = False  # images are stored column by column
    test_size: int | None = None  # number of leading test images to use; None for all


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
    "qmnist": _Archive("QMNIST", tuple(_QMNIST), test_size=10_000),  # MNIST's test set; 50,000 more follow
    "emnist_digits": _Archive("EMNIST", tuple(_EMNIST), options={"split": "digits"}, transposed=True),
}
# Magic number and bytes per item, by the end of the file name.
_IDX = {"idx3-ubyte": (0x0803, 1), "idx1-ubyte": (0x0801, 1), "idx2-int": (0x0C02, 4)}
_CLOTHES = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
_HIRAGANA = ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")
_CHECKSUM_FILE = "MD5SUMS"  # beside the raw files, in the format of `md5sum --check`
_FETCH_LOCK = threading.Lock()  # downloads set the socket timeout of the whole process

SOURCES: tuple[str, ...] = (*_ARCHIVES, "digits")  # and folder:PATH
CLASSES = 10  # labels are 0 to 9 in every source


def data_root(root: str | Path | None) -> Path:
    """Returns the folder of all data: `root`, else `$MNIST_LIGHTNING_DATA`, else `data`."""
    return Path(root or os.environ.get("MNIST_LIGHTNING_DATA") or "data").expanduser()


def fetch(source: str, root: str | Path | None = None) -> None:
    """Downloads the files of `source` that are not on disk.

    Damaged files are not replaced; `read` reports them. Without a network, `fetch` gives up after 8 seconds.

    Args:
        source: Name of the source, one of `SOURCES` or `folder:PATH`.
        root: Folder of the data; see `data_root`.

    Raises:
        SourceUnavailableError: If files are neither on disk nor downloadable.
        InputError: If the source is unknown, or the folder cannot be read.
    """
    if (archive := _archive(source)) is None:
        return
    folder = data_root(root)
    raw = folder / archive.dataset / "raw"
    with _FETCH_LOCK:
        if missing := _missing(raw, archive.files):
            install = partial(_install, raw=raw, files=archive.files)
            if failures := download(archive.dataset, archive.options, folder, install):
                raise _unavailable(source, raw, missing, f"download failed: {'; '.join(failures)}")


def read(source: str, root: str | Path | None = None, *, train: bool) -> tuple[Tensor, Tensor]:
    """Reads the training or the test set of `source`, without network access.

    Args:
        source: Name of the source, one of `SOURCES` or `folder:PATH`. The folder has one sub-folder of pictures per
            class. If all sub-folders are named `0` to `9`, the names are the labels; otherwise sub-folders are
            numbered in sorted order. If PATH holds `train` and `test`, they are the two sets; otherwise a fixed
            seventh of each class is the test set.
        root: Folder of the data; see `data_root`.
        train: Whether to read the training set instead of the test set.

    Returns:
        Images, uint8 [N, 28, 28], light on dark, and labels, int64 [N].

    Raises:
        SourceUnavailableError: If files are not on disk.
        InputError: If the source is unknown, or a file is damaged or has the wrong content.

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


def class_names(source: str) -> list[str]:
    """Returns the names of a source's classes, in the order of the labels.

    Args:
        source: Name of the source, one of `SOURCES`, `mnist_superpixels` or `folder:PATH`.

    Example:
        >>> class_names("kmnist")[:3], class_names("qmnist")[:3]
        (['o', 'ki', 'su'], ['0', '1', '2'])
    """
    if source.startswith("folder:"):
        path = Path(source[7:]).expanduser()
        root = path / "train" if (path / "train").is_dir() and (path / "test").is_dir() else path
        names = [folder.name for folder in _visible(root, folders=True)]
        return names if not set(names) <= set("0123456789") else [str(digit) for digit in range(CLASSES)]
    return list({"fashion_mnist": _CLOTHES, "kmnist": _HIRAGANA}.get(source, map(str, range(CLASSES))))


def _archive(source: str) -> _Archive | None:
    """Returns the archive of `source`; None for `digits` and `folder:PATH`."""
    if source in _ARCHIVES:
        return _ARCHIVES[source]
    if source == "digits" or (source.startswith("folder:") and source != "folder:"):
        return None
    known = f"expected one of {', '.join(SOURCES)}, folder:PATH"
    raise InputError(f"unknown data source {source!r}, {known}{suggestion(source, SOURCES)}")


def _missing(raw: Path, files: Iterable[str]) -> list[str]:
    try:
        present = {path.name for path in raw.iterdir()}  # fails without permission, where exists() may return False
    except FileNotFoundError:
        present = set()
    except OSError as error:
        raise InputError(f"{raw} cannot be read: {error.strerror or error}") from error
    return [file for file in files if file not in present]


def _unavailable(source: str, raw: Path, missing: list[str], why: str) -> SourceUnavailableError:
    return SourceUnavailableError(
        f"{source} needs {', '.join(missing)} in {raw} ({why}); put the files there, or set the root of the data or "
        "$MNIST_LIGHTNING_DATA to a folder that has them"
    )


def _install(downloaded: Path, raw: Path, files: tuple[str, ...]) -> None:
    """Moves the missing files to `raw` from the folder of torchvision's download."""
    raw.mkdir(parents=True, exist_ok=True)
    (downloaded / _CHECKSUM_FILE).write_text("".join(f"{_md5(downloaded / file)}  {file}\n" for file in files))
    for file in (_CHECKSUM_FILE, *_missing(raw, files)):  # checksums first: an interrupted fetch can resume
        (downloaded / file).replace(raw / file)


def _read(source: str, archive: _Archive, raw: Path, train: bool) -> tuple[Tensor, Tensor]:
    files = archive.files[:2] if train else archive.files[2:]
    if missing := _missing(raw, files):
        raise _unavailable(source, raw, missing, "not found")
    checksums = archive.checksums
    if not checksums and (raw / _CHECKSUM_FILE).exists():
        lines = [line.split() for line in (raw / _CHECKSUM_FILE).read_text(errors="replace").splitlines()]
        checksums = {line[1]: line[0] for line in lines if len(line) == 2}
    images, labels = (_decode(raw / file, checksums.get(file)) for file in files)
    labels = labels.long() if labels.ndim == 1 else labels[:, 0].long()  # other columns of QMNIST: writer and form
    if images.shape[1:] != (28, 28) or len(images) != len(labels):
        expected = f"expected [{len(labels)}, 28, 28] for {len(labels)} labels"
        raise InputError(f"{raw / files[0]} holds images {list(images.shape)}, {expected}")
    if labels.min() < 0 or labels.max() >= CLASSES:
        raise InputError(f"{raw / files[1]} holds labels {labels.min()} to {labels.max()}, expected 0 to {CLASSES - 1}")
    if not train and archive.test_size:
        images, labels = images[: archive.test_size].clone(), labels[: archive.test_size].clone()
    return images.transpose(1, 2).contiguous() if archive.transposed else images, labels


def _decode(path: Path, md5: str | None) -> Tensor:
    """Decodes an IDX file after checking its header, its size and, if known, its MD5."""
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
    elif md5 and (actual := _md5(path)) != md5:
        damage = f"expected MD5 {md5}, found {actual}"
    if damage:
        raise InputError(f"{path} is damaged ({damage}); delete it and run again to download a new copy")
    return torch.as_tensor(read_sn3_pascalvincent_tensor(str(path)))


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _digits(train: bool) -> tuple[Tensor, Tensor]:
    """Converts scikit-learn's 1,797 digits from 8x8 to MNIST format; the last 360 are the test set.

    Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits (UCI, 1998), test set, 13 writers.
    Writers are not recorded per digit, but digits fewer than about 140 positions apart are more alike than others of
    their class, as if one writer followed another. A contiguous split therefore shares few writers.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    # MNIST's digits fill 20x20, so 8 pixels become 20. Margins of 6 become 15 and leave room to crop 28x28.
    ink = pad(torch.from_numpy(digits.images).float() / 16, (6, 6, 6, 6))
    ink = interpolate(ink[:, None], size=(50, 50), mode="bicubic", antialias=True)[:, 0]
    # Enlarging blurs the digits. These levels restore MNIST's mean intensity (0.13) and share of blank pixels (0.81).
    ink = ((ink - 0.35) / 0.5).clip(0, 1)
    positions = torch.arange(50.0)
    row, column = ((ink.sum(axis) @ positions / ink.sum((1, 2))).round().long() for axis in (2, 1))
    window = torch.arange(28) - 14  # MNIST's centre of mass is pixel 14
    index = torch.arange(len(ink))[:, None, None]
    ink = ink[index, (row[:, None] + window)[:, :, None], (column[:, None] + window)[:, None, :]]
    part = slice(-360) if train else slice(-360, None)
    return (ink[part] * 255).round().to(torch.uint8), torch.from_numpy(digits.target[part]).long()


def _folder(path: Path, train: bool) -> tuple[Tensor, Tensor]:
    """Reads one sub-folder of pictures per class, in a fixed random order so that any slice is a fair sample."""
    divided = (path / "train").is_dir() and (path / "test").is_dir()
    root = path / ("train" if train else "test") if divided else path
    classes = _visible(root, folders=True)
    names = {folder.name for folder in classes}
    if not 2 <= len(names) <= CLASSES:
        raise InputError(f"{root} holds {len(names)} sub-folders, expected 2 to {CLASSES}, one per class")
    if divided and any({f.name for f in _visible(path / p, folders=True)} != names for p in ("train", "test")):
        raise InputError(f"{path / 'train'} and {path / 'test'} hold different sub-folders; they need the same classes")
    numbered = names <= set("0123456789")
    rng = random.Random(0)
    pictures: list[tuple[Path, int]] = []
    for index, folder in enumerate(classes):
        files = _visible(folder)
        if len(files) < (minimum := 1 if divided else 2):
            raise InputError(f"{folder} holds {len(files)} pictures, expected at least {minimum}")
        if not divided:
            rng.shuffle(files)
            test_size = max(1, round(len(files) / 7))
            files = files[test_size:] if train else files[:test_size]
        pictures += [(file, int(folder.name) if numbered else index) for file in files]
    rng.shuffle(pictures)
    images = torch.stack([read_picture(file) for file, _ in pictures])
    return images, torch.tensor([label for _, label in pictures])


def _visible(folder: Path, folders: bool = False) -> list[Path]:
    return sorted(p for p in folder.iterdir() if not p.name.startswith(".") and (p.is_dir() or not folders))


def read_picture(path: Path) -> Tensor:
    """Reads a picture of any size and mode as 28x28 grey levels, padded with black to keep its aspect ratio.

    Args:
        path: Path of a file that `handwriting.open_picture` accepts.

    Returns:
        Grey levels, uint8 [28, 28].

    Raises:
        InputError: If the file is not a picture, is damaged or too large, or has pixels that are not finite.
    """
    from PIL import Image, ImageOps

    from mnist_lightning.data.handwriting import MAX_DECODED, open_picture

    picture = open_picture(path, side=math.isqrt(MAX_DECODED) // 2 + 1)  # reduces only larger JPEGs
    if 56 * min(picture.size) <= max(picture.size):
        raise InputError(f"{path} has {picture.width} x {picture.height} pixels, too narrow a strip for 28 x 28")
    if picture.mode == "F" and not np.isfinite(np.asarray(picture)).all():
        raise InputError(f"{path} cannot be read as a picture: its pixels are not all finite numbers")
    if picture.mode.startswith("I"):  # Pillow clips 16 bits to 8 instead of scaling
        picture = Image.fromarray((np.asarray(picture) / 257).clip(0, 255).astype(np.uint8))
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "black"), picture)
    return torch.from_numpy(np.array(ImageOps.pad(picture.convert("RGB").convert("L"), (28, 28))))

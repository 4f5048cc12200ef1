"""The 15 corruptions of MNIST-C at five severities each, applied to whole batches.

Source: N. Mu and J. Gilmer 2019 ("MNIST-C: A Robustness Benchmark for Computer Vision"). Parameters and quirks follow
the code that made the public files. `glass_blur` blurs along the columns only. `shear` also stretches: the digit
becomes 1.086 times taller at the published severity and 1.85 times taller at severity 5. MNIST-C has one severity of
`stripe`, `dotted_line`, `zigzag` and `canny_edges`; this module adds four.
"""

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import gaussian_filter, gaussian_filter1d
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from mnist_lightning.data.images import mixed_seed
from mnist_lightning.data.sources import data_root
from mnist_lightning.errors import InputError, one_line, suggestion

Images = NDArray[np.float32]  # [N, 28, 28] in [0, 1]

_SIDE = 28
_ZIP = "mnist_c.zip (https://zenodo.org/records/3239543)"
_CHUNK = 500  # images; limits the height maps of `fog` to 131 MB


def corrupt(images: Tensor, corruption: str, severity: int | None = None, seed: int = 0) -> Tensor:
    """Applies one corruption to a batch of images. The same seed gives the same result.

    All severities use the same random numbers, so a higher severity makes the same lines or noise worse.

    Args:
        images: Images, uint8 [N, 28, 28], light on dark.
        corruption: Name of the corruption, one of `CORRUPTIONS`.
        severity: Severity from 1 to 5, 0 for no change, or None for the severity of the public files (`PUBLISHED`).
        seed: Seed of all random numbers.

    Returns:
        Corrupted images, uint8 [N, 28, 28].

    Raises:
        InputError: If the corruption or the severity is unknown, or the images have another type or shape.

    Example:
        >>> digits = torch.zeros(2, 28, 28, dtype=torch.uint8)
        >>> corrupt(digits, "stripe")[0, 0, [6, 7, 20, 21]].tolist()
        [255, 0, 0, 255]
        >>> corrupt(digits, "stripe", severity=0).max().item()
        0
    """
    if corruption not in _CORRUPTIONS:
        known = f"{', '.join(CORRUPTIONS)}{suggestion(corruption, CORRUPTIONS)}"
        raise InputError(f"unknown corruption {corruption!r}, expected one of {known}")
    if images.dtype != torch.uint8 or images.shape[1:] != (_SIDE, _SIDE):
        raise InputError(f"images must be torch.uint8 [N, 28, 28], got {images.dtype} {list(images.shape)}")
    apply, parameters, published = _CORRUPTIONS[corruption]
    severity = published if severity is None else severity
    if not 0 <= severity <= len(parameters):
        raise InputError(f"severity must be 0 to {len(parameters)}, got {severity}")
    if severity == 0 or not len(images):
        return images.clone()
    chunks = []
    for start in range(0, len(images), _CHUNK):
        chunk = images[start : start + _CHUNK].cpu().numpy().astype(np.float32) / 255
        random = np.random.default_rng(mixed_seed(seed, CORRUPTIONS.index(corruption), start))
        corrupted = apply(chunk, random, *parameters[severity - 1])
        chunks.append(torch.from_numpy((corrupted * 255).round().clip(0, 255).astype(np.uint8)))
    return torch.cat(chunks).to(images.device)


def read_mnist_c(corruption: str, root: str | Path | None = None) -> tuple[Tensor, Tensor]:
    """Reads the public test images of one corruption from `ROOT/mnist_c/CORRUPTION/test_{images,labels}.npy`.

    Args:
        corruption: Name of the corruption, one of `CORRUPTIONS` or `identity`.
        root: Folder of the data; see `data_root`.

    Returns:
        Images, uint8 [10000, 28, 28], and labels, int64 [10000].

    Raises:
        InputError: If the files do not exist, are damaged, or have the wrong type or shape.
    """
    root = data_root(root)
    folder = root / "mnist_c" / corruption
    arrays = []
    for kind in ("images", "labels"):
        path = folder / f"test_{kind}.npy"
        try:
            arrays.append(np.load(path, allow_pickle=False))
        except FileNotFoundError:
            raise InputError(f"there is no {path}; unpack {_ZIP} in {root}") from None
        except Exception as error:  # damaged files raise many exception types
            raise InputError(f"{path} is damaged: {one_line(error)}") from error
    images, labels = arrays
    if images.dtype != np.uint8 or images.shape != (len(labels), _SIDE, _SIDE, 1) or labels.ndim != 1:
        shapes = f"images {images.dtype} {list(images.shape)} and labels {list(labels.shape)}"
        raise InputError(f"{folder} holds {shapes}, expected uint8 [N, 28, 28, 1] and [N]")
    return torch.from_numpy(images[..., 0]), torch.from_numpy(labels.astype(np.int64))


def _shot_noise(images: Images, random: Generator, photons: float) -> Images:
    """Shot noise of a low photon count, Poisson-distributed."""
    return random.poisson(images * photons).astype(np.float32) / photons


def _impulse_noise(images: Images, random: Generator, share: float) -> Images:
    """Turns a share of the pixels black or white."""
    noise = random.random(images.shape, np.float32)
    return np.where(noise < share / 2, 0, np.where(noise < share, 1, images)).astype(np.float32)


def _glass_blur(images: Images, random: Generator, sigma: float, distance: int, iterations: int) -> Images:
    """Swaps pixels with neighbours, one after the other, between two blurs."""
    blurred = np.floor(255 * gaussian_filter1d(images, sigma, axis=1, mode="nearest"))
    positions = range(_SIDE - distance, distance, -1)
    image = np.arange(len(images))
    for _ in range(iterations):
        for row in positions:
            # Random numbers are drawn row by row for all images, but pixels are swapped one at a time.
            moved = random.random((len(positions), len(images))) < 0.5
            steps = random.integers(-distance, distance, size=(2, len(positions), len(images))) * moved
            for index, column in enumerate(positions):
                pixel, neighbour = (image, row, column), (image, row + steps[0, index], column + steps[1, index])
                blurred[pixel], blurred[neighbour] = blurred[neighbour], blurred[pixel]
    return np.asarray(gaussian_filter1d(blurred / 255, sigma, axis=1, mode="nearest"))


def _motion_blur(images: Images, random: Generator, radius: int, sigma: float) -> Images:
    """Blurs along a line within 45 degrees of the rows, to one side, with the weights of half a Gaussian.

    Samples whole pixels and rounds down, as the original with ImageMagick does.
    """
    steps = np.arange(2 * radius + 1)
    weights = np.exp(-(steps**2) / (2 * sigma**2))
    angles = np.radians(random.uniform(-45, 45, size=len(images)))
    directions = np.stack([np.sin(angles), np.cos(angles)], axis=1)
    offsets = np.ceil(directions[:, :, None] * steps - 0.5).astype(int)  # [N, 2, steps]
    image, pixel = np.arange(len(images))[:, None, None], np.arange(_SIDE)
    blurred = np.zeros(images.shape)  # float64: rounding down turns a small numerical error into a grey level
    for step, weight in enumerate(weights / weights.sum()):
        rows, columns = (np.clip(pixel + offsets[:, axis, step, None], 0, _SIDE - 1) for axis in (0, 1))
        blurred += weight * images[image, rows[:, :, None], columns[:, None, :]]
    return (np.floor(255 * blurred + 1e-4) / 255).astype(np.float32)


def _warped(images: Images, *matrix: ArrayLike) -> Images:
    """Warps images by the six entries of a 2x3 affine matrix in row order, each a number or [N] numbers.

    The matrix is the inverse map, from (x, y, 1) in the output to (x, y) in the input. The origin is the centre and a
    pixel is 2 / 27.
    """
    batch = torch.from_numpy(images).unsqueeze(1)
    entries = np.stack([np.broadcast_to(entry, len(images)) for entry in matrix], axis=1)
    maps = torch.from_numpy(entries.reshape(-1, 2, 3).astype(np.float32))
    grid = affine_grid(maps, list(batch.shape), align_corners=True)
    return grid_sample(batch, grid, align_corners=True).squeeze(1).numpy()


def _shear(images: Images, random: Generator, angle: float) -> Images:
    """Slants the columns by an angle in either direction. The digit becomes 1 / cos(angle) times taller."""
    angles = angle * random.choice([-1, 1], size=len(images))
    return _warped(images, 1, -np.sin(angles), 0, 0, np.cos(angles), 0)


def _scale(images: Images, random: Generator, size: float) -> Images:
    """Shrinks the digit."""
    return _warped(images, 1 / size, 0, 0, 0, 1 / size, 0)


def _rotate(images: Images, random: Generator, angle: float) -> Images:
    """Rotates by an angle in either direction."""
    angles = angle * random.choice([-1, 1], size=len(images))
    cos, sin = np.cos(angles), np.sin(angles)
    return _warped(images, cos, -sin, 0, sin, cos, 0)


def _brightness(images: Images, random: Generator, offset: float) -> Images:
    """Adds an offset to all pixels."""
    return images + np.float32(offset)


def _translate(images: Images, random: Generator, pixels: int) -> Images:
    """Shifts along both axes, each in either direction."""
    shifts = pixels * 2 / (_SIDE - 1) * random.choice([-1, 1], size=(2, len(images)))
    return _warped(images, 1, 0, shifts[0], 0, 1, shifts[1])


def _stripe(images: Images, random: Generator, columns: int) -> Images:
    """Inverts columns at the left and the right edge."""
    column = np.arange(_SIDE)
    return np.where((column < columns) | (column >= _SIDE - columns), 1 - images, images)


def _fog(images: Images, random: Generator, thickness: float, decay: float) -> Images:
    """Adds a cloud, the corner of a fractal height map."""
    brightest = images.max(axis=(1, 2), keepdims=True)
    clouds = _height_maps(len(images), random, decay)
    return np.asarray((images + np.float32(thickness) * clouds) * brightest / (brightest + np.float32(thickness)))


def _height_maps(count: int, random: Generator, decay: float, side: int = 256) -> Images:
    """Corners [count, 28, 28] of height maps [count, side, side] in [0, 1], by the diamond-square algorithm.

    The map is a torus. Each point is the mean of its four neighbours plus noise. Each step halves the distance between
    points and divides the amplitude of the noise by the square of `decay`.
    """
    heights = np.zeros((count, side, side), np.float32)
    amplitude, step = 100.0, side

    def displaced(total: Images) -> Images:
        noise = random.random(total.shape, np.float32) * 2 - 1
        return total / 4 + np.float32(amplitude**2) * noise

    while step >= 2:
        half = step // 2
        corners = heights[:, ::step, ::step]
        down, right = np.roll(corners, -1, axis=1), np.roll(corners, -1, axis=2)
        middles = displaced(corners + down + np.roll(corners + down, -1, axis=2))
        heights[:, half::step, half::step] = middles
        heights[:, ::step, half::step] = displaced(corners + right + middles + np.roll(middles, 1, axis=1))
        heights[:, half::step, ::step] = displaced(corners + down + middles + np.roll(middles, 1, axis=2))
        step, amplitude = half, amplitude / decay
    heights -= heights.min(axis=(1, 2), keepdims=True)
    heights /= heights.max(axis=(1, 2), keepdims=True)
    return heights[:, :_SIDE, :_SIDE]


def _spatter(
    images: Images, random: Generator, mean: float, deviation: float, size: float, threshold: float, softness: float
) -> Images:
    """Covers the digit with grey drops, where smoothed noise exceeds a threshold."""
    liquid = random.normal(mean, deviation, size=images.shape).astype(np.float32)
    liquid = gaussian_filter(liquid, size, mode="nearest", axes=(1, 2))
    drops = gaussian_filter((liquid > threshold).astype(np.float32), softness, mode="nearest", axes=(1, 2))
    drops[drops < 0.8] = 0
    return np.asarray(images * (1 - drops) + np.float32(63 / 255) * drops)


def _segments(x: NDArray[np.floating[Any]], y: NDArray[np.floating[Any]]) -> Images:
    """Draws lines through points, with an intensity that falls to zero 1.45 pixels away.

    Args:
        x: Increasing columns of the points, [..., P].
        y: Rows of the points, [..., P].

    Returns:
        Images of the lines, [..., 28, 28].
    """
    pixel = np.arange(_SIDE)
    left, right, top, bottom = (ends[..., None, None] for ends in (x[..., :-1], x[..., 1:], y[..., :-1], y[..., 1:]))
    rows = top + (bottom - top) / (right - left) * (pixel - left)  # row of the line in each column
    distance = np.abs(pixel[:, None] - rows).clip(0, 2.3 - 1e-10)
    strength = (np.log(1 - distance / 2.3) + 1).clip(0, 1)
    inside = (pixel >= np.floor(left)) & (pixel < np.ceil(right))
    return np.asarray((strength * inside).sum(axis=-3), np.float32)


def _dotted_line(images: Images, random: Generator, lines: int) -> Images:
    """Draws dotted lines from the left to the right edge."""
    ends = random.integers(0, _SIDE - 1, size=(5, len(images), 2))[:lines]
    solid = _segments(np.broadcast_to([0.0, _SIDE - 1], ends.shape), ends.astype(float))
    dots = np.arange(_SIDE) // 2 % 2  # two columns off, two columns on
    return np.asarray(images + solid.sum(axis=0) * dots)


def _zigzag(images: Images, random: Generator, lines: int) -> Images:
    """Draws zigzag lines from left to right."""
    start = random.integers(0, _SIDE - 1, size=(5, len(images)))[:lines]
    rise = random.integers(-5, 5, size=(5, len(images)))[:lines]
    return np.asarray(images + _all_zigzags()[start, rise].sum(axis=0))


@cache
def _all_zigzags() -> Images:
    """Zigzag lines [27, 10, 28, 28] by first row (0 to 26) and rise (0 to 4, then -5 to -1)."""
    length, width, left, right = 2, 2, 2, 25
    lines = np.zeros((_SIDE - 1, 10, _SIDE, _SIDE), np.float32)
    for rise in range(-5, 5):
        angle = np.arctan2(rise, right - left)
        distance = (right - left) / np.cos(angle)
        turns = int((distance - length) // (2 * length)) + 1
        along = np.array([0, *((2 * turn + 1) * length for turn in range(turns)), distance])
        aside = np.array([0.0, *((-1) ** turn * width for turn in range(turns)), 0])
        aside[-1] = aside[-2] / (2 * (distance - 2 * length * (distance // (2 * length))))
        x = left + along * np.cos(angle) - aside * np.sin(angle)
        y = along * np.sin(angle) + aside * np.cos(angle)
        lines[:, rise] = _segments(x, y + np.arange(_SIDE - 1)[:, None])
    return lines


def _canny_edges(images: Images, random: Generator, sigma: float) -> Images:
    """Keeps only the edges (Canny 1986) of the digit blurred by `sigma` pixels."""
    from skimage.feature import canny

    return np.stack([canny(image, sigma) for image in images]).astype(np.float32)  # type: ignore[no-untyped-call]


_DROPS = (
    (0.65, 0.3, 4, 0.69, 0.6),
    (0.65, 0.3, 3, 0.68, 0.6),
    (0.65, 0.3, 2, 0.68, 0.5),
    (0.65, 0.3, 1, 0.65, 1.5),
    (0.67, 0.4, 1, 0.65, 1.5),
)
# Function, parameters for severities 1 to 5, and severity of the public files, by name.
_CORRUPTIONS: dict[str, tuple[Callable[..., Images], tuple[tuple[float, ...], ...], int]] = {
    "shot_noise": (_shot_noise, ((60,), (25,), (12,), (5,), (3,)), 5),
    "impulse_noise": (_impulse_noise, ((0.03,), (0.06,), (0.09,), (0.17,), (0.27,)), 4),
    "glass_blur": (_glass_blur, ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)), 1),
    "motion_blur": (_motion_blur, ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)), 1),
    "shear": (_shear, ((0.2,), (0.4,), (0.6,), (0.8,), (1.0,)), 2),
    "scale": (_scale, ((0.9,), (0.8,), (0.7,), (0.6,), (0.5,)), 3),
    "rotate": (_rotate, ((0.2,), (0.4,), (0.6,), (0.8,), (1.0,)), 2),
    "brightness": (_brightness, ((0.1,), (0.2,), (0.3,), (0.4,), (0.5,)), 5),
    "translate": (_translate, ((1,), (2,), (3,), (4,), (5,)), 3),
    "stripe": (_stripe, ((3,), (5,), (7,), (8,), (9,)), 3),
    "fog": (_fog, ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)), 5),
    "spatter": (_spatter, _DROPS, 4),
    "dotted_line": (_dotted_line, ((1,), (2,), (3,), (4,), (5,)), 1),
    "zigzag": (_zigzag, ((1,), (2,), (3,), (4,), (5,)), 1),
    "canny_edges": (_canny_edges, ((0.25,), (0.5,), (1.0,), (1.5,), (2.0,)), 3),
}

CORRUPTIONS: tuple[str, ...] = tuple(_CORRUPTIONS)
PUBLISHED: Mapping[str, int] = {name: published for name, (*_, published) in _CORRUPTIONS.items()}

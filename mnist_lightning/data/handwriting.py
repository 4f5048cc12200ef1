"""Any picture of a handwritten digit as MNIST would have it: 28x28, light on dark, 20 pixels long, centred by mass.

LeCun et al. 1998 ("Gradient-based learning applied to document recognition", section III.A) describe what was done to
MNIST's digits. What comes before it is ours: finding the ink, whatever the paper, the light and the pen.
"""

from collections.abc import Iterable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from scipy import ndimage
from torch import Tensor

from mnist_lightning.errors import InputError, one_line

FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "GIF")
MOST_PIXELS = 64_000_000  # what a good telephone photographs; decoded it is 256 MB
_LEAST_SIDE = 8  # pixels
WORKING_SIDE = 400  # pixels of the longer side that a picture is looked at with

_CELLS = 40  # along the longer side, when paper and light are looked at
_WIDEST = 11  # cells; any stroke is narrower

Pixels = NDArray[np.float32]


def open_picture(file: str | Path | bytes, name: str | None = None) -> Image.Image:
    """Opens a picture that may be anything, upright.

    Args:
        file: Path or content.
        name: What to call it in messages; by default the path.

    Raises:
        InputError: If it is not a picture, is damaged, or has more than 64 million pixels, of which none is decoded.
    """
    name = name or ("the picture" if isinstance(file, bytes) else str(file))
    if not isinstance(file, bytes) and not Path(file).exists():
        raise InputError(f"there is no picture {name}")
    try:
        with Image.open(BytesIO(file) if isinstance(file, bytes) else file, formats=FORMATS) as picture:
            if picture.width * picture.height > MOST_PIXELS:
                raise Image.DecompressionBombError
            picture.draft("RGB", (2 * WORKING_SIDE, 2 * WORKING_SIDE))  # a JPEG is decoded no larger than needed
            upright = ImageOps.exif_transpose(picture)
            upright.load()
            return upright
    except Image.DecompressionBombError as error:  # Pillow's own limit comes before ours
        raise InputError(
            f"{name} has more than {MOST_PIXELS // 10**6} million pixels, and is not decoded: make it smaller"
        ) from error
    except Exception as error:  # Pillow raises a dozen kinds; after any of them this is no picture
        why = "" if "cannot identify image file" in str(error) else f": {one_line(error, 100)}"
        raise InputError(
            f"{name} is no picture that can be read{why}; it must be one of {', '.join(FORMATS)}"
        ) from error


def digit_of(picture: Image.Image, name: str = "the picture") -> Tensor:
    """The digit on a picture, in MNIST's manner.

    A picture of 28x28 with a digit that already is so is taken as it is. Otherwise: what the light does is fitted and
    taken away; ink is what differs from it, on the side on which most does; specks, what runs out of the picture and
    ruled lines are left out; strokes thinner or thicker than MNIST's are thickened or thinned; the rest is brought to
    20 pixels, its aspect kept, with its centre of mass in the centre.

    Args:
        picture: Of any size and mode; dark on light or light on dark.
        name: What to call it in messages.

    Returns:
        uint8 [28, 28], light on dark.

    Raises:
        InputError: If there is nothing on the picture, or it is too small.

    Example:
        >>> from mnist_lightning.data.sources import read
        >>> seven = read("digits", train=False)[0][7]
        >>> on_paper = Image.fromarray(255 - seven.numpy()).resize((280, 280))
        >>> (digit_of(on_paper).float() - seven).abs().mean() < 10
        tensor(True)
    """
    if min(picture.size) < _LEAST_SIDE:
        raise InputError(f"{name} has {picture.width} x {picture.height} pixels; a digit needs {_LEAST_SIDE} each way")
    if picture.mode == "F" and not np.isfinite(np.asarray(picture)).all():
        raise InputError(f"{name} holds pixels that are not finite numbers")
    grey = _grey(picture)
    if _is_mnist_like(grey):
        return torch.from_numpy((255 * grey).round().astype(np.uint8))
    ink = _ink(grey)
    mask = _digit(ink)
    if mask is None:
        ink = _filling_ink(grey)
        mask = _digit(ink)
    if mask is None:
        raise InputError(f"{name} is blank: nothing on it is clearly darker or lighter than the rest")
    return torch.from_numpy(_centred(_boxed(ink, mask)))


def _grey(picture: Image.Image) -> Pixels:
    """Float32 [H, W] in [0, 1], the longer side at most `WORKING_SIDE`; what is transparent has the ink's opposite."""
    if picture.mode.startswith(("I", "F")):  # 16 or 32 bits, which Pillow clips to 8 instead of scaling
        values = np.asarray(picture, dtype=np.float32)
        values = 255 * (values - values.min()) / max(float(np.ptp(values)), 1e-6)
        picture = Image.fromarray(values.astype(np.uint8))
    transparent = picture.mode in ("PA", "LA", "RGBA") or "transparency" in picture.info
    picture = picture.convert("RGBA" if transparent else "L")
    shrunk = max(picture.size) / WORKING_SIDE
    if shrunk > 1:
        size = (max(1, round(picture.width / shrunk)), max(1, round(picture.height / shrunk)))
        picture = picture.resize(size, Image.Resampling.BOX)
    if transparent:
        alpha = np.asarray(picture)[..., 3].astype(np.float32) / 255
        colour = np.asarray(picture.convert("RGB").convert("L")).astype(np.float32)
        dark = (colour * alpha).sum() < 127.5 * alpha.sum()
        seen = colour * alpha + (255 if dark else 0) * (1 - alpha)
        return (seen / 255).astype(np.float32)
    return np.asarray(picture, dtype=np.float32) / np.float32(255)


def _is_mnist_like(grey: Pixels) -> bool:
    """Whether it is 28x28, black all around, 20 pixels long and centred by mass, within a pixel."""
    if grey.shape != (28, 28) or not 0.01 < grey.mean() < 0.5:
        return False
    rows, columns = (np.flatnonzero((grey > 0.02).any(axis=axis)) for axis in (1, 0))
    long = max(np.ptp(rows), np.ptp(columns)) + 1
    return bool(18 <= long <= 22 and max(abs(np.array(ndimage.center_of_mass(grey)) - 14)) <= 1.5)


def _ink(grey: Pixels) -> Pixels:
    """How much each pixel differs from the paper; positive where there is ink."""
    height, width = grey.shape
    # Means of cells, where there is less noise and less to compute; paper is what most of them show.
    step = max(1.0, max(height, width) / _CELLS)
    cells = _resized(grey, round(height / step), round(width / step))
    paper = np.full_like(cells, np.median(cells))
    basis = _polynomials(*cells.shape)
    for terms in (1, 3, 3, 6, 6, 6, 6):
        away = cells - paper
        weight = np.clip(1 - (away / (5 * max(_spread(away), 1 / 255))) ** 2, 0, None)  # Tukey's, its square root
        found = np.linalg.lstsq((basis * weight)[:terms].reshape(terms, -1).T, (cells * weight).ravel(), rcond=None)[0]
        paper = np.tensordot(found, basis[:terms], 1)
    light = np.tensordot(found.astype(np.float32), _polynomials(height, width), 1)
    away = grey - light
    tails = np.clip(np.abs(away) - 3 * _spread(away), 0, None)
    sign = 1 if (tails * np.sign(away)).sum() > 0 else -1
    # Shadows have edges, which no polynomial follows: what is wider than any stroke is no ink.
    shade = ndimage.grey_opening(sign * _resized(away, *cells.shape), _WIDEST)
    shade = _resized(shade, height, width)
    ink: Pixels = sign * away - shade
    if sign < 0:  # shadow darkens ink and paper alike: what counts is the share of the light that is missing
        bright = np.clip(light - shade, 0.1, None)
        ink *= np.median(bright) / bright
    return ink


def _filling_ink(grey: Pixels) -> Pixels:
    """As `_ink`, of a picture so full of ink that only its edges show what is paper."""
    edges = np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
    away = grey - np.median(edges)
    ink: Pixels = away * np.sign(away.mean())
    return ink


def _polynomials(height: int, width: int) -> Pixels:
    """1, y, x, y², yx, x² on a grid over [-1, 1]², float32 [6, H, W]."""
    y, x = np.meshgrid(*(np.linspace(-1, 1, size, dtype=np.float32) for size in (height, width)), indexing="ij")
    return np.stack([np.ones_like(y), y, x, y * y, y * x, x * x])


def _resized(values: Pixels, height: int, width: int) -> Pixels:
    """Means where it gets smaller, linear interpolation where larger."""
    way = Image.Resampling.BOX if height <= values.shape[0] else Image.Resampling.BILINEAR
    return np.asarray(Image.fromarray(values).resize((max(1, width), max(1, height)), way))


def _spread(away: NDArray[np.floating[Any]]) -> float:
    """Standard deviation of what is normal, from the lower quartile, so that as much as half the picture may be ink."""
    some = away.ravel()[:: max(1, away.size // 10_000)]
    return float(np.quantile(np.abs(some), 0.25) / 0.3186)


def _digit(ink: Pixels) -> NDArray[np.bool_] | None:
    """Which pixels belong to the digit; None if there is none."""
    side = max(ink.shape)
    smooth = ndimage.gaussian_filter(ink, side / 280)
    noise = _spread(smooth)
    count = max(12, side // 10)
    peak = float(np.partition(smooth, -count, axis=None)[-count:].mean())
    if peak < max(0.06, 6 * noise):
        return None
    found: list[tuple[float, NDArray[np.bool_]]] = []
    # As faint as it may be without running out of the picture, as tables, shadows and the lines of a page do.
    for level in (0.2, 0.3, 0.45, 0.6):
        parts, count = ndimage.label(smooth > max(level * peak, 4 * noise), np.ones((3, 3)))
        boxes = ndimage.find_objects(parts)
        mass = np.bincount(parts.ravel(), weights=smooth.ravel())[1:].astype(np.float64)
        out = [_runs_out(box, ink.shape) for box in boxes]
        least = side / 10 if any(out) else 0  # of a picture that the digit fills, a speck within is not the digit
        inside = [i for i in range(count) if not out[i] and _long(boxes[i]) >= least]
        candidates = inside or range(count)
        largest = max(candidates, key=lambda i: mass[i])
        found.append((mass[largest] if inside else 0.0, _near(largest, candidates, boxes, mass)[parts]))
    return max(found, key=lambda one: one[0])[1]


def _long(box: tuple[slice, ...]) -> int:
    return max(int(part.stop) - int(part.start) for part in box)


def _runs_out(box: tuple[slice, ...], shape: tuple[int, ...]) -> bool:
    return any(part.start == 0 or part.stop == size for part, size in zip(box, shape, strict=True))


def _near(
    largest: int, candidates: Iterable[int], boxes: Sequence[tuple[slice, ...]], mass: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """By label, the largest part and those near it that are no specks: the roof of a 5, a broken stroke."""
    ours, reach = boxes[largest], 0.4 * _long(boxes[largest])
    near = np.zeros(len(boxes) + 1, dtype=bool)
    for i in candidates:
        gaps = [max(a.start - b.stop, b.start - a.stop) for a, b in zip(boxes[i], ours, strict=True)]
        near[i + 1] = mass[i] > 0.03 * mass[largest] and max(gaps) < reach
    return near


def _boxed(ink: Pixels, mask: NDArray[np.bool_]) -> Pixels:
    """The digit in 20 pixels, its aspect kept, its strokes as thick as MNIST's and as light: float32 in [0, 1]."""
    around = tuple(
        slice(max(0, part.start - margin), part.stop + margin)
        for part in ndimage.find_objects(mask.astype(np.int8))[0]
        for margin in [2 + (part.stop - part.start) // 8]
    )
    noise, ink, mask = _spread(ink), ink[around], mask[around]
    core = mask & (ink > 0.4 * np.quantile(ink[mask], 0.95))
    # How many of the picture's pixels are one of the 20.
    pixel = max(np.ptp(np.flatnonzero(core.any(axis=axis))) + 1 for axis in (0, 1)) / 20
    level = float(np.quantile(ink[core], 0.75))
    # Edges are soft: what is near the core belongs to the digit as far as it is ink.
    near = mask | ndimage.binary_dilation(core, iterations=max(1, round(0.7 * pixel)))
    soft = np.where(near, ink / level, 0).clip(0, 1)
    thickness = 4 * (float(ndimage.distance_transform_edt(core)[core].mean()) - 0.5) / pixel
    if thickness < 1.6:
        soft = _grown(soft, (2.2 - thickness) / 2 * pixel)
    elif thickness > 6:
        soft = 1 - _grown(1 - soft, (thickness - 5) / 2 * pixel)
    faint = np.clip(2.5 * noise / level, 0.2, 0.5)  # fainter than that may be noise
    rows, columns = (np.flatnonzero((soft > faint).any(axis=axis)) for axis in (1, 0))
    top, bottom, left, right = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
    longest = max(bottom - top, right - left)
    size = [max(1, round(20 * length / longest)) for length in (right - left, bottom - top)]
    small = Image.fromarray(soft.astype(np.float32)).resize(
        (size[0], size[1]), Image.Resampling.BICUBIC, box=(left, top, right, bottom)
    )
    return np.asarray(small).clip(0, 1)


def _grown(soft: Pixels, radius: float) -> Pixels:
    """Each pixel as light as the lightest around it."""
    reach = max(1, round(radius))
    y, x = np.ogrid[-reach : reach + 1, -reach : reach + 1]
    grown: Pixels = ndimage.grey_dilation(np.pad(soft, reach), footprint=x * x + y * y <= reach * reach + 1)
    return grown[reach:-reach, reach:-reach]


def _centred(small: Pixels) -> NDArray[np.uint8]:
    """On 28x28, with the centre of mass at (14, 14), as MNIST's are, to the nearest pixel."""
    row, column = ndimage.center_of_mass(small)
    canvas = np.zeros((28, 28), np.uint8)
    top = int(np.clip(round(14 - row), 0, 28 - small.shape[0]))
    left = int(np.clip(round(14 - column), 0, 28 - small.shape[1]))
    canvas[top : top + small.shape[0], left : left + small.shape[1]] = (255 * small).round()
    return canvas

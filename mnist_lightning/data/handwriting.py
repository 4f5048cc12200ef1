"""Converts a picture of a handwritten digit to MNIST format: 28x28, light on dark, 20 pixels long, centred by mass.

Scaling and centring follow LeCun et al. 1998 ("Gradient-based learning applied to document recognition", section
III.A). The paper does not cover the earlier steps, which separate the ink from paper, light and background.
"""

from io import BytesIO
from pathlib import Path
from stat import S_ISREG
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from scipy import ndimage
from torch import Tensor

from mnist_lightning.errors import InputError, one_line

FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "GIF")
MAX_PIXELS = 64_000_000  # of a JPEG, which can be decoded at a reduced size; resolution of a good phone camera
MAX_DECODED = 16_000_000  # pixels in memory; Pillow takes up to 16 bytes for each (WebP)
_MAX_BYTES = 200_000_000  # of a file; the largest TIFF of 16 million pixels is smaller
_MIN_SIDE = 8  # pixels
_MAX_VALUE = 1e30  # of a 32-bit pixel; the range of larger ones overflows
WORKING_SIDE = 400  # pixels; pictures are shrunk until their longer side fits

_CELLS = 40  # along the longer side, for fitting the light
_MAX_STROKE = 11  # cells; wider structures are shadows

Pixels = NDArray[np.float32]


def open_picture(file: str | Path | bytes, name: str | None = None, side: int = 2 * WORKING_SIDE) -> Image.Image:
    """Opens an untrusted picture, or the first frame of an animation, and turns it upright by its EXIF orientation.

    This is the only place where the package opens pictures.

    Args:
        file: Path or content of the file.
        name: Name of the picture in error messages; the path by default.
        side: Width and height in pixels that suffice: a JPEG of twice the size or more is decoded at a reduced size.

    Raises:
        InputError: If the file does not exist, is not a regular file, is not a picture, is damaged, or has more than 16
            million pixels (64 million as JPEG). Pictures above that limit are not decoded.
    """
    name = name or ("the picture" if isinstance(file, bytes) else str(file))
    try:
        with Image.open(BytesIO(file) if isinstance(file, bytes) else _regular(file), formats=FORMATS) as picture:
            pixels = picture.width * picture.height
            picture.draft("RGB", (side, side))  # makes JPEG decode at a reduced size
            if pixels > MAX_PIXELS or picture.width * picture.height > MAX_DECODED:
                raise Image.DecompressionBombError
            if not pixels:
                raise ValueError("no pixels")
            picture.load()
            ImageOps.exif_transpose(picture, in_place=True)
            return picture.convert("RGB") if picture.mode in ("LAB", "YCbCr") else picture
    except FileNotFoundError as error:
        raise InputError(f"there is no picture {name}") from error
    except Image.DecompressionBombError as error:  # raised by Pillow's own limit, too
        limits = f"{MAX_DECODED // 10**6} million pixels ({MAX_PIXELS // 10**6} million as JPEG)"
        raise InputError(f"{name} has more than {limits}; make it smaller") from error
    except Exception as error:  # Pillow raises many exception types for damaged files
        cause = getattr(error, "strerror", None) or error
        why = "" if "cannot identify image file" in str(cause) else f" ({one_line(cause, 100)})"
        raise InputError(f"{name} cannot be read as a picture{why}; give {', '.join(FORMATS)}") from error


def _regular(path: str | Path) -> Path:
    """Refuses to open pipes and devices, which block or never end, and files too large for a picture."""
    status = Path(path).stat()
    if not S_ISREG(status.st_mode):
        raise ValueError("not a regular file")
    if not status.st_size:  # also files of /proc, whose reading may block
        raise ValueError("empty")
    if status.st_size > _MAX_BYTES:
        raise ValueError(f"more than {_MAX_BYTES // 10**6} MB")
    return Path(path)


def digit_of(picture: Image.Image, name: str = "the picture") -> Tensor:
    """Extracts the digit from a picture, in MNIST format.

    A 28x28 picture that is already in MNIST format is returned unchanged. Any other picture passes four steps. The
    light is fitted and subtracted. Ink is the larger deviation from it, on the dark or the light side. Specks, ruled
    lines and parts cut off by the picture's edge are dropped. Strokes outside MNIST's range of thickness are thickened
    or thinned, and the digit is scaled to 20 pixels with its aspect ratio kept, then centred by its mass.

    Args:
        picture: Picture of any size and mode, dark on light or light on dark.
        name: Name of the picture in error messages.

    Returns:
        Digit, uint8 [28, 28], light on dark.

    Raises:
        InputError: If the picture is blank, too small, or has pixels that are not finite or above 1e30.

    Example:
        >>> from mnist_lightning.data.sources import read
        >>> seven = read("digits", train=False)[0][7]
        >>> on_paper = Image.fromarray(255 - seven.numpy()).resize((280, 280))
        >>> (digit_of(on_paper).float() - seven).abs().mean() < 10
        tensor(True)
    """
    if min(picture.size) < _MIN_SIDE:
        size = f"{picture.width} x {picture.height} pixels"
        raise InputError(f"{name} has {size}; it needs at least {_MIN_SIDE} x {_MIN_SIDE}")
    if picture.mode == "F" and not np.abs(np.asarray(picture)).max() < _MAX_VALUE:  # true for NaN
        raise InputError(f"{name} holds pixels that are not finite numbers below {_MAX_VALUE:.0e}")
    grey = _grey(picture)
    if _is_mnist_format(grey):
        return torch.from_numpy((255 * grey).round().astype(np.uint8))
    for subtract_paper in (_subtract_light, _subtract_border):
        ink = subtract_paper(grey)
        if (mask := _digit_mask(ink)) is not None and (digit := _scaled(ink, mask)) is not None:
            return torch.from_numpy(_centred(digit))
    raise InputError(f"{name} is blank: no pixels stand out from the background")


def _grey(picture: Image.Image) -> Pixels:
    """Float32 [H, W] in [0, 1], at most `WORKING_SIDE` long; transparent pixels become paper, opposite to the ink."""
    if picture.mode.startswith(("I", "F")):  # Pillow clips 16 and 32 bits to 8 instead of scaling
        values = np.asarray(picture, dtype=np.float32)
        values = 255 * (values - values.min()) / max(float(np.ptp(values)), 1e-6)
        picture = Image.fromarray(values.astype(np.uint8))
    transparent = picture.mode in ("PA", "LA", "RGBA") or "transparency" in picture.info
    picture = picture.convert("RGBA" if transparent else "L")
    factor = max(picture.size) / WORKING_SIDE
    if factor > 1:
        picture = picture.resize([max(1, round(side / factor)) for side in picture.size], Image.Resampling.BOX)
    if transparent:
        alpha = np.asarray(picture)[..., 3].astype(np.float32) / 255
        colour = np.asarray(picture.convert("RGB").convert("L")).astype(np.float32)
        paper = 255 if (colour * alpha).sum() < 127.5 * alpha.sum() else 0
        return ((colour * alpha + paper * (1 - alpha)) / 255).astype(np.float32)
    return np.asarray(picture, dtype=np.float32) / np.float32(255)


def _is_mnist_format(grey: Pixels) -> bool:
    """Whether a picture is 28x28 on black, 18 to 22 pixels long, and centred by mass within 1.5 pixels."""
    if grey.shape != (28, 28) or not 0.01 < grey.mean() < 0.5 or grey.max() <= 0.02:
        return False
    offset = max(abs(np.array(ndimage.center_of_mass(grey)) - 14))
    return bool(18 <= _length(grey > 0.02) <= 22 and offset <= 1.5)


def _subtract_light(grey: Pixels) -> Pixels:
    """Ink [H, W], positive: the deviation of each pixel from paper under a smoothly varying light."""
    height, width = grey.shape
    # Cell means have less noise and are faster to fit. Most cells show paper.
    step = max(1.0, max(height, width) / _CELLS)
    cells = _resized(grey, round(height / step), round(width / step))
    paper = np.full_like(cells, np.median(cells))
    basis = _polynomials(*cells.shape)
    for terms in (1, 3, 3, 6, 6, 6, 6):
        residual = cells - paper
        # Square root of Tukey's biweight.
        weight = np.clip(1 - (residual / (5 * max(_noise_level(residual), 1 / 255))) ** 2, 0, None)
        terms_by_cell = (basis * weight)[:terms].reshape(terms, -1)
        coefficients = np.linalg.lstsq(terms_by_cell.T, (cells * weight).ravel(), rcond=None)[0]
        paper = np.tensordot(coefficients, basis[:terms], 1)
    light = np.tensordot(coefficients.astype(np.float32), _polynomials(height, width), 1)
    residual = grey - light
    tails = np.clip(np.abs(residual) - 3 * _noise_level(residual), 0, None)
    sign = 1 if (tails * np.sign(residual)).sum() > 0 else -1
    # Polynomials cannot follow the edges of shadows, but shadows are wider than any stroke.
    shadow = ndimage.grey_opening(sign * _resized(residual, *cells.shape), _MAX_STROKE)
    shadow = _resized(shadow, height, width)
    ink: Pixels = sign * residual - shadow
    if sign < 0:  # shadow darkens ink and paper by the same factor, so measure ink relative to the light
        bright = np.clip(light - shadow, 0.1, None)
        ink *= np.median(bright) / bright
    return ink


def _subtract_border(grey: Pixels) -> Pixels:
    """Like `_subtract_light`, for pictures so full of ink that only the border shows paper."""
    border = np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
    residual = grey - np.median(border)
    return np.asarray(residual * np.sign(residual.mean()))


def _polynomials(height: int, width: int) -> Pixels:
    """1, y, x, y², yx, x² on a grid over [-1, 1]², float32 [6, H, W]."""
    y, x = np.meshgrid(*(np.linspace(-1, 1, size, dtype=np.float32) for size in (height, width)), indexing="ij")
    return np.stack([np.ones_like(y), y, x, y * y, y * x, x * x])


def _resized(values: Pixels, height: int, width: int) -> Pixels:
    """Shrinks by means, enlarges by linear interpolation."""
    method = Image.Resampling.BOX if height <= values.shape[0] else Image.Resampling.BILINEAR
    return np.asarray(Image.fromarray(values).resize((max(1, width), max(1, height)), method))


def _noise_level(residual: NDArray[np.floating[Any]]) -> float:
    """Standard deviation of normal noise, from the lower quartile: up to half of the pixels may be ink."""
    sample = residual.ravel()[:: max(1, residual.size // 10_000)]
    return float(np.quantile(np.abs(sample), 0.25) / 0.3186)


def _digit_mask(ink: Pixels) -> NDArray[np.bool_] | None:
    """Boolean mask [H, W] of the digit's pixels; None if the picture is blank."""
    side = max(ink.shape)
    smooth = ndimage.gaussian_filter(ink, side / 280)
    noise = _noise_level(smooth)
    brightest = max(12, side // 10)
    peak = float(np.partition(smooth, -brightest, axis=None)[-brightest:].mean())
    if peak < max(0.06, 6 * noise):
        return None
    masks: list[tuple[float, NDArray[np.bool_]]] = []
    # Low thresholds keep faint strokes but can join the digit to tables, shadows and ruled lines at the edge.
    for level in (0.2, 0.3, 0.45, 0.6):
        parts, _ = ndimage.label(smooth > max(level * peak, 4 * noise), np.ones((3, 3)))
        mass = np.bincount(parts.ravel(), smooth.ravel())[1:]
        boxes = np.array([[(axis.start, axis.stop) for axis in box] for box in ndimage.find_objects(parts)])
        start, stop = boxes[..., 0], boxes[..., 1]  # [parts, 2]
        length = (stop - start).max(axis=1)
        cut_off = ((start == 0) | (stop == ink.shape)).any(axis=1)
        shortest = side / 10 if cut_off.any() else 0  # if the digit fills the picture, ignore specks inside it
        inside = ~cut_off & (length >= shortest)
        candidates = inside if inside.any() else np.ones_like(inside)
        largest = (mass * candidates).argmax()
        gaps = np.maximum(start - stop[largest], start[largest] - stop).max(axis=1)
        # Parts near the largest belong to the digit, such as the roof of a 5, unless they are specks.
        digit = candidates & (mass > 0.03 * mass[largest]) & (gaps < 0.4 * length[largest])
        masks.append((mass[largest] if inside.any() else 0, np.append(False, digit)[parts]))
    return max(masks, key=lambda pair: pair[0])[1]


def _bounding_box(mask: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First (row, column) of the pixels in a mask, and one past the last (row, column)."""
    positions = np.argwhere(mask)
    return positions.min(axis=0), positions.max(axis=0) + 1


def _length(mask: NDArray[np.bool_]) -> int:
    return int(np.ptp(np.argwhere(mask), axis=0).max()) + 1


def _scaled(ink: Pixels, mask: NDArray[np.bool_]) -> Pixels | None:
    """Scales the digit to 20 pixels and its strokes to MNIST's thickness and intensity.

    Returns:
        Digit, float32 [H, W] in [0, 1], or None if nothing is left of it.
    """
    start, stop = _bounding_box(mask)
    margin = 2 + (stop - start) // 8
    crop = tuple(map(slice, (start - margin).clip(0), stop + margin))
    noise, ink, mask = _noise_level(ink), ink[crop], mask[crop]
    core = mask & (ink > 0.4 * np.quantile(ink[mask], 0.95))
    pixel = _length(core) / 20  # size of an output pixel in pixels of the picture
    level = float(np.quantile(ink[core], 0.75))
    # Edges are soft: pixels near the core belong to the digit in proportion to their ink.
    near = mask | ndimage.binary_dilation(core, iterations=max(1, round(0.7 * pixel)))
    soft = np.where(near, ink / level, 0).clip(0, 1)
    thickness = 4 * (float(ndimage.distance_transform_edt(core)[core].mean()) - 0.5) / pixel
    if thickness < 1.6:
        soft = _dilated(soft, (2.2 - thickness) / 2 * pixel)
    elif thickness > 6:
        soft = 1 - _dilated(1 - soft, (thickness - 5) / 2 * pixel)
    threshold = np.clip(2.5 * noise / level, 0.2, 0.5)  # fainter pixels may be noise
    if not (visible := soft > threshold).any():
        return None
    (top, left), (bottom, right) = _bounding_box(visible)
    height, width = (max(1, round(20 * side / _length(visible))) for side in (bottom - top, right - left))
    small = Image.fromarray(soft).resize((width, height), Image.Resampling.BICUBIC, (left, top, right, bottom))
    return np.asarray(small).clip(0, 1)


def _dilated(soft: Pixels, radius: float) -> Pixels:
    """Replaces each pixel by the maximum within `radius` pixels."""
    reach = max(1, round(radius))
    y, x = np.ogrid[-reach : reach + 1, -reach : reach + 1]
    disk = x * x + y * y <= reach * reach + 1
    return np.asarray(ndimage.grey_dilation(soft, footprint=disk, mode="constant"))


def _centred(small: Pixels) -> NDArray[np.uint8]:
    """Pastes the digit on 28x28 with its centre of mass at (14, 14), as in MNIST, to the nearest pixel."""
    canvas = np.zeros((28, 28), np.uint8)
    centre = ndimage.center_of_mass(small)
    top, left = (int(np.clip(round(14 - at), 0, 28 - size)) for at, size in zip(centre, small.shape, strict=True))
    canvas[top : top + small.shape[0], left : left + small.shape[1]] = (255 * small).round()
    return canvas

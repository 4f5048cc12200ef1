"""Random changes of image appearance that keep the digit legible, for training robust models."""

from dataclasses import dataclass, fields
from math import pi
from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from mnist_lightning.checks import at_least, check_types, hints_of
from mnist_lightning.errors import InputError

_SIDE = 28
_KERNEL = 5  # side of the random filters, in pixels
_WAVES = 3
_POINTS = 24  # of a curve
_UNCHANGED = 0.5  # share of images left unchanged: without clean training images, clean accuracy drops
_MIN_CONTRAST = 0.15


@dataclass(frozen=True)
class Appearance:
    """Random changes of strokes and background, independent for each image.

    Half of the images stay unchanged. Each change applies to about half of the others. None of the changes is a
    corruption of MNIST-C (`corruptions.py`), so models are not trained on the corruptions they are tested on. Four are
    near relatives of one: `jitter` of glass blur, `strokes` and `threshold` of Canny edges, `curves` of the zigzag. The
    design follows Modas et al. 2022 ("PRIME: A few primitives can boost robustness to common corruptions"): a chain of
    general spectral and tonal changes, after a spatial one (`Augmentation`).

    Args:
        jitter: Maximum standard deviation of the displacement of each pixel, in pixels. Unlike the elastic distortion
            of `Augmentation`, it is independent for each pixel.
        strokes: Whether to erode or dilate the strokes, or to replace them by their outlines, which are differences of
            the image and its erosion or dilation (Serra 1982, "Image analysis and mathematical morphology").
        threshold: Whether to make images black and white by a random threshold.
        curves: Number of thin curves (quadratic Bezier curves) across the image.
        clutter: Number of pieces of other digits, at random positions (Mnih et al. 2014, "Recurrent models of visual
            attention", cluttered MNIST).
        filter: Maximum standard deviation of the weights of a random 5x5 filter whose output is added to the image. In
            40% of the changed images, the magnitude of the filter output replaces the image (after Xu et al. 2021,
            "Robust and generalizable visual representation learning via random convolutions").
        tone: Maximum change of the black and white levels, as a fraction of their difference. If the levels cross,
            the image is inverted.
        waves: Maximum amplitude of each of three plane waves with random direction and wavelength (Yin et al. 2019,
            "A Fourier perspective on model robustness in computer vision").
        noise: Maximum standard deviation of Gaussian pixel noise (Rusak et al. 2020, "A simple way to make neural
            networks robust against diverse image corruptions").
        patches: Number of uniformly grey rectangles that cover part of the image (Zhong et al. 2020, "Random erasing
            data augmentation").

    Example:
        >>> appearance = Appearance()
        >>> images = torch.rand(4, 1, 28, 28)
        >>> appearance(images, appearance.draw(4, torch.Generator().manual_seed(0))).shape
        torch.Size([4, 1, 28, 28])
    """

    jitter: float = 1.0
    strokes: bool = True
    threshold: bool = True
    curves: int = 2
    clutter: int = 8
    filter: float = 0.7
    tone: float = 0.7
    waves: float = 0.25
    noise: float = 0.3
    patches: int = 1

    def __post_init__(self) -> None:
        check_ranges(self, "augment.appearance")
        if self.tone > 1:
            raise InputError(f"augment.appearance.tone must be at most 1, got {self.tone}")

    @property
    def _noise_sizes(self) -> list[tuple[int, int]]:
        """Uniform [0, 1) and normal random numbers per change. The last entry selects the unchanged images."""
        pixels = _SIDE**2 if self.noise else 0
        moved = 2 * _SIDE**2 if self.jitter else 0
        shapes = [(2, moved), (2, 0), (2, 0), (8 * self.curves, 0), (7 * self.clutter, 0)]
        tones = [(2, _KERNEL**2), (3, 0), (1 + 4 * _WAVES, 0), (2, pixels), (6 * self.patches, 0)]
        return [*shapes, *tones, (1, 0)]

    def draw(self, count: int, generator: Generator) -> Tensor:
        """Draws random numbers for `count` images.

        Args:
            count: Number of images B.
            generator: CPU generator. The same state gives the same changes.

        Returns:
            Float [B, K].
        """
        parts = []
        for uniform, normal in self._noise_sizes:
            parts.append(torch.rand(count, uniform, generator=generator))
            parts.append(torch.randn(count, normal, generator=generator))
        return torch.cat(parts, dim=1)

    def __call__(self, images: Tensor, noise: Tensor) -> Tensor:
        """Changes the appearance of each image.

        Args:
            images: Float [B, 1, 28, 28] in [0, 1].
            noise: Output of `draw(B, ...)`, on any device.

        Returns:
            Float [B, 1, 28, 28] in [0, 1].
        """
        sizes = [sum(size) for size in self._noise_sizes]
        rows = (noise[:, -1] >= _UNCHANGED).nonzero().flatten().to(images.device)
        if not len(rows):
            return images
        jitter, strokes, threshold, curves, clutter, filters, tones, waves, pixels, patches, _ = torch.split(
            noise.to(images)[rows], sizes, dim=1
        )
        changed = images[rows]
        if self.jitter:
            changed = self._jittered(changed, jitter)
        if self.strokes:
            changed = _stroked(changed, strokes)
        if self.threshold:
            level, coin = torch.split(threshold, 1, dim=1)
            is_light = (changed > _broadcast(0.15 + 0.5 * level)).to(changed)
            changed = torch.where(_broadcast(coin < 0.5), is_light, changed)
        for curve in range(self.curves):
            points, light, coin = torch.split(curves[:, 8 * curve : 8 * curve + 8], [6, 1, 1], dim=1)
            line = _curves(points) * _broadcast(0.5 + 0.5 * light)
            changed = torch.where(_broadcast(coin < 0.5), torch.maximum(changed, line), changed)
        for piece in range(self.clutter):
            offset, rectangle, coin = torch.split(clutter[:, 7 * piece : 7 * piece + 7], [2, 4, 1], dim=1)
            other = _rolled(images.roll(piece + 1, dims=0)[rows], offset) * _rectangles(rectangle)
            changed = torch.where(_broadcast(coin < 0.5), torch.maximum(changed, other), changed)
        if self.filter:
            changed = self._filtered(changed, filters)
        if self.tone:
            changed = self._toned(changed, tones)
        if self.waves:
            changed = changed + self._waves(waves)
        if self.noise:
            coin, deviation, normal = torch.split(pixels, [1, 1, _SIDE**2], dim=1)
            changed = changed + (normal * (deviation * self.noise * (coin < 0.5))).view_as(changed)
        for patch in range(self.patches):
            rectangle, grey, coin = torch.split(patches[:, 6 * patch : 6 * patch + 6], [4, 1, 1], dim=1)
            covered = (_rectangles(rectangle) > 0) & _broadcast(coin < 0.5)
            changed = torch.where(covered, _broadcast(grey), changed)
        return images.index_copy(0, rows, changed.clamp(0, 1))

    def _jittered(self, images: Tensor, noise: Tensor) -> Tensor:
        """Displaces the pixels of some images."""
        coin, deviation, normal = torch.split(noise, [1, 1, 2 * _SIDE**2], dim=1)
        centres = (torch.arange(_SIDE, device=images.device) + 0.5) * (2 / _SIDE) - 1
        y, x = torch.meshgrid(centres, centres, indexing="ij")
        size = _broadcast(deviation) * (self.jitter * 2 / _SIDE)  # grid_sample measures the image's side as 2
        grid = torch.stack([x, y], dim=2) + normal.view(-1, _SIDE, _SIDE, 2) * size
        return torch.where(_broadcast(coin < 0.5), F.grid_sample(images, grid, align_corners=False), images)

    def _filtered(self, images: Tensor, noise: Tensor) -> Tensor:
        """Replaces 40% of the images by the magnitude of a random filter's output, and adds the output to 30%."""
        kind, strength, normal = torch.split(noise, [1, 1, _KERNEL**2], dim=1)
        # A zero-mean filter responds to edges only and keeps the background black.
        normal = torch.where(kind < 0.3, normal - normal.mean(dim=1, keepdim=True), normal)
        kernels = normal * torch.where(kind < 0.4, 1.0, strength * self.filter)
        kernels = kernels.view(-1, 1, _KERNEL, _KERNEL)
        added = F.conv2d(images.transpose(0, 1), kernels, padding=_KERNEL // 2, groups=len(images)).transpose(0, 1)
        magnitude = added.abs()
        magnitude = magnitude / magnitude.amax(dim=(1, 2, 3), keepdim=True).clamp(min=1e-3)
        summed = images + added
        low = summed.amin(dim=(1, 2, 3), keepdim=True).clamp(max=0)
        high = summed.amax(dim=(1, 2, 3), keepdim=True).clamp(min=1)
        kind = _broadcast(kind)
        return torch.where(kind < 0.4, magnitude, torch.where(kind < 0.7, (summed - low) / (high - low), images))

    def _toned(self, images: Tensor, noise: Tensor) -> Tensor:
        """Changes the black and white levels of some images, with a minimum contrast."""
        black, white, coin = torch.split(noise, 1, dim=1)
        black = self.tone * black
        contrast = 1 - self.tone * white - black
        minimum = torch.where(black > 0.5, -_MIN_CONTRAST, _MIN_CONTRAST)
        contrast = torch.where(contrast.abs() < _MIN_CONTRAST, minimum, contrast)
        return torch.where(_broadcast(coin < 0.5), _broadcast(black) + _broadcast(contrast) * images, images)

    def _waves(self, noise: Tensor) -> Tensor:
        """[B, 1, 28, 28], sum of the plane waves of each image, 0 for some images."""
        coin, frequency, direction, phase, amplitude = torch.split(noise, [1, *[_WAVES] * 4], dim=1)
        amplitude = amplitude * (self.waves * (coin < 0.5))
        frequency = 2 * pi * (_SIDE / 2) * frequency**2  # radians per side; the square favours long waves
        position = torch.arange(_SIDE, device=noise.device) / _SIDE
        # [B, waves, 28] each
        along, across = ((frequency * part(direction * pi)).unsqueeze(2) * position for part in (torch.cos, torch.sin))
        waves = torch.cos(along.unsqueeze(2) + across.unsqueeze(3) + (2 * pi * phase)[:, :, None, None])
        return (waves * amplitude[:, :, None, None]).sum(dim=1, keepdim=True)


def check_ranges(ranges: Any, name: str) -> None:
    """Checks the numbers of a dataclass of ranges.

    Args:
        ranges: Dataclass. Fields that are not numbers are skipped.
        name: Prefix of the field names in error messages.

    Raises:
        InputError: If a value has the wrong type, or a number is negative or not finite.
    """
    values = {f"{name}.{field.name}": getattr(ranges, field.name) for field in fields(ranges)}
    check_types({f"{name}.{field}": hint for field, hint in hints_of(type(ranges)).items()}, values)
    at_least(0, **{field: value for field, value in values.items() if isinstance(value, (int, float))})


def _broadcast(values: Tensor) -> Tensor:
    """Reshapes [B, 1] to [B, 1, 1, 1]."""
    return values[:, :, None, None]


def _stroked(images: Tensor, noise: Tensor) -> Tensor:
    """Erodes or dilates the strokes of some images, or replaces them by outlines of one or two pixels."""
    kind, coin = torch.split(noise, 1, dim=1)
    wide, corner = F.max_pool2d(images, 3, 1, 1), F.pad(images, (0, 1, 0, 1))
    dilated, eroded = F.max_pool2d(corner, 2, 1), -F.max_pool2d(-corner, 2, 1)
    inner = images + F.max_pool2d(-images, 3, 1, 1)
    choices = torch.stack([wide, dilated, eroded, wide - images, inner, dilated - images])
    chosen = choices[(kind.flatten() * len(choices)).long(), torch.arange(len(images), device=images.device)]
    return torch.where(_broadcast(coin < 0.5), chosen, images)


def _curves(noise: Tensor) -> Tensor:
    """[B, 1, 28, 28], 1 on a curve with three random control points, 0 beyond 1.2 pixels of it."""
    start, middle, end = (noise.view(-1, 3, 2) * _SIDE).unbind(dim=1)
    t = torch.linspace(0, 1, _POINTS, device=noise.device)[:, None]
    points = (1 - t) ** 2 * start[:, None] + 2 * t * (1 - t) * middle[:, None] + t**2 * end[:, None]
    position = torch.arange(_SIDE, device=noise.device) + 0.5
    rows, columns = ((points[:, :, axis, None] - position) ** 2 for axis in (0, 1))  # [B, points, 28]
    nearest = (rows[:, :, :, None] + columns[:, :, None, :]).amin(dim=1)
    return (1.2 - nearest.sqrt()).clamp(0, 1).unsqueeze(1)


def _rolled(images: Tensor, noise: Tensor) -> Tensor:
    """Rolls each image by up to 10 pixels along each axis. Pixels that leave at one edge enter at the other."""
    shifts = (noise * 21).long() - 10
    position = torch.arange(_SIDE, device=images.device)
    rows, columns = ((position + shift[:, None]) % _SIDE for shift in shifts.unbind(dim=1))
    index = rows[:, :, None] * _SIDE + columns[:, None, :]
    return images.flatten(1).gather(1, index.flatten(1)).view_as(images)


def _rectangles(noise: Tensor) -> Tensor:
    """[B, 1, 28, 28], 1 inside a random rectangle with sides of 0.05 to 0.55 of the image's side, 0 outside."""
    position = torch.arange(_SIDE, device=noise.device) / _SIDE
    sides = noise[:, 2:] * 0.5 + 0.05
    rows, columns = (((position - noise[:, axis, None]).abs() < sides[:, axis, None] / 2).to(noise) for axis in (0, 1))
    return (rows[:, :, None] * columns[:, None, :]).unsqueeze(1)

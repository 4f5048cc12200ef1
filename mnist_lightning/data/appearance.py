"""Random changes of how digits look, and not of their shape: they teach a model to see the digit in anything."""

from dataclasses import dataclass, fields
from functools import lru_cache
from math import inf, pi

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from mnist_lightning.errors import InputError

_SIDE = 28
_KERNEL = 5  # side of the random filters, in pixels
_WAVES = 3
_PLAIN = 0.7  # share of the images that keep their looks: a model that never sees clean digits is worse on them
_LEAST_CONTRAST = 0.15


@dataclass(frozen=True)
class Appearance:
    """Clutter, filters, tones, waves, noise and patches, drawn anew for every image.

    Seven images in ten keep their looks; of the others, each change takes about half. None of them is a corruption of
    MNIST-C (`corruptions.py`): what a model makes of those it has not learnt from them. The idea is that of Modas et
    al. 2022 ("PRIME: A few primitives can boost robustness to common corruptions"): a chain of general changes of the
    spectrum and of the tone, besides one of space (`Augmentation`).

    Args:
        clutter: Pieces of other digits, anywhere in the picture (Mnih et al. 2014, "Recurrent models of visual
            attention", the cluttered MNIST).
        filter: Standard deviation of the weights of a random filter of 5x5 pixels, whose result is added; of four
            images in ten its magnitude takes the image's place (after Xu et al. 2021, "Robust and generalizable visual
            representation learning via random convolutions").
        tone: Largest change of the greys that stand for black and for white, as a share of their distance; where they
            pass each other, the image becomes a negative.
        waves: Largest amplitude of each of three plane waves of any direction and length (Yin et al. 2019, "A Fourier
            perspective on model robustness in computer vision").
        noise: Largest standard deviation of each pixel's normal noise (Rusak et al. 2020, "A simple way to make neural
            networks robust against diverse image corruptions").
        patches: Rectangles of one grey that hide what is below (Zhong et al. 2020, "Random erasing data augmentation").

    Example:
        >>> appearance = Appearance()
        >>> images = torch.rand(4, 1, 28, 28)
        >>> appearance(images, appearance.draw(4, torch.Generator().manual_seed(0))).shape
        torch.Size([4, 1, 28, 28])
    """

    clutter: int = 8
    filter: float = 0.7
    tone: float = 0.7
    waves: float = 0.25
    noise: float = 0.3
    patches: int = 1

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not 0 <= value < inf:
                raise InputError(f"augment.appearance.{field.name} is {value}; it must be 0 or more")
        if self.tone > 1:
            raise InputError(f"augment.appearance.tone is {self.tone}; it is a share, 1 at the most")

    @property
    def _numbers(self) -> list[tuple[int, int]]:
        """How many random numbers each change takes: uniform in [0, 1), and normal. The last: which stay plain."""
        pixels = _SIDE**2 if self.noise else 0
        return [
            (7 * self.clutter, 0),
            (2, _KERNEL**2),
            (3, 0),
            (1 + 4 * _WAVES, 0),
            (2, pixels),
            (6 * self.patches, 0),
            (1, 0),
        ]

    def draw(self, count: int, generator: Generator) -> Tensor:
        """Draws the random numbers of `count` images.

        Args:
            count: Number of images B.
            generator: A CPU generator; the same state gives the same changes.

        Returns:
            Float tensor [B, K].
        """
        parts = []
        for uniform, normal in self._numbers:
            parts.append(torch.rand(count, uniform, generator=generator))
            parts.append(torch.randn(count, normal, generator=generator))
        return torch.cat(parts, dim=1)

    def __call__(self, images: Tensor, drawn: Tensor) -> Tensor:
        """Changes each image by its own numbers.

        Args:
            images: Float [B, 1, 28, 28] in [0, 1].
            drawn: What `draw(B, ...)` returned, on any device.

        Returns:
            Float [B, 1, 28, 28] in [0, 1].
        """
        sizes = [sum(numbers) for numbers in self._numbers]
        some = (drawn[:, -1] >= _PLAIN).nonzero().flatten().to(images.device)
        if not len(some):
            return images
        clutter, filtering, tone, waves, noise, patches, _ = torch.split(drawn.to(images)[some], sizes, dim=1)
        changed = images[some]
        for piece in range(self.clutter):
            there, rectangle, chosen = torch.split(clutter[:, 7 * piece : 7 * piece + 7], [2, 4, 1], dim=1)
            other = _rolled(images.roll(piece + 1, dims=0)[some], there) * _rectangles(rectangle)
            changed = torch.where(_each(chosen < 0.5), torch.maximum(changed, other), changed)
        if self.filter:
            changed = self._filtered(changed, filtering)
        if self.tone:
            changed = self._toned(changed, tone)
        if self.waves:
            changed = changed + self._waves(waves)
        if self.noise:
            chosen, deviation, normal = torch.split(noise, [1, 1, _SIDE**2], dim=1)
            changed = changed + (normal * (deviation * self.noise * (chosen < 0.5))).view_as(changed)
        for patch in range(self.patches):
            rectangle, grey, chosen = torch.split(patches[:, 6 * patch : 6 * patch + 6], [4, 1, 1], dim=1)
            hidden = (_rectangles(rectangle) > 0) & _each(chosen < 0.5)
            changed = torch.where(hidden, _each(grey), changed)
        return images.index_copy(0, some, changed.clamp(0, 1))

    def _filtered(self, images: Tensor, drawn: Tensor) -> Tensor:
        """Adds a random filter's result to some images, and puts its magnitude in the place of others."""
        which, strength, normal = torch.split(drawn, [1, 1, _KERNEL**2], dim=1)
        # Without its mean a filter answers to edges, and leaves the background black.
        normal = torch.where(which < 0.3, normal - normal.mean(dim=1, keepdim=True), normal)
        kernels = normal * torch.where(which < 0.4, 1.0, strength * self.filter)
        added = F.conv2d(
            images.transpose(0, 1), kernels.view(-1, 1, _KERNEL, _KERNEL), padding=_KERNEL // 2, groups=len(images)
        ).transpose(0, 1)
        magnitude = added.abs()
        magnitude = magnitude / magnitude.amax(dim=(1, 2, 3), keepdim=True).clamp(min=1e-3)
        summed = images + added
        low = summed.amin(dim=(1, 2, 3), keepdim=True).clamp(max=0)
        high = summed.amax(dim=(1, 2, 3), keepdim=True).clamp(min=1)
        which = _each(which)
        return torch.where(which < 0.4, magnitude, torch.where(which < 0.7, (summed - low) / (high - low), images))

    def _toned(self, images: Tensor, drawn: Tensor) -> Tensor:
        """Gives some images another black and another white, which are never the same."""
        black, white, chosen = torch.split(drawn, 1, dim=1)
        black = self.tone * black
        contrast = 1 - self.tone * white - black
        least = torch.where(black > 0.5, -_LEAST_CONTRAST, _LEAST_CONTRAST)
        contrast = torch.where(contrast.abs() < _LEAST_CONTRAST, least, contrast)
        return torch.where(_each(chosen < 0.5), _each(black) + _each(contrast) * images, images)

    def _waves(self, drawn: Tensor) -> Tensor:
        """The sum of the plane waves [B, 1, 28, 28], zero for some images."""
        chosen, frequency, direction, phase, amplitude = torch.split(drawn, [1, *[_WAVES] * 4], dim=1)
        amplitude = amplitude * (self.waves * (chosen < 0.5))
        frequency = 2 * pi * (_SIDE / 2) * frequency**2  # radians a side; long waves are as frequent as short ones
        place = torch.arange(_SIDE, device=drawn.device) / _SIDE
        along, across = (
            (frequency * part(direction * pi)).unsqueeze(2) * place for part in (torch.cos, torch.sin)
        )  # [B, waves, 28]
        waves = torch.cos(along.unsqueeze(2) + across.unsqueeze(3) + (2 * pi * phase)[:, :, None, None])
        return (waves * amplitude[:, :, None, None]).sum(dim=1, keepdim=True)


def _each(values: Tensor) -> Tensor:
    """[B, 1] as [B, 1, 1, 1]."""
    return values[:, :, None, None]


@lru_cache(maxsize=8)
def _pixels(device: torch.device) -> Tensor:
    return torch.arange(_SIDE, device=device)


def _rolled(images: Tensor, drawn: Tensor) -> Tensor:
    """Shifts each image by its own number of pixels, up to ten; what leaves at one edge comes in at the other."""
    shifts = (drawn * 21).long() - 10
    rows, columns = ((_pixels(images.device) + shift[:, None]) % _SIDE for shift in shifts.unbind(dim=1))
    index = rows[:, :, None] * _SIDE + columns[:, None, :]
    return images.flatten(1).gather(1, index.flatten(1)).view_as(images)


def _rectangles(drawn: Tensor) -> Tensor:
    """1 inside a rectangle of any centre, with sides from 0.05 to 0.55 of the image's, 0 outside: [B, 1, 28, 28]."""
    place = _pixels(drawn.device) / _SIDE
    sides = drawn[:, 2:] * 0.5 + 0.05
    rows, columns = (((place - drawn[:, axis, None]).abs() < sides[:, axis, None] / 2).to(drawn) for axis in (0, 1))
    return (rows[:, :, None] * columns[:, None, :]).unsqueeze(1)

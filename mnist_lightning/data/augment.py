"""Random distortions of whole batches, of images and of graphs, on the device that the batch is on."""

from dataclasses import dataclass, fields
from functools import lru_cache
from math import inf, radians

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from mnist_lightning.data.appearance import Appearance
from mnist_lightning.errors import InputError

_GRID = 4  # displacements are drawn on a 4x4 grid and interpolated to every pixel
_CORNERS = 4
_AFFINE = 5  # random numbers that an affine map takes: rotation, scale, shear, two shifts


@lru_cache(maxsize=8)
def _basis(side: int, device: torch.device) -> Tensor:
    """[3 + 16, side * side]: x, y and 1 of every pixel, then each grid point's bicubic weight in every pixel."""
    centres = (torch.arange(side) + 0.5) * (2 / side) - 1
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    points = torch.eye(_GRID * _GRID).view(-1, 1, _GRID, _GRID)
    bicubic = F.interpolate(points, size=(side, side), mode="bicubic", align_corners=True)
    return torch.cat([torch.stack([x, y, torch.ones_like(x)]), bicubic.squeeze(1)]).flatten(1).to(device)


@lru_cache(maxsize=8)
def _between_corners(device: torch.device) -> Tensor:
    """[4, 16]: each corner's bilinear weight in every grid point."""
    corners = torch.eye(_CORNERS).view(-1, 1, 2, 2)
    return F.interpolate(corners, size=(_GRID, _GRID), mode="bilinear", align_corners=True).flatten(1).to(device)


@dataclass(frozen=True)
class Augmentation:
    """A random affine map, an elastic distortion and a change of looks, drawn anew for every image.

    The random numbers (`draw`) are apart from their use (`__call__`): they are drawn on the CPU with a seeded
    generator, so that an augmented batch does not depend on the device that distorts it.

    Elastic distortion is that of Simard et al. 2003 ("Best practices for convolutional neural networks applied to
    visual document analysis", section 2), with the smooth field made as in Ronneberger et al. 2015 ("U-Net",
    section 3.1): normal displacements on a coarse grid, interpolated bicubically.

    Args:
        rotate: Largest rotation, in degrees, either way.
        scale: Largest relative change of size.
        shear: Largest horizontal shear, as the shift of a row per row.
        shift: Largest shift along each axis, as a share of the image's side.
        elastic: Standard deviation of the elastic displacement, in pixels. 0 turns it off.
        corners: Standard deviation of the displacement of the picture's corners, each its own, in pixels; what is
            between them follows.
        appearance: Changes of how the digits look; null for none.

    Example:
        >>> augmentation = Augmentation(rotate=15)
        >>> images = torch.rand(2, 1, 28, 28)
        >>> augmentation(images, augmentation.draw(2, torch.Generator().manual_seed(0))).shape
        torch.Size([2, 1, 28, 28])
    """

    rotate: float = 12.0
    scale: float = 0.1
    shear: float = 0.15
    shift: float = 0.1
    elastic: float = 0.0
    corners: float = 0.0
    appearance: Appearance | None = None

    def __post_init__(self) -> None:
        _check_ranges(self)

    def draw(self, count: int, generator: Generator) -> Tensor:
        """Draws the random numbers of `count` images.

        Args:
            count: Number of images B.
            generator: A CPU generator; the same state gives the same distortions.

        Returns:
            Float tensor [B, K]: five numbers, uniform in [-1, 1), for the affine map; then normal ones for the elastic
            distortion (32) and for the corners (8), and those of the appearance, where these are on.
        """
        parts = [torch.rand(count, _AFFINE, generator=generator) * 2 - 1]
        if self.elastic:
            parts.append(torch.randn(count, 2 * _GRID * _GRID, generator=generator))
        if self.corners:
            parts.append(torch.randn(count, 2 * _CORNERS, generator=generator))
        if self.appearance is not None:
            parts.append(self.appearance.draw(count, generator))
        return torch.cat(parts, dim=1)

    def __call__(self, images: Tensor, drawn: Tensor) -> Tensor:
        """Distorts each image by its own map, then changes its looks; what comes from outside the image is black.

        Args:
            images: Float [B, 1, S, S].
            drawn: What `draw(B, ...)` returned, on any device.

        Returns:
            Float [B, 1, S, S].
        """
        side = images.shape[-1]
        sizes = [_AFFINE, 2 * _GRID * _GRID * (self.elastic > 0), 2 * _CORNERS * (self.corners > 0)]
        affine, elastic, corners, looks = torch.split(drawn.to(images), [*sizes, drawn.shape[1] - sum(sizes)], dim=1)
        weights = self._inverse_maps(affine)
        if self.elastic or self.corners:
            displacements = weights.new_zeros(len(weights), 2, _GRID * _GRID)
            if self.elastic:
                displacements = displacements + self.elastic * elastic.view_as(displacements)
            if self.corners:
                moved = self.corners * corners.view(-1, 2, _CORNERS)
                displacements = displacements + moved @ _between_corners(images.device)
            # In the unit of grid_sample, where the image's side is 2.
            weights = torch.cat([weights, displacements * (2 / side)], dim=2)
        basis = _basis(side, images.device)[: weights.shape[2]]
        # One matrix product for all coordinates of all images: 5 times as fast as F.affine_grid on a CPU.
        grid = (weights.flatten(0, 1) @ basis).view(-1, 2, side, side).permute(0, 2, 3, 1)
        distorted = F.grid_sample(images, grid, align_corners=False)
        return distorted if self.appearance is None else self.appearance(distorted, looks)

    def _inverse_maps(self, unit: Tensor) -> Tensor:
        """[B, 2, 3] affine maps from where a pixel lands to where it is taken from."""
        angle, scale, shear, shift_x, shift_y = unit.unbind(dim=1)
        linear = _linear_maps(angle * radians(self.rotate), 1 / (1 + scale * self.scale), shear * self.shear)
        shift = torch.stack([shift_x, shift_y], dim=1) * (2 * self.shift)
        return torch.cat([linear, shift.unsqueeze(2)], dim=2)


@dataclass(frozen=True)
class PositionAugmentation:
    """A random affine map of the nodes' positions in each graph, and noise.

    What a model computes from the positions, such as the lengths of edges, changes with them; the edges stay.

    Args:
        rotate: Largest rotation, in degrees, either way.
        scale: Largest relative change of size.
        shear: Largest horizontal shear, as the shift of a row per row.
        shift: Largest shift along each axis, as a share of the image's side.
        jitter: Standard deviation of each node's own displacement, as a share of the image's side.
        intensity: Largest relative change of a graph's intensities.

    Example:
        >>> augmentation = PositionAugmentation(jitter=0)
        >>> drawn = augmentation.draw(1, 3, torch.Generator().manual_seed(0))
        >>> x, pos, batch = torch.ones(3, 2), torch.full((3, 2), 0.5), torch.zeros(3, dtype=torch.long)
        >>> augmentation(x, pos, batch, drawn)[1].shape
        torch.Size([3, 2])
    """

    rotate: float = 15.0
    scale: float = 0.15
    shear: float = 0.2
    shift: float = 0.1
    jitter: float = 0.004
    intensity: float = 0.1

    def __post_init__(self) -> None:
        _check_ranges(self)

    def draw(self, graphs: int, nodes: int, generator: Generator) -> tuple[Tensor, Tensor]:
        """Draws the random numbers of a batch.

        Args:
            graphs: Number of graphs B.
            nodes: Number of all their nodes N.
            generator: A CPU generator; the same state gives the same distortions.

        Returns:
            Float [B, 6], uniform in [-1, 1), and float [N, 2], normal.
        """
        uniform = torch.rand(graphs, _AFFINE + 1, generator=generator) * 2 - 1
        return uniform, torch.randn(nodes, 2, generator=generator)

    def __call__(self, x: Tensor, pos: Tensor, batch: Tensor, drawn: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Maps each graph's positions about the image's centre.

        Args:
            x: Float [N, F], the intensity first.
            pos: Float [N, 2], row and column in [0, 1].
            batch: int64 [N], each node's graph.
            drawn: What `draw(B, N, ...)` returned, on any device.

        Returns:
            `x` and `pos`, both new.
        """
        uniform, normal = drawn[0].to(pos), drawn[1].to(pos)
        angle, scale, shear, *shifts, intensity = uniform.unbind(dim=1)
        linear = _linear_maps(angle * radians(self.rotate), 1 + scale * self.scale, shear * self.shear)
        # Rows and columns for x and y: a map of (x, y) with its axes exchanged.
        linear = linear.flip(1, 2)[batch]
        centred = pos - 0.5
        mapped = linear[:, :, 0] * centred[:, :1] + linear[:, :, 1] * centred[:, 1:]
        shift = torch.stack(shifts, dim=1) * self.shift
        pos = mapped + 0.5 + shift[batch] + normal * self.jitter
        factor = (1 + intensity * self.intensity)[batch].unsqueeze(1)
        return torch.cat([x[:, :1] * factor, x[:, 1:]], dim=1), pos


def _check_ranges(augmentation: Augmentation | PositionAugmentation) -> None:
    for field in fields(augmentation):
        value = getattr(augmentation, field.name)
        if not isinstance(value, (int, float)):
            continue  # the appearance, which checks itself
        if not 0 <= value < inf:
            raise InputError(f"augment.{field.name} is {value}; it is a range, 0 or more")
    if augmentation.scale >= 1:
        raise InputError(f"augment.scale is {augmentation.scale}; it is a relative change of size, below 1")


def _linear_maps(angle: Tensor, scale: Tensor, shear: Tensor) -> Tensor:
    """[B, 2, 2] maps of (x, y): a shear along x, then a rotation and a change of size; angles in radians."""
    cos, sin = angle.cos() * scale, angle.sin() * scale
    return torch.stack([cos, sin + shear * cos, -sin, cos - shear * sin], dim=1).view(-1, 2, 2)

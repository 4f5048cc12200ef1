"""Random augmentation of whole batches of images or graphs, on the device of the batch."""

from dataclasses import dataclass
from functools import lru_cache
from math import radians

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from mnist_lightning.data.appearance import Appearance, check_ranges
from mnist_lightning.errors import InputError

_GRID = 4  # side of the coarse grid of elastic displacements
_CORNERS = 4
_AFFINE = 5  # random numbers per affine map: rotation, scale, shear, two shifts


@lru_cache(maxsize=8)
def _basis(side: int, device: torch.device) -> Tensor:
    """[3 + 16, side * side]: x, y and 1 for each pixel, then the bicubic weight of each grid point at each pixel."""
    centres = (torch.arange(side) + 0.5) * (2 / side) - 1
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    points = torch.eye(_GRID * _GRID).view(-1, 1, _GRID, _GRID)
    bicubic = F.interpolate(points, size=(side, side), mode="bicubic", align_corners=True)
    return torch.cat([torch.stack([x, y, torch.ones_like(x)]), bicubic.squeeze(1)]).flatten(1).to(device)


@lru_cache(maxsize=8)
def _corner_weights(device: torch.device) -> Tensor:
    """[4, 16], the bilinear weight of each corner at each grid point."""
    corners = torch.eye(_CORNERS).view(-1, 1, 2, 2)
    return F.interpolate(corners, size=(_GRID, _GRID), mode="bilinear", align_corners=True).flatten(1).to(device)


@dataclass(frozen=True)
class Augmentation:
    """Random affine map, elastic distortion and appearance change, independent for each image.

    `draw` samples the random numbers and `__call__` applies them. `draw` uses a seeded generator on the CPU, so an
    augmented batch does not depend on its device.

    The elastic distortion follows Simard et al. 2003 ("Best practices for convolutional neural networks applied to
    visual document analysis", section 2). Its smooth field follows Ronneberger et al. 2015 ("U-Net", section 3.1):
    normal displacements on a coarse grid, interpolated bicubically.

    Args:
        rotate: Maximum rotation in degrees, in either direction.
        scale: Maximum relative change of size.
        shear: Maximum horizontal shear, as horizontal shift per unit of height.
        shift: Maximum shift along each axis, as a fraction of the image's side.
        elastic: Standard deviation of the elastic displacement in pixels, 0 for none.
        corners: Standard deviation of the displacement of each image corner in pixels, 0 for none. Displacements
            between the corners are interpolated bilinearly.
        appearance: Random changes of the image's appearance, or null for none.

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
        """Draws random numbers for `count` images.

        Args:
            count: Number of images B.
            generator: CPU generator. The same state gives the same distortions.

        Returns:
            Float [B, K]. The first 5 columns are uniform in [-1, 1), for the affine map. The next are normal: 32 for
            the elastic distortion and 8 for the corners. The numbers for the appearance come last. A distortion that
            is off has no columns.
        """
        parts = [torch.rand(count, _AFFINE, generator=generator) * 2 - 1]
        if self.elastic:
            parts.append(torch.randn(count, 2 * _GRID * _GRID, generator=generator))
        if self.corners:
            parts.append(torch.randn(count, 2 * _CORNERS, generator=generator))
        if self.appearance is not None:
            parts.append(self.appearance.draw(count, generator))
        return torch.cat(parts, dim=1)

    def __call__(self, images: Tensor, noise: Tensor) -> Tensor:
        """Distorts each image, then changes its appearance. Pixels from outside the image are black.

        Args:
            images: Float [B, 1, S, S].
            noise: Output of `draw(B, ...)`, on any device.

        Returns:
            Float [B, 1, S, S].
        """
        side = images.shape[-1]
        sizes = [_AFFINE, 2 * _GRID * _GRID * (self.elastic > 0), 2 * _CORNERS * (self.corners > 0)]
        affine, elastic, corners, rest = torch.split(noise.to(images), [*sizes, noise.shape[1] - sum(sizes)], dim=1)
        weights = self._inverse_maps(affine)
        if self.elastic or self.corners:
            displacements = weights.new_zeros(len(weights), 2, _GRID * _GRID)
            if self.elastic:
                displacements = displacements + self.elastic * elastic.view_as(displacements)
            if self.corners:
                moved = self.corners * corners.view(-1, 2, _CORNERS)
                displacements = displacements + moved @ _corner_weights(images.device)
            # grid_sample measures the image's side as 2.
            weights = torch.cat([weights, displacements * (2 / side)], dim=2)
        basis = _basis(side, images.device)[: weights.shape[2]]
        # One matrix product for all coordinates of all images is 5x faster than F.affine_grid on a CPU.
        grid = (weights.flatten(0, 1) @ basis).view(-1, 2, side, side).permute(0, 2, 3, 1)
        distorted = F.grid_sample(images, grid, align_corners=False)
        return distorted if self.appearance is None else self.appearance(distorted, rest)

    def _inverse_maps(self, unit: Tensor) -> Tensor:
        """[B, 2, 3] affine maps from output coordinates to input coordinates."""
        angle, scale, shear, shift_x, shift_y = unit.unbind(dim=1)
        linear = _linear_maps(angle * radians(self.rotate), 1 / (1 + scale * self.scale), shear * self.shear)
        shift = torch.stack([shift_x, shift_y], dim=1) * (2 * self.shift)
        return torch.cat([linear, shift.unsqueeze(2)], dim=2)


@dataclass(frozen=True)
class PositionAugmentation:
    """Random affine map and jitter of node positions, and a random change of intensity, for each graph.

    Edges stay the same. Features that a model computes from positions, such as edge lengths, change.

    Args:
        rotate: Maximum rotation in degrees, in either direction.
        scale: Maximum relative change of size.
        shear: Maximum horizontal shear, as horizontal shift per unit of height.
        shift: Maximum shift along each axis, as a fraction of the image's side.
        jitter: Standard deviation of the independent displacement of each node, as a fraction of the image's side.
        intensity: Maximum relative change of the intensities of a graph.

    Example:
        >>> augmentation = PositionAugmentation(jitter=0)
        >>> noise = augmentation.draw(1, 3, torch.Generator().manual_seed(0))
        >>> x, pos, batch = torch.ones(3, 2), torch.full((3, 2), 0.5), torch.zeros(3, dtype=torch.long)
        >>> augmentation(x, pos, batch, noise)[1].shape
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
        """Draws random numbers for a batch.

        Args:
            graphs: Number of graphs B.
            nodes: Total number of nodes N.
            generator: CPU generator. The same state gives the same distortions.

        Returns:
            Float [B, 6], uniform in [-1, 1), and float [N, 2], normal.
        """
        uniform = torch.rand(graphs, _AFFINE + 1, generator=generator) * 2 - 1
        return uniform, torch.randn(nodes, 2, generator=generator)

    def __call__(self, x: Tensor, pos: Tensor, batch: Tensor, noise: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Transforms the node positions of each graph about the image centre, and scales its intensities.

        Moments of the intensities are transformed like the pixels that they describe. Jitter does not change them.

        Args:
            x: Float [N, 2], mean intensity and size of each node, or float [N, 8], with the moments of
                `superpixel_graphs`.
            pos: Float [N, 2], row and column in [0, 1].
            batch: int64 [N], graph of each node.
            noise: Output of `draw(B, N, ...)`, on any device.

        Returns:
            New tensors `x` and `pos`.
        """
        uniform, normal = noise[0].to(pos), noise[1].to(pos)
        angle, scale, shear, *shifts, intensity = uniform.unbind(dim=1)
        linear = _linear_maps(angle * radians(self.rotate), 1 + scale * self.scale, shear * self.shear)
        # The maps use (x, y); positions use (row, column).
        linear = linear.flip(1, 2)[batch]
        centred = pos - 0.5
        mapped = linear[:, :, 0] * centred[:, :1] + linear[:, :, 1] * centred[:, 1:]
        shift = torch.stack(shifts, dim=1) * self.shift
        pos = mapped + 0.5 + shift[batch] + normal * self.jitter
        factor = (1 + intensity * self.intensity)[batch].unsqueeze(1)
        mean, size, moments = torch.split(x, [1, 1, x.shape[1] - 2], dim=1)
        if moments.shape[1]:
            moments = _mapped_moments(moments, linear)
        return torch.cat([mean * factor, size, moments * factor], dim=1), pos


def _mapped_moments(moments: Tensor, linear: Tensor) -> Tensor:
    """[N, 6] moments of nodes after linear maps [N, 2, 2] of (row, column)."""
    deviation, r, c, rr, rc, cc = moments.unbind(dim=1)
    first = (linear @ torch.stack([r, c], dim=1).unsqueeze(2)).squeeze(2)
    second = linear @ torch.stack([rr, rc, rc, cc], dim=1).view(-1, 2, 2) @ linear.transpose(1, 2)
    return torch.cat([deviation.unsqueeze(1), first, second.flatten(1)[:, [0, 1, 3]]], dim=1)


def _check_ranges(augmentation: Augmentation | PositionAugmentation) -> None:
    check_ranges(augmentation, "augment")
    if augmentation.scale >= 1:
        raise InputError(f"augment.scale must be below 1, got {augmentation.scale}")


def _linear_maps(angle: Tensor, scale: Tensor, shear: Tensor) -> Tensor:
    """[B, 2, 2] maps of (x, y): shear along x, then rotation and scaling. Angles are in radians."""
    cos, sin = angle.cos() * scale, angle.sin() * scale
    return torch.stack([cos, sin + shear * cos, -sin, cos - shear * sin], dim=1).view(-1, 2, 2)

"""Superpixel graphs of images, stored for a whole dataset in one flat file.

Each node is a superpixel with its mean intensity, size and centroid, and optionally with moments of its intensities.
Each node receives edges from its nearest neighbours by position. The pixel-to-node map is kept, so that node
attributions can be drawn on the digit.
"""

import os
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.data import DataLoader

from mnist_lightning.data.augment import Augmentation
from mnist_lightning.data.images import mixed_seed
from mnist_lightning.data.store import mapped, stored
from mnist_lightning.errors import InputError

NODES = 75  # maximum per graph; the standard number in the literature on MNIST superpixels
NEIGHBORS = 8
_GRID = 196  # superpixels of SLIC before merging: 2x2 pixels each
COMPACTNESS = 0.6
_INK = 0.02  # cost of merging ink, against 1 for the square of the difference of intensities
Features = Literal["plain", "moments"]
COLUMNS: dict[Features, int] = {"plain": 2, "moments": 8}  # node features
# Distorted copies of training images, each with its own superpixels.
DISTORTION = Augmentation(rotate=8, scale=0.08, shear=0.1, shift=0.06, elastic=0.8)
COMPACTNESSES = (0.3, 0.8)  # log-uniform
_CHUNK = 500  # images per task: about 2 MB of results


def segment(image: NDArray[np.uint8], nodes: int = NODES, compactness: float = COMPACTNESS) -> NDArray[np.uint8]:
    """Divides an image into superpixels with scikit-image's SLIC (Achanta et al. 2012).

    SLIC grows superpixels from a square grid, here of 2x2 pixels. The most similar neighbours are then merged by Ward's
    criterion, with an additional cost for ink. So the background has few large nodes, and most nodes describe the
    strokes.

    Args:
        image: uint8 [S, S].
        nodes: Maximum number of superpixels, up to 255.
        compactness: Weight of distance against difference of intensity. Low values follow the strokes, high values
            give squares.

    Returns:
        uint8 [S, S], the superpixel of each pixel, numbered from 0 without gaps.

    Example:
        >>> image = np.zeros((28, 28), np.uint8)
        >>> image[4:24, 12:16] = 255
        >>> int(segment(image).max()) + 1
        75
    """
    from skimage.segmentation import slic

    intensities = image / 255
    # More than 5 iterations take twice the time without a visible difference.
    segments = slic(intensities, _GRID, compactness, max_num_iter=5, channel_axis=None, start_label=0)
    while segments.max() >= nodes:
        segments = _merged(segments, intensities, nodes)
    return np.asarray(segments, np.uint8)


def _merged(segments: NDArray[np.int64], intensities: NDArray[np.float64], nodes: int) -> NDArray[np.int64]:
    """Merges the most similar adjacent superpixels, each at most once, until at least `nodes` are left."""
    count = int(segments.max()) + 1
    size = np.bincount(segments.ravel()).astype(float)
    mean = np.bincount(segments.ravel(), intensities.ravel()) / size
    one = np.concatenate([segments[:, :-1].ravel(), segments[:-1].ravel()])
    other = np.concatenate([segments[:, 1:].ravel(), segments[1:].ravel()])
    borders = (np.minimum(one, other) * count + np.maximum(one, other))[one != other]
    first, second = np.divmod(np.unique(borders), count)
    # Ward: variance added by the merge. The constant breaks ties between equal intensities: the smallest merge first.
    difference, ink = mean[first] - mean[second], np.maximum(mean[first], mean[second])
    cost = size[first] * size[second] / (size[first] + size[second]) * (difference**2 + 1e-4 + _INK * ink)
    renamed = np.arange(count)
    merged: set[int] = set()
    # Only the cheaper half: a superpixel that has been merged may be the best partner for another in the next call.
    cheapest = np.argsort(cost, kind="stable")[: (len(cost) + 1) // 2]
    for node, partner in zip(first[cheapest].tolist(), second[cheapest].tolist(), strict=True):
        if count == nodes:
            break
        if node not in merged and partner not in merged:
            merged |= {node, partner}
            renamed[partner] = node
            count -= 1
    return np.unique(renamed[segments], return_inverse=True)[1].reshape(segments.shape)


def nearest_neighbors(positions: Tensor, counts: Tensor, neighbors: int = NEIGHBORS) -> Tensor:
    """Finds the nearest nodes of each node by position, nearest first. Ties go to the lower node index.

    Args:
        positions: float32 [G, M, 2], node positions of G graphs, padded to M nodes, at most 256, with any values.
        counts: int64 [G], number of nodes in each graph without padding.
        neighbors: Number of neighbours per node. Each graph must have more nodes than this.

    Returns:
        int64 [G, M, neighbors], node indices within each graph. Rows of padding are meaningless.

    Example:
        >>> nearest_neighbors(torch.tensor([[[0.0, 0.0], [0.0, 1.0], [0.0, 3.0]]]), torch.tensor([3]), neighbors=1)
        tensor([[[1],
                 [0],
                 [1]]])
    """
    squares = (positions[:, :, None] - positions[:, None]).square().sum(dim=3)
    padding = torch.arange(positions.shape[1]) >= counts[:, None]
    squares.masked_fill_(padding[:, None, :], torch.inf)
    squares.diagonal(dim1=1, dim2=2).fill_(torch.inf)
    # The bits of non-negative floats sort like the floats, so one integer key holds distance and node index.
    keys = squares.view(torch.int32).long() * 256 + torch.arange(positions.shape[1])
    return keys.topk(neighbors, largest=False, sorted=True).values % 256


@dataclass(frozen=True)
class SuperpixelGraphs:
    """G graphs, concatenated into flat tensors.

    Attributes:
        x: float32 [N, 2], node features: mean intensity in [0, 1] and fraction of the image's pixels. With moments,
            float32 [N, 8]: see `superpixel_graphs`.
        pos: float32 [N, 2], node centroids: row (from the top) and column in [0, 1].
        edges: uint8 [2, E], source and target node of each edge, as indices within the graph, sorted by target.
        node_ptr: int64 [G + 1], index of each graph's first node.
        edge_ptr: int64 [G + 1], index of each graph's first edge.
        segments: uint8 [G, 28, 28], node of each pixel.
    """

    x: Tensor
    pos: Tensor
    edges: Tensor
    node_ptr: Tensor
    edge_ptr: Tensor
    segments: Tensor

    def __len__(self) -> int:
        return len(self.node_ptr) - 1


def superpixel_graphs(
    images: Tensor,
    nodes: int = NODES,
    neighbors: int = NEIGHBORS,
    features: Features = "plain",
    compactness: Sequence[float] | None = None,
) -> SuperpixelGraphs:
    """Builds the graphs of images, in this process.

    Args:
        images: uint8 [G, 28, 28].
        nodes: Maximum number of superpixels per graph.
        neighbors: Number of incoming edges per node.
        features: Node features. `plain`: mean intensity and size. `moments` adds the standard deviation of the
            intensities v, the means of v r and v c, and the means of v r r, v r c and v c c. The row r and the column c
            of a pixel are relative to the centroid, as a fraction of the image's side.
        compactness: Compactness of each image's superpixels. Default: the same for all.

    Raises:
        InputError: If an image has too few superpixels for this number of neighbours.

    Example:
        >>> from mnist_lightning.data.sources import read
        >>> graphs = superpixel_graphs(read("digits", train=False)[0][:3])
        >>> len(graphs), graphs.x.shape[0] == graphs.node_ptr[-1]
        (3, tensor(True))
    """
    side = images.shape[1]
    compactness = [COMPACTNESS] * len(images) if compactness is None else compactness
    segmented = [segment(image, nodes, each) for image, each in zip(images.numpy(), compactness, strict=True)]
    segments = torch.from_numpy(np.stack(segmented))
    flat = segments.flatten(1).long()
    counts = flat.amax(dim=1) + 1
    if counts.min() <= neighbors:
        graph = int(counts.argmin())
        needed = f"more than {neighbors} superpixels to give each {neighbors} neighbours, got {counts[graph]}"
        raise InputError(f"image {graph} must have {needed}; increase nodes or decrease neighbors")
    most = int(counts.max())

    def sums(*columns: Tensor) -> Tensor:
        """Sums over the pixels of each node, [columns, G, M]. float64 makes them independent of summation order."""
        values = torch.stack([column.expand(flat.shape) for column in columns]).double()
        zeros = values.new_zeros(len(columns), len(images), most)
        return zeros.scatter_add_(2, flat.expand(len(columns), -1, -1), values)

    row, column = ((torch.arange(side**2) // side + 0.5) / side, (torch.arange(side**2) % side + 0.5) / side)
    intensity = images.flatten(1) / 255
    size, *rest = sums(torch.ones(side**2), row, column, intensity)
    size = size.clamp_min(1)
    pos = torch.stack([rest[0] / size, rest[1] / size], dim=2)
    x = torch.stack([rest[2] / size, size / side**2], dim=2)
    if features == "moments":
        r, c = row - pos[:, :, 0].gather(1, flat), column - pos[:, :, 1].gather(1, flat)
        v = intensity.double()
        deviation = v - x[:, :, 0].gather(1, flat)
        variance, *moments = sums(deviation**2, v * r, v * c, v * r * r, v * r * c, v * c * c) / size
        x = torch.cat([x, torch.stack([variance.sqrt(), *moments], dim=2)], dim=2)
    x, pos = x.float(), pos.float()
    sources = nearest_neighbors(pos, counts, neighbors).to(torch.uint8)
    targets = torch.arange(most, dtype=torch.uint8)[:, None].expand(-1, neighbors)
    present = torch.arange(most) < counts[:, None]
    edges = torch.stack([sources[present].flatten(), targets.expand_as(sources)[present].flatten()])
    node_ptr = pad(counts.cumsum(0), (1, 0))
    return SuperpixelGraphs(x[present], pos[present], edges, node_ptr, node_ptr * neighbors, segments)


def concatenate(parts: list[SuperpixelGraphs]) -> SuperpixelGraphs:
    """Concatenates graphs."""
    columns = {name: torch.cat([getattr(part, name) for part in parts]) for name in ("x", "pos", "segments")}
    for name in ("node_ptr", "edge_ptr"):
        sizes = torch.cat([getattr(part, name).diff() for part in parts])
        columns[name] = pad(sizes.cumsum(0), (1, 0))
    return SuperpixelGraphs(**columns, edges=torch.cat([part.edges for part in parts], dim=1))


def read_graphs(path: Path) -> SuperpixelGraphs:
    """Memory-maps a file of `stored_graphs`.

    Raises:
        InputError: If the file is missing or damaged.
    """
    return SuperpixelGraphs(**mapped(path))


def stored_graphs(
    name: str,
    images: Tensor,
    folders: Sequence[Path],
    build: bool = True,
    features: Features = "plain",
    copy: int = 0,
) -> Path:
    """Finds the cached graphs of images, or builds them where they are missing or damaged.

    Building uses all CPU cores and shows a progress bar. It is safe for two processes to build the same file at once.

    Args:
        name: Name of the dataset, for the file name and the progress bar.
        images: uint8 [G, 28, 28].
        folders: Folders to search. A new file goes to the first writable one.
        build: Whether to check the file for damage and to build it if needed.
        features: Node features, see `superpixel_graphs`.
        copy: Number of a distorted copy of the images, see `distorted`. 0 for the images themselves.

    Returns:
        Path of the file.

    Raises:
        InputError: If no folder is writable, or the file is missing and `build` is False.
    """
    parameters = f"{NODES}-{NEIGHBORS}-{_GRID}-{COMPACTNESS}-{_INK}"
    if features != "plain":
        parameters += f"-{features}"
    if copy:
        parameters += f"-{copy}-{DISTORTION}-{COMPACTNESSES}"
    prefix = re.sub(r"[^a-z0-9_]+", "-", name.lower())
    file = f"{prefix}-{zlib.crc32(images.numpy().data, zlib.crc32(parameters.encode())):08x}.pt"
    return stored(file, folders, (lambda: vars(_build(name, images, features, copy))) if build else None)


def distorted(images: Tensor, copy: int, chunk: int) -> tuple[Tensor, list[float]]:
    """Distorts images, and draws the compactness of their superpixels.

    Args:
        images: uint8 [B, 28, 28].
        copy: Number of the copy, from 1.
        chunk: Number of these images among all chunks. Copy and chunk seed the random numbers.

    Returns:
        Images, uint8 [B, 28, 28], and the compactness of each.
    """
    generator = torch.Generator().manual_seed(mixed_seed(copy, chunk))
    noise = DISTORTION.draw(len(images), generator)
    moved = DISTORTION(images.unsqueeze(1).float() / 255, noise).squeeze(1)
    low, high = COMPACTNESSES
    compactness = low * (high / low) ** torch.rand(len(images), generator=generator)
    return (moved * 255).round().to(torch.uint8), compactness.tolist()


def _build(name: str, images: Tensor, features: Features, copy: int) -> SuperpixelGraphs:
    chunks = list(enumerate(torch.split(images, _CHUNK)))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    loader: DataLoader[SuperpixelGraphs] = DataLoader(
        chunks,  # type: ignore[arg-type]
        batch_size=None,
        num_workers=min(cores, len(chunks)) if len(chunks) > 1 else 0,
        collate_fn=partial(_chunk_graphs, features=features, copy=copy),
        generator=torch.Generator(),  # seeds the workers; the default would advance the global random state
    )
    console = Console(stderr=True)
    title = f"superpixels of {len(images):,} {name} images" + (f", distorted copy {copy}" if copy else "")
    return concatenate(list(track(loader, title, len(chunks), console=console, disable=not console.is_terminal)))


def _chunk_graphs(numbered: tuple[int, Tensor], features: Features, copy: int) -> SuperpixelGraphs:
    chunk, images = numbered
    images, compactness = distorted(images, copy, chunk) if copy else (images, None)
    return superpixel_graphs(images, features=features, compactness=compactness)

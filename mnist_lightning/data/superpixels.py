"""Images to superpixel graphs, all of a data set's in one flat file.

A node is a superpixel: its mean intensity, its size and its centroid. Edges come to each node from its nearest
neighbours by position. Which pixels belong to which node is kept, so that what is found on a graph can be drawn on
the digit.
"""

import os
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.data import DataLoader, Dataset

from mnist_lightning.data.store import mapped, stored
from mnist_lightning.errors import InputError

NODES = 75  # at the most; the number that the literature on superpixel graphs of MNIST has settled on
NEIGHBORS = 8
_COMPACTNESS = 0.6  # lets superpixels follow strokes: it leaves the least variance inside them (of 0.1 to 1)
_CHUNK = 500  # images a task: some 2 MB of results


def segment(image: NDArray[np.uint8], nodes: int = NODES) -> NDArray[np.uint8]:
    """Divides an image into superpixels by SLIC (Achanta et al. 2012), as scikit-image has it.

    SLIC grows superpixels from a square grid, so that their number cannot be chosen: 81 for most digits. Where it is
    too large, the neighbours that are most alike are merged (Ward's criterion), which takes from the background.

    Args:
        image: uint8 [S, S].
        nodes: Superpixels at the most, up to 255.

    Returns:
        uint8 [S, S]: each pixel's superpixel, numbered from 0 without gaps.

    Example:
        >>> image = np.zeros((28, 28), np.uint8)
        >>> image[4:24, 12:16] = 255
        >>> int(segment(image).max()) + 1
        75
    """
    from skimage.segmentation import slic

    intensities = image / 255
    segments = slic(
        intensities,
        n_segments=nodes,
        compactness=_COMPACTNESS,
        max_num_iter=5,  # more change nothing that one could see, and take twice the time
        channel_axis=None,
        start_label=0,
    )
    while segments.max() >= nodes:
        segments = _merged(segments, intensities, nodes)
    result: NDArray[np.uint8] = segments.astype(np.uint8)
    return result


def _merged(segments: NDArray[np.int64], intensities: NDArray[np.float64], nodes: int) -> NDArray[np.int64]:
    """Merges the most alike of the pairs of adjacent superpixels, each superpixel once, until `nodes` are left."""
    count = int(segments.max()) + 1
    size = np.bincount(segments.ravel()).astype(float)
    mean = np.bincount(segments.ravel(), intensities.ravel()) / size
    one = np.concatenate([segments[:, :-1].ravel(), segments[:-1].ravel()])
    other = np.concatenate([segments[:, 1:].ravel(), segments[1:].ravel()])
    borders = (np.minimum(one, other) * count + np.maximum(one, other))[one != other]
    first, second = np.divmod(np.unique(borders), count)
    # Ward: the variance that the merger adds. The constant is for superpixels of one intensity: the smallest first.
    cost = size[first] * size[second] / (size[first] + size[second]) * ((mean[first] - mean[second]) ** 2 + 1e-4)
    renamed = np.arange(count)
    merged: set[int] = set()
    for pair in np.argsort(cost, kind="stable"):
        if count == nodes:
            break
        ends = {int(first[pair]), int(second[pair])}
        if not ends & merged:
            merged |= ends
            renamed[second[pair]] = first[pair]
            count -= 1
    return np.unique(renamed[segments], return_inverse=True)[1].reshape(segments.shape)


def nearest_neighbors(positions: Tensor, counts: Tensor, neighbors: int = NEIGHBORS) -> Tensor:
    """Each node's nearest nodes by position, the nearest first; the first of those that are equally near.

    Args:
        positions: float [G, M, 2], the nodes of G graphs, each filled up to M nodes by anything.
        counts: int64 [G], nodes that each graph really has.
        neighbors: How many; each graph must have more nodes than that.

    Returns:
        int64 [G, M, neighbors], numbers of nodes within their graph; without meaning for what fills a graph up.

    Example:
        >>> nearest_neighbors(torch.tensor([[[0.0, 0.0], [0.0, 1.0], [0.0, 3.0]]]), torch.tensor([3]), neighbors=1)
        tensor([[[1],
                 [0],
                 [1]]])
    """
    squares = (positions[:, :, None] - positions[:, None]).square().sum(dim=3)
    absent = torch.arange(positions.shape[1]) >= counts[:, None]
    squares.masked_fill_(absent[:, None, :], torch.inf)
    squares.diagonal(dim1=1, dim2=2).fill_(torch.inf)
    # The bits of floats that are not negative are ordered as they are: distance and number in one whole number.
    keys = squares.view(torch.int32).long() * 256 + torch.arange(positions.shape[1])
    return keys.topk(neighbors, largest=False, sorted=True).values % 256


@dataclass(frozen=True)
class SuperpixelGraphs:
    """G graphs, one after the other: no object a graph.

    Attributes:
        x: float32 [N, 2], each node's mean intensity in [0, 1] and its share of the image's pixels.
        pos: float32 [N, 2], its centroid: row and column in [0, 1], the row from the top.
        edges: uint8 [2, E], the nodes that an edge comes from and goes to, as numbered in their graph; sorted by
            the latter.
        node_ptr: int64 [G + 1], where each graph's nodes begin.
        edge_ptr: int64 [G + 1], where each graph's edges begin.
        segments: uint8 [G, 28, 28], the node that each pixel belongs to; [G, 0, 0] where that is not known.
    """

    x: Tensor
    pos: Tensor
    edges: Tensor
    node_ptr: Tensor
    edge_ptr: Tensor
    segments: Tensor

    def __len__(self) -> int:
        return len(self.node_ptr) - 1


def superpixel_graphs(images: Tensor, nodes: int = NODES, neighbors: int = NEIGHBORS) -> SuperpixelGraphs:
    """Makes the graphs of some images, in this process.

    Args:
        images: uint8 [G, 28, 28].
        nodes: Superpixels a graph at the most.
        neighbors: Edges that come to each node.

    Raises:
        InputError: If an image has too few superpixels for so many neighbours.

    Example:
        >>> from mnist_lightning.data.sources import read
        >>> graphs = superpixel_graphs(read("digits", train=False)[0][:3])
        >>> len(graphs), graphs.x.shape[0] == graphs.node_ptr[-1]
        (3, tensor(True))
    """
    side = images.shape[1]
    segments = torch.from_numpy(np.stack([segment(image, nodes) for image in images.numpy()]))
    flat = segments.flatten(1).long()
    counts = flat.amax(dim=1) + 1
    if counts.min() <= neighbors:
        graph = int(counts.argmin())
        raise InputError(f"image {graph} has {counts[graph]} superpixels, too few for {neighbors} neighbours of each")
    most = int(counts.max())
    row, column = ((torch.arange(side**2) // side + 0.5) / side, (torch.arange(side**2) % side + 0.5) / side)
    values = torch.stack([torch.ones(side**2), row, column]).expand(len(images), 3, -1)
    values = torch.cat([values, images.flatten(1).unsqueeze(1) / 255], dim=1)
    # In 64 bits, so that a mean does not depend on the order of its terms.
    sums = values.new_zeros(len(images), 4, most, dtype=torch.float64)
    sums.scatter_add_(2, flat.unsqueeze(1).expand(-1, 4, -1), values.double())
    size = sums[:, 0].clamp_min(1)
    pos = torch.stack([sums[:, 1] / size, sums[:, 2] / size], dim=2).float()
    x = torch.stack([sums[:, 3] / size, size / side**2], dim=2).float()
    sources = nearest_neighbors(pos, counts, neighbors).to(torch.uint8)
    targets = torch.arange(most, dtype=torch.uint8)[:, None].expand(-1, neighbors)
    present = torch.arange(most) < counts[:, None]
    edges = torch.stack([sources[present].flatten(), targets.expand_as(sources)[present].flatten()])
    node_ptr = pad(counts.cumsum(0), (1, 0))
    return SuperpixelGraphs(x[present], pos[present], edges, node_ptr, node_ptr * neighbors, segments)


def joined(parts: list[SuperpixelGraphs]) -> SuperpixelGraphs:
    """The graphs of all parts, one after the other."""
    columns: dict[str, Tensor] = {}
    for name in ("x", "pos", "segments"):
        columns[name] = torch.cat([getattr(part, name) for part in parts])
    for name in ("node_ptr", "edge_ptr"):
        sizes = torch.cat([getattr(part, name).diff() for part in parts])
        columns[name] = pad(sizes.cumsum(0), (1, 0))
    return SuperpixelGraphs(**columns, edges=torch.cat([part.edges for part in parts], dim=1))


class _Chunks(Dataset[SuperpixelGraphs]):
    """Pieces of work for processes."""

    def __init__(self, images: Tensor) -> None:
        self.chunks = torch.split(images, _CHUNK)

    def __len__(self) -> int:
        return len(self.chunks)

    def __getitem__(self, index: int) -> SuperpixelGraphs:
        return superpixel_graphs(self.chunks[index])


def read_graphs(path: Path) -> SuperpixelGraphs:
    """Opens a file of `stored_graphs`, without reading it: the memory is the file's.

    Raises:
        InputError: If the file is absent or damaged.
    """
    return SuperpixelGraphs(**mapped(path))


def stored_graphs(name: str, images: Tensor, folders: Sequence[Path], build: bool = True) -> Path:
    """The file with the graphs of some images; where there is none, or a damaged one, it is made.

    All processor cores work on it, with a progress bar. Two processes that do this at once leave one good file.

    Args:
        name: What the images are called.
        images: uint8 [G, 28, 28].
        folders: Where the file may lie. It is written to the first folder that can be written to.
        build: Whether to look for damage, and to make the file.

    Raises:
        InputError: If no folder can be written to, or there is no file and `build` is False.
    """
    parameters = f"{NODES}-{NEIGHBORS}-{_COMPACTNESS}".encode()
    name_of_file = re.sub(r"[^a-z0-9_]+", "-", name.lower())
    file = f"{name_of_file}-{zlib.crc32(images.numpy().data, zlib.crc32(parameters)):08x}.pt"
    return stored(file, folders, (lambda: vars(_build(name, images))) if build else None)


def _build(name: str, images: Tensor) -> SuperpixelGraphs:
    chunks = _Chunks(images)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = min(cores, len(chunks)) if len(chunks) > 1 else 0
    # A generator of its own, because the workers' seeds would be taken from the training's random numbers.
    loader = DataLoader(chunks, batch_size=None, num_workers=workers, generator=torch.Generator())
    console = Console(stderr=True)
    title = f"superpixels of {len(images):,} {name} images"
    return joined(list(track(loader, title, len(chunks), console=console, disable=not console.is_terminal)))

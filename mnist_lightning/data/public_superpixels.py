"""PyG's public superpixel graphs of MNIST, converted to flat tensors.

The graphs are from Monti et al. 2017 ("Geometric deep learning on graphs and manifolds using mixture model CNNs"), with
75 nodes per graph, intensities and positions. How they were made and which pixels belong to each node is not
documented. Do not compare accuracies on these graphs with accuracies on other graphs.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from mnist_lightning.data.sources import data_root
from mnist_lightning.data.store import mapped, stored
from mnist_lightning.data.superpixels import SuperpixelGraphs, concatenate
from mnist_lightning.errors import InputError, SourceUnavailableError, one_line

PUBLIC = "mnist_superpixels"
_SIDE = 28
_CHUNK = 250  # graphs per step: 60 MB of distances


class PublicGraphs(NamedTuple):
    """The public graphs, test graphs last.

    Attributes:
        graphs: All G graphs. The file has no segments or node sizes, so each pixel is assigned to the nearest node
            and all nodes of a graph get the same size.
        images: uint8 [G, 28, 28], rendered from the node intensities.
        labels: int64 [G].
        train: Number of training graphs.
    """

    graphs: SuperpixelGraphs
    images: Tensor
    labels: Tensor
    train: int


def read_public(root: str | Path | None, folders: Sequence[Path], build: bool = False) -> PublicGraphs:
    """Reads the graphs downloaded by PyG's `MNISTSuperpixels(ROOT/MNISTSuperpixels)`.

    Args:
        root: Data folder, as for other sources.
        folders: Cache folders for the converted graphs, as in `stored`.
        build: Whether to convert the graphs if the cache file is missing or damaged.

    Raises:
        SourceUnavailableError: If the public graphs are not on disk.
        InputError: If the public graphs are damaged, or not yet converted and `build` is False.
    """
    raw = data_root(root) / "MNISTSuperpixels" / "raw" / "MNISTSuperpixels.pt"
    if not raw.is_file():
        raise SourceUnavailableError(
            f"{PUBLIC} needs {raw}; download it with torch_geometric.datasets.MNISTSuperpixels({str(raw.parents[1])!r})"
        )
    state = raw.stat()
    file = f"{PUBLIC}-{state.st_size}-{state.st_mtime_ns}.pt"
    columns = mapped(stored(file, folders, partial(_convert, raw) if build else None))
    images, labels, train = (columns.pop(name) for name in ("images", "labels", "train"))
    return PublicGraphs(SuperpixelGraphs(**columns), images, labels, int(train))


def _convert(raw: Path) -> dict[str, Tensor]:
    try:
        parts = torch.load(raw, weights_only=True)
        graphs = [graph for part in parts for graph in part]
        flat = concatenate([_convert_chunk(graphs[start : start + _CHUNK]) for start in range(0, len(graphs), _CHUNK)])
        labels = torch.cat([graph["y"].flatten() for graph in graphs]).long()
    except Exception as error:  # a damaged file can raise anything
        raise InputError(f"{raw} is not PyG's MNISTSuperpixels file, or is damaged: {one_line(error)}") from error
    intensity = flat.x[:, 0][flat.segments.flatten(1).long() + flat.node_ptr[:-1, None]]
    images = (intensity.view(-1, _SIDE, _SIDE) * 255).round().to(torch.uint8)
    return {**vars(flat), "images": images, "labels": labels, "train": torch.tensor(len(parts[0]))}


def _convert_chunk(graphs: list[dict[str, Tensor]]) -> SuperpixelGraphs:
    counts = torch.tensor([len(graph["x"]) for graph in graphs])
    # PyG's positions are (x, y) in pixels, y from the top.
    pos = [(graph["pos"].flip(1).float() + 0.5) / _SIDE for graph in graphs]
    padded = torch.nn.utils.rnn.pad_sequence(pos, batch_first=True, padding_value=1e3)
    centres = (torch.arange(_SIDE) + 0.5) / _SIDE
    pixels = torch.cartesian_prod(centres, centres)
    segments = torch.cdist(pixels, padded).argmin(dim=2).to(torch.uint8).view(-1, _SIDE, _SIDE)
    intensities = torch.cat([graph["x"].flatten().float() for graph in graphs])
    sizes = (1 / counts).repeat_interleave(counts)
    edges = [graph["edge_index"][:, graph["edge_index"][1].argsort(stable=True)] for graph in graphs]
    edge_counts = torch.tensor([edge.shape[1] for edge in edges])
    node_ptr, edge_ptr = (pad(sizes.cumsum(0), (1, 0)) for sizes in (counts, edge_counts))
    x = torch.stack([intensities, sizes], dim=1)
    return SuperpixelGraphs(x, torch.cat(pos), torch.cat(edges, dim=1).to(torch.uint8), node_ptr, edge_ptr, segments)

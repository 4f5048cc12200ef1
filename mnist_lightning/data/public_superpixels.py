"""PyG's public superpixel graphs of MNIST, in the flat form of our own.

They are those of Monti et al. 2017 ("Geometric deep learning on graphs and manifolds using mixture model CNNs"): 75
nodes a graph, intensities and positions. Nobody can tell any more how they were made, nor which pixels belong to which
node. Accuracies on them cannot be compared with those on other graphs.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from mnist_lightning.data.sources import data_root
from mnist_lightning.data.store import mapped, stored
from mnist_lightning.data.superpixels import SuperpixelGraphs, joined
from mnist_lightning.errors import InputError, SourceUnavailableError, one_line

PUBLIC = "mnist_superpixels"
_SIDE = 28
_CHUNK = 250  # graphs at once: 60 MB of distances


class PublicGraphs(NamedTuple):
    """The public graphs, the test graphs last.

    Attributes:
        graphs: All of them. A pixel's node is the nearest one, and all nodes are of one size: the file says no more.
        images: uint8 [G, 28, 28], painted from the graphs.
        labels: int64 [G].
        train: So many, from the first, are the training graphs.
    """

    graphs: SuperpixelGraphs
    images: Tensor
    labels: Tensor
    train: int


def read_public(root: str | Path | None, folders: Sequence[Path], build: bool = False) -> PublicGraphs:
    """Opens the graphs that PyG's `MNISTSuperpixels(ROOT/MNISTSuperpixels)` has downloaded.

    Args:
        root: Folder of the data, as for other sources.
        folders: Where the flat form may lie; see `stored`.
        build: Whether to make the flat form, where there is none.

    Raises:
        SourceUnavailableError: If the public graphs are not on disk.
        InputError: If they are damaged.
    """
    raw = data_root(root) / "MNISTSuperpixels" / "raw" / "MNISTSuperpixels.pt"
    if not raw.is_file():
        raise SourceUnavailableError(
            f"{PUBLIC} needs {raw}, which torch_geometric.datasets.MNISTSuperpixels({str(raw.parents[1])!r}) downloads"
        )
    state = raw.stat()
    path = stored(f"{PUBLIC}-{state.st_size}-{state.st_mtime_ns}.pt", folders, (lambda: _flat(raw)) if build else None)
    columns = mapped(path)
    images, labels, train = (columns.pop(name) for name in ("images", "labels", "train"))
    return PublicGraphs(SuperpixelGraphs(**columns), images, labels, int(train))


def _flat(raw: Path) -> dict[str, Tensor]:
    try:
        parts = torch.load(raw, weights_only=True)
        graphs = [graph for part in parts for graph in part]
        flat = joined([_chunk(graphs[start : start + _CHUNK]) for start in range(0, len(graphs), _CHUNK)])
        labels = torch.cat([graph["y"].flatten() for graph in graphs]).long()
    except Exception as error:  # a damaged file can raise anything
        raise InputError(f"{raw} holds no graphs as PyG's MNISTSuperpixels has them: {one_line(error)}") from error
    intensity = flat.x[:, 0][flat.segments.flatten(1).long() + flat.node_ptr[:-1, None]]
    images = (intensity.view(-1, _SIDE, _SIDE) * 255).round().to(torch.uint8)
    return {**vars(flat), "images": images, "labels": labels, "train": torch.tensor(len(parts[0]))}


def _chunk(graphs: list[dict[str, Tensor]]) -> SuperpixelGraphs:
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
    node_ptr, edge_ptr = (
        torch.nn.functional.pad(sizes.cumsum(0), (1, 0))
        for sizes in (counts, torch.tensor([e.shape[1] for e in edges]))
    )
    return SuperpixelGraphs(
        x=torch.stack([intensities, sizes], dim=1),
        pos=torch.cat(pos),
        edges=torch.cat(edges, dim=1).to(torch.uint8),
        node_ptr=node_ptr,
        edge_ptr=edge_ptr,
        segments=segments,
    )

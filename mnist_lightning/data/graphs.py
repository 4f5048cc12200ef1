"""MNIST and its relatives as batches of superpixel graphs."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.data import Dataset

from mnist_lightning.data.augment import PositionAugmentation
from mnist_lightning.data.images import MNISTDataModule, mixed_seed
from mnist_lightning.data.public_superpixels import PUBLIC, read_public
from mnist_lightning.data.sources import data_root
from mnist_lightning.data.superpixels import SuperpixelGraphs, read_graphs, stored_graphs

if TYPE_CHECKING:  # PyG takes seconds to import, which who trains on images need not wait for
    from torch_geometric.data import Batch


class RawGraphs(NamedTuple):
    """What the DataLoader hands out, before `on_after_batch_transfer`.

    Attributes:
        batch: The graphs as they are.
        drawn: The augmentation's random numbers; None where the batch is not to be distorted.
    """

    batch: "Batch"
    drawn: tuple[Tensor, Tensor] | None


def batch_of(graphs: SuperpixelGraphs, rows: Tensor, labels: Tensor) -> "Batch":
    """Some graphs as a PyG batch, straight from the flat tensors.

    The same to the bit as `Batch.from_data_list` of one `Data` object a graph.

    Args:
        graphs: Where to take them from.
        rows: int64 [B], which.
        labels: int64 [B], their classes.

    Returns:
        A `Batch` with `x` [N, 2], `edge_index` [2, E], `y` [B], `pos` [N, 2], `segments` [B, 28, 28] and PyG's
        `batch` [N] and `ptr` [B + 1].
    """
    from torch_geometric.data import Batch

    node_counts, edge_counts = (ptr[rows + 1] - ptr[rows] for ptr in (graphs.node_ptr, graphs.edge_ptr))
    node_slices, edge_slices = (pad(counts.cumsum(0), (1, 0)) for counts in (node_counts, edge_counts))
    first, count = node_slices[:-1], len(rows)
    graph = torch.arange(count).repeat_interleave(node_counts)
    node = torch.arange(len(graph)) + (graphs.node_ptr[rows] - first).index_select(0, graph)
    # Slices, because an index for each of 77,000 edges takes ten times as long; NumPy's, because torch's take five
    # times as long. And index_select, because square brackets take twice to ten times as long.
    all_edges, starts, ends = graphs.edges.numpy(), graphs.edge_ptr[rows].tolist(), graphs.edge_ptr[rows + 1].tolist()
    edges = np.concatenate([all_edges[:, start:end] for start, end in zip(starts, ends, strict=True)], axis=1)
    batch = Batch(
        x=graphs.x.index_select(0, node),
        edge_index=torch.from_numpy(edges) + first.repeat_interleave(edge_counts),
        y=labels,
        pos=graphs.pos.index_select(0, node),
        segments=graphs.segments.index_select(0, rows),
    )
    batch.batch = graph
    batch.ptr = node_slices
    # What lets PyG take the batch apart again.
    each, none = torch.arange(count + 1), torch.zeros(count, dtype=torch.long)
    batch._num_graphs = count
    batch._slice_dict = {"x": node_slices, "edge_index": edge_slices, "y": each, "pos": node_slices, "segments": each}
    batch._inc_dict = {"x": none, "edge_index": first, "y": none, "pos": none, "segments": none}
    return batch


class GraphBatches(Dataset[RawGraphs]):
    """A split that hands out whole batches of graphs.

    Args:
        graphs: All graphs of the source.
        rows: int64 [N], which of them belong to the split.
        labels: int64 [N].
        augmentation: Draws random numbers for every batch, if given.
        seed: Decides those numbers, together with `epoch` and the batch's first index.
    """

    def __init__(
        self,
        graphs: SuperpixelGraphs,
        rows: Tensor,
        labels: Tensor,
        augmentation: PositionAugmentation | None,
        seed: int,
    ) -> None:
        self.graphs, self.rows, self.labels, self.augmentation, self.seed = graphs, rows, labels, augmentation, seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, indices: list[int]) -> RawGraphs:
        """Returns the batch of these indices."""
        index = torch.tensor(indices)
        batch = batch_of(self.graphs, self.rows[index], self.labels[index])
        drawn = None
        if self.augmentation is not None:
            generator = torch.Generator().manual_seed(mixed_seed(self.seed, self.epoch, indices[0]))
            drawn = self.augmentation.draw(len(indices), len(batch.x), generator)
        return RawGraphs(batch, drawn)


class MNISTSuperpixelsDataModule(MNISTDataModule):
    """Batches of superpixel graphs: PyG's `Batch` with `x`, `edge_index`, `pos`, `batch`, `y` and `segments`.

    At the first use the graphs of all images are made, on all cores, and kept in one file below the data's root; it
    is mapped to memory later. `batch_of` says what is in a batch.

        >>> data = MNISTSuperpixelsDataModule(source="digits", batch_size=64)
        >>> data.prepare_data()
        >>> data.setup("fit")
        >>> batch = next(data.batches("val"))
        >>> batch.num_graphs, batch.x.shape[1], batch.pos.shape[1]
        (120, 2, 2)

    Args:
        augment: Ranges of the random maps of the training graphs' positions; null for none.
        **data: As in `MNISTDataModule`; `source` can also be `mnist_superpixels`, PyG's public graphs, where they are
            on disk.

    Raises:
        InputError: If an argument cannot be right, or the source is unknown, absent or damaged.
    """

    augment: PositionAugmentation | None  # type: ignore[assignment]

    def __init__(self, augment: PositionAugmentation | None = None, **data: Any) -> None:
        super().__init__(**data)
        self.augment = augment
        self._graphs: SuperpixelGraphs | None = None

    def prepare_data(self) -> None:
        """Downloads what is not on disk, and makes the graphs; Lightning calls this in one process per machine."""
        super().prepare_data()
        super().setup("fit")
        self._open(build=True)

    def setup(self, stage: str) -> None:
        """Reads the splits and opens the file of graphs; on every process."""
        super().setup(stage)
        if self._graphs is None:
            self._graphs = self._open(build=False)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Maps the positions of a batch that is one to train on, on the device that it is on.

        Args:
            batch: `RawGraphs`; anything else is returned as it is.
            dataloader_idx: Lightning's; of no importance here.

        Returns:
            A PyG `Batch`.
        """
        if not isinstance(batch, RawGraphs):
            return batch
        graphs, drawn = batch
        if drawn is not None and self.augment is not None:
            graphs.x, graphs.pos = self.augment(graphs.x, graphs.pos, graphs.batch, drawn)
        return graphs

    def _dataset(self, split: str, augmented: bool) -> GraphBatches:
        labels = self._splits[split][1]
        return GraphBatches(self.graphs, self._rows[split], labels, self.augment if augmented else None, self.seed)

    def _fetch(self, source: str) -> None:
        if source == PUBLIC:
            read_public(self.root, self._folders(), build=True)
        else:
            super()._fetch(source)

    def _read(self, train: bool) -> tuple[Tensor, Tensor]:
        if self.source != PUBLIC:
            return super()._read(train)
        public = read_public(self.root, self._folders())
        part = slice(public.train) if train else slice(public.train, None)
        return public.images[part], public.labels[part]

    def _open(self, build: bool) -> SuperpixelGraphs:
        if self.source == PUBLIC:
            return read_public(self.root, self._folders()).graphs
        rows = torch.cat(list(self._rows.values()))
        images = torch.cat([images for images, _ in self._splits.values()])[rows.argsort()]
        return read_graphs(stored_graphs(self.source, images, self._folders(), build))

    def _folders(self) -> list[Path]:
        """Where the graphs may lie. A root that many share is often not one's own to write to."""
        return [root / "superpixels" for root in dict.fromkeys([data_root(self.root), Path("data")])]

    @property
    def graphs(self) -> SuperpixelGraphs:
        """The graphs of all images of the source, the test images' last; call `setup` first."""
        assert self._graphs is not None
        return self._graphs

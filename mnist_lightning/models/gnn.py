"""Graph neural network over superpixels."""

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mnist_lightning.classifier import CLASSES, Classifier
from mnist_lightning.errors import InputError


class GNN(Classifier):
    """Rounds of message passing between superpixels, pooled and read out linearly.

    Every round is a graph convolution, batch norm and ReLU, with a residual connection. The readout has no hidden layer
    and no bias, so that what each node adds to each logit is known exactly (`evidence`); and a node is heard as loud as
    it has ink, so that background, which can only speak through its neighbours, is no evidence.

    Args:
        width: Channels of a node.
        depth: Rounds of message passing.
        conv: How a node hears from its neighbours: by a kernel over relative positions, or by one of PyG's
            convolutions. Of these only `gat` and `gatedgcn` see where a neighbour lies.
        pooling: How a graph's nodes are pooled, channel by channel.
        **training: Loss, optimiser and schedule, as in `Classifier`.

    Example:
        >>> x, pos, edges = torch.rand(9, 2), torch.rand(9, 2), torch.tensor([[0, 1], [1, 2]])
        >>> GNN()(x, edges, pos).shape
        torch.Size([1, 10])
    """

    def __init__(
        self,
        width: int = 48,
        depth: int = 4,
        conv: Literal["kernel", "gcn", "gat", "gin", "gatedgcn"] = "kernel",
        pooling: Literal["mean", "max", "mean+max"] = "mean+max",
        **training: Any,
    ) -> None:
        super().__init__(**training)
        from mnist_lightning.models.graph_convolutions import convolution  # PyG takes seconds to import

        if width < 1 or depth < 1 or (conv == "gat" and width % 4):
            raise InputError(
                f"width is {width} and depth is {depth}; both must be at least 1, and gat's width 4, 8, 12…"
            )
        self.embedding = nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width), nn.ReLU())
        self.convs = nn.ModuleList(convolution(conv, width) for _ in range(depth))
        self.norms = nn.ModuleList(nn.BatchNorm1d(width) for _ in range(depth))
        self.pooling = pooling
        self.output = nn.Linear(width * len(pooling.split("+")), CLASSES, bias=False)
        nodes, edges = torch.full((3, 2), 0.5), torch.tensor([[1, 2, 0], [0, 1, 2]])
        self.example_input_array = (nodes, edges, nodes, torch.zeros(3, dtype=torch.long))

    def unpack(self, batch: Any) -> tuple[tuple[Tensor, ...], Tensor]:
        """Takes a PyG `Batch` apart."""
        if hasattr(batch, "edge_index"):
            return (batch.x, batch.edge_index, batch.pos, batch.batch), batch.y
        raise self._refusal("batches of graphs (--data MNISTSuperpixelsDataModule)", batch)

    def inputs(self, digits: Tensor) -> tuple[Tensor, ...]:
        """The superpixel graphs of digits, uint8 [N, 28, 28], as `forward` takes them."""
        from mnist_lightning.data.graphs import batch_of
        from mnist_lightning.data.superpixels import superpixel_graphs

        count = len(digits)
        batch = batch_of(superpixel_graphs(digits.cpu()), torch.arange(count), torch.zeros(count, dtype=torch.long))
        return self.unpack(batch.to(self.device))[0]

    def forward(self, x: Tensor, edge_index: Tensor, pos: Tensor, batch: Tensor | None = None) -> Tensor:
        """Maps graphs to logits.

        Args:
            x: float [N, 2], each node's mean intensity and its share of the image's pixels.
            edge_index: int64 [2, E], where each edge comes from and goes to.
            pos: float [N, 2], row and column in [0, 1].
            batch: int64 [N], sorted, each node's graph; one graph, if not given.

        Returns:
            float [B, 10].
        """
        voices, graph = self._voices(x, self.embeddings(x, edge_index, pos)[-1]), _graph(x, batch)
        logits: Tensor = self.output(torch.cat(list(self._pooled(voices, graph).values()), dim=1))
        return logits

    def embeddings(self, x: Tensor, edge_index: Tensor, pos: Tensor) -> list[Tensor]:
        """The nodes' values [N, width], before the first round of message passing and after each."""
        from mnist_lightning.models.graph_convolutions import convolve, edge_geometry

        h = self.embedding(self._standardized(x, pos))
        geometry, neighbors = edge_geometry(x, edge_index, pos), _regular(edge_index, len(x))
        values = [h]
        for conv, norm in zip(self.convs, self.norms, strict=True):
            h = h + F.relu(norm(convolve(conv, h, edge_index, geometry, neighbors)))
            values.append(h)
        return values

    @staticmethod
    def _standardized(x: Tensor, pos: Tensor) -> Tensor:
        """Intensity, share and position [N, 4] with about zero mean and unit variance."""
        return torch.stack([(x[:, 0] - 0.13) / 0.3, (x[:, 1] * 75 - 1) * 4, *((pos - 0.5) * 4).unbind(dim=1)], dim=1)

    def evidence(self, x: Tensor, h: Tensor, batch: Tensor | None = None) -> Tensor:
        """What each node adds to each logit, given its value after the last round.

        Mean pooling gives each node its share; max pooling gives a channel's value to the node that has the highest, in
        equal parts if there are several.

        Args:
            x: float [N, 2], as in `forward`.
            h: float [N, width], the last of `embeddings`.
            batch: int64 [N], sorted, each node's graph; one graph, if not given.

        Returns:
            float [N, 10]; its sums over the nodes of a graph are the graph's logits.
        """
        voices, graph = self._voices(x, h), _graph(x, batch)
        parts = []
        for pooling, pooled in self._pooled(voices, graph).items():
            if pooling == "mean":
                parts.append(voices / graph.bincount()[graph].unsqueeze(1))
            else:
                highest = (voices == pooled[graph]).float()
                parts.append(highest * voices / torch.zeros_like(pooled).index_add(0, graph, highest)[graph])
        evidence: Tensor = self.output(torch.cat(parts, dim=1))
        return evidence

    def _voices(self, x: Tensor, h: Tensor) -> Tensor:
        """The nodes' values, as loud as their intensity; sums of 75 need more than bfloat16's 8 bits."""
        return x[:, :1] * h.to(self.output.weight)

    def _pooled(self, voices: Tensor, graph: Tensor) -> dict[str, Tensor]:
        """The graphs' values [B, width] by each kind of pooling."""
        empty = voices.new_zeros(int(graph[-1]) + 1, voices.shape[1])
        pooled = {}
        for pooling in self.pooling.split("+"):
            if pooling == "mean":
                pooled[pooling] = empty.index_add(0, graph, voices) / graph.bincount(minlength=len(empty)).unsqueeze(1)
            else:
                index = graph.unsqueeze(1).expand_as(voices)
                pooled[pooling] = empty.scatter_reduce(0, index, voices, "amax", include_self=False)
        return pooled


def _graph(x: Tensor, batch: Tensor | None) -> Tensor:
    return torch.zeros(len(x), dtype=torch.long, device=x.device) if batch is None else batch


def _regular(edge_index: Tensor, nodes: int) -> Tensor | None:
    """int64 [N, k], each node's neighbours, where all have equally many and the edges are sorted by node."""
    source, target = edge_index
    k = len(target) // nodes
    if k == 0 or len(target) != k * nodes:
        return None
    regular = torch.equal(target, torch.arange(nodes, device=target.device).repeat_interleave(k))
    return source.view(nodes, k) if regular else None

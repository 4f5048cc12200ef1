"""Graph neural network over superpixels."""

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mnist_lightning.checks import at_least
from mnist_lightning.classifier import CLASSES, Classifier
from mnist_lightning.data.superpixels import COLUMNS, Features
from mnist_lightning.errors import InputError


class GNN(Classifier):
    """Message passing between superpixels, then pooling and a linear readout.

    Each layer is a graph convolution, batch norm and ReLU, with a residual connection. The readout has no hidden layer
    and no bias, so the contribution of each node to each logit is exact (see `evidence`). Nodes are weighted by their
    mean intensity: background nodes contribute no evidence of their own, and act only through their neighbours.

    Args:
        width: Number of channels of the node embeddings; a multiple of 4 for `gat`.
        depth: Number of message-passing layers.
        conv: Graph convolution: `kernel`, a kernel over relative positions, or one of PyG's layers. Of PyG's layers,
            only `gat` and `gatedgcn` use the relative positions of the neighbours.
        pooling: Pooling over the nodes of a graph, per channel.
        features: Node features. The data module needs the same `features`.
        updates: Nodes that message passing updates: `all`, or those with `ink`. Nodes without ink then only send their
            first embedding. On MNIST, 38 % of the nodes have no ink.
        **training: Loss, optimiser and schedule, as in `Classifier`.

    Raises:
        InputError: If `width` or `depth` is not accepted.

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
        features: Features = "plain",
        updates: Literal["all", "ink"] = "all",
        **training: Any,
    ) -> None:
        super().__init__(**training)
        at_least(1, width=width, depth=depth)
        if conv == "gat" and width % 4:
            raise InputError(f"width must be a multiple of 4 for conv gat, got {width}")
        from mnist_lightning.models.graph_convolutions import convolution  # PyG is slow to import

        self.features, self.updates = features, updates
        self.embedding = nn.Sequential(nn.Linear(COLUMNS[features] + 2, width), nn.BatchNorm1d(width), nn.ReLU())
        self.convs = nn.ModuleList(convolution(conv, width) for _ in range(depth))
        self.norms = nn.ModuleList(nn.BatchNorm1d(width) for _ in range(depth))
        self.pooling = pooling
        self.output = nn.Linear(width * len(pooling.split("+")), CLASSES, bias=False)
        x, pos = torch.full((3, COLUMNS[features]), 0.5), torch.full((3, 2), 0.5)
        edges = torch.tensor([[1, 2, 0], [0, 1, 2]])
        self.example_input_array = (x, edges, pos, torch.zeros(3, dtype=torch.long), edges[0].unsqueeze(1))

    def unpack(self, batch: Any) -> tuple[tuple[Any, ...], Tensor]:
        """Splits a PyG `Batch` into the inputs of `forward` and the labels."""
        if hasattr(batch, "edge_index"):
            if batch.x.shape[1] != COLUMNS[self.features]:
                raise InputError(
                    f"GNN with features {self.features} takes {COLUMNS[self.features]} features per node, got "
                    f"{batch.x.shape[1]}; give the model and the data the same features"
                )
            neighbors = _neighbors(batch.edge_index, len(batch.x))
            return (batch.x, batch.edge_index, batch.pos, batch.batch, neighbors), batch.y
        raise self._wrong_batch("batches of graphs (--data MNISTSuperpixelsDataModule)", batch)

    def inputs(self, digits: Tensor) -> tuple[Any, ...]:
        """Builds the superpixel graphs of digits, uint8 [N, 28, 28], as the inputs of `forward`."""
        from mnist_lightning.data.graphs import batch_of
        from mnist_lightning.data.superpixels import superpixel_graphs

        count = len(digits)
        graphs = superpixel_graphs(digits.cpu(), features=self.features)
        batch = batch_of(graphs, torch.arange(count), torch.zeros(count, dtype=torch.long))
        return self.unpack(batch.to(self.device))[0]

    def forward(
        self, x: Tensor, edge_index: Tensor, pos: Tensor, batch: Tensor | None = None, neighbors: Tensor | None = None
    ) -> Tensor:
        """Maps graphs to logits. The order of the arguments is PyG's, for `torch_geometric.explain.Explainer`.

        Args:
            x: Mean intensity of each node and its fraction of the image's pixels, float [N, 2]. With `features:
                moments`, float [N, 8].
            edge_index: Source and target node of each edge, int64 [2, E].
            pos: Row and column of each node in [0, 1], float [N, 2].
            batch: Graph of each node, int64 [N], sorted. None for a single graph.
            neighbors: Source nodes of each node's incoming edges, int64 [N, k], if all nodes have k and `edge_index` is
                sorted by target node. They make `conv: kernel` faster; the logits are the same up to rounding.

        Returns:
            float [B, 10].
        """
        weighted = self._weighted(x, self.embeddings(x, edge_index, pos, neighbors)[-1])
        logits: Tensor = self.output(torch.cat(list(self._pooled(weighted, _graphs(x, batch)).values()), dim=1))
        return logits

    def embeddings(self, x: Tensor, edge_index: Tensor, pos: Tensor, neighbors: Tensor | None = None) -> list[Tensor]:
        """Computes the node embeddings [N, width] before the first message-passing layer and after each.

        The arguments are those of `forward`.
        """
        from mnist_lightning.models.graph_convolutions import edge_geometry

        geometry = edge_geometry(x, edge_index, pos)
        layers = [self.embedding(self._standardized(x, pos))]
        updated = (x[:, 0] > (0 if self.updates == "ink" else -1)).nonzero().squeeze(1)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            change = F.relu(norm(conv(layers[-1], edge_index, geometry, neighbors, updated)))
            layers.append(layers[-1].index_add(0, updated, change.to(layers[-1])))
        return layers

    def evidence(self, x: Tensor, h: Tensor, batch: Tensor | None = None) -> Tensor:
        """Computes the contribution of each node to each logit from its last embedding.

        Mean pooling divides a channel among all nodes. Max pooling assigns it to the node with the maximum, in equal
        parts if several nodes share it.

        Args:
            x: Node features, as in `forward`.
            h: Last node embeddings of `embeddings`, float [N, width].
            batch: Graph of each node, int64 [N], sorted. None for a single graph.

        Returns:
            float [N, 10]. The sums over the nodes of a graph are its logits.
        """
        weighted, graphs = self._weighted(x, h), _graphs(x, batch)
        parts = []
        for pooling, pooled in self._pooled(weighted, graphs).items():
            chosen = torch.ones_like(weighted) if pooling == "mean" else (weighted == pooled[graphs]).float()
            parts.append(chosen * weighted / torch.zeros_like(pooled).index_add(0, graphs, chosen)[graphs])
        evidence: Tensor = self.output(torch.cat(parts, dim=1))
        return evidence

    def _standardized(self, x: Tensor, pos: Tensor) -> Tensor:
        """Features and position of each node. Each column has about zero mean and unit variance."""
        columns = [(x[:, :1] - 0.3) / 0.4, x[:, 1:2] * 75 - 1, (pos - 0.5) * 4]
        if self.features == "moments":
            deviation, first, second = torch.split(x[:, 2:], [1, 2, 3], dim=1)
            second = second * second.new_tensor([4500, 12000, 4500]) - second.new_tensor([0.6, 0, 0.6])
            columns += [(deviation - 0.07) / 0.08, first * 600, second]
        return torch.cat(columns, dim=1)

    def _weighted(self, x: Tensor, h: Tensor) -> Tensor:
        """Node embeddings weighted by intensity, in float32: sums over 75 nodes need more than bfloat16's 8 bits."""
        return x[:, :1] * h.to(self.output.weight)

    def _pooled(self, weighted: Tensor, graphs: Tensor) -> dict[str, Tensor]:
        """Graph embeddings [B, width] for each kind of pooling."""
        zeros = weighted.new_zeros(int(graphs[-1]) + 1, weighted.shape[1])
        pooled = {}
        if "mean" in self.pooling:
            pooled["mean"] = zeros.index_add(0, graphs, weighted) / graphs.bincount().unsqueeze(1)
        if "max" in self.pooling:
            index = graphs.unsqueeze(1).expand_as(weighted)
            pooled["max"] = zeros.scatter_reduce(0, index, weighted, "amax", include_self=False)
        return pooled


def _graphs(x: Tensor, batch: Tensor | None) -> Tensor:
    return torch.zeros(len(x), dtype=torch.long, device=x.device) if batch is None else batch


def _neighbors(edge_index: Tensor, nodes: int) -> Tensor | None:
    """Source nodes of each node's k incoming edges, [N, k], or None if the edges are not regular and sorted."""
    source, target = edge_index
    k = len(target) // nodes
    regular = torch.arange(nodes, device=target.device).repeat_interleave(k)
    return source.view(nodes, k) if k and torch.equal(target, regular) else None

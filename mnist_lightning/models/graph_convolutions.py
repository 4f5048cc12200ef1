"""Message-passing layers of the GNN: all are called as `layer(h, edge_index, geometry, neighbors, nodes)`."""

from typing import cast

import torch
from torch import Tensor, nn
from torch_geometric.nn import GATConv, GCNConv, GINConv, MessagePassing, ResGatedGraphConv

GEOMETRY = 4  # edge features, see `edge_geometry`


def edge_geometry(x: Tensor, edge_index: Tensor, pos: Tensor) -> Tensor:
    """Computes edge features: the source node relative to the target node.

    Args:
        x: Node features, float [N, F], the intensity first.
        edge_index: Source and target node of each edge, int64 [2, E].
        pos: Node positions, float [N, 2].

    Returns:
        float [E, 4]: relative position in eighths of the image's side (about one superpixel), distance, and difference
        of intensities.
    """
    source, target = edge_index
    offset = (pos[source] - pos[target]) * 8
    return torch.cat([offset, offset.norm(dim=1, keepdim=True), x[source, :1] - x[target, :1]], dim=1)


class KernelConv(MessagePassing):  # type: ignore[misc]
    """Continuous convolution: the kernel is a function of the relative position, because nodes lie on no grid.

    A small network maps an edge's features to K weights. Each weight gives one weighted sum of the neighbours'
    embeddings. One linear map combines these K sums and the node's own embedding. See Wang et al. 2018 ("Deep
    parametric continuous convolutional neural networks", section 3). The factorisation is from Wu et al. 2019
    ("PointConv", section 3.3).

    The aggregation is a sum, not a mean, so the contribution of an edge does not depend on the other edges.

    Args:
        width: Number of input and output channels C.
        kernels: Number of weights per edge K.
        hidden: Number of hidden units of the small network.
    """

    def __init__(self, width: int, kernels: int = 8, hidden: int = 16) -> None:
        super().__init__(aggr="add")
        self.kernel = nn.Sequential(nn.Linear(GEOMETRY, hidden), nn.ReLU(), nn.Linear(hidden, kernels))
        self.linear = nn.Linear((kernels + 1) * width, width, bias=False)

    def forward(
        self, h: Tensor, edge_index: Tensor, geometry: Tensor, neighbors: Tensor | None, nodes: Tensor
    ) -> Tensor:
        """Maps node embeddings [N, C] to new embeddings [M, C] of some of the nodes.

        Args:
            h: Node embeddings, float [N, C].
            edge_index: Source and target node of each edge, int64 [2, E].
            geometry: Edge features of `edge_geometry`, float [E, 4].
            neighbors: Source nodes of each node's incoming edges, int64 [N, k], in the order of `edge_index`, or None.
                With them, one matrix product per node replaces the slower `propagate`.
            nodes: Nodes to compute, int64 [M].
        """
        if neighbors is None or self.explain:  # the masks of PyG's explainers act in `propagate`
            weights = self.kernel(geometry)
            sums = self.propagate(edge_index, h=h.to(weights.dtype), weights=weights).index_select(0, nodes)
        else:
            weights = self.kernel(geometry.view(*neighbors.shape, GEOMETRY).index_select(0, nodes))
            sources = neighbors.index_select(0, nodes)
            values = h.index_select(0, sources.flatten()).view(*sources.shape, h.shape[1]).to(weights.dtype)
            sums = torch.bmm(weights.transpose(1, 2), values).flatten(1)
        mapped: Tensor = self.linear(torch.cat([h.index_select(0, nodes).to(sums.dtype), sums], dim=1))
        return mapped

    def message(self, h_j: Tensor, weights: Tensor) -> Tensor:
        """Computes the message of each edge, [E, K C]."""
        return (weights.unsqueeze(2) * h_j.unsqueeze(1)).flatten(1)


class GCN(GCNConv):  # type: ignore[misc]
    """PyG's `GCNConv` (Kipf and Welling 2017). It ignores the geometry."""

    def forward(
        self, h: Tensor, edge_index: Tensor, geometry: Tensor, neighbors: Tensor | None, nodes: Tensor
    ) -> Tensor:
        """Maps node embeddings [N, C] to [M, C], see `KernelConv.forward`."""
        return cast(Tensor, super().forward(h, edge_index)).index_select(0, nodes)


class GAT(GATConv):  # type: ignore[misc]
    """PyG's `GATConv` (Velickovic et al. 2018), with the geometry as edge features."""

    def forward(
        self, h: Tensor, edge_index: Tensor, geometry: Tensor, neighbors: Tensor | None, nodes: Tensor
    ) -> Tensor:
        """Maps node embeddings [N, C] to [M, C], see `KernelConv.forward`."""
        return cast(Tensor, super().forward(h, edge_index, geometry)).index_select(0, nodes)


class GIN(GINConv):  # type: ignore[misc]
    """PyG's `GINConv` (Xu et al. 2019). It ignores the geometry."""

    def forward(
        self, h: Tensor, edge_index: Tensor, geometry: Tensor, neighbors: Tensor | None, nodes: Tensor
    ) -> Tensor:
        """Maps node embeddings [N, C] to [M, C], see `KernelConv.forward`."""
        return cast(Tensor, super().forward(h, edge_index)).index_select(0, nodes)


class GatedGCN(ResGatedGraphConv):  # type: ignore[misc]
    """PyG's `ResGatedGraphConv` (Bresson and Laurent 2017), with the geometry as edge features."""

    def forward(
        self, h: Tensor, edge_index: Tensor, geometry: Tensor, neighbors: Tensor | None, nodes: Tensor
    ) -> Tensor:
        """Maps node embeddings [N, C] to [M, C], see `KernelConv.forward`."""
        return cast(Tensor, super().forward(h, edge_index, geometry)).index_select(0, nodes)


def convolution(name: str, width: int) -> MessagePassing:
    """Builds a message-passing layer.

    Args:
        name: `kernel`, `gcn`, `gat`, `gin` or `gatedgcn`.
        width: Number of input and output channels.
    """
    if name == "gcn":
        return GCN(width, width)
    if name == "gat":
        return GAT(width, width // 4, heads=4, edge_dim=GEOMETRY)
    if name == "gin":
        return GIN(nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width)))
    if name == "gatedgcn":
        return GatedGCN(width, width, edge_dim=GEOMETRY)
    return KernelConv(width)

"""How a superpixel hears from its neighbours: the GNN's message passing."""

from typing import cast

import torch
from torch import Tensor, nn
from torch_geometric.nn import GATConv, GCNConv, GINConv, MessagePassing, ResGatedGraphConv

GEOMETRY = 4  # numbers that describe an edge: see `edge_geometry`


def edge_geometry(x: Tensor, edge_index: Tensor, pos: Tensor) -> Tensor:
    """Where each edge comes from, as seen from where it goes to.

    Args:
        x: float [N, F], the intensity first.
        edge_index: int64 [2, E].
        pos: float [N, 2].

    Returns:
        float [E, 4]: the relative position in eighths of the image's side (some two superpixels), its length, and the
        difference of intensities.
    """
    source, target = edge_index
    away = (pos[source] - pos[target]) * 8
    return torch.cat([away, away.norm(dim=1, keepdim=True), x[source, :1] - x[target, :1]], dim=1)


class KernelConv(MessagePassing):  # type: ignore[misc]
    """A convolution whose kernel is a function of the relative position, as nodes lie on no grid.

    A small network turns an edge's geometry into K weights; the neighbours' values, summed by each of these weights,
    and the node's own go through one linear map. That is the continuous convolution of Wang et al. 2018 ("Deep
    parametric continuous convolutional neural networks", section 3), factorised as in Wu et al. 2019 ("PointConv",
    section 3.3).

    Sums, and no means: an edge's share in the result does not depend on the other edges.

    Args:
        width: Channels C, in and out.
        kernels: Weights K of an edge.
        hidden: Units of the network that makes them.
    """

    def __init__(self, width: int, kernels: int = 8, hidden: int = 16) -> None:
        super().__init__(aggr="add")
        self.kernel = nn.Sequential(nn.Linear(GEOMETRY, hidden), nn.ReLU(), nn.Linear(hidden, kernels))
        self.linear = nn.Linear((kernels + 1) * width, width, bias=False)

    def forward(self, h: Tensor, edge_index: Tensor, geometry: Tensor, neighbors: Tensor | None) -> Tensor:
        """Maps values [N, C] to [N, C].

        Args:
            h: float [N, C].
            edge_index: int64 [2, E].
            geometry: float [E, 4], of `edge_geometry`.
            neighbors: int64 [N, k], where all nodes hear from equally many and the edges are sorted: as `edge_index`
                says, but faster.
        """
        weights = self.kernel(geometry)
        if neighbors is None or self.explain:
            sums = self.propagate(edge_index, h=h.to(weights.dtype), weights=weights)
        else:
            nodes, k = neighbors.shape
            values = h.index_select(0, neighbors.flatten()).view(nodes, k, -1).to(weights.dtype)
            sums = torch.bmm(weights.view(nodes, k, -1).transpose(1, 2), values).flatten(1)
        mapped: Tensor = self.linear(torch.cat([h.to(sums.dtype), sums], dim=1))
        return mapped

    def message(self, h_j: Tensor, weights: Tensor) -> Tensor:
        """What comes along each edge: [E, K C]."""
        return (weights.unsqueeze(2) * h_j.unsqueeze(1)).flatten(1)


def convolution(name: str, width: int) -> MessagePassing:
    """The message passing of one layer.

    Args:
        name: `kernel`, or one of PyG's: `gcn` (Kipf and Welling 2017), `gat` (Velickovic et al. 2018), `gin` (Xu et al.
            2019), `gatedgcn` (Bresson and Laurent 2017).
        width: Channels, in and out.
    """
    if name == "gcn":
        return GCNConv(width, width)
    if name == "gat":
        return GATConv(width, width // 4, heads=4, edge_dim=GEOMETRY)
    if name == "gin":
        return GINConv(nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width)))
    if name == "gatedgcn":
        return ResGatedGraphConv(width, width, edge_dim=GEOMETRY)
    return KernelConv(width)


def convolve(
    layer: MessagePassing, h: Tensor, edge_index: Tensor, geometry: Tensor, neighbors: Tensor | None
) -> Tensor:
    """One round of message passing, by a layer that takes edge features or one that does not."""
    if isinstance(layer, KernelConv):
        heard = layer(h, edge_index, geometry, neighbors)
    elif isinstance(layer, (GATConv, ResGatedGraphConv)):
        heard = layer(h, edge_index, edge_attr=geometry)
    else:
        heard = layer(h, edge_index)
    return cast(Tensor, heard)

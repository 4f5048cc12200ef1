"""Explains a GNN's prediction: evidence of each superpixel, importance of each edge."""

import math
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch_geometric.data import Batch, Data
from torch_geometric.explain import AttentionExplainer, Explainer, ExplainerAlgorithm, GNNExplainer
from torch_geometric.explain.algorithm.utils import set_masks
from torch_geometric.nn import MessagePassing

from mnist_lightning.data.sources import CLASSES
from mnist_lightning.data.superpixels import superpixel_graphs
from mnist_lightning.errors import InputError, one_line
from mnist_lightning.explain import Method
from mnist_lightning.explain.private import private
from mnist_lightning.models.gnn import GNN


class SeededGNNExplainer(GNNExplainer):  # type: ignore[misc]
    """GNNExplainer whose initial mask does not depend on torch's random state, which all threads share."""

    def _initialize_masks(self, x: Tensor, edge_index: Tensor) -> None:
        super()._initialize_masks(x, edge_index)
        std = nn.init.calculate_gain("relu") * math.sqrt(2 / (2 * len(x)))  # as in GNNExplainer
        noise = torch.randn(edge_index.shape[1], generator=torch.Generator().manual_seed(0))
        self.edge_mask = nn.Parameter(noise.to(x.device) * std)


_ALGORITHMS = {"gnn_explainer": SeededGNNExplainer, "attention": AttentionExplainer}


@dataclass(frozen=True)
class Connectivity:
    """Explanation of a GNN's prediction for one digit.

    Attributes:
        image: uint8 [28, 28], the digit.
        label: Class of the digit, None if unknown.
        segments: uint8 [28, 28], the node of each pixel.
        x: float [N, 2], mean intensity of each node and its share of the image's pixels; float [N, 8] with moments.
        pos: float [N, 2], centroid of each node: row and column in [0, 1], row 0 at the top.
        edge_index: int64 [2, E], source and target node of each edge.
        logits: float [10].
        node_evidence: float [N, 10], contribution of each node to each logit. The sum over the nodes equals the logits.
        edge_importance: float [E], contribution of each edge to the logit of `target`, measured by `method`.
        target: Class that `edge_importance` explains.
        method: Method that computed `edge_importance`.
        embeddings: Node embeddings, float [N, C] each: before the first message-passing layer and after every layer.
    """

    image: Tensor
    label: int | None
    segments: Tensor
    x: Tensor
    pos: Tensor
    edge_index: Tensor
    logits: Tensor
    node_evidence: Tensor
    edge_importance: Tensor
    target: int
    method: str
    embeddings: list[Tensor]

    @property
    def predicted(self) -> int:
        """The class with the highest logit."""
        return int(self.logits.argmax())

    @property
    def runner_up(self) -> int:
        """The class with the second highest logit."""
        return int(self.logits.topk(2).indices[1])

    @property
    def probabilities(self) -> Tensor:
        """Probabilities of the classes, float [10]."""
        return self.logits.softmax(dim=0)


def connectivity(
    model: GNN,
    image: Tensor,
    label: int | None = None,
    target: int | None = None,
    method: Method | ExplainerAlgorithm = "gradient",
) -> Connectivity:
    """Explains a GNN's prediction for one digit.

    Args:
        model: Trained GNN in evaluation mode, on any device.
        image: Digit, uint8 [28, 28], light on dark.
        label: Class of the digit, shown beside the prediction.
        target: Class whose logit the edge importance explains. Default: the predicted class.
        method: Measure of edge importance. `gradient`: derivative of the logit by the strength of the edge's messages.
            `occlusion`: decrease of the logit without the edge. `gnn_explainer`: mask in [0, 1] of Ying et al. 2019
            ("GNNExplainer"). `attention`: mean attention coefficient, for a GNN with `conv: gat`. You can also pass an
            algorithm of `torch_geometric.explain` that computes an edge mask.

    Raises:
        InputError: If the image, target or method is invalid, or the method does not support the model.

    Example:
        >>> from mnist_lightning import GNN
        >>> from mnist_lightning.data.sources import read
        >>> images, labels = read("digits", train=False)
        >>> explanation = connectivity(GNN().eval(), images[7], int(labels[7]))
        >>> torch.allclose(explanation.node_evidence.sum(0), explanation.logits, atol=1e-4)
        True
    """
    if image.shape != (28, 28) or image.dtype != torch.uint8:
        raise InputError(f"image must be torch.uint8 [28, 28], got {image.dtype} {list(image.shape)}")
    if target is not None and not 0 <= target < CLASSES:
        raise InputError(f"target must be a class from 0 to {CLASSES - 1}, got {target}")
    own = _private(model)
    graph = superpixel_graphs(image[None], features=own.features)
    x, edge_index, pos = (part.to(own.device) for part in (graph.x, graph.edges.long(), graph.pos))
    neighbors = edge_index[0].view(len(x), -1)  # the fast path of `classify`, for the same logits
    with torch.no_grad():
        embeddings = own.embeddings(x, edge_index, pos, neighbors)
        evidence = own.evidence(x, embeddings[-1])
        logits = own(x, edge_index, pos, neighbors=neighbors)[0]
    target = int(logits.argmax()) if target is None else target
    importance = edge_importance(own, x, edge_index, pos, target, method)
    return Connectivity(
        image=image,
        label=label,
        segments=graph.segments[0],
        x=graph.x,
        pos=graph.pos,
        edge_index=graph.edges.long(),
        logits=logits.cpu(),
        node_evidence=evidence.cpu(),
        edge_importance=importance.cpu(),
        target=target,
        method=method if isinstance(method, str) else type(method).__name__,
        embeddings=[layer.cpu() for layer in embeddings],
    )


def edge_importance(
    model: GNN, x: Tensor, edge_index: Tensor, pos: Tensor, target: int, method: Method | ExplainerAlgorithm
) -> Tensor:
    """Computes the contribution of each edge to the logit of a class.

    Args:
        model: Trained GNN in evaluation mode.
        x: Node features of one graph, float [N, F].
        edge_index: Edges, int64 [2, E].
        pos: Node positions, float [N, 2].
        target: Class to explain.
        method: Measure of edge importance; see `connectivity`.

    Returns:
        float [E].

    Raises:
        InputError: If the method is unknown or does not support the model.
    """
    if isinstance(method, str) and method not in get_args(Method):
        raise InputError(f"method must be one of {', '.join(get_args(Method))}, got {method!r}")
    own = _private(model)
    if method == "gradient":
        return _gradient(own, x, edge_index, pos, target)
    if method == "occlusion":
        return _occlusion(own, x, edge_index, pos, target)
    algorithm = _ALGORITHMS[method]() if isinstance(method, str) else private(method)[0]  # threads may share it
    is_attention = isinstance(algorithm, AttentionExplainer)  # the same for all classes
    try:
        explainer = Explainer(
            own,
            algorithm,
            explanation_type="model" if is_attention else "phenomenon",  # a phenomenon has a target
            edge_mask_type="object",
            model_config={"mode": "multiclass_classification", "task_level": "graph", "return_type": "raw"},
        )
        targets = None if is_attention else torch.tensor([target], device=x.device)
        explanation = explainer(x, edge_index, pos=pos, target=targets)
    except ValueError as error:
        raise InputError(f"{type(algorithm).__name__} cannot explain this model: {one_line(error)}") from error
    mask: Tensor = explanation.edge_mask
    return mask.detach()


def _private(model: GNN) -> GNN:
    """Private copy in evaluation mode."""
    own, _ = private(model)
    for layer in own.modules():
        if isinstance(layer, MessagePassing):
            layer.inspector = deepcopy(layer.inspector)  # changed by `set_masks`
    return own.eval()


def _gradient(model: GNN, x: Tensor, edge_index: Tensor, pos: Tensor, target: int) -> Tensor:
    """Derivative of the logit by a factor of 1 on the edge's messages in all layers."""
    factor = nn.Parameter(torch.ones(edge_index.shape[1], device=x.device))  # PyG copies any other tensor
    set_masks(model, factor, edge_index, apply_sigmoid=False)
    return torch.autograd.grad(model(x, edge_index, pos)[0, target], factor)[0]


def _occlusion(model: GNN, x: Tensor, edge_index: Tensor, pos: Tensor, target: int) -> Tensor:
    """Decrease of the logit without the edge: runs one copy of the graph per edge, 128 in a batch."""
    edges = torch.arange(edge_index.shape[1], device=x.device)
    decreases = []
    with torch.no_grad():
        intact = model(x, edge_index, pos)[0, target]
        for removed in torch.split(edges, 128):
            graphs = [Data(x=x, edge_index=edge_index[:, edges != edge], pos=pos) for edge in removed]
            batch: Any = Batch.from_data_list(graphs)
            decreases.append(intact - model(batch.x, batch.edge_index, batch.pos, batch.batch)[:, target])
    return torch.cat(decreases)

"""Through which superpixels and which edges a GNN recognises a digit."""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch_geometric.explain import AttentionExplainer, Explainer, ExplainerAlgorithm, GNNExplainer
from torch_geometric.explain.algorithm.utils import clear_masks, set_masks

from mnist_lightning.classifier import CLASSES
from mnist_lightning.data.superpixels import superpixel_graphs
from mnist_lightning.errors import InputError, one_line
from mnist_lightning.models.gnn import GNN

Method = Literal["gradient", "occlusion", "gnn_explainer", "attention"]


@dataclass(frozen=True)
class Connectivity:
    """Why a GNN gave one digit its class.

    Attributes:
        image: uint8 [28, 28], the digit.
        label: Its class, where that is known.
        segments: uint8 [28, 28], the node that each pixel belongs to.
        x: float [N, 2], each node's mean intensity and its share of the image's pixels.
        pos: float [N, 2], its centroid: row and column in [0, 1], the row from the top.
        edge_index: int64 [2, E], where each edge comes from and goes to.
        logits: float [10].
        node_evidence: float [N, 10], what each node adds to each logit; its sum over the nodes are the logits.
        edge_importance: float [E], what each edge adds to the logit of `target`, by `method`.
        target: The class that the edges' importance is about.
        method: How the edges' importance was found.
        embeddings: float [N, C] for each layer: before the first round of message passing and after each.
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
        """Float [10]."""
        return self.logits.softmax(dim=0)


def connectivity(
    model: GNN,
    image: Tensor,
    label: int | None = None,
    target: int | None = None,
    method: Method | ExplainerAlgorithm = "gradient",
) -> Connectivity:
    """Explains a GNN's answer on one digit.

    Args:
        model: A trained one, in evaluation mode, on any device.
        image: uint8 [28, 28], light on dark.
        label: Its class, to be shown beside the answer.
        target: The class that the edges' importance shall be about; the predicted one, if not given.
        method: How to find it. `gradient`: how fast the logit falls as the edge's messages are faded out. `occlusion`:
            how far it falls without the edge. `gnn_explainer`: the mask of Ying et al. 2019 ("GNNExplainer"), in
            [0, 1]. `attention`: the mean attention coefficient, of a GNN that has some (`conv: gat`). Or any algorithm
            of `torch_geometric.explain` that gives edges a mask.

    Raises:
        InputError: If the image, the class or the method cannot be right.

    Example:
        >>> from mnist_lightning import GNN
        >>> from mnist_lightning.data.sources import read
        >>> images, labels = read("digits", train=False)
        >>> found = connectivity(GNN().eval(), images[7], int(labels[7]))
        >>> torch.allclose(found.node_evidence.sum(0), found.logits, atol=1e-4)
        True
    """
    if image.shape != (28, 28) or image.dtype != torch.uint8:
        raise InputError(
            f"the image is {str(image.dtype).removeprefix('torch.')} {list(image.shape)}, not uint8 [28, 28]"
        )
    if target is not None and not 0 <= target < CLASSES:
        raise InputError(f"target is {target}; it must be a class from 0 to {CLASSES - 1}")
    graph = superpixel_graphs(image[None])
    x, edge_index, pos = (part.to(model.device) for part in (graph.x, graph.edges.long(), graph.pos))
    with torch.no_grad():
        embeddings = model.embeddings(x, edge_index, pos)
        evidence = model.evidence(x, embeddings[-1])
        logits = model(x, edge_index, pos)[0]
    target = int(logits.argmax()) if target is None else target
    importance = edge_importance(model, x, edge_index, pos, target, method)
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
    model: GNN,
    x: Tensor,
    edge_index: Tensor,
    pos: Tensor,
    target: int,
    method: Method | ExplainerAlgorithm = "gradient",
) -> Tensor:
    """What each edge of one graph adds to the logit of a class.

    Args:
        model: A trained one, in evaluation mode.
        x: float [N, 2].
        edge_index: int64 [2, E].
        pos: float [N, 2].
        target: The class.
        method: As in `connectivity`.

    Returns:
        float [E].

    Raises:
        InputError: If there is no such method, or the model is not made for it.
    """
    if method == "gradient":
        return _gradient(model, x, edge_index, pos, target)
    if method == "occlusion":
        return _occlusion(model, x, edge_index, pos, target)
    if method == "gnn_explainer":
        method = GNNExplainer()
    elif method == "attention":
        method = AttentionExplainer()
    elif isinstance(method, str):
        raise InputError(f"unknown method {method!r}: there are {', '.join(get_args(Method))}")
    return _by_algorithm(model, x, edge_index, pos, target, method)


def _gradient(model: GNN, x: Tensor, edge_index: Tensor, pos: Tensor, target: int) -> Tensor:
    """The derivative by a factor on the edge's messages in all layers, where that factor is 1."""
    factor = nn.Parameter(torch.ones(edge_index.shape[1], device=x.device))  # of anything else PyG would make a copy
    set_masks(model, factor, edge_index, apply_sigmoid=False)
    try:
        logit = model(x, edge_index, pos)[0, target]
    finally:
        clear_masks(model)
    return torch.autograd.grad(logit, factor)[0]


def _occlusion(model: GNN, x: Tensor, edge_index: Tensor, pos: Tensor, target: int, at_once: int = 128) -> Tensor:
    """The logit's fall without the edge: one copy of the graph for each edge."""
    nodes, edges = len(x), torch.arange(edge_index.shape[1], device=x.device)
    falls = []
    with torch.no_grad():
        whole = model(x, edge_index, pos)[0, target]
        for removed in torch.split(edges, at_once):
            copies = len(removed)
            kept = edges != removed[:, None]  # [copies, E]
            copy = torch.arange(copies, device=x.device)
            graphs = (edge_index[:, None] + nodes * copy[:, None])[:, kept]
            batch = copy.repeat_interleave(nodes)
            falls.append(whole - model(x.repeat(copies, 1), graphs, pos.repeat(copies, 1), batch)[:, target])
    return torch.cat(falls)


def _by_algorithm(
    model: GNN, x: Tensor, edge_index: Tensor, pos: Tensor, target: int, algorithm: ExplainerAlgorithm
) -> Tensor:
    try:
        explainer = Explainer(
            model,
            algorithm,
            # Of the class that is asked about, where the algorithm can; attention is the same for all classes.
            explanation_type="model" if isinstance(algorithm, AttentionExplainer) else "phenomenon",
            edge_mask_type="object",
            model_config={"mode": "multiclass_classification", "task_level": "graph", "return_type": "raw"},
        )
        about = None if isinstance(algorithm, AttentionExplainer) else torch.tensor([target], device=x.device)
        explanation = explainer(x, edge_index, pos=pos, target=about)
    except ValueError as error:
        raise InputError(f"{type(algorithm).__name__} cannot explain this model: {one_line(error)}") from error
    mask: Tensor = explanation.edge_mask
    return mask.detach()

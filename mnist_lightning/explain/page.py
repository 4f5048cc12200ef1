"""The interactive page of a GNN's connectivity: one HTML file that needs no network."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mnist_lightning.errors import printable
from mnist_lightning.evaluation.page import render
from mnist_lightning.explain.connectivity import Connectivity

COMPONENTS = 3  # principal components of the embeddings that the page offers


def connectivity_page(explanations: Sequence[Connectivity], names: Sequence[str], model: str) -> str:
    """Renders the page with its data.

    Args:
        explanations: Explanations of digits, all by the same model and method.
        names: Name of each digit.
        model: Name of the model.

    Returns:
        The page as HTML.

    Example:
        >>> from mnist_lightning import GNN
        >>> from mnist_lightning.data.sources import read
        >>> from mnist_lightning.explain.connectivity import connectivity
        >>> explanation = connectivity(GNN().eval(), read("digits", train=False)[0][7])
        >>> connectivity_page([explanation], ["digits, test image 7"], "GNN").startswith("<!DOCTYPE html>")
        True
    """
    data = {
        "model": printable(model),
        "method": explanations[0].method.replace("_", " "),
        "digits": [_data(one, name) for one, name in zip(explanations, names, strict=True)],
    }
    return render("explain/templates/connectivity.html", data=data)


def _data(explanation: Connectivity, name: str) -> dict[str, Any]:
    """A digit and its explanation as plain values, for the page's script."""
    intensity = explanation.x[:, 0]
    return {
        "name": printable(name),
        "label": explanation.label,
        "target": explanation.target,
        "image": explanation.image.flatten().tolist(),
        "segments": explanation.segments.flatten().tolist(),
        "x": _rounded(explanation.x),
        "pos": _rounded(explanation.pos),
        "edges": explanation.edge_index.t().tolist(),
        "importance": _rounded(explanation.edge_importance),
        "logits": _rounded(explanation.logits),
        "probabilities": _rounded(explanation.probabilities),
        "evidence": _rounded(explanation.node_evidence),
        "embeddings": [_rounded(principal_components(layer, intensity)) for layer in explanation.embeddings],
    }


def _rounded(values: Tensor) -> Any:
    """Nested lists with four significant digits: more are invisible and would triple the page's size."""
    if values.ndim > 1:
        return [_rounded(row) for row in values]
    return [float(f"{value:.4g}") for value in values.tolist()]


def principal_components(embeddings: Tensor, intensity: Tensor) -> Tensor:
    """Computes the first three principal components of node embeddings.

    The sign of a component is arbitrary. It is chosen so that ink has the larger values, in every layer.

    Args:
        embeddings: Node embeddings, float [N, C].
        intensity: Mean intensity of each node, float [N].

    Returns:
        float [N, 3]. Missing components are zeros.
    """
    centred = embeddings - embeddings.mean(dim=0)
    left, singular, _ = torch.linalg.svd(centred, full_matrices=False)
    coordinates = (left * singular)[:, :COMPONENTS]
    signs = ((intensity - intensity.mean()) @ coordinates).sign()
    coordinates = coordinates * torch.where(signs < 0, -1.0, 1.0)
    return torch.nn.functional.pad(coordinates, (0, COMPONENTS - coordinates.shape[1]))

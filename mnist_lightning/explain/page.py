"""The connectivity visualiser: one HTML file that needs no network."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mnist_lightning.explain.connectivity import Connectivity

COMPONENTS = 3  # principal components of the embeddings that can be shown


def connectivity_page(found: Sequence[Connectivity], names: Sequence[str], model: str) -> str:
    """The page's HTML, with all data and the script inside.

    Args:
        found: One explanation a digit; all by the same model and method.
        names: What each digit is called.
        model: What the model is called.

    Example:
        >>> from mnist_lightning import GNN
        >>> from mnist_lightning.data.sources import read
        >>> from mnist_lightning.explain.connectivity import connectivity
        >>> found = connectivity(GNN().eval(), read("digits", train=False)[0][7])
        >>> connectivity_page([found], ["digits, test image 7"], "GNN").startswith("<!DOCTYPE html>")
        True
    """
    data = {
        "model": model,
        "method": found[0].method.replace("_", " "),
        "digits": [_digit(one, name) for one, name in zip(found, names, strict=True)],
    }
    # Inside a script element only `</` would end the data early.
    text = json.dumps(data, separators=(",", ":")).replace("</", "<\\/")
    return Path(__file__).with_name("page.html").read_text(encoding="utf-8").replace("__DATA__", text)


def _digit(found: Connectivity, name: str) -> dict[str, Any]:
    return {
        "name": name,
        "label": found.label,
        "target": found.target,
        "image": found.image.flatten().tolist(),
        "segments": found.segments.flatten().tolist(),
        "x": _rounded(found.x),
        "pos": _rounded(found.pos),
        "edges": found.edge_index.t().tolist(),
        "importance": _rounded(found.edge_importance),
        "logits": _rounded(found.logits),
        "probabilities": _rounded(found.probabilities),
        "evidence": _rounded(found.node_evidence),
        "embeddings": [_rounded(principal_components(layer, found.x[:, 0])) for layer in found.embeddings],
    }


def _rounded(values: Tensor) -> Any:
    """Four significant digits: nobody sees more, and the page is a third of the size."""
    if values.ndim > 1:
        return [_rounded(row) for row in values]
    return [float(f"{value:.4g}") for value in values.tolist()]


def principal_components(embeddings: Tensor, intensity: Tensor, components: int = COMPONENTS) -> Tensor:
    """The nodes' coordinates along the directions in which their embeddings vary most.

    A direction's sign means nothing; it is chosen so that ink gets the larger values, in every layer.

    Args:
        embeddings: float [N, C].
        intensity: float [N].
        components: How many; columns of zeros where there are fewer.

    Returns:
        float [N, components].
    """
    centred = embeddings - embeddings.mean(dim=0)
    left, singular, _ = torch.linalg.svd(centred, full_matrices=False)
    coordinates = (left * singular)[:, :components]
    signs = ((intensity - intensity.mean()) @ coordinates).sign()
    coordinates = coordinates * torch.where(signs < 0, -1.0, 1.0)
    return torch.nn.functional.pad(coordinates, (0, components - coordinates.shape[1]))

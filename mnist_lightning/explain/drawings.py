"""Pictures of what connects a digit's superpixels."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from torch import Tensor

from mnist_lightning.explain.connectivity import Connectivity

FOR, AGAINST, BORDER = "#2166ac", "#d95f02", "#5aa9e6"
EVIDENCE = LinearSegmentedColormap.from_list("evidence", [AGAINST, "#f7f7f7", FOR])
_EXTENT = (0, 28, 28, 0)  # pixel (row, column) covers the square from (column, row): the y axis points down


def connectivity_sheet(found: Sequence[Connectivity], share: float = 0.25) -> Figure:
    """One row a digit: the digit, its superpixels, the graph, and the evidence for the two likeliest classes.

    Args:
        found: The explanations.
        share: How many of the edges are drawn, the strongest.
    """
    height = 3.4 * len(found)
    figure = Figure(figsize=(16, height))
    # Fixed margins: a layout that measures itself takes matplotlib two seconds for ten digits.
    margins = {"left": 0.01, "right": 0.95, "top": 1 - 0.35 / height, "bottom": 0.05 / height}
    grid = {**margins, "wspace": 0.06, "hspace": 0.14, "width_ratios": [1, 1, 1, 1, 1, 0.05]}
    for row, one in zip(figure.subplots(len(found), 6, squeeze=False, gridspec_kw=grid), found, strict=True):
        draw_digit(row[0], one)
        draw_superpixels(row[1], one)
        draw_graph(row[2], one, share)
        limit = float(one.node_evidence[:, [one.predicted, one.runner_up]].abs().max())
        for axes, digit in ((row[3], one.predicted), (row[4], one.runner_up)):
            image = draw_evidence(axes, one, digit, limit)
        figure.colorbar(image, cax=row[5], label="evidence")
    return figure


def draw_digit(axes: Axes, found: Connectivity) -> None:
    """The digit, with the answer and its confidence."""
    label = "" if found.label is None else f", label {found.label}"
    _frame(axes, f"{found.predicted} ({100 * found.probabilities[found.predicted]:.1f} %){label}")
    axes.imshow(found.image.numpy(), cmap="gray", vmin=0, vmax=255, extent=_EXTENT)


def draw_superpixels(axes: Axes, found: Connectivity) -> None:
    """Each superpixel in its mean intensity."""
    _frame(axes, f"{len(found.x)} superpixels")
    axes.imshow(_painted(found.x[:, 0], found.segments), cmap="gray", vmin=0, vmax=1, extent=_EXTENT)
    axes.add_collection(LineCollection(_borders(found.segments), colors=BORDER, linewidths=0.7))


def draw_graph(axes: Axes, found: Connectivity, share: float = 0.25) -> None:
    """The graph over the faded digit: nodes at their centroids, edges by importance.

    Args:
        axes: Where to draw.
        found: The explanation.
        share: How many of the edges are drawn, the strongest.
    """
    count = max(1, round(share * len(found.edge_importance)))
    _frame(axes, f"the {count} strongest edges for {found.target}")
    axes.imshow(found.image.numpy(), cmap="gray", vmin=0, vmax=255, alpha=0.35, extent=_EXTENT)
    axes.set_facecolor("black")
    strength = found.edge_importance.abs()
    strongest = strength.argsort()[-count:]  # the strongest last, on top of the others
    places = found.pos[:, [1, 0]] * 28  # x, y
    lines = places[found.edge_index[:, strongest]].transpose(0, 1).numpy()
    share_of_most = (strength[strongest] / strength.max().clamp_min(1e-12)).numpy()
    colours = [FOR if value >= 0 else AGAINST for value in found.edge_importance[strongest]]
    axes.add_collection(
        LineCollection(
            list(lines), colors=colours, linewidths=0.5 + 3 * share_of_most, alpha=0.25 + 0.75 * share_of_most
        )
    )
    x, y = places.t().numpy()
    intensity = found.x[:, 0].numpy()
    axes.scatter(x, y, s=14, c=intensity, cmap="gray", vmin=0, vmax=1, edgecolors="white", linewidths=0.5, zorder=2)


def draw_evidence(axes: Axes, found: Connectivity, digit: int, limit: float) -> AxesImage:
    """What each superpixel adds to a class's logit.

    Args:
        axes: Where to draw.
        found: The explanation.
        digit: The class.
        limit: The evidence that gets the darkest colour.

    Returns:
        The drawn image, for a colour bar.
    """
    _frame(axes, f"evidence for {digit}: logit {found.logits[digit]:.1f}")
    values = _painted(found.node_evidence[:, digit], found.segments)
    image = axes.imshow(values, cmap=EVIDENCE, vmin=-limit, vmax=limit, extent=_EXTENT)
    axes.add_collection(LineCollection(_borders(found.segments), colors="#00000030", linewidths=0.5))
    return image


def _frame(axes: Axes, title: str) -> None:
    axes.set(title=title, xticks=[], yticks=[], xlim=(0, 28), ylim=(28, 0), aspect="equal")


def _painted(values: Tensor, segments: Tensor) -> np.ndarray:
    """Each pixel in its node's value."""
    painted: np.ndarray = values[segments.long()].numpy()
    return painted


def _borders(segments: Tensor) -> list[list[tuple[float, float]]]:
    """Lines (x, y) between pixels of different superpixels."""
    across = (segments[:, 1:] != segments[:, :-1]).nonzero().tolist()
    down = (segments[1:] != segments[:-1]).nonzero().tolist()
    vertical = [[(column + 1, row), (column + 1, row + 1)] for row, column in across]
    return vertical + [[(column, row + 1), (column + 1, row + 1)] for row, column in down]

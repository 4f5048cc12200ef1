"""Figures of explanations: connectivity of a GNN, saliency maps of image models."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from torch import Tensor

from mnist_lightning.errors import one_line
from mnist_lightning.evaluation.charts import literal

if TYPE_CHECKING:  # PyG is slow to import; image models don't need it
    from mnist_lightning.explain.connectivity import Connectivity
    from mnist_lightning.explain.report import Digit

FOR, AGAINST, BORDER = "#2166ac", "#d95f02", "#5aa9e6"
# Equal lightness at both ends, and safe for red-green colour blindness.
EVIDENCE = LinearSegmentedColormap.from_list("evidence", [AGAINST, "#f7f7f7", FOR])
GRAD_CAM = "Grad-CAM"
CURVES = {GRAD_CAM: "#2166ac", "input gradients": "#117733", "occlusion": "#aa3377"}  # colour of each method
RANDOM = "#777777"
SHARES = [share / 20 for share in range(11)]  # shares of deleted ink
_EXTENT = (0, 28, 28, 0)  # pixel (row, column) covers the square from (column, row); the y axis points down


@dataclass(frozen=True)
class Saliency:
    """Saliency maps of N digits, tested by deletion.

    Attributes:
        digits: The digits.
        probabilities: float [N, 10], probabilities of the classes.
        targets: int64 [N], the classes that the maps explain.
        runners_up: int64 [N], the most probable classes other than the targets.
        maps: Maps of the targets by method, float [N, 28, 28] each.
        runner_up_maps: Grad-CAM of the runners-up, float [N, 28, 28]; None for a model without convolutions.
        curves: Probabilities of the targets without `SHARES` of the ink, by method, float [N, S] each.
        random_curves: The same for R random orders of the ink, float [N, R, S].
    """

    digits: "Sequence[Digit]"
    probabilities: Tensor
    targets: Tensor
    runners_up: Tensor
    maps: dict[str, Tensor]
    runner_up_maps: Tensor | None
    curves: dict[str, Tensor]
    random_curves: Tensor


def connectivity_sheet(explanations: "Sequence[Connectivity]", share: float = 0.25) -> Figure:
    """Draws one row per digit: the digit, its superpixels, the graph, and the evidence for the two top classes.

    Args:
        explanations: Explanations of the digits.
        share: Share of the edges to draw, the most important ones, in [0, 1].
    """
    height = 3.4 * len(explanations)
    figure = Figure(figsize=(16, height))
    # Fixed margins: matplotlib's automatic layout takes two seconds for ten digits.
    margins = {"left": 0.01, "right": 0.95, "top": 1 - 0.35 / height, "bottom": 0.05 / height}
    grid = {**margins, "wspace": 0.06, "hspace": 0.14, "width_ratios": [1, 1, 1, 1, 1, 0.05]}
    rows = figure.subplots(len(explanations), 6, squeeze=False, gridspec_kw=grid)
    for row, one in zip(rows, explanations, strict=True):
        draw_digit(row[0], one.image, one.label, one.probabilities)
        draw_superpixels(row[1], one)
        draw_graph(row[2], one, share)
        limit = float(one.node_evidence[:, [one.predicted, one.runner_up]].abs().max())
        for axes, digit in ((row[3], one.predicted), (row[4], one.runner_up)):
            image = draw_evidence(axes, one, digit, limit)
        figure.colorbar(image, cax=row[5], label="evidence")
    return figure


def saliency_sheet(saliency: Saliency) -> Figure:
    """Draws one row per digit: the digit, its maps, Grad-CAM of the runner-up, and the deletion curves.

    Args:
        saliency: Saliency maps of the digits.
    """
    columns = 2 + len(saliency.maps) + (saliency.runner_up_maps is not None)
    width, height = 2.7 * columns + 1.5, 2.95 * len(saliency.digits) + 0.55
    figure = Figure(figsize=(width, height))
    # Fixed margins: matplotlib's automatic layout takes two seconds for ten digits.
    margins = {"left": 0.3 / width, "right": 1 - 0.45 / width, "top": 1 - 0.35 / height, "bottom": 0.5 / height}
    grid = {**margins, "wspace": 0.06, "hspace": 0.13, "width_ratios": [1] * (columns - 1) + [1.3]}
    rows = figure.subplots(len(saliency.digits), columns, squeeze=False, gridspec_kw=grid)
    for i, (row, digit) in enumerate(zip(rows, saliency.digits, strict=True)):
        draw_digit(row[0], digit.image, digit.label, saliency.probabilities[i])
        row[0].set_ylabel(literal(one_line(digit.name, 36)))
        for axes, (name, maps) in zip(row[1:], saliency.maps.items(), strict=False):
            draw_map(axes, digit.image, maps[i], f"{name} for {saliency.targets[i]}", CURVES[name])
        if saliency.runner_up_maps is not None:
            draw_map(row[-2], digit.image, saliency.runner_up_maps[i], f"{GRAD_CAM} for {saliency.runners_up[i]}")
        draw_deletion(row[-1], saliency, i)
        row[-1].tick_params(labelbottom=False)
    rows[0, -1].legend(fontsize=8)
    rows[-1, -1].tick_params(labelbottom=True)
    rows[-1, -1].set_xlabel("% of the ink deleted")
    return figure


def draw_digit(axes: Axes, image: Tensor, label: int | None, probabilities: Tensor) -> None:
    """Draws a digit. The title gives the prediction, its probability, and the label if it is known.

    Args:
        axes: Panel to draw in.
        image: Digit, uint8 [28, 28].
        label: Class of the digit, None if unknown.
        probabilities: Probabilities of the classes, float [10].
    """
    title = f"{probabilities.argmax()} ({100 * probabilities.max():.1f} %)"
    _frame(axes, title if label is None else f"{title}, label {label}")
    axes.imshow(image.numpy(), cmap="gray", vmin=0, vmax=255, extent=_EXTENT)


def draw_superpixels(axes: Axes, explanation: "Connectivity") -> None:
    """Draws each superpixel in its mean intensity."""
    _frame(axes, f"{len(explanation.x)} superpixels")
    intensities = explanation.x[explanation.segments.long(), 0].numpy()
    axes.imshow(intensities, cmap="gray", vmin=0, vmax=1, extent=_EXTENT)
    axes.add_collection(LineCollection(_borders(explanation.segments), colors=BORDER, linewidths=0.7))


def draw_graph(axes: Axes, explanation: "Connectivity", share: float = 0.25) -> None:
    """Draws the graph over the faded digit: nodes at their centroids, edges by importance.

    Args:
        axes: Panel to draw in.
        explanation: Explanation of a digit.
        share: Share of the edges to draw, the most important ones, in [0, 1].
    """
    importance = explanation.edge_importance
    count = max(1, round(share * len(importance)))
    _frame(axes, f"{count} most important edges for {explanation.target}")
    axes.imshow(explanation.image.numpy(), cmap="gray", vmin=0, vmax=255, alpha=0.35, extent=_EXTENT)
    axes.set_facecolor("black")
    strength = importance.abs()
    strongest = strength.argsort()[-count:]  # the strongest last, on top of the others
    places = explanation.pos[:, [1, 0]] * 28  # x, y
    lines = list(places[explanation.edge_index[:, strongest]].transpose(0, 1).numpy())
    relative = (strength[strongest] / strength.max().clamp_min(1e-12)).numpy()
    colours = [FOR if value >= 0 else AGAINST for value in importance[strongest]]
    edges = LineCollection(lines, colors=colours, linewidths=0.5 + 3 * relative, alpha=0.25 + 0.75 * relative)
    axes.add_collection(edges)
    x, y = places.t().numpy()
    intensity = explanation.x[:, 0].numpy()
    axes.scatter(x, y, s=14, c=intensity, cmap="gray", vmin=0, vmax=1, edgecolors="white", linewidths=0.5, zorder=2)


def draw_evidence(axes: Axes, explanation: "Connectivity", digit: int, limit: float) -> AxesImage:
    """Draws the contribution of each superpixel to the logit of a class.

    Args:
        axes: Panel to draw in.
        explanation: Explanation of a digit.
        digit: Class of the logit.
        limit: Evidence with the darkest colour.

    Returns:
        The image, for a colour bar.
    """
    _frame(axes, f"evidence for {digit}: logit {explanation.logits[digit]:.1f}")
    values = explanation.node_evidence[explanation.segments.long(), digit].numpy()
    image = axes.imshow(values, cmap=EVIDENCE, vmin=-limit, vmax=limit, extent=_EXTENT)
    axes.add_collection(LineCollection(_borders(explanation.segments), colors="#00000030", linewidths=0.5))
    return image


def draw_map(axes: Axes, image: Tensor, values: Tensor, title: str = "", colour: str = "black") -> None:
    """Draws a saliency map with the outline of the digit: positive values in blue, negative values in orange.

    Args:
        axes: Panel to draw in.
        image: Digit, uint8 [28, 28].
        values: Saliency map, float [28, 28].
        title: Title of the panel.
        colour: Colour of the title, the same as that of the map's deletion curve.
    """
    limit = max(float(values.abs().max()), 1e-12)
    _frame(axes, title)
    axes.title.set_color(colour)
    axes.imshow(values.numpy(), cmap=EVIDENCE, vmin=-limit, vmax=limit, extent=_EXTENT)
    if image.any():
        places, middle = [place + 0.5 for place in range(28)], float(image.max()) / 2
        axes.contour(places, places, image.numpy(), levels=[middle], colors="black", linewidths=0.8)


def draw_deletion(axes: Axes, saliency: Saliency, row: int) -> None:
    """Draws the target's probability against deleted ink, for each map and for random orders (mean ± deviation).

    Args:
        axes: Panel to draw in.
        saliency: Saliency maps of the digits.
        row: Number of the digit.
    """
    percent = [100 * share for share in SHARES]
    mean, deviation = saliency.random_curves[row].mean(dim=0), saliency.random_curves[row].std(dim=0)
    axes.fill_between(percent, mean - deviation, mean + deviation, color=RANDOM, alpha=0.25, linewidth=0)
    axes.plot(percent, mean, color=RANDOM, linestyle="--", label="random ink")
    for name, curves in saliency.curves.items():
        axes.plot(percent, curves[row], color=CURVES[name], label=name)
    axes.set(title=f"probability of {saliency.targets[row]}", xlim=(0, percent[-1]), ylim=(-0.03, 1.03))
    axes.set_box_aspect(1 / 1.3)  # as high as the maps
    axes.yaxis.tick_right()
    axes.grid(alpha=0.3)


def _frame(axes: Axes, title: str) -> None:
    axes.set(title=title, xticks=[], yticks=[], xlim=(0, 28), ylim=(28, 0), aspect="equal")


def _borders(segments: Tensor) -> list[list[tuple[float, float]]]:
    """Lines (x, y) between pixels of different superpixels."""
    across = (segments[:, 1:] != segments[:, :-1]).nonzero().tolist()
    down = (segments[1:] != segments[:-1]).nonzero().tolist()
    vertical = [[(column + 1, row), (column + 1, row + 1)] for row, column in across]
    return vertical + [[(column, row + 1), (column + 1, row + 1)] for row, column in down]

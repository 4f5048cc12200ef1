"""Pictures of robustness: corrupted digits, errors, calibration under corruption."""

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from mnist_lightning.evaluation.comparison_figures import heat_map, legend, palette
from mnist_lightning.evaluation.robustness import SEVERITIES, Float, Robustness


def corrupted_digits(found: Robustness) -> Figure:
    """The same digits under all corruptions, as MNIST-C's files have them: a row a corruption."""
    rows = [0, *found.published]
    figure = _sheet(found.samples[rows], [found.conditions[row].name for row in rows])
    figure.axes[0].set_xticks([])
    return figure


def digits_by_severity(found: Robustness) -> Figure:
    """A digit under each corruption at severities 0 to 5; framed: as MNIST-C's files have it."""
    names = [found.conditions[index].name for index in found.published]
    digits = found.samples.shape[1]
    severities = [[0] * len(names), *map(found.at, SEVERITIES)]
    rows = torch.arange(len(names))
    shown = torch.stack([found.samples[column][rows, rows % digits] for column in map(torch.tensor, severities)], dim=1)
    figure = _sheet(shown, names, top=0.55)
    axes = figure.axes[0]
    for row, index in enumerate(found.published):
        place = (28 * found.conditions[index].severity - 0.5, 28 * row - 0.5)
        axes.add_patch(Rectangle(place, 28, 28, fill=False, edgecolor="#E69F00", linewidth=2, clip_on=False))
    axes.set_xticks(28 * np.arange(len(severities)) + 13.5, [str(severity) for severity in (0, *SEVERITIES)])
    axes.set_xlabel("severity")
    axes.xaxis.set_label_position("top")
    return figure


def _sheet(digits: torch.Tensor, names: list[str], top: float = 0.05) -> Figure:
    """Digits uint8 [R, C, 28, 28] in rows with names, as one image: pairs of axes for each take seconds."""
    rows, columns = digits.shape[:2]
    side, left, edge = 0.6, 1.25, 0.05  # inches of a digit, of the names, of what is left free around
    width, height = left + side * columns + edge, top + side * rows + edge
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((left / width, edge / height, side * columns / width, side * rows / height))
    image = digits.permute(0, 2, 1, 3).reshape(28 * rows, 28 * columns)
    axes.imshow(image.numpy(), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axes.set_yticks(28 * np.arange(rows) + 13.5, names)
    axes.tick_params(length=0, labeltop=True, labelbottom=False)
    axes.spines[:].set_visible(False)
    axes.vlines(28 * np.arange(1, columns) - 0.5, -0.5, 28 * rows - 0.5, color="#666666", linewidth=0.5)
    axes.hlines(28 * np.arange(1, rows) - 0.5, -0.5, 28 * columns - 0.5, color="#666666", linewidth=0.5)
    return figure


def error_map(found: Robustness) -> Figure:
    """Errors, mean over the seeds, of every model under every corruption as MNIST-C's files have it."""
    return _map(found, found.errors, "error %")


def calibration_map(found: Robustness) -> Figure:
    """Expected calibration errors, mean over the seeds, as `error_map`."""
    return _map(found, found.calibration_errors, "expected calibration error %")


def _map(found: Robustness, shares: Sequence[Float], label: str) -> Figure:
    """A heat map of shares [n, K] of each model."""
    means = 100 * np.stack([of_model.mean(axis=0) for of_model in shares], axis=1)
    rows = np.concatenate([means[:1], means[found.published], means[found.published].mean(axis=0, keepdims=True)])
    names = ["clean", *(found.conditions[index].name for index in found.published), "mean of the 15"]
    return heat_map(rows, names, [model.name for model in found.models], label, "{:.1f}", gamma=0.5)


def mean_errors(found: Robustness) -> Figure:
    """Mean error over the 15 corruptions with its 95 % interval, each seed's, and the clean error."""
    names = [f"{model.name} (n = {len(model.runs)})" for model in found.models]
    figure = Figure(figsize=(8, 1.4 + 0.5 * len(names)), layout="constrained")
    axes = figure.subplots()
    for index, colour in enumerate(palette(len(names))):
        seeds = 100 * found.mean_errors(index)
        low, high = (100 * end for end in found.interval(index))
        axes.barh(index, seeds.mean(), height=0.6, color=colour, alpha=0.45)
        axes.plot([low, high], [index, index], color="black", linewidth=1.8)
        axes.plot(seeds, [index] * len(seeds), "o", color=colour, markersize=5, markerfacecolor="white")
        axes.plot(100 * found.errors[index][:, 0].mean(), index, "|", color="black", markersize=16, markeredgewidth=1.5)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set(xlabel="error %", xlim=(0, None))
    axes.grid(alpha=0.3, axis="x")
    axes.set_axisbelow(True)
    return figure


def severity_curves(found: Robustness) -> Figure:
    """Error against severity, a panel a corruption; 0 is clean, rings are what MNIST-C's files have."""
    figure = Figure(figsize=(11, 8), layout="constrained")
    panels = figure.subplots(3, 5, sharex=True, sharey=True).ravel()
    for axes, published in zip(panels, found.published, strict=True):
        corruption, severity = found.conditions[published]
        along = [0, *(i for i, condition in enumerate(found.conditions) if condition.corruption == corruption)]
        for errors, colour in zip(found.errors, palette(len(found.models)), strict=True):
            means = 100 * errors.mean(axis=0)
            axes.plot([0, *SEVERITIES], means[along], "-", color=colour, linewidth=1.4)
            axes.plot(severity, means[published], "o", color=colour, markersize=5, markerfacecolor="white")
        axes.set_title(found.conditions[published].name, fontsize=10)
        axes.set_yscale("symlog", linthresh=1)  # zeros have their place, and small errors are seen beside large ones
        axes.set_ylim(0, 100)
        axes.set_yticks([0, 1, 10, 100], ["0", "1", "10", "100"])
        axes.set_xticks([0, *SEVERITIES])
        axes.grid(alpha=0.3)
    figure.supxlabel("severity", fontsize=10)
    figure.supylabel("error %", fontsize=10)
    legend(figure, [model.name for model in found.models])
    return figure

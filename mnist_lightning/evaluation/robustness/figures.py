"""Figures of robustness: corrupted digits, errors, calibration and out-of-distribution detection."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from torch import Tensor

from mnist_lightning.evaluation.charts import draw_cells, draw_reliability, heat_map, legend, literal, palette
from mnist_lightning.evaluation.robustness.measure import SEVERITIES, Robustness
from mnist_lightning.evaluation.robustness.unknowns import Detection
from mnist_lightning.evaluation.statistics import Float, expected_calibration_error
from mnist_lightning.runs.finding import best_by_validation


def draw_errors(results: Robustness) -> Iterator[tuple[str, Figure, str]]:
    """Yields the file name, figure and caption of each figure of errors and corrupted digits."""
    figure = _condition_map(results, results.errors, "error %")
    yield "errors", figure, "Error by corruption, mean over the seeds."
    yield "corrupted-digits", corrupted_digits(results), "The first test digit of each class under each corruption."
    if results.has_all_severities:
        caption = "Error against severity, logarithmic above 1 %. Circles mark the severities of MNIST-C's files."
        yield "severities", severity_curves(results), caption
        caption = "A digit under each corruption at each severity. Frames mark the severities of MNIST-C's files."
        yield "digits-by-severity", digits_by_severity(results), caption
    caption = "Mean error over the 15 corruptions. Lines are 95 % intervals, circles single seeds, ticks clean errors."
    yield "mean-errors", mean_errors(results), caption


def draw_calibration(results: Robustness) -> Iterator[tuple[str, Figure, str]]:
    """Yields the file name, figure and caption of each figure of calibration."""
    figure = _condition_map(results, results.calibration_errors, "expected calibration error %")
    caption = "Expected calibration error by corruption, mean over the seeds, before temperature scaling."
    yield "calibration", figure, caption
    scaled = []
    for model, logits, colour in zip(results.models, results.clean_logits, palette(len(results.models)), strict=True):
        best = model.runs.index(best_by_validation(model.runs))
        temperature = model.temperatures[best]
        if temperature is not None:
            scaled.append((model.name, logits[best], temperature, colour))
    if scaled:
        figure = reliability_before_and_after(scaled, results.test_set.labels.numpy())
        caption = "Clean digits, best run by validation accuracy. Models below the diagonal are overconfident."
        yield "reliability", figure, caption


def draw_unknowns(results: Robustness) -> Iterator[tuple[str, Figure, str]]:
    """Yields the file name, figure and caption of each figure of out-of-distribution detection."""
    figure = detection_map([model.name for model in results.models], results.mean_detections)
    yield "unknowns", figure, "Detection of pictures without digits, mean over the seeds."
    yield "unknown-pictures", unknown_pictures(results.unknown), "Samples of the pictures without digits."


def corrupted_digits(results: Robustness) -> Figure:
    """Draws the same digits under each corruption at the severities of MNIST-C's files, one row per corruption."""
    rows = [0, *results.published]
    return _sheet(results.samples[rows], [results.conditions[row].name for row in rows])


def digits_by_severity(results: Robustness) -> Figure:
    """Draws one digit per corruption at severities 0 to 5, with a frame at the severity of MNIST-C's files."""
    names = [results.conditions[index].name for index in results.published]
    conditions = torch.tensor([[0] * len(names), *map(results.at_severity, SEVERITIES)]).t()  # [15, 6]
    digits = torch.arange(len(names)) % results.samples.shape[1]
    figure = _sheet(results.samples[conditions, digits[:, None]], names, top=0.55)
    axes = figure.axes[0]
    for row, index in enumerate(results.published):
        corner = (28 * results.conditions[index].severity - 0.5, 28 * row - 0.5)
        axes.add_patch(Rectangle(corner, 28, 28, fill=False, edgecolor="#E69F00", linewidth=2, clip_on=False))
    axes.set_xticks(28 * np.arange(6) + 13.5, map(str, (0, *SEVERITIES)))
    axes.set_xlabel("severity")
    axes.xaxis.set_label_position("top")
    return figure


def unknown_pictures(sets: Mapping[str, Tensor]) -> Figure:
    """Draws up to twelve evenly spaced pictures of each set, one row per set.

    Args:
        sets: Pictures by the name of their set, uint8 [M, 28, 28].
    """
    rows = torch.full((len(sets), 12, 28, 28), 255, dtype=torch.uint8)
    for row, images in zip(rows, sets.values(), strict=True):
        chosen = np.linspace(0, len(images) - 1, min(12, len(images))).astype(int)
        row[: len(chosen)] = images[chosen]
    return _sheet(rows, [f"{name}\nn = {len(images):,}" for name, images in sets.items()])


def _sheet(digits: Tensor, names: Sequence[str], top: float = 0.05) -> Figure:
    """Draws named rows of digits as one image, because a panel per digit takes seconds.

    Args:
        digits: Images, uint8 [R, C, 28, 28].
        names: Names of the R rows.
        top: Margin above the digits, in inches.
    """
    rows, columns = digits.shape[:2]
    side, left, edge = 0.6, 1.25, 0.05  # digit, names and other margins, in inches
    width, height = left + side * columns + edge, top + side * rows + edge
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((left / width, edge / height, side * columns / width, side * rows / height))
    image = digits.permute(0, 2, 1, 3).reshape(28 * rows, 28 * columns)
    axes.imshow(image.numpy(), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks(28 * np.arange(rows) + 13.5, names)
    axes.tick_params(length=0, labeltop=True, labelbottom=False)
    axes.spines[:].set_visible(False)
    axes.vlines(28 * np.arange(1, columns) - 0.5, -0.5, 28 * rows - 0.5, color="#666666", linewidth=0.5)
    axes.hlines(28 * np.arange(1, rows) - 0.5, -0.5, 28 * columns - 0.5, color="#666666", linewidth=0.5)
    return figure


def _condition_map(results: Robustness, shares: Sequence[Float], label: str) -> Figure:
    """Draws a heat map of each model's mean share by corruption, at the severities of MNIST-C's files.

    Args:
        results: Results of the M models.
        shares: Shares of each model, [n, K], such as error rates.
        label: Label of the colour bar.
    """
    means = 100 * np.stack([of_model.mean(axis=0) for of_model in shares], axis=1)
    rows = np.concatenate([means[:1], means[results.published], means[results.published].mean(axis=0, keepdims=True)])
    names = ["clean", *(results.conditions[index].name for index in results.published), "mean of the 15"]
    return heat_map(rows, names, [model.name for model in results.models], label, "{:.1f}", gamma=0.5)


def mean_errors(results: Robustness) -> Figure:
    """Draws mean errors over the 15 corruptions with 95 % intervals, the error of each seed, and the clean errors."""
    models = results.models
    figure = Figure(figsize=(8, 1.4 + 0.5 * len(models)), layout="constrained")
    axes = figure.subplots()
    for index, colour in enumerate(palette(len(models))):
        seeds = 100 * results.mean_errors[index]
        clean = 100 * results.errors[index][:, 0].mean()
        axes.barh(index, seeds.mean(), height=0.6, color=colour, alpha=0.45)
        axes.plot(100 * results.intervals[index], [index, index], color="black", linewidth=1.8)
        axes.plot(seeds, [index] * len(seeds), "o", color=colour, markersize=5, markerfacecolor="white")
        axes.plot(clean, index, "|", color="black", markersize=16, markeredgewidth=1.5)
    axes.set_yticks(range(len(models)), [literal(model) for model in models])
    axes.invert_yaxis()
    axes.set(xlabel="error %", xlim=(0, None))
    axes.grid(alpha=0.3, axis="x")
    axes.set_axisbelow(True)
    return figure


def severity_curves(results: Robustness) -> Figure:
    """Draws error against severity, one panel per corruption, with circles at the severities of MNIST-C's files."""
    figure = Figure(figsize=(11, 8), layout="constrained")
    panels = figure.subplots(3, 5, sharex=True, sharey=True).ravel()
    for axes, published in zip(panels, results.published, strict=True):
        corruption, severity = results.conditions[published]
        along = [0, *(k for k, condition in enumerate(results.conditions) if condition.corruption == corruption)]
        for errors, colour in zip(results.errors, palette(len(results.models)), strict=True):
            means = 100 * errors.mean(axis=0)
            axes.plot([0, *SEVERITIES], means[along], "-", color=colour, linewidth=1.4)
            axes.plot(severity, means[published], "o", color=colour, markersize=5, markerfacecolor="white")
        axes.set_title(results.conditions[published].name, fontsize=10)
        axes.set_yscale("symlog", linthresh=1)  # a logarithmic scale has no zero
        axes.set(ylim=(0, 100), xticks=(0, *SEVERITIES))
        axes.set_yticks([0, 1, 10, 100], ["0", "1", "10", "100"])
        axes.grid(alpha=0.3)
    figure.supxlabel("severity", fontsize=10)
    figure.supylabel("error %", fontsize=10)
    legend(figure, [model.name for model in results.models])
    return figure


def reliability_before_and_after(models: Sequence[tuple[str, Float, float, Any]], labels: NDArray[np.int64]) -> Figure:
    """Draws accuracy against confidence before and after temperature scaling. The legend gives calibration errors.

    Args:
        models: Name, logits [N, 10], temperature and colour of each model.
        labels: Labels [N].
    """
    figure = Figure(figsize=(9.5, 5.5 + 0.25 * -(-len(models) // 3)), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    handles: list[Line2D] = []
    texts: list[str] = []
    for name, logits, temperature, colour in models:
        before_and_after = logits, logits / temperature
        for axes, scaled in zip(panels, before_and_after, strict=True):
            draw_reliability(axes, scaled, labels, colour)
        errors = " → ".join(f"{100 * expected_calibration_error(scaled, labels):.2f} %" for scaled in before_and_after)
        handles += panels[0].plot([], [], color=colour, linewidth=3)
        texts.append(f"{literal(name)}, T = {temperature:.2f}: {errors}")
    for axes, title in zip(panels, ("before temperature scaling", "after temperature scaling"), strict=True):
        axes.plot([0, 1], [0, 1], color="#999999", linewidth=1, zorder=0)
        axes.set(title=title, xlabel="confidence", xlim=(0, 1.02), ylim=(0, 1.02), aspect="equal")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("accuracy")
    title = "\nExpected calibration error with 15 bins. A larger dot is a bin with more digits."
    columns = max(1, min(3, len(models), 140 // max(map(len, texts))))  # of at most 140 characters together
    figure.legend(handles, texts, title=title, fontsize=9, frameon=False, loc="outside lower center", ncols=columns)
    return figure


def detection_map(names: Sequence[str], detections: Sequence[Sequence[Detection]]) -> Figure:
    """Draws AUROC and FPR95 as two heat maps, one row per model and one column per set and score.

    Args:
        names: Names of the M models.
        detections: Results of each model, for the same sets and scores.
    """
    columns = [f"{row.set}\n{row.score}" for row in detections[0]]
    figure = Figure(figsize=(2.4 + 0.75 * len(columns), 2.2 + 0.7 * len(names)), layout="constrained")
    panels = figure.subplots(2, 1, sharex=True)
    # The darkest colour is for chance level or worse.
    scales = (("auroc", "AUROC %, 100 is best", 50.0, 100.0), ("fpr95", "FPR95 %, 0 is best", 95.0, 0.0))
    for axes, (metric, title, chance, best) in zip(panels, scales, strict=True):
        values = 100 * np.array([[getattr(row, metric) for row in rows] for rows in detections])
        depth = ((values - best) / (chance - best)).clip(0, 1)
        draw_cells(axes, depth, Normalize(0, 1), map("{:.1f}".format, values.flat))
        axes.set_yticks(range(len(names)), [literal(name) for name in names])
        axes.set_title(title, fontsize=10)
    panels[1].set_xticks(range(len(columns)), columns, rotation=45, ha="right", rotation_mode="anchor", fontsize=8)
    return figure

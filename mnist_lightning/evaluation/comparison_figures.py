"""Pictures of a comparison: curves, accuracies, calibration, confusions."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.special import softmax
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from mnist_lightning.classifier import CLASSES
from mnist_lightning.evaluation.calibration import draw_reliability
from mnist_lightning.evaluation.comparison import Comparison
from mnist_lightning.evaluation.figures import digit_sheet, draw_confusion_matrix
from mnist_lightning.evaluation.metrics import metrics
from mnist_lightning.evaluation.runs import Run

# Okabe and Ito's colours, which colour-blind people can tell apart; black is for text.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D31", "#666666")


def colours(comparison: Comparison) -> list[Any]:
    """The models' colours, the same in all pictures."""
    return palette(len(comparison.rows))


def palette(count: int) -> list[Any]:
    """Colours that can be told apart; of many a scale, in the table's order."""
    return list(COLOURS[:count] if count <= len(COLOURS) else colormaps["turbo"](np.linspace(0, 1, count)))


def curves(comparison: Comparison) -> Figure:
    """Loss and accuracy of training (dashed) and validation over the epochs; a line a run."""
    figure, panels = _two_panels(comparison)
    for group, colour in zip(comparison.groups, colours(comparison), strict=True):
        for run in group:
            scalars = _scalars(run)
            for split, style in (("train", "--"), ("val", "-")):
                epochs, loss = scalars.get(f"{split}/loss", _NOTHING)
                panels[0].plot(epochs, loss, style, color=colour, linewidth=1.1, alpha=0.8)
                epochs, accuracy = scalars.get(f"{split}/acc", _NOTHING)
                panels[1].plot(epochs, 100 * (1 - accuracy), style, color=colour, linewidth=1.1, alpha=0.8)
    for axes, label in zip(panels, ("loss", "error %"), strict=True):
        axes.set(xlabel="epoch", ylabel=label, yscale="log")
        axes.grid(alpha=0.3, which="both")
    figure.suptitle("Training (dashed, on distorted images where they are) and validation")
    _legend(figure, comparison)
    return figure


def _two_panels(comparison: Comparison) -> tuple[Figure, list[Axes]]:
    """A figure high enough for its legend."""
    figure = Figure(figsize=(11, max(4.2, 0.24 * len(comparison.rows))), layout="constrained")
    return figure, list(figure.subplots(1, 2))


_NOTHING = (np.empty(0), np.empty(0))


def _scalars(run: Run) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """By tag: epochs and values, means of what was logged inside an epoch. Empty where nothing was logged."""
    steps, epochs = run.summary.get("steps", 0), run.summary.get("epochs", 0)
    if run.folder is None or not steps or not epochs:
        return {}
    events = EventAccumulator(str(run.folder), size_guidance={"images": 1, "tensors": 1}).Reload()
    found = {}
    for tag in events.Tags()["scalars"]:
        points = events.Scalars(tag)
        epoch = np.ceil([(point.step + 1) * epochs / steps for point in points]).clip(1, epochs)
        values = np.array([point.value for point in points])
        seen = np.unique(epoch)
        found[tag] = seen, np.array([values[epoch == e].mean() for e in seen])
    return found


def accuracies(comparison: Comparison) -> Figure:
    """Test accuracy with its 95 % interval, and each seed's."""
    figure = Figure(figsize=(8, 1.2 + 0.42 * len(comparison.rows)), layout="constrained")
    axes = figure.subplots()
    for index, colour in enumerate(colours(comparison)):
        row, group = comparison.rows[index], comparison.groups[index]
        axes.plot([100 * row.low, 100 * row.high], [index, index], color=colour, linewidth=2)
        seeds = [100 * run.correct.mean() for run in group]
        axes.plot(seeds, [index] * len(seeds), "o", color=colour, markersize=5, markerfacecolor="white")
        axes.plot(100 * row.test_accuracy, index, "|", color=colour, markersize=14, markeredgewidth=2.5)
    axes.set_yticks(range(len(comparison.rows)), [f"{row.name} (n = {row.seeds})" for row in comparison.rows])
    axes.invert_yaxis()
    axes.set(xlabel="test accuracy %")
    axes.grid(alpha=0.3, axis="x")
    return figure


def costs(comparison: Comparison) -> Figure:
    """Test accuracy against parameters and against seconds of training."""
    figure, panels = _two_panels(comparison)
    for axes, quantity, label in zip(panels, ("parameters", "train_seconds"), ("parameters", "seconds"), strict=True):
        for row, colour in zip(comparison.rows, colours(comparison), strict=True):
            cost, accuracy = getattr(row, quantity), 100 * row.test_accuracy
            spread = [[accuracy - 100 * row.low], [100 * row.high - accuracy]]
            axes.errorbar(cost, accuracy, yerr=spread, fmt="o", color=colour, capsize=3)
        axes.set(xscale="log", xlabel=label, ylabel="test accuracy %")
        axes.grid(alpha=0.3)
    _legend(figure, comparison)
    return figure


def confusions(comparison: Comparison) -> Figure:
    """The confusion matrix of each model's chosen run."""
    columns = min(3, len(comparison.chosen))
    rows = -(-len(comparison.chosen) // columns)
    figure = Figure(figsize=(4.4 * columns, 4.3 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in panels[len(comparison.chosen) :]:
        axes.set_axis_off()
    for axes, row, run in zip(panels, comparison.rows, comparison.chosen, strict=False):
        draw_confusion_matrix(axes, torch.from_numpy(run.logits), torch.from_numpy(run.labels))
        axes.set_title(row.name)
    return figure


def f1_scores(comparison: Comparison) -> Figure:
    """F1 of each digit, mean over the seeds."""
    scores = [np.mean([_f1(run) for run in group], axis=0) for group in comparison.groups]
    return heat_map(100 * np.stack(scores), [row.name for row in comparison.rows], range(CLASSES), "F1 %", "{:.2f}")


def _f1(run: Run) -> list[float]:
    return metrics(torch.from_numpy(run.logits), torch.from_numpy(run.labels), loss=0.0).f1


def agreement(comparison: Comparison) -> Figure:
    """On how many of the images two models give the same answer."""
    answers = [run.logits.argmax(axis=1) for run in comparison.chosen]
    shares = np.array([[(one == other).mean() for other in answers] for one in answers])
    names = [row.name for row in comparison.rows]
    return heat_map(100 * shares, names, names, "same answer, % of the images", "{:.2f}")


def frequent_confusions(comparison: Comparison, count: int = 12) -> Figure:
    """Which digit is most often taken for which, by model."""
    counters = [Counter(_mistakes(run)) for run in comparison.chosen]
    total: Counter[tuple[int, int]] = sum(counters, Counter())
    most = [pair for pair, _ in total.most_common(count)]
    values = np.array([[counter[pair] for pair in most] for counter in counters]).reshape(len(counters), len(most))
    names = [f"{label} as {predicted}" for label, predicted in most]
    return heat_map(values, [row.name for row in comparison.rows], names, "mistakes", "{:.0f}")


def _mistakes(run: Run) -> list[tuple[int, int]]:
    wrong = ~run.correct
    return list(zip(run.labels[wrong].tolist(), run.logits.argmax(axis=1)[wrong].tolist(), strict=True))


def heat_map(
    values: NDArray[np.floating],
    rows: Sequence[object],
    columns: Sequence[object],
    label: str,
    form: str,
    gamma: float = 1.0,
) -> Figure:
    """Numbers in a grid, and their size as colour.

    Args:
        values: [R, C].
        rows: R names.
        columns: C names.
        label: What the colours mean.
        form: How a number is written.
        gamma: Below 1, more of the colours are spent on the small values.
    """
    figure = Figure(figsize=(2.5 + 0.75 * max(4, len(columns)), 1.6 + 0.42 * len(rows)), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(values, cmap="Blues", aspect="auto", norm=PowerNorm(gamma))
    depth = np.asarray(image.norm(values))
    for (row, column), value in np.ndenumerate(values):
        shade = "white" if depth[row, column] > 0.5 else "black"
        axes.text(column, row, form.format(value), ha="center", va="center", fontsize=8, color=shade)
    names = [str(column) for column in columns]
    axes.set_xticks(range(len(names)), names, rotation=0 if all(len(name) < 3 for name in names) else 45)
    axes.set_yticks(range(len(rows)), [str(row) for row in rows])
    figure.colorbar(image, label=label)
    return figure


def reliability(comparison: Comparison) -> Figure:
    """Accuracy against confidence, of bins with ten images or more; on the diagonal a model is as right as it says."""
    figure = Figure(figsize=(6, 5), layout="constrained")
    axes: Axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="#999999", linewidth=1)
    for run, colour in zip(comparison.chosen, colours(comparison), strict=True):
        draw_reliability(axes, run.logits, run.labels, colour)
    axes.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1.01), ylim=(0, 1.01), aspect="equal")
    axes.grid(alpha=0.3)
    _legend(figure, comparison)
    return figure


def shared_mistakes(comparison: Comparison, images: Tensor, count: int = 20) -> Figure:
    """Digits that all models have wrong, those first that they are surest of.

    Args:
        comparison: Of at least one model.
        images: uint8 [N, 28, 28], the test images.
        count: How many at the most.
    """
    wrong = np.flatnonzero(np.logical_and.reduce([~run.correct for run in comparison.chosen]))
    probabilities = np.mean([softmax(run.logits[wrong], axis=1) for run in comparison.chosen], axis=0)
    order = np.argsort(-probabilities.max(axis=1), kind="stable")[:count]
    labels = comparison.chosen[0].labels
    captions = [
        f"#{wrong[i]}, label {labels[wrong[i]]}\n{probabilities[i].argmax()} ({100 * probabilities[i].max():.0f} %)"
        for i in order
    ]
    return digit_sheet(
        images[torch.from_numpy(wrong[order])], captions, f"{len(wrong)} digits that all models have wrong"
    )


def lonely_mistakes(comparison: Comparison, images: Tensor, count: int = 20) -> Figure:
    """Digits that only one model has wrong, those first that it is surest of.

    Args:
        comparison: Of at least two models.
        images: uint8 [N, 28, 28], the test images.
        count: How many at the most.
    """
    wrong = np.stack([~run.correct for run in comparison.chosen])
    found = []
    for image in np.flatnonzero(wrong.sum(axis=0) == 1).tolist():
        model = int(wrong[:, image].argmax())
        probabilities = softmax(comparison.chosen[model].logits[image])
        found.append((float(probabilities.max()), image, model, int(probabilities.argmax())))
    found.sort(reverse=True)
    labels = comparison.chosen[0].labels
    captions = [
        f"#{image}, label {labels[image]}\n{comparison.rows[model].name}: {answer} ({100 * confidence:.0f} %)"
        for confidence, image, model, answer in found[:count]
    ]
    chosen = torch.tensor([image for _, image, _, _ in found[:count]], dtype=torch.long)
    return digit_sheet(images[chosen], captions, f"{len(found)} digits that only one model has wrong")


def _legend(figure: Figure, comparison: Comparison) -> None:
    legend(figure, [row.name for row in comparison.rows])


def legend(figure: Figure, names: Sequence[str]) -> None:
    """Which colour of `palette` is which model's, beside the figure's panels."""
    handles = [figure.axes[0].plot([], [], color=colour, linewidth=3)[0] for colour in palette(len(names))]
    figure.legend(handles, names, loc="outside right upper", fontsize=9, frameon=False)

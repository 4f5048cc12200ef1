"""Figures of a comparison: curves, accuracies, calibration and mistakes."""

import warnings
from collections.abc import Iterator
from functools import partial
from itertools import chain

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.special import softmax
from sklearn.metrics import f1_score
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from mnist_lightning.data.sources import CLASSES, read
from mnist_lightning.errors import InputError, one_line
from mnist_lightning.evaluation import charts
from mnist_lightning.evaluation.compare.comparison import Comparison
from mnist_lightning.evaluation.statistics import Float
from mnist_lightning.runs.run import Run


def draw_all(comparison: Comparison, root: str | None = None) -> Iterator[tuple[str, Figure, str]]:
    """Yields the file name, figure and caption of each figure.

    Figures of misclassified digits need the test images. Without them, a warning replaces these figures.

    Args:
        comparison: The comparison.
        root: Folder of the data; see `data_root`.
    """
    yield "curves", curves(comparison), "Loss and error per epoch, one line per run."
    caption = "Test accuracy: mean, 95 % confidence interval, and each run (circles)."
    yield "accuracies", accuracies(comparison), caption
    yield "costs", costs(comparison), "Test accuracy against model size and training time."
    caption = "Reliability diagram. Models below the diagonal are overconfident. Bins below ten images are omitted."
    yield "calibration", reliability(comparison), caption
    yield "f1", f1_scores(comparison), "F1 of each digit, averaged over the runs."
    caption = "Agreement between models. Low agreement at similar accuracy makes a good ensemble."
    yield "agreement", agreement(comparison), caption
    yield "frequent-confusions", frequent_confusions(comparison), "The most frequent confusions."
    yield "confusions", confusions(comparison), "Confusion matrices: labels in rows, predictions in columns."
    try:
        images, labels = read(comparison.source, root, train=False)
        if not np.array_equal(labels.numpy(), comparison.chosen[0].labels):
            raise InputError(f"the labels of {comparison.source} on disk differ from those of the runs")
    except InputError as error:
        warnings.warn(f"the report shows no misclassified digits: {error}", stacklevel=2)
        return
    yield "shared-mistakes", shared_mistakes(comparison, images), "Digits that are hard, or whose label is wrong."
    if len(comparison.rows) > 1:
        yield "lonely-mistakes", single_mistakes(comparison, images), "Mistakes that no other model makes."


def _two_panels(comparison: Comparison) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(11, max(4.2, 0.24 * len(comparison.rows))), layout="constrained")  # room for the legend
    return figure, list(figure.subplots(1, 2))


def curves(comparison: Comparison) -> Figure:
    """Draws loss and error over the epochs, one line per run: training dashed, validation solid."""
    figure, panels = _two_panels(comparison)
    for group, colour in zip(comparison.groups, charts.palette(len(comparison.rows)), strict=True):
        for tag, epochs, values in chain.from_iterable(map(_scalars, group)):
            axes, y = (panels[0], values) if tag.endswith("loss") else (panels[1], 100 * (1 - values))
            axes.plot(epochs, y, "--" if tag.startswith("train") else "-", color=colour, linewidth=1.1, alpha=0.8)
    for axes, label in zip(panels, ("loss", "error %"), strict=True):
        axes.set(xlabel="epoch", ylabel=label, yscale="log")
        axes.grid(alpha=0.3, which="both")
    figure.suptitle("Training (dashed, with augmentation if it is on) and validation (solid)")
    charts.legend(figure, comparison.names)
    return figure


def _scalars(run: Run) -> Iterator[tuple[str, Float, Float]]:
    """Reads a run's TensorBoard scalars: tag, epochs, and mean value in each epoch."""
    steps = run.summary.get("steps")
    if not steps:  # an ensemble
        return
    try:
        if run.folder and not all(path.is_file() for path in run.folder.glob("*tfevents*")):  # a pipe would wait
            raise InputError("its events are not regular files")
        events = EventAccumulator(str(run.folder), size_guidance={"images": 1, "tensors": 1}).Reload()
        tags = sorted({"train/loss", "train/acc", "val/loss", "val/acc"} & set(events.Tags()["scalars"]))
        scalars = {tag: np.array([(point.step, point.value) for point in events.Scalars(tag)]).T for tag in tags}
    except Exception as error:  # damaged events can raise anything
        warnings.warn(f"the curves of {run.folder} cannot be read: {one_line(error)}", stacklevel=2)
        return
    epochs = run.summary.get("epochs", 1)
    for tag, (step, value) in scalars.items():
        epoch = np.ceil((step + 1) * epochs / steps).clip(1, epochs)
        logged = np.unique(epoch)
        yield tag, logged, np.array([value[epoch == e].mean() for e in logged])


def accuracies(comparison: Comparison) -> Figure:
    """Draws each model's mean test accuracy, its 95 % confidence interval, and the accuracies of the runs."""
    figure = Figure(figsize=(8, 1.2 + 0.42 * len(comparison.rows)), layout="constrained")
    axes = figure.subplots()
    for index, colour in enumerate(charts.palette(len(comparison.rows))):
        row, group = comparison.rows[index], comparison.groups[index]
        axes.plot([100 * row.low, 100 * row.high], [index, index], color=colour, linewidth=2)
        runs = [100 * run.correct.mean() for run in group]
        axes.plot(runs, [index] * len(runs), "o", color=colour, markersize=5, markerfacecolor="white")
        axes.plot(100 * row.test_accuracy, index, "|", color=colour, markersize=14, markeredgewidth=2.5)
    names = [f"{charts.literal(row.name)} (n = {row.n})" for row in comparison.rows]
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set(xlabel="test accuracy %")
    axes.grid(alpha=0.3, axis="x")
    return figure


def costs(comparison: Comparison) -> Figure:
    """Draws test accuracy against the number of parameters and against the seconds of training."""
    figure, panels = _two_panels(comparison)
    for axes, quantity, label in zip(panels, ("parameters", "train_seconds"), ("parameters", "seconds"), strict=True):
        for row, colour in zip(comparison.rows, charts.palette(len(comparison.rows)), strict=True):
            cost, accuracy = getattr(row, quantity), 100 * row.test_accuracy
            spread = [[accuracy - 100 * row.low], [100 * row.high - accuracy]]
            axes.errorbar(cost, accuracy, yerr=spread, fmt="o", color=colour, capsize=3)
        axes.set(xscale="log", xlabel=label, ylabel="test accuracy %")
        axes.grid(alpha=0.3)
    charts.legend(figure, comparison.names)
    return figure


def confusions(comparison: Comparison) -> Figure:
    """Draws the confusion matrix of each model's best run by validation accuracy."""
    columns = min(3, len(comparison.chosen))
    rows = -(-len(comparison.chosen) // columns)
    figure = Figure(figsize=(4.4 * columns, 4.3 * rows), layout="constrained")
    for place, (name, run) in enumerate(zip(comparison.names, comparison.chosen, strict=True), start=1):
        axes = figure.add_subplot(rows, columns, place)
        charts.draw_confusion_matrix(axes, torch.from_numpy(run.logits), torch.from_numpy(run.labels))
        axes.set_title(charts.literal(name))
    return figure


def f1_scores(comparison: Comparison) -> Figure:
    """Draws the F1 score of each digit, averaged over the runs."""
    f1 = partial(f1_score, labels=range(CLASSES), average=None, zero_division=0.0)
    scores = [
        np.mean([f1(run.labels, run.logits.argmax(axis=1)) for run in runs], axis=0) for runs in comparison.groups
    ]
    return charts.heat_map(100 * np.stack(scores), comparison.names, range(CLASSES), "F1 %", "{:.2f}")


def agreement(comparison: Comparison) -> Figure:
    """Draws the share of test images on which two models give the same answer."""
    answers = [run.logits.argmax(axis=1) for run in comparison.chosen]
    shares = np.array([[(one == other).mean() for other in answers] for one in answers])
    return charts.heat_map(100 * shares, comparison.names, comparison.names, "same answer, % of the images", "{:.2f}")


def frequent_confusions(comparison: Comparison, count: int = 12) -> Figure:
    """Draws how often each model makes the most frequent confusions.

    Args:
        comparison: The comparison.
        count: Maximum number of pairs of label and prediction.
    """
    answers = [CLASSES * run.labels + run.logits.argmax(axis=1) for run in comparison.chosen]
    counts = np.stack([np.bincount(pairs, minlength=CLASSES**2) for pairs in answers])
    counts[:, :: CLASSES + 1] = 0  # correct answers
    total = counts.sum(axis=0)
    most = [pair for pair in np.argsort(-total, kind="stable")[:count] if total[pair]]
    names = [f"{pair // CLASSES} as {pair % CLASSES}" for pair in most]
    return charts.heat_map(counts[:, most].astype(float), comparison.names, names, "mistakes", "{:.0f}")


def reliability(comparison: Comparison) -> Figure:
    """Draws the reliability diagram of each model: accuracy against confidence."""
    figure = Figure(figsize=(6, 5), layout="constrained")
    axes: Axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="#999999", linewidth=1)
    for run, colour in zip(comparison.chosen, charts.palette(len(comparison.rows)), strict=True):
        charts.draw_reliability(axes, run.logits, run.labels, colour)
    axes.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1.01), ylim=(0, 1.01), aspect="equal")
    axes.grid(alpha=0.3)
    charts.legend(figure, comparison.names)
    return figure


def shared_mistakes(comparison: Comparison, images: Tensor, count: int = 20) -> Figure:
    """Draws digits that all models misclassify, by descending mean confidence.

    Args:
        comparison: The comparison.
        images: Test images, uint8 [N, 28, 28].
        count: Maximum number of digits.
    """
    wrong = np.flatnonzero(~np.any([run.correct for run in comparison.chosen], axis=0))
    probabilities = np.mean([softmax(run.logits[wrong], axis=1) for run in comparison.chosen], axis=0)
    labels, answers, confidence = comparison.chosen[0].labels[wrong], probabilities.argmax(1), probabilities.max(1)
    order = np.argsort(-confidence, kind="stable")[:count]
    captions = [f"#{wrong[i]}, label {labels[i]}\n{answers[i]} ({100 * confidence[i]:.0f} %)" for i in order]
    title = f"{len(wrong)} digits all models misclassify"
    return charts.digit_sheet(images[torch.from_numpy(wrong[order])], captions, title)


def single_mistakes(comparison: Comparison, images: Tensor, count: int = 20) -> Figure:
    """Draws digits that exactly one model misclassifies, by descending confidence.

    Args:
        comparison: A comparison of at least two models.
        images: Test images, uint8 [N, 28, 28].
        count: Maximum number of digits.
    """
    correct = np.stack([run.correct for run in comparison.chosen])
    models, wrong = np.nonzero(~correct & (correct.sum(axis=0) == len(correct) - 1))
    probabilities = softmax(np.stack([run.logits for run in comparison.chosen])[models, wrong], axis=1)
    labels, answers, confidence = comparison.chosen[0].labels[wrong], probabilities.argmax(1), probabilities.max(1)
    order = np.argsort(-confidence, kind="stable")[:count]
    names = list(map(charts.literal, comparison.names))
    captions = [
        f"#{wrong[i]}, label {labels[i]}\n{names[models[i]]}: {answers[i]} ({100 * confidence[i]:.0f} %)" for i in order
    ]
    title = f"{len(wrong)} digits only one model misclassifies"
    return charts.digit_sheet(images[torch.from_numpy(wrong[order])], captions, title)

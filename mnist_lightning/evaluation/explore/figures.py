"""Figures of a data set."""

from collections.abc import Iterator

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from mnist_lightning.data.sources import CLASSES
from mnist_lightning.evaluation.charts import digit_sheet
from mnist_lightning.evaluation.explore.exploration import Exploration, tsne_map


def draw_all(exploration: Exploration) -> Iterator[tuple[str, Figure, str]]:
    """Yields the file name, figure and caption of each figure."""
    yield "class-balance", class_balance(exploration), "Images per class. The line is the mean."
    names = [str(digit) for digit in range(CLASSES)]
    means, deviations = exploration.means.byte(), (exploration.deviations * 2).clamp_max(255).byte()
    yield "mean-images", digit_sheet(means, names, "Mean image of each class"), "Mean of the training images."
    caption = "Standard deviation of each pixel in the training images."
    yield "deviation-images", digit_sheet(deviations, names, "Variation within each class"), caption
    first = [(i, "") for digit in range(CLASSES) for i in np.flatnonzero(exploration.labels == digit)[:2].tolist()]
    yield "samples", _sheet(exploration, first, "Samples"), "The first two images of each class."
    yield "intensity", intensities(exploration), "Intensity of non-black pixels, and mean intensity by class."
    yield "sizes", sizes(exploration), "Height and width of the digits, and their centres of mass."
    sample = torch.from_numpy(np.random.default_rng(0).permutation(len(exploration.labels)))
    points = exploration.components[sample[:5000], :2].numpy()
    yield "pca", _map(exploration.labels[sample[:5000]], points), "The first two principal components."
    similar = tsne_map(exploration.components[sample[:1500]])
    if similar is not None:
        caption = "t-SNE of a random sample. Small distances mean similar images; large distances mean little."
        yield "t-sne", _map(exploration.labels[sample[:1500]], similar), caption
    pairs = exploration.closest_across(10)
    digits = [(i, f"\ndistance {distance:.2f}") for test, train, distance in pairs for i in (test, train)]
    figure = _sheet(exploration, digits, "Test images most similar to a training image")
    yield "near-duplicates", figure, "Each test image is followed by its nearest training image."
    digits = [(i, f"\n{100 * share:.0f} % of neighbours: {other}") for i, other, share in exploration.suspicious()]
    figure = _sheet(exploration, digits, "Suspicious labels")
    caption = "Images with more neighbours of another class than of their own. Check an image before relabelling."
    yield "suspicious-labels", figure, caption
    caption = "The two images of each class with the largest mean distance to their nearest neighbours."
    yield "outliers", _sheet(exploration, [(i, "") for i in exploration.outliers()], "Outliers"), caption


def _sheet(exploration: Exploration, digits: list[tuple[int, str]], title: str) -> Figure:
    """Draws digits, each given by its index and a note for the caption."""
    captions = [f"{exploration.name(i)}: {exploration.labels[i]}{note}" for i, note in digits]
    indices = torch.tensor([i for i, _ in digits], dtype=torch.long)
    return digit_sheet(exploration.images[indices], captions, title)


def class_balance(exploration: Exploration) -> Figure:
    """Draws the number of training and test images in each class."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    for axes, train, title in zip(figure.subplots(1, 2), (True, False), ("training", "test"), strict=True):
        counts = exploration.counts(train)
        axes.bar(range(CLASSES), counts, color=[f"C{digit}" for digit in range(CLASSES)])
        axes.axhline(np.mean(counts), color="#555555", linewidth=1)
        axes.set(xticks=range(CLASSES), title=title, xlabel="digit", ylabel="images")
    return figure


def intensities(exploration: Exploration) -> Figure:
    """Draws a histogram of the non-black pixels, and the mean intensities of the images by class."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    counts = torch.bincount(exploration.images.flatten().int(), minlength=256)[1:]
    left.bar(range(1, 256), counts.numpy(), width=1, color="#0072B2")
    left.set(xlabel="intensity", ylabel="pixels", yscale="log" if counts.any() else "linear")
    by_class = [exploration.intensity[exploration.labels == digit].numpy() for digit in range(CLASSES)]
    right.boxplot(by_class, positions=range(CLASSES), showfliers=False)
    right.set(xlabel="digit", ylabel="mean intensity of an image")
    return figure


def sizes(exploration: Exploration) -> Figure:
    """Draws histograms of the digits' sizes and centres of mass."""
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    heights, widths = exploration.boxes.t().numpy()
    bins = np.arange(30) - 0.5
    left.hist2d(widths, heights, bins=(bins, bins), cmap="Blues", norm="log")
    left.set(xlabel="width", ylabel="height", aspect="equal")
    centres = exploration.centres[exploration.intensity > 0].numpy()
    right.hist2d(centres[:, 1], centres[:, 0], bins=60, range=((11, 18), (11, 18)), cmap="Blues", norm="log")
    right.set(xlabel="column of the centre of mass", ylabel="row", aspect="equal")
    right.invert_yaxis()
    return figure


def _map(labels: Tensor, points: NDArray[np.float32]) -> Figure:
    figure = Figure(figsize=(6.5, 6), layout="constrained")
    axes = figure.subplots()
    for digit in range(CLASSES):
        x, y = points[labels.numpy() == digit].T
        # Markers are digits: ten colours alone are hard to tell apart.
        axes.scatter(x, y, s=22, marker=f"${digit}$", color=f"C{digit}", linewidths=0.3, alpha=0.7)
    axes.set(xticks=[], yticks=[])
    return figure

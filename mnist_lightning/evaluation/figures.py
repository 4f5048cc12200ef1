"""Figures of a trained model's predictions."""

from collections.abc import Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from torch import Tensor

from mnist_lightning.classifier import CLASSES


def confusion_matrix(logits: Tensor, labels: Tensor) -> Figure:
    """Counts of predictions by label; colours show mistakes only, which the diagonal would drown.

    Args:
        logits: [N, 10].
        labels: int64 [N].
    """
    figure = Figure(figsize=(7, 6), layout="constrained")
    axes = figure.subplots()
    figure.colorbar(draw_confusion_matrix(axes, logits, labels), label="mistakes")
    accuracy = (logits.argmax(dim=1) == labels).sum().item() / len(labels)
    axes.set_title(f"{len(labels):,} digits, {100 * accuracy:.2f} % right")
    return figure


def draw_confusion_matrix(axes: Axes, logits: Tensor, labels: Tensor) -> AxesImage:
    """The confusion matrix in a figure that has others.

    Args:
        axes: Where to draw.
        logits: [N, 10].
        labels: int64 [N].

    Returns:
        The drawn image, for a colour bar.
    """
    counts = torch.bincount(labels * CLASSES + logits.argmax(dim=1), minlength=CLASSES**2).view(CLASSES, CLASSES)
    mistakes = counts.clone().fill_diagonal_(0)
    image = axes.imshow(mistakes.numpy(), cmap="Blues", vmin=0, vmax=max(1, int(mistakes.max())))
    for label in range(CLASSES):
        for predicted in range(CLASSES):
            count = int(counts[label, predicted])
            dark = label != predicted and count > mistakes.max() / 2
            axes.text(
                predicted,
                label,
                f"{count:,}" if count else "·",
                ha="center",
                va="center",
                fontsize=8,
                color="white" if dark else "black",
                fontweight="bold" if label == predicted else "normal",
            )
    axes.set(xticks=range(CLASSES), yticks=range(CLASSES), xlabel="predicted", ylabel="label")
    return image


def digit_sheet(images: Tensor, captions: Sequence[str], title: str) -> Figure:
    """Digits in rows of five, each with its caption.

    Args:
        images: uint8 [N, 28, 28].
        captions: N of them.
        title: Stands above the sheet.
    """
    rows = max(1, -(-len(images) // 5))
    width, height = 1.6, 1.9  # inches a digit has, caption included
    figure = Figure(figsize=(5 * width, rows * height + 0.5))
    figure.suptitle(title)
    # One pair of axes, in inches, for the whole sheet: a pair for each digit takes matplotlib a second.
    top = rows * height
    axes = figure.add_axes((0, 0, 1, top / (top + 0.5)), xlim=(0, 5 * width), ylim=(top, 0))
    axes.set_axis_off()
    for index, (image, caption) in enumerate(zip(images, captions, strict=True)):
        left, bottom = index % 5 * width + 0.1, (index // 5 + 1) * height - 0.1
        extent = (left, left + 1.4, bottom, bottom - 1.4)
        axes.imshow(image.numpy(), cmap="gray", vmin=0, vmax=255, extent=extent, aspect="auto")
        axes.text(left + 0.7, bottom - 1.44, caption, fontsize=9, ha="center", va="bottom")
    return figure


def confident_mistakes(images: Tensor, logits: Tensor, labels: Tensor, count: int = 20) -> Figure:
    """The wrong answers that the model was surest of, with both labels and both confidences.

    Args:
        images: uint8 [N, 28, 28].
        logits: [N, 10].
        labels: int64 [N].
        count: How many at the most.
    """
    probabilities = logits.softmax(dim=1)
    confidence, predicted = probabilities.max(dim=1)
    wrong = (predicted != labels).nonzero().flatten()
    chosen = wrong[confidence[wrong].argsort(descending=True, stable=True)][:count]
    captions = [
        f"{predicted[i]} ({100 * confidence[i]:.1f} %)\nlabel {labels[i]} ({100 * probabilities[i, labels[i]]:.1f} %)"
        for i in chosen.tolist()
    ]
    return digit_sheet(images[chosen], captions, f"The {len(chosen)} most confident of {len(wrong)} mistakes")


def right_answers(images: Tensor, logits: Tensor, labels: Tensor, count: int = 20) -> Figure:
    """Digits that the model has right, spread evenly over the split, with confidences.

    Args:
        images: uint8 [N, 28, 28].
        logits: [N, 10].
        labels: int64 [N].
        count: How many at the most.
    """
    confidence, predicted = logits.softmax(dim=1).max(dim=1)
    right = (predicted == labels).nonzero().flatten()
    chosen = right[torch.linspace(0, len(right) - 1, min(count, len(right))).long()]
    captions = [f"{predicted[i]} ({100 * confidence[i]:.1f} %)" for i in chosen.tolist()]
    return digit_sheet(images[chosen], captions, f"{len(chosen)} of {len(right):,} right answers")


def samples(images: Tensor, labels: Tensor, count: int = 15) -> Figure:
    """The first digits of a split with their labels.

    Args:
        images: uint8 [N, 28, 28].
        labels: int64 [N].
        count: How many.
    """
    captions = [f"label {label}" for label in labels[:count].tolist()]
    return digit_sheet(images[:count], captions, f"{min(count, len(labels))} digits of the training set")

"""Figures that several reports and TensorBoard share."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Normalize, PowerNorm
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.image import AxesImage
from numpy.typing import NDArray
from torch import Tensor

from mnist_lightning.data.sources import CLASSES
from mnist_lightning.evaluation.statistics import Float, calibration_bins

# Okabe and Ito's palette for colour-blind readers, with brown and grey instead of yellow and black.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D31", "#666666")
_LONGEST_NAME = 48  # characters of a name in a figure


def palette(count: int) -> list[Any]:
    """Returns one colour per model: distinct colours for up to eight models, a colour scale for more."""
    return list(_COLOURS[:count] if count <= len(_COLOURS) else colormaps["turbo"](np.linspace(0, 1, count)))


def literal(name: object) -> str:
    r"""Prepares a name for a figure, as it may come from a stranger's file.

    Matplotlib would typeset dollar signs as mathematics and warn of characters that its font lacks. Long names would
    leave no space for the figure, so they lose their middle.

    Example:
        >>> print(literal("a$^2$"), literal(100 * "x" + "\u6570")[-12:])
        a\$^2\$ xxxxxx\u6570
    """
    font = get_font(findfont(FontProperties()))
    text = "".join(
        c if c.isprintable() and font.get_char_index(ord(c)) else c.encode("unicode_escape").decode() for c in str(name)
    )
    half = _LONGEST_NAME // 2
    return (text if len(text) <= _LONGEST_NAME else f"{text[:half]}…{text[1 - half :]}").replace("$", r"\$")


def legend(figure: Figure, names: Sequence[str]) -> None:
    """Adds a legend to the right of the panels.

    Args:
        figure: A figure whose lines have the colours of `palette(len(names))`.
        names: Names of the models.
    """
    handles = [figure.axes[0].plot([], [], color=colour, linewidth=3)[0] for colour in palette(len(names))]
    shown = [literal(name) for name in names]
    figure.set_figwidth(figure.get_figwidth() + 0.08 * (max(20, *map(len, shown)) - 20))  # beyond 20 characters
    figure.legend(handles, shown, loc="outside right upper", fontsize=9, frameon=False)


def heat_map(
    values: NDArray[Any],
    rows: Sequence[object],
    columns: Sequence[object],
    label: str,
    form: str,
    gamma: float = 1.0,
) -> Figure:
    """Draws a table of numbers with coloured cells.

    Args:
        values: Numbers [R, C].
        rows: Names of the R rows.
        columns: Names of the C columns.
        label: Label of the colour bar.
        form: Format string of a number, such as `{:.2f}`.
        gamma: Exponent of the colour scale. Values below 1 make small numbers easier to tell apart.
    """
    names, labels = ([literal(name) for name in part] for part in (columns, rows))
    long_name, long_label = (max(map(len, [*part, 15 * "x"])) - 15 for part in (names, labels))  # characters beyond 15
    width, height = 2.5 + 0.75 * max(4, len(columns)), 1.6 + 0.42 * len(rows)
    figure = Figure(figsize=(width + 0.09 * long_label, height + 0.07 * long_name), layout="constrained")
    axes = figure.subplots()
    figure.colorbar(draw_cells(axes, values, PowerNorm(gamma), map(form.format, values.flat)), label=label)
    axes.set_xticks(range(len(names)), names, rotation=0 if all(len(name) < 3 for name in names) else 45)
    axes.set_yticks(range(len(labels)), labels)
    return figure


def draw_cells(axes: Axes, values: NDArray[Any], norm: Normalize, texts: Iterable[str]) -> AxesImage:
    """Draws coloured cells with texts into an existing panel.

    Args:
        axes: Panel to draw in.
        values: Numbers [R, C], which decide the colours.
        norm: Colour scale: maps the numbers to [0, 1], from white to dark blue.
        texts: Texts of the R x C cells, row by row.

    Returns:
        The image, for a colour bar.
    """
    image = axes.imshow(values, cmap="Blues", aspect="auto", norm=norm)
    for (row, column), text in zip(np.ndindex(values.shape), texts, strict=True):
        shade = "white" if norm(values[row, column]) > 0.5 else "black"
        axes.text(column, row, text, ha="center", va="center", fontsize=8, color=shade)
    return image


def draw_reliability(axes: Axes, logits: Float, labels: NDArray[np.int64], colour: Any) -> None:
    """Draws accuracy against confidence into an existing panel. Bins of fewer than ten images are left out.

    Args:
        axes: Panel to draw in.
        logits: Logits [N, 10].
        labels: Labels [N].
        colour: Colour of the line and its dots. A dot grows with the number of images in its bin.
    """
    share, confidence, accuracy = calibration_bins(logits, labels)
    filled = share * len(labels) >= 9.5  # the accuracy of fewer images is too noisy
    area = 8 * np.log10(share[filled] * len(labels)) ** 2
    axes.plot(confidence[filled], accuracy[filled], color=colour, linewidth=1, alpha=0.7)
    axes.scatter(confidence[filled], accuracy[filled], area, color=colour, alpha=0.8, linewidths=0, zorder=3)


def confusion_matrix(logits: Tensor, labels: Tensor) -> Figure:
    """Draws a confusion matrix.

    Args:
        logits: Logits, float [N, 10].
        labels: Labels, int64 [N].
    """
    figure = Figure(figsize=(7, 6), layout="constrained")
    axes = figure.subplots()
    figure.colorbar(draw_confusion_matrix(axes, logits, labels), label="mistakes")
    accuracy = (logits.argmax(dim=1) == labels).sum().item() / len(labels)
    axes.set_title(f"{len(labels):,} digits, {100 * accuracy:.2f} % correct")
    return figure


def draw_confusion_matrix(axes: Axes, logits: Tensor, labels: Tensor) -> AxesImage:
    """Draws a confusion matrix into an existing panel.

    Only mistakes are coloured: on a scale with the much larger diagonal, all of them would be white.

    Args:
        axes: Panel to draw in.
        logits: Logits, float [N, 10].
        labels: Labels, int64 [N].

    Returns:
        The image, for a colour bar.
    """
    counts = torch.bincount(labels * CLASSES + logits.argmax(dim=1), minlength=CLASSES**2).view(CLASSES, CLASSES)
    mistakes = counts.clone().fill_diagonal_(0)
    texts = (f"{count:,}" if count else "·" for count in counts.flatten().tolist())
    image = draw_cells(axes, mistakes.numpy(), Normalize(0, max(1, int(mistakes.max()))), texts)
    for diagonal in axes.texts[:: CLASSES + 1]:
        diagonal.set_fontweight("bold")
    axes.set(xticks=range(CLASSES), yticks=range(CLASSES), xlabel="predicted", ylabel="label", aspect="equal")
    return image


def digit_sheet(images: Tensor, captions: Sequence[str], title: str) -> Figure:
    """Draws digits in rows of five.

    Args:
        images: Images, uint8 [N, 28, 28].
        captions: Text below each of the N images.
        title: Title of the figure.
    """
    rows = max(1, -(-len(images) // 5))
    width, height = 1.6, 1.9  # inches per digit, with its caption
    figure = Figure(figsize=(5 * width, rows * height + 0.5))
    figure.suptitle(title)
    # All digits share one panel, in inches: a panel per digit takes matplotlib a second.
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
    """Draws the misclassified digits with the highest confidence.

    Captions give the predicted class and the label, each with its probability.

    Args:
        images: Images, uint8 [N, 28, 28].
        logits: Logits, float [N, 10].
        labels: Labels, int64 [N].
        count: Maximum number of digits.
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
    """Draws correctly classified digits, evenly spaced over the split, with the model's confidence.

    Args:
        images: Images, uint8 [N, 28, 28].
        logits: Logits, float [N, 10].
        labels: Labels, int64 [N].
        count: Maximum number of digits.
    """
    confidence, predicted = logits.softmax(dim=1).max(dim=1)
    correct = (predicted == labels).nonzero().flatten()
    chosen = correct[torch.linspace(0, len(correct) - 1, min(count, len(correct))).long()]
    captions = [f"{predicted[i]} ({100 * confidence[i]:.1f} %)" for i in chosen.tolist()]
    return digit_sheet(images[chosen], captions, f"{len(chosen)} of {len(correct):,} correct answers")


def samples(images: Tensor, labels: Tensor, count: int = 15) -> Figure:
    """Draws the first digits of a split with their labels.

    Args:
        images: Images, uint8 [N, 28, 28].
        labels: Labels, int64 [N].
        count: Maximum number of digits.
    """
    captions = [f"label {label}" for label in labels[:count].tolist()]
    return digit_sheet(images[:count], captions, f"{min(count, len(labels))} digits of the training set")

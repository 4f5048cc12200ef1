"""A sheet of saliency maps, with the test whether they are true."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from torch import Tensor

from mnist_lightning.classifier import CLASSES, Classifier
from mnist_lightning.errors import InputError, one_line
from mnist_lightning.explain.gradcam import (
    deletion_curve,
    grad_cam,
    input_gradients,
    occlusion,
    random_orders,
)
from mnist_lightning.explain.receptive_fields import spatial_layers

# Orange to blue through a light grey: as light on both sides, and the same to those who do not see red and green.
EVIDENCE = LinearSegmentedColormap.from_list("evidence", ["#d95f02", "#f7f7f7", "#2166ac"])
GRAD_CAM = "Grad-CAM"
CURVES = {GRAD_CAM: "#2166ac", "input gradients": "#117733", "occlusion": "#aa3377"}
RANDOM = "#777777"
SHARES = [share / 20 for share in range(11)]  # of the ink, to be deleted
_EXTENT = (0, 28, 28, 0)  # pixel (row, column) covers the square from (column, row): the y axis points down


@dataclass(frozen=True)
class Saliency:
    """Which pixels speak for a class on one digit, and whether deleting them shows it.

    Attributes:
        name: Where the digit comes from.
        image: uint8 [28, 28], the digit.
        label: Its class, where that is known.
        probabilities: float [10], of the classes.
        target: The class that the maps are about.
        runner_up: The likeliest class beside it.
        maps: float [28, 28] by each method, what speaks for the target.
        runner_up_map: float [28, 28], Grad-CAM for the runner-up; None for a model without convolutions.
        curves: float [S] by each method, the target's probability without shares of the ink (`SHARES`).
        random_curves: float [R, S], the same for ink in random orders.
    """

    name: str
    image: Tensor
    label: int | None
    probabilities: Tensor
    target: int
    runner_up: int
    maps: dict[str, Tensor]
    runner_up_map: Tensor | None
    curves: dict[str, Tensor]
    random_curves: Tensor


def saliency(
    model: Classifier, digits: Sequence[tuple[str, Tensor, int | None]], target: int | None = None
) -> list[Saliency]:
    """All maps of some digits, and their deletion curves.

    Args:
        model: A trained image model, in evaluation mode.
        digits: Where each comes from, itself (uint8 [28, 28]), and its class, where that is known.
        target: The class that the maps shall be about; the predicted one, if not given.

    Raises:
        InputError: If there is no such class, or the model takes no pixels.
    """
    if target is not None and not 0 <= target < CLASSES:
        raise InputError(f"target is {target}; it must be a class from 0 to {CLASSES - 1}")
    images = torch.stack([image for _, image, _ in digits])
    probabilities = model.classify(images).softmax(dim=1)
    targets = probabilities.argmax(dim=1) if target is None else torch.full((len(images),), target)
    runners_up = probabilities.scatter(1, targets[:, None], -1).argmax(dim=1)
    methods: list[Callable[[Classifier, Tensor, Tensor], Tensor]] = [grad_cam, input_gradients, occlusion]
    convolutional = bool(spatial_layers(model))
    maps = {
        name: method(model, images, targets)
        for name, method in zip(CURVES, methods, strict=True)
        if convolutional or name != GRAD_CAM
    }
    runner_up_maps = grad_cam(model, images, runners_up) if convolutional else None
    curves = {name: deletion_curve(model, images, ranking, SHARES, targets) for name, ranking in maps.items()}
    random = [deletion_curve(model, images, order, SHARES, targets) for order in random_orders(images, 10)]
    return [
        Saliency(
            name=name,
            image=image,
            label=label,
            probabilities=probabilities[row],
            target=int(targets[row]),
            runner_up=int(runners_up[row]),
            maps={method: values[row] for method, values in maps.items()},
            runner_up_map=None if runner_up_maps is None else runner_up_maps[row],
            curves={method: values[row] for method, values in curves.items()},
            random_curves=torch.stack([values[row] for values in random]),
        )
        for row, (name, image, label) in enumerate(digits)
    ]


def saliency_sheet(found: Sequence[Saliency]) -> Figure:
    """One row a digit: the digit, its maps, Grad-CAM for the runner-up, and what deleting the highest ink does.

    Args:
        found: Digits and their maps, all of one model.
    """
    maps = list(found[0].maps)
    columns = 2 + len(maps) + (found[0].runner_up_map is not None)
    width, height = 2.7 * columns + 1.5, 2.95 * len(found) + 0.55
    figure = Figure(figsize=(width, height))
    # Fixed margins: a layout that measures itself takes matplotlib two seconds for ten digits.
    margins = {"left": 0.3 / width, "right": 1 - 0.45 / width, "top": 1 - 0.35 / height, "bottom": 0.5 / height}
    grid = {**margins, "wspace": 0.06, "hspace": 0.13, "width_ratios": [1] * (columns - 1) + [1.3]}
    rows = figure.subplots(len(found), columns, squeeze=False, gridspec_kw=grid)
    for row, one in zip(rows, found, strict=True):
        draw_digit(row[0], one)
        for axes, name in zip(row[1:], maps, strict=False):
            draw_map(axes, one.image, one.maps[name], f"{name} for {one.target}", CURVES[name])
        if one.runner_up_map is not None:
            draw_map(row[-2], one.image, one.runner_up_map, f"{GRAD_CAM} for {one.runner_up}")
        draw_deletion(row[-1], one)
        row[-1].tick_params(labelbottom=False)
    rows[0, -1].legend(fontsize=8)
    rows[-1, -1].tick_params(labelbottom=True)
    rows[-1, -1].set_xlabel("% of the ink deleted")
    return figure


def draw_digit(axes: Axes, found: Saliency) -> None:
    """The digit, with the answer and its confidence."""
    label = "" if found.label is None else f", label {found.label}"
    answer = int(found.probabilities.argmax())
    _frame(axes, f"{answer} ({100 * found.probabilities[answer]:.1f} %){label}")
    axes.imshow(found.image.numpy(), cmap="gray", vmin=0, vmax=255, extent=_EXTENT)
    axes.set_ylabel(one_line(found.name, 36))


def draw_map(axes: Axes, image: Tensor, values: Tensor, title: str = "", colour: str = "black") -> None:
    """A map in colours, blue for and orange against, with the digit's outline.

    Args:
        axes: Where to draw.
        image: uint8 [28, 28], the digit.
        values: float [28, 28].
        title: What the map is.
        colour: Of the title, and of the map's curve.
    """
    limit = max(float(values.abs().max()), 1e-12)
    _frame(axes, title)
    axes.title.set_color(colour)
    axes.imshow(values.numpy(), cmap=EVIDENCE, vmin=-limit, vmax=limit, extent=_EXTENT)
    if image.any():
        places, middle = [place + 0.5 for place in range(28)], float(image.max()) / 2
        axes.contour(places, places, image.numpy(), levels=[middle], colors="black", linewidths=0.8)


def draw_deletion(axes: Axes, found: Saliency) -> None:
    """The class's probability as ink is deleted: the highest of each map first, and at random."""
    percent = [100 * share for share in SHARES]
    mean, deviation = found.random_curves.mean(dim=0), found.random_curves.std(dim=0)
    axes.fill_between(percent, mean - deviation, mean + deviation, color=RANDOM, alpha=0.25, linewidth=0)
    axes.plot(percent, mean, color=RANDOM, linestyle="--", label="random ink")
    for name, curve in found.curves.items():
        axes.plot(percent, curve, color=CURVES[name], label=name)
    axes.set(title=f"probability of {found.target}", xlim=(0, percent[-1]), ylim=(-0.03, 1.03))
    axes.set_box_aspect(1 / 1.3)  # as high as the pictures
    axes.yaxis.tick_right()
    axes.grid(alpha=0.3)


def _frame(axes: Axes, title: str) -> None:
    axes.set(title=title, xticks=[], yticks=[], xlim=(0, 28), ylim=(28, 0), aspect="equal")

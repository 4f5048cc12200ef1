"""What a model says of pictures that show no digit: scores that tell the unknown, and what they are worth."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import logsumexp
from scipy.stats import rankdata
from torch import Tensor

from mnist_lightning.data.unknowns import available_unknowns, unknown_images
from mnist_lightning.evaluation.statistics import Float

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCORES = ("maximum probability", "energy")


def unknown_sets(digits: Tensor, labels: Tensor, seed: int = 0, root: str | None = None) -> dict[str, Tensor]:
    """All sets of pictures without digits that can be had here, by name; see `data.unknowns`.

    Args:
        digits: uint8 [N, 28, 28], test digits.
        labels: int64 [N].
        seed: Of the random numbers.
        root: Folder of the data.

    Returns:
        uint8 [M, 28, 28] each, M at most 2,000.

    Raises:
        InputError: If a source is on disk, but damaged.
    """
    return {name: unknown_images(name, digits, labels, seed, root) for name in available_unknowns(root)}


def known_scores(logits: Float, temperature: float = 1.0) -> dict[str, Float]:
    """How much a model takes each picture for a digit: the higher, the more.

    The maximum probability is that of Hendrycks and Gimpel 2017 ("A baseline for detecting misclassified and
    out-of-distribution examples in neural networks"), as its logarithm: probabilities next to 1 would round to 1, and
    be no longer in order. The energy, with its sign turned, is that of Liu et al. 2020 ("Energy-based
    out-of-distribution detection", equation 4).

    Args:
        logits: [N, 10].
        temperature: What to divide them by. It changes the order of both scores.

    Returns:
        [N] by the score's name.

    Example:
        >>> scores = known_scores(np.array([[9.0] + 9 * [0.0], 10 * [0.0]]))
        >>> {name: values.round(3).tolist() for name, values in scores.items()}
        {'maximum probability': [-0.001, -2.303], 'energy': [9.001, 2.303]}
    """
    scaled = logits.astype(np.float64) / temperature
    # Without the highest, whose 1 beside sums of e^-30 would be lost.
    below = np.sort(scaled, axis=1) - scaled.max(axis=1, keepdims=True)
    return {
        SCORES[0]: -np.log1p(np.exp(below[:, :-1]).sum(axis=1)),
        SCORES[1]: logsumexp(scaled, axis=1),
    }


def auroc(known: Float, unknown: Float) -> float:
    """The probability that a known picture scores higher than an unknown one; equal scores count half.

    It is the area under the ROC curve, exactly: Mann and Whitney's U by ranks.

    Args:
        known: [N], scores.
        unknown: [M], scores.

    Example:
        >>> auroc(np.array([3.0, 2.0]), np.array([2.0, 1.0]))
        0.875
    """
    ranks = rankdata(np.concatenate([known, unknown]))[: len(known)].sum()
    return float((ranks - len(known) * (len(known) + 1) / 2) / (len(known) * len(unknown)))


def fpr95(known: Float, unknown: Float) -> float:
    """The share of unknown pictures that pass for known where 95 % of the known do, at the least.

    Args:
        known: [N], scores.
        unknown: [M], scores.

    Example:
        >>> fpr95(np.arange(100.0), np.array([2.0, 6.0]))
        0.5
    """
    least = np.sort(known)[::-1][-(-95 * len(known) // 100) - 1]
    return float((unknown >= least).mean())


@dataclass(frozen=True)
class Detection:
    """How well one score of one model tells digits from one set of other pictures.

    Attributes:
        set: Name of the set.
        score: Name of the score.
        auroc: Probability that a digit scores higher.
        fpr95: Share of the set that passes where 95 % of the digits do.
        n: Pictures in the set.
    """

    set: str
    score: str
    auroc: float
    fpr95: float
    n: int


def detection(known_logits: Float, unknown_logits: Mapping[str, Float], temperature: float = 1.0) -> list[Detection]:
    """How well a model tells digits from other pictures, by set and score.

    Args:
        known_logits: [N, 10], of test digits.
        unknown_logits: [M, 10] by the set's name.
        temperature: What to divide the logits by.

    Example:
        >>> sure, unsure = 9 * np.eye(10), np.zeros((10, 10))
        >>> detection(sure, {"blank": unsure})[0]
        Detection(set='blank', score='maximum probability', auroc=1.0, fpr95=0.0, n=10)
    """
    known = known_scores(known_logits, temperature)
    rows = []
    for name, logits in unknown_logits.items():
        for score, unknown in known_scores(logits, temperature).items():
            worth = auroc(known[score], unknown), fpr95(known[score], unknown)
            rows.append(Detection(name, score, *worth, len(logits)))
    return rows


def detection_map(names: Sequence[str], detections: Sequence[Sequence[Detection]]) -> "Figure":
    """AUROC and FPR95 of several models as two heat maps: a row a model, a column a set and a score.

    Args:
        names: M of them.
        detections: Each model's, of the same sets.
    """
    from matplotlib.figure import Figure

    columns = [f"{row.set}\n{row.score}" for row in detections[0]]
    figure = Figure(figsize=(2.4 + 0.75 * len(columns), 2.2 + 0.7 * len(names)), layout="constrained")
    panels = figure.subplots(2, 1, sharex=True)
    # Full colour is what a score gives that knows nothing, or worse.
    worst = (("auroc", "AUROC %, 100 is best", 50.0, 100.0), ("fpr95", "FPR95 %, 0 is best", 95.0, 0.0))
    for axes, (measure, title, bad, good) in zip(panels, worst, strict=True):
        values = 100 * np.array([[getattr(row, measure) for row in rows] for rows in detections])
        depth = ((values - good) / (bad - good)).clip(0, 1)
        axes.imshow(depth, cmap="Blues", aspect="auto", vmin=0, vmax=1)
        for (row, column), value in np.ndenumerate(values):
            shade = "white" if depth[row, column] > 0.5 else "black"
            axes.text(column, row, f"{value:.1f}", ha="center", va="center", fontsize=8, color=shade)
        axes.set_yticks(range(len(names)), names)
        axes.set_title(title, fontsize=10)
    panels[1].set_xticks(range(len(columns)), columns, rotation=45, ha="right", rotation_mode="anchor", fontsize=8)
    return figure


def sheet(sets: Mapping[str, Tensor]) -> "Figure":
    """Twelve pictures of each set, a row a set, spread evenly over it.

    Args:
        sets: uint8 [M, 28, 28] by name.
    """
    from matplotlib.figure import Figure

    side, columns = 32, 12  # pixels with the gap, pictures
    grid = np.full((side * len(sets), side * columns), 255, np.uint8)
    for row, images in enumerate(sets.values()):
        for column, index in enumerate(np.linspace(0, len(images) - 1, min(columns, len(images))).astype(int)):
            top, left = side * row + 2, side * column + 2
            grid[top : top + 28, left : left + 28] = images[index].numpy()
    figure = Figure(figsize=(0.9 + 0.62 * columns, 0.62 * len(sets)), layout="constrained")
    axes = figure.subplots()
    axes.imshow(grid, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks(
        [side * row + side / 2 for row in range(len(sets))],
        [f"{name}\nn = {len(images):,}" for name, images in sets.items()],
    )
    axes.tick_params(length=0)
    for edge in axes.spines.values():
        edge.set_visible(False)
    return figure

"""What a difference between models is worth: intervals, tests, calibration.

Everything here takes numbers and gives numbers; who compares runs puts them in words.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax
from scipy.stats import binomtest

Correct = NDArray[np.bool_]
Float = NDArray[np.floating[Any]]


def mcnemar(first: Correct, second: Correct) -> float:
    """The exact test of McNemar (1947): whether two models are equally often right on the same images.

    Only images that one model has right and the other has wrong count; if both are equally good, each of them goes
    either way with probability one half.

    Args:
        first: bool [N], where one model is right.
        second: bool [N], where the other is.

    Returns:
        The two-sided p-value.

    Example:
        >>> mcnemar(np.array([True] * 9 + [False]), np.array([True] + [False] * 9))
        0.0078125
    """
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    differing = only_first + only_second
    return float(binomtest(only_first, differing).pvalue) if differing else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusts p-values for the number of tests (Holm 1979), so that all together err in 5 % at the most.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(np.argsort(p_values, kind="stable")):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def bootstrapped_accuracies(groups: Sequence[Correct | Float], draws: int = 2_000, seed: int = 0) -> Float:
    """Mean accuracies of groups of runs, had there been other test images and other seeds.

    Each draw takes as many images, with replacement, and the same ones for all groups; and as many runs of each group,
    with replacement. A group of one run says nothing about seeds: its spread is that of the images alone.

    Args:
        groups: bool [n, N] each, where each of a group's n runs is right; N is the same for all. Or float, of any
            other share of each image.
        draws: Number of draws R.
        seed: Of the random numbers.

    Returns:
        [groups, R]. The 2.5th and 97.5th percentile of a row, or of the difference of two rows, are the ends of a 95 %
        interval.

    Example:
        >>> right = np.arange(1_000) % 10 > 0
        >>> low, high = np.percentile(bootstrapped_accuracies([right[None]])[0], [2.5, 97.5])
        >>> bool(0.87 < low < 0.89 < 0.91 < high < 0.93)
        True
    """
    random = np.random.default_rng(seed)
    images = groups[0].shape[1]
    runs = np.concatenate(groups).astype(np.float32)
    accuracies = np.empty((len(runs), draws))
    for start in range(0, draws, 200):  # a part at a time, because the weights of all draws would take gigabytes
        count = min(200, draws - start)
        drawn = random.integers(images, size=(count, images)) + images * np.arange(count)[:, None]
        times = np.bincount(drawn.ravel(), minlength=count * images).reshape(count, images).astype(np.float32)
        accuracies[:, start : start + count] = runs @ times.T / images
    means = np.empty((len(groups), draws))
    first = 0
    for row, group in enumerate(groups):
        chosen = first + random.integers(len(group), size=(len(group), draws))
        means[row] = np.take_along_axis(accuracies, chosen, axis=0).mean(axis=0)
        first += len(group)
    return means


def calibration_bins(logits: Float, labels: NDArray[np.int64], bins: int = 15) -> tuple[Float, Float, Float]:
    """Confidence beside accuracy, in bins of equal width (Guo et al. 2017, "On calibration of modern neural networks").

    Args:
        logits: [N, 10].
        labels: [N].
        bins: Number of bins B.

    Returns:
        Each bin's share of the images, mean confidence and accuracy, [B] each; the latter two are 0 where the bin is
        empty.
    """
    probabilities = softmax(logits.astype(np.float64), axis=1)
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == labels
    bin_ = np.minimum((confidence * bins).astype(int), bins - 1)
    counts = np.bincount(bin_, minlength=bins)
    filled = np.maximum(counts, 1)
    return (
        counts / len(labels),
        np.bincount(bin_, weights=confidence, minlength=bins) / filled,
        np.bincount(bin_, weights=right, minlength=bins) / filled,
    )


def expected_calibration_error(logits: Float, labels: NDArray[np.int64], bins: int = 15) -> float:
    """Mean distance between confidence and accuracy over the bins, weighted by their images (Guo et al. 2017, eq. 3).

    Example:
        >>> sure = 9 * np.eye(10)[[3, 3]]
        >>> round(expected_calibration_error(sure, np.array([3, 5])), 3)
        0.499
    """
    share, confidence, accuracy = calibration_bins(logits, labels, bins)
    return float((share * np.abs(confidence - accuracy)).sum())

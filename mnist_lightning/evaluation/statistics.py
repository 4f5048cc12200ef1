"""Confidence intervals, significance tests and calibration error, from arrays of predictions."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax
from scipy.stats import binomtest

Correct = NDArray[np.bool_]
Float = NDArray[np.floating[Any]]


def mcnemar(first: Correct, second: Correct) -> float:
    """Computes McNemar's exact test (McNemar 1947) for two models on the same images.

    The null hypothesis is equal accuracy. Only images that exactly one model classifies correctly count. Under the null
    hypothesis, each model is the correct one with probability one half.

    Args:
        first: Correctness of the first model's predictions, bool [N].
        second: Correctness of the second model's predictions, bool [N].

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
    """Adjusts p-values for multiple tests (Holm 1979), which controls the family-wise error rate.

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
    """Bootstraps the mean accuracy of each group of runs, over test images and seeds.

    Each draw resamples the N images with replacement, the same ones for all groups, and the n runs of each group with
    replacement. The spread of a group of one run is that of the images alone.

    Args:
        groups: Correctness of each group's n runs on the N images, bool [n, N]. A float array bootstraps any other
            value per image. N is the same for all groups.
        draws: Number of bootstrap draws R.
        seed: Seed of the random numbers.

    Returns:
        Mean accuracies [G, R] of the G groups. The 2.5th and 97.5th percentiles of a row, or of the difference of two
        rows, bound a 95 % confidence interval.

    Example:
        >>> correct = np.arange(1_000) % 10 > 0
        >>> low, high = np.percentile(bootstrapped_accuracies([correct[None]])[0], [2.5, 97.5])
        >>> bool(0.87 < low < 0.89 < 0.91 < high < 0.93)
        True
    """
    random = np.random.default_rng(seed)
    images = groups[0].shape[1]
    runs = np.concatenate(groups).astype(np.float32)
    accuracies = np.empty((len(runs), draws))
    for start in range(0, draws, 200):  # the weights of all draws at once would take gigabytes
        count = min(200, draws - start)
        samples = random.integers(images, size=(count, images)) + images * np.arange(count)[:, None]
        weights = np.bincount(samples.ravel(), minlength=count * images).reshape(count, images).astype(np.float32)
        accuracies[:, start : start + count] = runs @ weights.T / images
    means = np.empty((len(groups), draws))
    first = 0
    for row, group in enumerate(groups):
        chosen = first + random.integers(len(group), size=(len(group), draws))
        means[row] = np.take_along_axis(accuracies, chosen, axis=0).mean(axis=0)
        first += len(group)
    return means


def calibration_bins(logits: Float, labels: NDArray[np.int64], bins: int = 15) -> tuple[Float, Float, Float]:
    """Bins images by confidence (Guo et al. 2017, "On calibration of modern neural networks").

    Args:
        logits: Logits [N, 10].
        labels: Labels [N].
        bins: Number of bins B, of equal width.

    Returns:
        Share of the images, mean confidence and accuracy of each bin, [B] each. Confidence and accuracy of an empty bin
        are 0.
    """
    probabilities = softmax(logits.astype(np.float64), axis=1)
    confidence = probabilities.max(axis=1)
    correct = probabilities.argmax(axis=1) == labels
    bin_ = np.minimum((confidence * bins).astype(int), bins - 1)
    counts = np.bincount(bin_, minlength=bins)
    filled = np.maximum(counts, 1)
    return (
        counts / len(labels),
        np.bincount(bin_, weights=confidence, minlength=bins) / filled,
        np.bincount(bin_, weights=correct, minlength=bins) / filled,
    )


def expected_calibration_error(logits: Float, labels: NDArray[np.int64], bins: int = 15) -> float:
    """Computes the expected calibration error (ECE): mean |confidence - accuracy| per image (Guo et al. 2017, eq. 3).

    Example:
        >>> logits = 9 * np.eye(10)[[3, 3]]
        >>> round(expected_calibration_error(logits, np.array([3, 5])), 3)
        0.499
    """
    share, confidence, accuracy = calibration_bins(logits, labels, bins)
    return float((share * np.abs(confidence - accuracy)).sum())

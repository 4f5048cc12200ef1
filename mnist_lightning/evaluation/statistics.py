"""Confidence intervals, significance tests and calibration error, from arrays of predictions."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax
from scipy.stats import binomtest, nct, t

Correct = NDArray[np.bool_]
Float = NDArray[np.floating[Any]]


FEW_PAIRS = 15  # of six models
POWER = 0.8  # of `seeds_needed`
MOST_SEEDS = 1_000


def wilson_interval(correct: int, images: int) -> tuple[float, float]:
    """Computes the 95 % confidence interval of an accuracy over test images (Wilson 1927).

    Args:
        correct: Number of correctly classified images.
        images: Number of images.

    Example:
        >>> low, high = wilson_interval(9_900, 10_000)
        >>> round(low, 4), round(high, 4)
        (0.9879, 0.9918)
    """
    low, high = binomtest(correct, images).proportion_ci(method="wilson")
    return float(low), float(high)


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
    return float(binomtest(only_first, max(only_first + only_second, 1)).pvalue)  # 1 for equal predictions


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusts p-values for multiple tests (Holm 1979), which controls the family-wise error rate.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    order = np.argsort(p_values, kind="stable")
    adjusted = np.empty(len(order))
    adjusted[order] = np.maximum.accumulate(np.take(p_values, order) * np.arange(len(order), 0, -1))
    return list(map(float, adjusted.clip(max=1)))


def seeds_needed(first: Float, second: Float) -> int | None:
    """Computes how many seeds per model would detect the observed difference between two mean accuracies.

    This is the smallest n for which a two-sided two-sample t-test at p < 0.05 has 80 % power (Cohen 1988, "Statistical
    power analysis for the behavioral sciences", chapter 2). The effect size is the observed difference, divided by the
    root mean square of the two sample standard deviations. It is an estimate from few seeds, and so is n.

    Args:
        first: Accuracies of the first model's runs, [n].
        second: Accuracies of the second model's runs, [n].

    Returns:
        Number of seeds per model; `MOST_SEEDS` + 1 if it is larger than `MOST_SEEDS`. None if it is unknown: a model
        has one run, or the means are equal, or the runs of each model have the same accuracy.

    Example:
        >>> seeds_needed(np.array([0.994, 0.995, 0.996]), np.array([0.993, 0.994, 0.995]))
        17
    """
    if min(len(first), len(second)) < 2:
        return None
    difference = abs(float(first.mean() - second.mean()))
    spread = float(np.sqrt((first.var(ddof=1) + second.var(ddof=1)) / 2))
    if min(difference, spread) < 1e-9:  # rounding errors of zero
        return None
    effect = min(difference / spread, 100.0)  # nct overflows

    def power(n: int) -> float:
        freedom = 2 * n - 2
        return float(nct.sf(t.ppf(0.975, freedom), freedom, effect * np.sqrt(n / 2)))

    return 2 + bisect_left(range(2, MOST_SEEDS + 1), POWER, key=power)


@dataclass(frozen=True)
class Pair:
    """Two models on the same test images.

    Attributes:
        first: Name of the model that was passed first.
        second: Name of the other model.
        difference: Mean value of the first model minus that of the second.
        low: Lower end of the difference's 95 % confidence interval, over test images and seeds.
        high: Upper end of the same interval.
        p: p-value, adjusted for the number of pairs (Holm).
        better: Name of the better model, or None if the models are not distinguishable.
        verdict: The result as a sentence.
        seeds_needed: Number of seeds per model that would detect the difference, as from `seeds_needed`; None if the
            models are distinguishable, or the number is unknown.
    """

    first: str
    second: str
    difference: float
    low: float
    high: float
    p: float
    better: str | None
    verdict: str
    seeds_needed: int | None = None

    def __str__(self) -> str:
        sentence = f"{self.verdict} (p {f'= {self.p:.2g}' if self.p >= 1e-4 else '< 0.0001'})"
        if self.seeds_needed is None:
            return sentence
        seeds = f"more than {MOST_SEEDS:,}" if self.seeds_needed > MOST_SEEDS else str(self.seeds_needed)
        points = f"{100 * abs(self.difference):.2g} points"
        return f"{sentence}; {seeds} seeds each would detect a difference of {points} ({100 * POWER:.0f} % power)"


def compare_pairs(
    names: Sequence[str],
    values: Sequence[Float],
    samples: Float,
    p_values: Sequence[float],
    gain: str = " by",
    counts: Sequence[str] | None = None,
) -> list[Pair]:
    """Decides for every two models which one is better.

    One model is better than another if two conditions hold: the 95 % confidence interval of the difference excludes
    zero, and p < 0.05 after Holm's adjustment for the number of pairs.

    Args:
        names: Names of the M models.
        values: Value of each of a model's n runs, [n], such as its accuracy. Higher is better.
        samples: Bootstrapped mean values of the models, [M, R], as from `bootstrapped_accuracies`.
        p_values: p-value of each pair, in the order of `itertools.combinations`.
        gain: Words between the other model's name and the difference in points.
        counts: Number of runs of each model in words, such as `5 folds`. Default: n.

    Example:
        >>> samples = np.array([[0.96, 1.0], [0.91, 0.91]])
        >>> (pair,) = compare_pairs(["cnn", "mlp"], [np.array([0.98]), np.array([0.91])], samples, [0.001])
        >>> print(pair)
        cnn is better than mlp by 7.00 points (5.10 to 8.90), n = 1 (p = 0.001)
    """
    counts = counts or [str(len(runs)) for runs in values]
    pairs = []
    for (i, j), p in zip(combinations(range(len(names)), 2), holm(p_values), strict=True):
        n = " and ".join(dict.fromkeys((counts[i], counts[j])))
        difference = float(values[i].mean() - values[j].mean())
        low, high = map(float, np.percentile(samples[i] - samples[j], [2.5, 97.5]))
        better, verdict = None, f"{names[i]} and {names[j]} are not distinguishable at n = {n}"
        if p < 0.05 and (low > 0 or high < 0):
            better, other = (names[i], names[j]) if difference > 0 else (names[j], names[i])
            least, most = sorted((100 * abs(low), 100 * abs(high)))
            points = f"{100 * abs(difference):.2f} points ({least:.2f} to {most:.2f})"
            verdict = f"{better} is better than {other}{gain} {points}, n = {n}"
        pairs.append(Pair(names[i], names[j], difference, low, high, p, better, verdict))
    return pairs


def verdicts(pairs: Sequence[Pair], best: str) -> list[str]:
    """Describes all pairs of a few models. For many models, one line names those that may be as good as the best.

    Args:
        pairs: All pairs of the models.
        best: Name of the best model.
    """
    if len(pairs) <= FEW_PAIRS:
        return [str(pair) for pair in pairs]
    tied = [pair for pair in pairs if best in (pair.first, pair.second) and pair.better is None]
    names = "; ".join(pair.second if pair.first == best else pair.first for pair in tied)
    verdict = f"not distinguishable from {best}, the best: {names}" if tied else f"{best} is better than all others"
    return [f"{verdict}. All {len(pairs)} pairs are on the page."]


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
    means = []
    for group in np.split(accuracies, np.cumsum([len(group) for group in groups])[:-1]):
        chosen = random.integers(len(group), size=(len(group), draws))
        means.append(np.take_along_axis(group, chosen, axis=0).mean(axis=0))
    return np.stack(means)


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
    counts, confidences, successes = (np.bincount(bin_, weights, bins) for weights in (None, confidence, correct))
    filled = np.maximum(counts, 1)
    return counts / len(labels), confidences / filled, successes / filled


def expected_calibration_error(logits: Float, labels: NDArray[np.int64], bins: int = 15) -> float:
    """Computes the expected calibration error (ECE): mean |confidence - accuracy| per image (Guo et al. 2017, eq. 3).

    Example:
        >>> logits = 9 * np.eye(10)[[3, 3]]
        >>> round(expected_calibration_error(logits, np.array([3, 5])), 3)
        0.499
    """
    share, confidence, accuracy = calibration_bins(logits, labels, bins)
    return float((share * np.abs(confidence - accuracy)).sum())

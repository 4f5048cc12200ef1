"""Compares the statistics with those of statsmodels, SciPy and torchmetrics."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from scipy.stats import bootstrap
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestIndPower
from statsmodels.stats.proportion import proportion_confint
from torchmetrics.functional.classification import multiclass_calibration_error

from mnist_lightning.evaluation import statistics as statistics

RANDOM = np.random.default_rng(0)


def random_correct(accuracy: float, *shape: int) -> statistics.Correct:
    return RANDOM.random(shape) < accuracy


@pytest.mark.parametrize(("first", "second"), [(0.9, 0.9), (0.99, 0.9), (0.5, 0.6)])
def test_mcnemar(first: float, second: float) -> None:
    one, two = random_correct(first, 500), random_correct(second, 500)
    table = [[(one & two).sum(), (one & ~two).sum()], [(~one & two).sum(), (~one & ~two).sum()]]
    assert statistics.mcnemar(one, two) == pytest.approx(statsmodels_mcnemar(table, exact=True).pvalue)
    assert statistics.mcnemar(one, two) == statistics.mcnemar(two, one)


@pytest.mark.parametrize("correct", [0, 9, 9_900, 10_000])
def test_wilson_interval(correct: int) -> None:
    expected = proportion_confint(correct, 10_000, method="wilson")
    assert statistics.wilson_interval(correct, 10_000) == pytest.approx(expected)


@pytest.mark.parametrize("difference", [0.0003, 0.001, 0.002, 0.004])
def test_seeds_needed(difference: float) -> None:
    first, second = np.array([0.990, 0.991, 0.993]), np.array([0.991, 0.992, 0.992, 0.995]) + difference
    pooled = np.sqrt((first.var(ddof=1) + second.var(ddof=1)) / 2)
    effect = (second.mean() - first.mean()) / pooled
    expected = TTestIndPower().solve_power(effect, power=0.8, alpha=0.05)
    assert statistics.seeds_needed(first, second) == statistics.seeds_needed(second, first) == np.ceil(expected)


def test_seeds_needed_at_the_limits() -> None:
    first, second = np.array([0.99, 0.991]), np.array([0.9901, 0.9911])
    assert statistics.seeds_needed(first, second) == 786
    assert statistics.seeds_needed(first, second - 5e-5) == 1001  # more than 1,000
    assert statistics.seeds_needed(first, second + 0.1) == 2
    assert statistics.seeds_needed(first, second[:1]) is None  # no spread is known
    assert statistics.seeds_needed(first, first) is None  # equal means
    assert statistics.seeds_needed(np.repeat(0.97, 3), np.repeat(0.98, 3)) is None  # no spread


def test_many_models_get_one_verdict() -> None:
    def verdicts(values: Sequence[float]) -> list[str]:
        names = [f"m{index}" for index in range(len(values))]
        samples = np.array(values)[:, None] + RANDOM.normal(0, 0.001, (len(values), 500))
        p_values = [0.0] * (len(values) * (len(values) - 1) // 2)
        return statistics.verdicts(
            statistics.compare_pairs(names, [np.array([value]) for value in values], samples, p_values), "m1"
        )

    assert len(verdicts([0.9, 0.99, 0.9895, 0.8, 0.7, 0.6])) == 15  # a line per pair
    assert verdicts([0.9, 0.99, 0.9895, 0.8, 0.7, 0.6, 0.989]) == [
        "not distinguishable from m1, the best: m2; m6. All 21 pairs are on the page."
    ]
    assert verdicts([0.9, 0.99, 0.8, 0.7, 0.6, 0.5, 0.4]) == [
        "m1 is better than all others. All 21 pairs are on the page."
    ]


def test_mcnemar_of_equal_predictions() -> None:
    one = random_correct(0.9, 100)
    assert statistics.mcnemar(one, one) == 1


@pytest.mark.parametrize("count", [1, 2, 15])
def test_holm(count: int) -> None:
    p_values = (RANDOM.random(count) ** 4).tolist()
    assert statistics.holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1])


def test_interval_of_one_run_agrees_with_scipy() -> None:
    one, two = random_correct(0.95, 1, 1000), random_correct(0.93, 1, 1000)
    samples = statistics.bootstrapped_accuracies([one, two], draws=9_000)
    low, high = np.percentile(samples[0] - samples[1], [2.5, 97.5])

    def difference(first: statistics.Float, second: statistics.Float, axis: int) -> statistics.Float:
        return np.mean(first, axis=axis) - np.mean(second, axis=axis)

    expected = bootstrap((one[0], two[0]), difference, paired=True, method="percentile", rng=1, vectorized=True)
    assert (low, high) == pytest.approx(expected.confidence_interval, abs=1e-3)


def test_all_groups_are_resampled_on_the_same_images() -> None:
    one = random_correct(0.9, 1, 300)
    samples = statistics.bootstrapped_accuracies([one, one, ~one])
    np.testing.assert_array_equal(samples[0], samples[1])
    np.testing.assert_allclose(samples[0] + samples[2], 1, atol=1e-6)


def test_seeds_that_differ_widen_the_interval() -> None:
    equal = np.repeat(random_correct(0.9, 1, 2000), 4, axis=0)
    different = np.stack([random_correct(accuracy, 2000) for accuracy in (0.8, 0.87, 0.93, 1.0)])
    equal_spread, different_spread = statistics.bootstrapped_accuracies([equal, different]).std(axis=1)
    assert equal_spread == pytest.approx(np.sqrt(0.9 * 0.1 / 2000), rel=0.1)
    assert different_spread > 3 * equal_spread


@pytest.mark.parametrize("scale", [1.0, 5.0, 100.0])
def test_calibration_error(scale: float) -> None:
    logits = scale * RANDOM.normal(size=(2000, 10))
    labels = np.where(random_correct(0.7, 2000), logits.argmax(axis=1), RANDOM.integers(10, size=2000))
    expected = multiclass_calibration_error(torch.tensor(logits), torch.tensor(labels), num_classes=10, n_bins=15)
    assert statistics.expected_calibration_error(logits, labels) == pytest.approx(float(expected), abs=1e-6)
    assert sum(statistics.calibration_bins(logits, labels)[0]) == pytest.approx(1)

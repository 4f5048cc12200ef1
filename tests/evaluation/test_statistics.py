"""Checked against statsmodels, scipy and torchmetrics on the same numbers."""

import numpy as np
import pytest
import torch
from scipy.stats import bootstrap
from statsmodels.stats.contingency_tables import mcnemar as their_mcnemar
from statsmodels.stats.multitest import multipletests
from torchmetrics.functional.classification import multiclass_calibration_error

from mnist_lightning.evaluation import statistics as ours

RANDOM = np.random.default_rng(0)


def right(accuracy: float, *shape: int) -> ours.Correct:
    return RANDOM.random(shape) < accuracy


@pytest.mark.parametrize(("first", "second"), [(0.9, 0.9), (0.99, 0.9), (0.5, 0.6)])
def test_mcnemar(first: float, second: float) -> None:
    one, two = right(first, 500), right(second, 500)
    table = [[(one & two).sum(), (one & ~two).sum()], [(~one & two).sum(), (~one & ~two).sum()]]
    assert ours.mcnemar(one, two) == pytest.approx(their_mcnemar(table, exact=True).pvalue)
    assert ours.mcnemar(one, two) == ours.mcnemar(two, one)


def test_models_with_the_same_answers_do_not_differ() -> None:
    one = right(0.9, 100)
    assert ours.mcnemar(one, one) == 1


@pytest.mark.parametrize("count", [1, 2, 15])
def test_holm(count: int) -> None:
    p_values = (RANDOM.random(count) ** 4).tolist()
    assert ours.holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1])


def test_intervals_of_one_run_are_scipys() -> None:
    one, two = right(0.95, 1, 1000), right(0.93, 1, 1000)
    drawn = ours.bootstrapped_accuracies([one, two], draws=9_000)
    low, high = np.percentile(drawn[0] - drawn[1], [2.5, 97.5])

    def difference(first: ours.Float, second: ours.Float, axis: int) -> ours.Float:
        return np.mean(first, axis=axis) - np.mean(second, axis=axis)

    theirs = bootstrap((one[0], two[0]), difference, paired=True, method="percentile", rng=1, vectorized=True)
    assert (low, high) == pytest.approx(theirs.confidence_interval, abs=1e-3)


def test_other_images_are_the_same_for_all_groups() -> None:
    one = right(0.9, 1, 300)
    drawn = ours.bootstrapped_accuracies([one, one, ~one])
    np.testing.assert_array_equal(drawn[0], drawn[1])
    np.testing.assert_allclose(drawn[0] + drawn[2], 1, atol=1e-6)


def test_seeds_that_differ_widen_the_interval() -> None:
    equal = np.repeat(right(0.9, 1, 2000), 4, axis=0)
    different = np.stack([right(accuracy, 2000) for accuracy in (0.8, 0.87, 0.93, 1.0)])
    equal_spread, different_spread = ours.bootstrapped_accuracies([equal, different]).std(axis=1)
    assert equal_spread == pytest.approx(np.sqrt(0.9 * 0.1 / 2000), rel=0.1)
    assert different_spread > 3 * equal_spread


@pytest.mark.parametrize("scale", [1.0, 5.0, 100.0])
def test_calibration_error(scale: float) -> None:
    logits = scale * RANDOM.normal(size=(2000, 10))
    labels = np.where(right(0.7, 2000), logits.argmax(axis=1), RANDOM.integers(10, size=2000))
    theirs = multiclass_calibration_error(torch.tensor(logits), torch.tensor(labels), num_classes=10, n_bins=15)
    assert ours.expected_calibration_error(logits, labels) == pytest.approx(float(theirs), abs=1e-6)
    assert sum(ours.calibration_bins(logits, labels)[0]) == pytest.approx(1)

import csv
import math
from io import StringIO
from typing import Any

import numpy as np
import pytest

from mnist_lightning.evaluation.comparison import CONSENSUS, Comparison, compare, csv_text, markdown
from mnist_lightning.evaluation.runs import Run

RANDOM = np.random.default_rng(0)
LABELS = RANDOM.integers(10, size=10_000)


def run(name: str, accuracy: float, seed: int = 0, source: str = "mnist", images: int = 10_000, **summary: Any) -> Run:
    """A run with that many right answers, at random images; the wrong ones are off by one."""
    labels = LABELS[:images]
    wrong = np.random.default_rng([seed, *name.encode()]).permutation(images)[round(accuracy * images) :]
    answers = labels.copy()
    answers[wrong] = (labels[wrong] + 1) % 10
    known = {"experiment": name, "model": "CNN", "source": source, "seed": seed, "parameters": 1000, "epochs": 2}
    known |= {"train": {"accuracy": 1.0, "support": [500]}, "val": {"accuracy": accuracy}, "train_seconds": 10.0}
    return Run(None, {**known, **summary}, (5 * np.eye(10)[answers]).astype(np.float32), labels, name)


def one(*runs: Run) -> Comparison:
    (comparison,) = compare(runs)
    return comparison


def test_a_row_has_mean_and_sample_standard_deviation_over_the_seeds() -> None:
    (row,) = one(*(run("a", accuracy, seed) for seed, accuracy in enumerate((0.990, 0.992, 0.997)))).rows
    assert (row.name, row.seeds) == ("a", 3)
    assert row.test_accuracy == pytest.approx(0.993)
    assert row.test_accuracy_sd == pytest.approx(0.003606, abs=1e-6)
    assert row.low < 0.991
    assert 0.995 < row.high < 0.9985
    assert row.images_per_second == 100


def test_one_seed_has_no_standard_deviation() -> None:
    (row,) = one(run("a", 0.99)).rows
    assert math.isnan(row.test_accuracy_sd)
    assert (row.low, row.high) == pytest.approx((0.988, 0.9919), abs=3e-4)


def test_a_clear_difference() -> None:
    (pair,) = one(run("weak", 0.98), run("strong", 0.995)).pairs
    assert pair.better == "strong"
    assert pair.verdict.startswith("strong is better than weak by 1.50 points (1.")
    assert pair.low < 0.015 < pair.high
    assert pair.p < 1e-6


def test_a_small_difference_cannot_be_known() -> None:
    (pair,) = one(run("a", 0.9951), run("b", 0.9950)).pairs
    assert pair.better is None
    assert pair.verdict == "a and b are not distinguishable at n = 1"


def test_seeds_that_scatter_forbid_a_verdict() -> None:
    runs = [run("a", accuracy, seed) for seed, accuracy in enumerate((0.96, 0.999))] + [run("b", 0.97, 7)]
    (pair,) = one(*runs).pairs
    assert pair.p < 1e-6  # McNemar's test sees the best run only
    assert pair.better is None
    assert pair.verdict.endswith("n = 2 and 1")


def test_validation_and_not_the_test_set_decides_order_and_choice() -> None:
    comparison = one(run("a", 0.99, val={"accuracy": 0.5}), run("b", 0.98), run("b", 0.99, 1, val={"accuracy": 0.97}))
    assert [row.name for row in comparison.rows] == ["b", "a"]
    assert [chosen.summary["seed"] for chosen in comparison.chosen] == [0, 0]


def test_many_pairs_are_adjusted_for() -> None:
    two = one(run("a", 0.990), run("b", 0.9935)).pairs[0]
    many = one(run("a", 0.990), run("b", 0.9935), *(run(str(i), 0.99, i) for i in range(8)))
    (same,) = [pair for pair in many.pairs if {pair.first, pair.second} == {"a", "b"}]
    assert len(many.pairs) == 45
    assert same.p > 10 * two.p


def test_sources_and_test_sets_are_never_mixed() -> None:
    comparisons = compare([run("a", 0.9), run("b", 0.9), run("a", 0.9, source="kmnist"), run("c", 0.9, images=500)])
    assert [(c.source, c.images, len(c.rows)) for c in comparisons] == [
        ("mnist", 10_000, 2),
        ("kmnist", 10_000, 1),
        ("mnist", 500, 1),
    ]


def test_corrected_labels() -> None:
    right = run("a", 1.0)
    corrected = right.labels.copy()
    corrected[list(CONSENSUS)] = list(CONSENSUS.values())
    share = (corrected == right.labels).mean()
    assert 0.999 <= share < 1
    assert one(right).rows[0].corrected_accuracy == share
    assert math.isnan(one(run("a", 1.0, source="kmnist")).rows[0].corrected_accuracy)


def test_two_experiments_of_one_name_can_be_told_apart() -> None:
    first = run("a", 0.99)
    other = Run(None, first.summary, first.logits, first.labels, "other settings")
    assert [row.name for row in one(first, other).rows] == ["a (1)", "a (2)"]


def test_tables_to_paste_and_to_compute_with() -> None:
    comparison = one(run("a", 0.99), run("a", 0.994, 1), run("b", 0.98))
    table = markdown(comparison)
    assert "| a | 2 | 99.20 ± 0.28 | " in table
    assert "- a is better than b by 1.20 points" in table
    rows = list(csv.DictReader(StringIO(csv_text([comparison]))))
    assert [(row["source"], row["name"], float(row["test_accuracy"])) for row in rows] == [
        ("mnist", "a", pytest.approx(0.992)),
        ("mnist", "b", pytest.approx(0.98)),
    ]

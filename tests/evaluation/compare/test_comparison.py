import csv
import math
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import softmax

from mnist_lightning.evaluation.compare.comparison import (
    COLUMNS,
    CONSENSUS,
    MAIN_COLUMNS,
    Comparison,
    compare,
    ensembles,
    raw_table,
    results_table,
)
from mnist_lightning.evaluation.statistics import seeds_needed
from mnist_lightning.runs.run import Run

RANDOM = np.random.default_rng(0)
LABELS = RANDOM.integers(10, size=10_000)


def run(name: str, accuracy: float, seed: int = 0, source: str = "mnist", images: int = 10_000, **summary: Any) -> Run:
    """Makes a run of this accuracy. Mistakes are at random images; a wrong answer is the label plus one."""
    labels = LABELS[:images]
    wrong = np.random.default_rng([seed, *name.encode()]).permutation(images)[round(accuracy * images) :]
    answers = labels.copy()
    answers[wrong] = (labels[wrong] + 1) % 10
    values = {"experiment": name, "model": "CNN", "source": source, "seed": seed, "parameters": 1000, "epochs": 2}
    values |= {"train": {"accuracy": 1.0, "support": [500]}, "val": {"accuracy": accuracy}, "train_seconds": 10.0}
    return Run.computed({**values, **summary}, (5 * np.eye(10)[answers]).astype(np.float32), labels)


def one(*runs: Run) -> Comparison:
    (comparison,) = compare(runs)
    return comparison


def test_row_of_three_seeds() -> None:
    (row,) = one(*(run("a", accuracy, seed) for seed, accuracy in enumerate((0.990, 0.992, 0.997)))).rows
    assert (row.name, row.seeds) == ("a", 3)
    assert row.test_accuracy == pytest.approx(0.993)
    assert row.test_accuracy_sd == pytest.approx(0.003606, abs=1e-6)
    assert row.low < 0.991
    assert 0.995 < row.high < 0.9985
    assert row.images_per_second == 100


def test_row_of_one_seed_has_no_standard_deviation() -> None:
    (row,) = one(run("a", 0.99)).rows
    assert math.isnan(row.test_accuracy_sd)
    assert (row.low, row.high) == pytest.approx((0.988, 0.9919), abs=3e-4)


def test_a_clear_difference() -> None:
    (pair,) = one(run("weak", 0.98), run("strong", 0.995)).pairs
    assert pair.better == "strong"
    assert pair.verdict.startswith("strong is better than weak by 1.50 points (1.")
    assert pair.low < 0.015 < pair.high
    assert pair.p < 1e-6


def test_a_small_difference() -> None:
    (pair,) = one(run("a", 0.9951), run("b", 0.9950)).pairs
    assert pair.better is None
    assert pair.verdict == "a and b are not distinguishable at n = 1"


def test_models_with_a_large_spread_over_seeds_are_not_distinguishable() -> None:
    runs = [run("a", accuracy, seed) for seed, accuracy in enumerate((0.96, 0.999))] + [run("b", 0.97, 7)]
    (pair,) = one(*runs).pairs
    assert pair.p < 1e-6  # McNemar's test compares the best runs only
    assert pair.better is None
    assert pair.verdict.endswith("n = 2 and 1")


def fold(number: int, folds: int, accuracy: float, seed: int = 0, name: str = "a") -> Run:
    """Makes a run that was validated on a fold."""
    made = run(name, accuracy, seed, val={"accuracy": accuracy - 0.01})
    made.fold = number, folds
    return made


@pytest.mark.parametrize(
    ("runs", "n"),
    [
        ([(1, 0), (2, 0), (3, 0)], "3 folds"),
        ([(3, 0)], "1 of 3 folds"),
        ([(1, 0), (3, 0)], "2 of 3 folds"),
        ([(1, 0), (2, 0), (3, 0), (1, 1), (2, 1), (3, 1)], "3 folds x 2 seeds"),
        ([(1, 0), (2, 0), (3, 0), (1, 1)], "4 runs of 3 folds x 2 seeds"),
        ([(1, 0), (2, 1), (3, 2)], "3 runs of 3 folds x 3 seeds"),  # which are no partition
    ],
)
def test_folds_are_counted_as_folds(runs: list[tuple[int, int]], n: str) -> None:
    comparison = one(*(fold(number, 3, 0.98, seed) for number, seed in runs), run("a", 0.98, 7))
    rows = {row.name: row for row in comparison.rows}
    assert (rows["a, 3 folds"].n, rows["a, 3 folds"].runs, rows["a"].n) == (n, len(runs), "1")
    assert comparison.pairs[0].verdict.endswith((f"n = {n} and 1", f"n = 1 and {n}"))


def test_folds_of_unknown_seeds() -> None:
    runs = [fold(number, 2, 0.98) for number in (1, 2, 2)]
    for each in runs:
        each.seeds = None
    assert [one(*part).rows[0].n for part in (runs[:2], runs)] == ["2 folds", "3 runs of 2 folds x 2 seeds"]


def test_validation_accuracy_of_folds_is_mean_and_standard_deviation() -> None:
    runs = [fold(number, 2, accuracy) for number, accuracy in enumerate((0.96, 0.98), start=1)]
    comparison = one(*runs, run("b", 0.9), run("b", 0.9, 1))
    table = results_table(comparison)
    assert [row[table.header.index("validation %")] for row in table.rows] == ["96.00 ± 1.41", "90.00"]
    assert comparison.rows[0].val_accuracy_sd == pytest.approx(np.std([0.95, 0.97], ddof=1))


def test_seeds_needed_for_a_difference() -> None:
    first = [run("a", accuracy, seed) for seed, accuracy in enumerate((0.990, 0.992, 0.994))]
    second = [run("b", accuracy, seed) for seed, accuracy in enumerate((0.989, 0.991, 0.993))]
    (pair,) = one(*first, *second).pairs
    needs = "64 seeds each would detect a difference of 0.1 points (80 % power)"
    assert str(pair) == f"a and b are not distinguishable at n = 3 (p = {pair.p:.2g}); {needs}"
    (pair,) = one(first[0], *second).pairs
    assert str(pair) == f"b and a are not distinguishable at n = 3 and 1 (p = {pair.p:.2g})"  # no spread is known
    for number, each in enumerate(second, start=1):
        each.fold, each.seeds = (number, 3), (0, 0)
    (pair,) = one(*first, *second).pairs
    assert pair.verdict == "a and b, 3 folds are not distinguishable at n = 3 and 3 folds"
    assert pair.seeds_needed is None  # folds are not independent runs


def test_more_seeds_do_not_help_if_few_images_limit_the_comparison() -> None:
    accuracies = {"a": (0.95, 0.95, 0.96), "b": (0.92, 0.93, 0.93)}
    runs = [run(name, value, seed, images=100) for name in accuracies for seed, value in enumerate(accuracies[name])]
    assert seeds_needed(*map(np.array, accuracies.values())) == 3
    (pair,) = one(*runs).pairs
    assert (pair.better, pair.seeds_needed) == (None, None)


def test_caution() -> None:
    def caution(**counts: int) -> str:
        runs = [run(name, 0.9, seed) for name, count in counts.items() for seed in range(count)]
        for each in runs:
            each.folder = Path("runs")
        return one(*runs, *ensembles(runs)).caution

    assert caution(a=2, b=2) == caution(a=3) == ""
    single = "one run says nothing about the spread over seeds"
    assert caution(a=1, b=1) == f"Caution: {single} (n = 1: all on mnist)."
    fewer = "means over fewer runs are less certain"
    assert caution(a=2, b=3) == f"Caution: {fewer} (n = 2: a; others up to n = 3)."
    assert caution(a=1, b=2, c=1) == f"Caution: {single}, and {fewer} (n = 1: a; c; others up to n = 2)."
    assert caution(**{f"m{i}": 1 for i in range(30)}, b=2).endswith(" and 27 more; others up to n = 2).")


def test_validation_accuracy_decides_order_and_chosen_runs() -> None:
    comparison = one(run("a", 0.99, val={"accuracy": 0.5}), run("b", 0.98), run("b", 0.99, 1, val={"accuracy": 0.97}))
    assert [row.name for row in comparison.rows] == ["b", "a"]
    assert [chosen.summary["seed"] for chosen in comparison.chosen] == [0, 0]


def test_p_values_are_adjusted_for_the_number_of_pairs() -> None:
    two = one(run("a", 0.990), run("b", 0.9935)).pairs[0]
    many = one(run("a", 0.990), run("b", 0.9935), *(run(str(i), 0.99, i) for i in range(8)))
    (same,) = [pair for pair in many.pairs if {pair.first, pair.second} == {"a", "b"}]
    assert len(many.pairs) == 45
    assert same.p > 10 * two.p


def test_test_sets_are_compared_separately() -> None:
    comparisons = compare([run("a", 0.9), run("b", 0.9), run("a", 0.9, source="kmnist"), run("c", 0.9, images=500)])
    assert [(c.source, c.images, len(c.rows)) for c in comparisons] == [
        ("mnist", 10_000, 2),
        ("kmnist", 10_000, 1),
        ("mnist", 500, 1),
    ]


def test_corrected_labels() -> None:
    perfect = run("a", 1.0)
    corrected = perfect.labels.copy()
    corrected[list(CONSENSUS)] = list(CONSENSUS.values())
    share = (corrected == perfect.labels).mean()
    assert 0.999 <= share < 1
    assert one(perfect).rows[0].corrected_accuracy == share
    assert math.isnan(one(run("a", 1.0, source="kmnist")).rows[0].corrected_accuracy)


def test_models_of_one_experiment_are_named_by_their_settings() -> None:
    slow, fast = run("a", 0.99), run("a", 0.98)
    slow.settings, fast.settings = {"model": "CNN", "model.lr": 0.001}, {"model": "CNN", "model.lr": 0.01}
    comparison = one(slow, fast)
    assert [row.name for row in comparison.rows] == ["a, lr 0.001", "a, lr 0.01"]
    assert {comparison.pairs[0].first, comparison.pairs[0].second} == {"a, lr 0.001", "a, lr 0.01"}


def test_results_table() -> None:
    comparison = one(run("a", 0.99), run("a", 0.994, 1), run("b", 0.98))
    table = results_table(comparison)
    assert table.title == "10,000 test images of mnist"
    assert list(table.header) == list(COLUMNS)
    first = dict(zip(table.header, table.rows[0], strict=True))
    assert (first["model"], first["n"], first["test accuracy %"]) == ("a", "2", "99.20 ± 0.28")
    assert first["error %"] == "0.80"
    assert first["test loss"] == "?"
    assert "| a | 2 | 99.20 ± 0.28 | " in results_table(comparison, MAIN_COLUMNS).markdown()
    assert str(comparison.pairs[0]).startswith("a is better than b by 1.20 points")


def test_raw_table_is_not_rounded() -> None:
    comparisons = compare([run("a", 0.99), run("a", 0.994, 1), run("b", 1 / 3), run("c", 0.5, source="kmnist")])
    rows = list(csv.DictReader(StringIO(raw_table(comparisons).csv())))
    assert [(row["source"], row["name"], float(row["test_accuracy"])) for row in rows] == [
        ("mnist", "a", 0.992),
        ("mnist", "b", 0.3333),
        ("kmnist", "c", 0.5),
    ]
    assert float(rows[0]["test_accuracy_sd"]) == np.std([0.99, 0.994], ddof=1)


def test_ensembles() -> None:
    runs = [run("a", 0.9), run("b", 0.8), run("c", 0.7), run("c", 0.75, 1), run("alone", 0.9, source="kmnist")]
    seeds, probability, vote = ensembles(runs)
    mean = np.mean([softmax(each.logits.astype(float), axis=1) for each in runs[2:4]], axis=0)
    np.testing.assert_allclose(softmax(seeds.logits, axis=1), mean, atol=1e-5)
    assert (seeds.name, seeds.summary["parameters"]) == ("ensemble: 2 x c", 2000)
    members = [runs[0], runs[1], runs[3]]  # of c, the run with the higher validation accuracy
    mean = np.mean([softmax(member.logits.astype(float), axis=1) for member in members], axis=0)
    np.testing.assert_allclose(softmax(probability.logits, axis=1), mean, atol=1e-5)
    votes = np.sum([np.eye(10)[member.logits.argmax(axis=1)] for member in members], axis=0)
    answers = vote.logits.argmax(axis=1)
    np.testing.assert_array_equal(np.take_along_axis(votes, answers[:, None], axis=1)[:, 0], votes.max(axis=1))
    assert (probability.name, vote.name) == ("ensemble: mean probability", "ensemble: majority vote")
    assert probability.summary["parameters"] == 3000
    names = [row.name for row in compare([*runs, probability, vote])[0].rows]
    assert names == ["a", "b", "c", "ensemble: mean probability", "ensemble: majority vote"]

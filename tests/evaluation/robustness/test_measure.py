from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mnist_lightning import GNN, Classifier
from mnist_lightning.data.corruptions import corrupt
from mnist_lightning.data.sources import read
from mnist_lightning.evaluation.robustness.measure import (
    ALL_CONDITIONS,
    CLEAN,
    NO_DIGITS,
    PUBLISHED_CONDITIONS,
    Condition,
    Model,
    Robustness,
    measure,
    pairs,
    worst_corruption,
)
from mnist_lightning.evaluation.robustness.measure import TestSet as Subjects  # pytest collects classes named Test*
from mnist_lightning.evaluation.robustness.tables import calibration_table, error_table, raw_errors
from mnist_lightning.evaluation.statistics import expected_calibration_error
from mnist_lightning.runs.run import Run

N = 2_000
LABELS = np.arange(N) % 10


def runs(name: str, count: int) -> list[Run]:
    summaries = [{"experiment": name, "source": "mnist", "seed": seed} for seed in range(count)]
    return [Run.computed(summary, np.empty((0, 10), np.float32), LABELS) for summary in summaries]


def results(**errors: Any) -> Robustness:
    """Makes results with random mistakes.

    Args:
        **errors: Error rates of each model by its name, which broadcast to [n, 16]: clean and the 15 corruptions.
    """
    random = np.random.default_rng(0)
    shares = {name: np.atleast_2d(values) + np.zeros(16) for name, values in errors.items()}
    wrong = [
        np.stack([[random.permutation(N) < round(N * share) for share in run] for run in of_model])
        for of_model in shares.values()
    ]
    sizes = [len(of_model) for of_model in shares.values()]
    models = [Model(name, runs(name, n), [], [None] * n) for name, n in zip(shares, sizes, strict=True)]
    return Robustness(
        test_set=Subjects("mnist", torch.empty(0), torch.from_numpy(LABELS), models),
        conditions=[CLEAN, *PUBLISHED_CONDITIONS],
        wrong=wrong,
        calibration_errors=[np.full((n, 16), 0.02) for n in sizes],
        scaled_errors=[np.full((n, 16), np.nan) for n in sizes],
        clean_logits=[np.zeros((n, N, 10), np.float32) for n in sizes],
        samples=torch.zeros(16, 10, 28, 28, dtype=torch.uint8),
        unknown={},
        detections=[[[]] * n for n in sizes],
    )


class Bright(Classifier):
    """Predicts 1 for bright images and 0 for others."""

    def __init__(self, limit: float = 0.3, **training: Any) -> None:
        super().__init__(**training)
        self.weight = nn.Parameter(torch.tensor(limit))

    def forward(self, images: Tensor) -> Tensor:
        bright = images.mean(dim=(1, 2, 3)) > self.weight
        return 3 * nn.functional.one_hot(bright.long(), 10).float()


def test_measure() -> None:
    images, labels = read("digits", train=False)
    model = Model("bright", runs("bright", 2), [Bright(0.3).eval(), Bright(0.9).eval()], [2.0, None])
    evaluations: list[tuple[Condition, str]] = []
    conditions = [Condition("brightness", 5), Condition("scale", 1)]
    measured = measure(
        Subjects("digits", images, labels, [model]),
        conditions,
        lambda condition: corrupt(images, *condition),
        {"black": torch.zeros(5, 28, 28, dtype=torch.uint8)},
        lambda *evaluation: evaluations.append(evaluation),
    )
    assert measured.conditions == [CLEAN, *conditions]
    assert evaluations == [(condition, "bright") for condition in [CLEAN, *conditions, NO_DIGITS]]
    zeros, ones = (labels == 0).numpy().mean(), (labels == 1).numpy().mean()
    # All digits are bright on a bright background; none is bright on a black one.
    assert measured.errors[0] == pytest.approx(np.array([[1 - zeros, 1 - ones, 1 - zeros], [1 - zeros] * 3]))
    logits = model.classifiers[0].classify(images).numpy()
    assert np.array_equal(measured.clean_logits[0][0], logits)
    assert measured.calibration_errors[0][0, 0] == expected_calibration_error(logits, labels.numpy())
    assert measured.scaled_errors[0][0, 0] == expected_calibration_error(logits / 2, labels.numpy())
    assert np.isnan(measured.scaled_errors[0][1]).all()
    assert measured.samples.shape == (3, 10, 28, 28)
    assert torch.equal(measured.samples[1, 7], corrupt(images, "brightness", 5)[(labels == 7).nonzero()[0, 0]])
    assert measured.detections[0][0][0].auroc == 0.5  # the model gives black images and digits the same logits


def test_gnn_gets_graphs_of_the_corrupted_digits() -> None:
    images, _ = read("digits", train=False)
    digits = corrupt(images[:4], "shot_noise", 5)
    gnns = [GNN(width=8, depth=1).eval(), GNN(width=8, depth=1).eval()]
    logits = Model("gnn", runs("gnn", 2), [*gnns], [None, None]).logits(digits)
    assert logits.shape == (2, 4, 10)
    for gnn, of_run in zip(gnns, logits, strict=True):
        assert np.allclose(of_run, gnn.classify(digits).numpy(), atol=1e-6)
    assert not np.allclose(logits[0], gnns[0].classify(images[:4]).numpy(), atol=1e-3)


def test_conditions_are_15_corruptions_at_five_severities() -> None:
    assert len(PUBLISHED_CONDITIONS) == 15
    assert len(ALL_CONDITIONS) == 75
    assert {*PUBLISHED_CONDITIONS} < {*ALL_CONDITIONS}


def test_error_table() -> None:
    measured = results(a=[[0.01, *[0.1] * 15], [0.02, *[0.2] * 14, 0.35]], b=0.5)
    table = error_table(measured)
    cells = {row[0]: row[1:] for row in table.rows}
    assert table.header == ["", "a (n = 2)", "b (n = 1)"]
    assert cells["clean"] == ["1.50 ± 0.71", "50.00"]
    assert cells["canny edges"] == ["22.50 ± 17.68", "50.00"]
    assert cells["mean of the 15"] == ["15.50 ± 7.78", "50.00"]
    assert cells["mean minus clean"] == ["14.00 ± 7.07", "0.00"]
    assert "| mean of the 15 | 15.50 ± 7.78 | 50.00 |" in table.markdown()
    low, high = map(float, cells["95 % interval of the mean"][1].split(" to "))
    assert 48.5 < low < 50 < high < 51.5
    assert calibration_table(measured).rows[0] == ["clean", "2.00 ± 0.00", "2.00"]
    assert calibration_table(measured).rows[1] == ["clean, temperature-scaled", "?", "?"]


def test_raw_errors() -> None:
    lines = raw_errors([results(a=[[0.01] * 16, [0.02] * 16])]).csv().splitlines()
    assert len(lines) == 1 + 2 * 16
    assert lines[1] == "mnist,a,0,clean,0,0.01,0.02,"
    assert lines[17] == "mnist,a,1,clean,0,0.02,0.02,"
    assert lines[2].startswith(f"mnist,a,0,shot_noise,{PUBLISHED_CONDITIONS[0].severity},")


def test_worst_corruption() -> None:
    errors = np.linspace(0.01, 0.31, 16)
    sentence = worst_corruption(results(a=[*errors[:-1], 0.6]), 0)
    assert sentence == "a has its highest error under canny edges (60.00 %), n = 1"
    errors[8] = 0.312  # brightness
    sentence = worst_corruption(results(a=errors), 0)
    assert sentence.startswith("a has its highest errors under brightness (31.20 %), ")
    assert sentence.endswith(" and zigzag (29.00 %), which are not distinguishable at n = 1")


def test_pairs() -> None:
    (different,), (similar,) = pairs(results(weak=0.3, strong=0.1)), pairs(results(a=0.3, b=0.301))
    assert different.better == "strong"
    assert different.verdict.startswith("strong is better than weak: its mean error is lower by 20.00 points (19.")
    assert different.verdict.endswith("n = 1")
    assert str(different) == f"{different.verdict} (p < 0.0001)"
    assert similar.better is None
    assert str(similar) == f"a and b are not distinguishable at n = 1 (p = {similar.p:.2g})"


def test_spread_over_seeds_makes_models_indistinguishable() -> None:
    scattered, steady = np.full((3, 16), 0.3), np.full((3, 16), 0.2)
    scattered += np.array([[-0.08], [0.0], [0.09]])
    steady += np.array([[-0.01], [0.0], [0.01]])
    (pair,) = pairs(results(scattered=scattered, steady=steady))
    assert pair.better is None
    assert pair.p > 0.1
    (pair,) = pairs(results(scattered=scattered[:2], steady=0.2))  # the single seed may be as far off as these two
    assert pair.better is None
    assert pair.verdict == "scattered and steady are not distinguishable at n = 2 and 1"


def test_p_values_are_adjusted_for_the_number_of_pairs() -> None:
    (alone,) = pairs(results(a=0.2, b=0.21))
    same, *others = pairs(results(a=0.2, b=0.21, c=0.2, d=0.2))
    assert len(others) == 5
    assert alone.better == "a"
    assert 0 < alone.p < 0.02
    assert same.p > 2 * alone.p

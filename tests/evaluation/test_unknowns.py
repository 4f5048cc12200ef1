"""AUROC and FPR95 are checked against scikit-learn on the same numbers."""

import numpy as np
import pytest
import torch
from scipy.special import softmax
from sklearn.metrics import roc_auc_score, roc_curve

from mnist_lightning import GNN, MLP, Classifier, LeNet5
from mnist_lightning.data.sources import read
from mnist_lightning.evaluation.statistics import Float
from mnist_lightning.evaluation.unknowns import (
    SCORES,
    auroc,
    detection,
    detection_map,
    fpr95,
    known_scores,
    sheet,
    unknown_sets,
)

RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize("decimals", [0, 1, 12])  # many ties, some, none
@pytest.mark.parametrize(("known", "unknown"), [(300, 70), (41, 500), (1, 1)])
def test_rates_are_scikit_learns(decimals: int, known: int, unknown: int) -> None:
    ours = RANDOM.normal(1, 1, known).round(decimals), RANDOM.normal(0, 2, unknown).round(decimals)
    truth, scores = np.repeat([1, 0], [known, unknown]), np.concatenate(ours)
    assert auroc(*ours) == pytest.approx(roc_auc_score(truth, scores))
    false, true, _ = roc_curve(truth, scores, drop_intermediate=False)
    assert fpr95(*ours) == pytest.approx(false[true >= 0.95].min())


def test_the_best_and_the_worst() -> None:
    high, low = np.arange(100.0) + 100, np.arange(50.0)
    assert (auroc(high, low), fpr95(high, low)) == (1, 0)
    assert (auroc(low, high), fpr95(low, high)) == (0, 1)
    assert (auroc(low, low), fpr95(low, low)) == (0.5, 0.96)


def test_scores_are_what_the_papers_say() -> None:
    logits = RANDOM.normal(scale=4, size=(50, 10))
    probability, energy = (known_scores(logits, 1.7)[name] for name in SCORES)
    np.testing.assert_allclose(np.exp(probability), softmax(logits / 1.7, axis=1).max(axis=1))
    np.testing.assert_allclose(energy, np.log(np.exp(logits / 1.7).sum(axis=1)))


def test_near_certainty_is_still_in_order() -> None:
    scores = known_scores(np.float32([[sure, *[0] * 9] for sure in (50, 60, 70)]))["maximum probability"]
    assert scores[0] < scores[1] < scores[2] < 0


def test_a_row_a_set_and_score() -> None:
    known = 12 * np.eye(10)[RANDOM.integers(10, size=200)] + RANDOM.normal(size=(200, 10))
    unknown = {"noise": RANDOM.normal(size=(80, 10)), "letters": known[:30]}
    rows = detection(known, unknown)
    assert [(row.set, row.score, row.n) for row in rows] == [
        ("noise", "maximum probability", 80),
        ("noise", "energy", 80),
        ("letters", "maximum probability", 30),
        ("letters", "energy", 30),
    ]
    assert rows[0].auroc > 0.99
    assert 0.4 < rows[2].auroc < 0.6
    assert rows[2].fpr95 > 0.8


def test_temperature_changes_the_order() -> None:
    # One other class near and nine others in the middle: the near one counts when it is cold, the many when it is hot.
    logits = np.array([[9.0, 8.0, *[0] * 8], [9.0, *[6.0] * 9]])
    cold, hot = (known_scores(logits, temperature)["maximum probability"] for temperature in (0.5, 10))
    assert np.sign(cold[0] - cold[1]) == -np.sign(hot[0] - hot[1])


@pytest.mark.parametrize("cls", [MLP, LeNet5, GNN])
def test_models_answer_whatever_they_are_shown(cls: type[Classifier]) -> None:
    black, white = torch.zeros(2, 28, 28, dtype=torch.uint8), torch.full((2, 28, 28), 255, dtype=torch.uint8)
    sets = unknown_sets(*read("digits", train=False))
    pictures = torch.cat([black, white, *(images[:6] for images in sets.values())])
    assert cls().eval().classify(pictures).isfinite().all()


def test_pictures() -> None:
    digits, labels = read("digits", train=False)
    sets = {"rotated": unknown_sets(digits, labels)["rotated"], "few": digits[:3]}
    axes = sheet(sets).axes[0]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["rotated\nn = 182", "few\nn = 3"]
    shown = axes.images[0].get_array()
    np.testing.assert_array_equal(shown[2:30, 2:30], sets["rotated"][0])
    np.testing.assert_array_equal(shown[34:62, 66:94], digits[2])

    def rows(unknown: Float) -> list:
        return detection(9 * np.eye(10), {"noise": unknown, "blank": unknown})

    top, bottom = detection_map(["good", "bad"], [rows(np.zeros((5, 10))), rows(9 * np.eye(10))]).axes
    assert [text.get_text() for text in top.texts] == ["100.0"] * 4 + ["50.0"] * 4
    assert [text.get_text() for text in bottom.texts] == ["0.0"] * 4 + ["100.0"] * 4
    assert [text.get_text() for text in bottom.get_yticklabels()] == ["good", "bad"]

import numpy as np
import pytest
import torch
from scipy.special import softmax
from sklearn.metrics import roc_curve

from mnist_lightning import GNN, MLP, Classifier, LeNet5
from mnist_lightning.data.sources import read
from mnist_lightning.evaluation.robustness.unknowns import detection, fpr95, known_scores, unknown_sets
from mnist_lightning.evaluation.statistics import Float

RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize("decimals", [0, 1, 12])  # many ties, some, none
@pytest.mark.parametrize(("known", "unknown"), [(300, 70), (41, 500), (1, 1)])
def test_fpr95_matches_scikit_learn(decimals: int, known: int, unknown: int) -> None:
    scores = RANDOM.normal(1, 1, known).round(decimals), RANDOM.normal(0, 2, unknown).round(decimals)
    is_known = np.repeat([1, 0], [known, unknown])
    false_positives, true_positives, _ = roc_curve(is_known, np.concatenate(scores), drop_intermediate=False)
    assert fpr95(*scores) == pytest.approx(false_positives[true_positives >= 0.95].min())


def test_best_and_worst_fpr95() -> None:
    high, low = np.arange(100.0) + 100, np.arange(50.0)
    assert fpr95(high, low) == 0
    assert fpr95(low, high) == 1
    assert fpr95(low, low) == 0.96


def test_auroc_is_the_probability_of_a_higher_score() -> None:
    def logits(count: int, mean: float) -> Float:
        return RANDOM.normal(mean, 1, (count, 1)).round(1) * np.eye(10)[:1]  # many ties

    known, unknown = logits(40, 3), logits(70, 2)
    for row in detection(known, {"noise": unknown}):
        high, low = known_scores(known)[row.score][:, None], known_scores(unknown)[row.score]
        assert row.auroc == pytest.approx((high > low).mean() + (high == low).mean() / 2)
        assert 0.6 < row.auroc < 0.9


def test_scores_match_the_papers() -> None:
    logits = RANDOM.normal(scale=4, size=(50, 10))
    scores = known_scores(logits, 1.7)
    np.testing.assert_allclose(np.exp(scores["maximum probability"]), softmax(logits / 1.7, axis=1).max(axis=1))
    np.testing.assert_allclose(scores["energy"], np.log(np.exp(logits / 1.7).sum(axis=1)))


def test_probabilities_close_to_one_keep_their_order() -> None:
    scores = known_scores(np.float32([[logit, *[0] * 9] for logit in (50, 60, 70)]))["maximum probability"]
    assert scores[0] < scores[1] < scores[2] < 0


def test_one_row_per_set_and_score() -> None:
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
    # A low temperature weights the one close competitor, a high temperature the nine distant ones.
    logits = np.array([[9.0, 8.0, *[0] * 8], [9.0, *[6.0] * 9]])
    low, high = (known_scores(logits, temperature)["maximum probability"] for temperature in (0.5, 10))
    assert np.sign(low[0] - low[1]) == -np.sign(high[0] - high[1])


@pytest.mark.parametrize("cls", [MLP, LeNet5, GNN])
def test_logits_of_pictures_without_digits_are_finite(cls: type[Classifier]) -> None:
    black, white = torch.zeros(2, 28, 28, dtype=torch.uint8), torch.full((2, 28, 28), 255, dtype=torch.uint8)
    sets = unknown_sets(*read("digits", train=False))
    pictures = torch.cat([black, white, *(images[:6] for images in sets.values())])
    assert cls().eval().classify(pictures).isfinite().all()

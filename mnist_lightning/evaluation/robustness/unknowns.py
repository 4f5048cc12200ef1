"""Out-of-distribution detection: scores that tell digits from other pictures, and their AUROC and FPR95."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.special import logsumexp
from sklearn.metrics import roc_auc_score
from torch import Tensor

from mnist_lightning.data.unknowns import available_unknowns, unknown_images
from mnist_lightning.evaluation.statistics import Float


def unknown_sets(digits: Tensor, labels: Tensor, seed: int = 0, root: str | None = None) -> dict[str, Tensor]:
    """Returns all available sets of pictures without digits, see `data.unknowns`.

    Args:
        digits: Test images, uint8 [N, 28, 28].
        labels: Labels, int64 [N].
        seed: Seed of the random numbers.
        root: Folder of the data. Default: $MNIST_LIGHTNING_DATA, or else `data`.

    Returns:
        At most 2,000 pictures by the name of their set, uint8 [M, 28, 28].

    Raises:
        InputError: If a source on disk is damaged.
    """
    return {name: unknown_images(name, digits, labels, seed, root) for name in available_unknowns(root)}


def known_scores(logits: Float, temperature: float = 1.0) -> dict[str, Float]:
    """Computes two out-of-distribution scores. Both are higher for in-distribution images.

    The maximum probability (Hendrycks and Gimpel 2017, "A baseline for detecting misclassified and out-of-distribution
    examples in neural networks") is returned as its logarithm, because probabilities close to 1 would round to 1 and
    lose their order. The energy (Liu et al. 2020, "Energy-based out-of-distribution detection", equation 4) is returned
    with the opposite sign.

    Args:
        logits: Logits [N, 10].
        temperature: Divisor of the logits. It can change the order of the images under both scores.

    Returns:
        Scores [N] by name: `maximum probability` and `energy`.

    Example:
        >>> scores = known_scores(np.array([[9.0] + 9 * [0.0], 10 * [0.0]]))
        >>> {name: values.round(3).tolist() for name, values in scores.items()}
        {'maximum probability': [-0.001, -2.303], 'energy': [9.001, 2.303]}
    """
    scaled = logits.astype(np.float64) / temperature
    # The highest logit adds exactly 1 to the sum, in which terms such as e^-40 would be lost; log1p adds it instead.
    below = np.sort(scaled, axis=1) - scaled.max(axis=1, keepdims=True)
    probability = -np.log1p(np.exp(below[:, :-1]).sum(axis=1))
    return {"maximum probability": probability, "energy": logsumexp(scaled, axis=1)}


def fpr95(known: Float, unknown: Float) -> float:
    """Computes the false positive rate at the threshold that at least 95 % of the in-distribution images reach.

    Args:
        known: Scores of in-distribution images [N].
        unknown: Scores of out-of-distribution images [M].

    Example:
        >>> fpr95(np.arange(100.0), np.array([2.0, 6.0]))
        0.5
    """
    threshold = np.sort(known)[5 * len(known) // 100]
    return float((unknown >= threshold).mean())


@dataclass(frozen=True)
class Detection:
    """How well one score of one model tells digits from one set of other pictures.

    Attributes:
        set: Name of the set.
        score: Name of the score.
        auroc: Area under the ROC curve: the probability that a digit has a higher score than a picture of the set.
        fpr95: Share of the set above the threshold that 95 % of the digits reach.
        n: Number of pictures in the set.
    """

    set: str
    score: str
    auroc: float
    fpr95: float
    n: int


def detection(known_logits: Float, unknown_logits: Mapping[str, Float], temperature: float = 1.0) -> list[Detection]:
    """Computes AUROC and FPR95 of a model for each set and score.

    Args:
        known_logits: Logits of the test digits [N, 10].
        unknown_logits: Logits of other pictures [M, 10], by the name of their set.
        temperature: Divisor of the logits.

    Example:
        >>> confident, uniform = 9 * np.eye(10), np.zeros((10, 10))
        >>> detection(confident, {"blank": uniform})[0]
        Detection(set='blank', score='maximum probability', auroc=1.0, fpr95=0.0, n=10)
    """
    known_by_score = known_scores(known_logits, temperature)
    rows = []
    for name, logits in unknown_logits.items():
        for score, unknown in known_scores(logits, temperature).items():
            known = known_by_score[score]
            is_known = np.repeat([True, False], [len(known), len(unknown)])
            auroc = float(roc_auc_score(is_known, np.concatenate([known, unknown])))
            rows.append(Detection(name, score, auroc, fpr95(known, unknown), len(logits)))
    return rows

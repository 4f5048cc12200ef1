"""Tests saliency maps by deletion: does the probability fall faster than with random pixels deleted?"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mnist_lightning.classifier import Classifier
from mnist_lightning.errors import InputError
from mnist_lightning.explain.saliency import classes_to_explain


class Deletion(NamedTuple):
    """Decrease of each digit's class probability when ink is deleted.

    Attributes:
        drop: float [N], without the ink that a map ranks highest.
        random_drop: float [N], without the same number of random ink pixels, averaged over ten draws.
    """

    drop: Tensor
    random_drop: Tensor


def deletion(
    model: Classifier, digits: Tensor, ranking: Tensor, share: float = 0.1, targets: Tensor | None = None
) -> Deletion:
    """Compares the deletion of the ink that a map ranks highest with the deletion of random ink.

    Both delete `share` of the digit's ink, the pixels that are not black. So a map cannot win by deleting more
    pixels, or lose by highlighting background, which cannot be deleted. Pixels of equal rank are deleted in random
    order. The deletion metric is from Petsiuk, Das and Saenko 2018 ("RISE", section 4.1). The random baseline is ours.

    Args:
        model: Trained model in evaluation mode, on any device.
        digits: Digits, uint8 [N, 28, 28].
        ranking: Saliency maps, float [N, 28, 28].
        share: Share of the ink to delete, in [0, 1].
        targets: Classes whose probability is measured, int64 [N]. Default: the predicted classes.

    Raises:
        InputError: If the digits or targets are invalid, or the maps do not have the shape of the digits.
    """
    targets = classes_to_explain(model, digits, targets)
    before, after = deletion_curve(model, digits, ranking, (0.0, share), targets).unbind(dim=1)
    orders = random_orders(digits, 10)
    random = [before - deletion_curve(model, digits, order, (share,), targets)[:, 0] for order in orders]
    return Deletion(before - after, torch.stack(random).mean(dim=0))


def deletion_curve(
    model: Classifier, digits: Tensor, ranking: Tensor, shares: Sequence[float], targets: Tensor | None = None
) -> Tensor:
    """Computes class probabilities without the highest-ranked ink.

    Args:
        model: Trained model in evaluation mode, on any device.
        digits: Digits, uint8 [N, 28, 28].
        ranking: Saliency maps, float [N, 28, 28].
        shares: S shares of the ink to delete, each in [0, 1].
        targets: Classes whose probability is measured, int64 [N]. Default: the predicted classes.

    Returns:
        float [N, S].

    Raises:
        InputError: If the digits or targets are invalid, or the maps do not have the shape of the digits.
    """
    classes, ink = classes_to_explain(model, digits, targets), digits > 0
    if ranking.shape != digits.shape:
        raise InputError(f"ranking must have the shape of the digits, {list(digits.shape)}, got {list(ranking.shape)}")
    among_ink = ranking.masked_fill(~ink, -torch.inf)
    remaining = [without_highest(digits, among_ink, (share * ink.sum(dim=(1, 2))).round()) for share in shares]
    probabilities = [model.classify(images).softmax(dim=1) for images in remaining]
    return torch.cat([values.gather(1, classes[:, None]) for values in probabilities], dim=1)


def without_highest(digits: Tensor, ranking: Tensor, counts: Tensor) -> Tensor:
    """Blackens the highest-ranked pixels of digits.

    Args:
        digits: Digits, uint8 [N, 28, 28].
        ranking: Rank of each pixel, float [N, 28, 28]. Pixels of equal rank are ordered randomly.
        counts: Number of pixels to blacken in each digit, [N].

    Example:
        >>> digits = torch.full((1, 28, 28), 255, dtype=torch.uint8)
        >>> without_highest(digits, torch.arange(784.0).view(1, 28, 28), torch.tensor([2]))[0, -1, -4:]
        tensor([255, 255,   0,   0], dtype=torch.uint8)
    """
    chance = random_orders(digits, 1)[0].flatten(1).argsort(dim=1)
    order = chance.gather(1, ranking.flatten(1).gather(1, chance).argsort(dim=1, descending=True, stable=True))
    places = order.argsort(dim=1).view_as(digits)  # 0 is the highest
    return digits.masked_fill(places < counts[:, None, None], 0)


def random_orders(digits: Tensor, draws: int) -> list[Tensor]:
    """Returns `draws` random rankings, float [N, 28, 28] each. The seed is fixed."""
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(digits.shape, generator=generator) for _ in range(draws)]

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mnist_lightning import LeNet5
from mnist_lightning.classifier import Classifier
from mnist_lightning.errors import InputError
from mnist_lightning.explain.deletion import deletion, deletion_curve, random_orders, without_highest
from mnist_lightning.explain.saliency import grad_cam, input_gradients, occlusion


@pytest.mark.parametrize("method", [grad_cam, input_gradients, occlusion])
def test_deletion_tells_good_maps_from_bad_ones(
    method: Callable[..., Tensor], quarter: Classifier, images: Tensor
) -> None:
    ones = images[quarter.classify(images).argmax(dim=1) == 1]
    assert len(ones) > 5
    ranking = method(quarter, ones)
    good, bad = (deletion(quarter, ones, order, share=0.2) for order in (ranking, -ranking))
    assert good.drop.mean() > 2 * good.random_drop.mean() > 0
    assert bad.drop.mean() < 0.2 * good.random_drop.mean()
    assert torch.equal(bad.random_drop, good.random_drop)  # the same random orders in every call


def test_deletion_removes_the_same_number_of_ink_pixels(quarter: Classifier, images: Tensor) -> None:
    classified: list[Tensor] = []
    classify = quarter.classify

    def recording(digits: Tensor) -> Tensor:
        classified.append(digits)
        return classify(digits)

    quarter.classify = recording  # type: ignore[method-assign]
    deletion(quarter, images, (images == 0).float())  # this ranking prefers the background
    ink = (images > 0).sum(dim=(1, 2))
    removed = [ink - (digits > 0).sum(dim=(1, 2)) for digits in classified]
    intact, deleted = torch.zeros_like(ink), (0.1 * ink).round()
    assert [torch.equal(count, intact) for count in removed] == [True] * 2 + [False] * 11  # prediction, share 0
    assert all(torch.equal(count.float(), deleted) for count in removed[2:])  # the map and ten random orders


def test_the_highest_pixels_are_blackened() -> None:
    digits = torch.full((2, 28, 28), 255, dtype=torch.uint8)
    counts = torch.tensor([100, 3])
    remaining = without_highest(digits, torch.arange(2 * 784.0).view(2, 28, 28), counts)
    assert not remaining[0].flatten()[-100:].any()
    assert (remaining == 0).sum(dim=(1, 2)).tolist() == [100, 3]


def test_pixels_of_equal_rank_are_blackened_in_random_order() -> None:
    digits = torch.full((2, 28, 28), 255, dtype=torch.uint8)
    remaining = without_highest(digits, torch.zeros(2, 28, 28), torch.tensor([100, 3]))
    assert (remaining == 0).sum(dim=(1, 2)).tolist() == [100, 3]
    assert 10 < (remaining[0, :14] == 0).sum() < 90  # in both halves of the image


def test_curve_begins_at_the_digit_and_ends_at_a_blank_image(images: Tensor) -> None:
    model = LeNet5().eval()
    probabilities, blank = (model.classify(some).softmax(dim=1) for some in (images, torch.zeros_like(images)))
    targets = torch.full((len(images),), 3)
    curve = deletion_curve(model, images, random_orders(images, 1)[0], (0, 0.5, 1), targets)
    torch.testing.assert_close(curve[:, 0], probabilities[:, 3])
    torch.testing.assert_close(curve[:, 2], blank[:, 3])
    assert not torch.equal(curve[:, 1], curve[:, 0])


def test_ranking_of_another_shape(images: Tensor) -> None:
    with pytest.raises(
        InputError, match=r"ranking must have the shape of the digits, \[24, 28, 28\], got \[24, 14, 14\]"
    ):
        deletion(LeNet5().eval(), images, torch.zeros(24, 14, 14))

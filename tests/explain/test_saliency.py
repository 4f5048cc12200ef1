"""Saliency maps, compared with formulas and with a model whose important pixels are known."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from mnist_lightning import GNN, MLP, LeNet5
from mnist_lightning.classifier import Classifier
from mnist_lightning.errors import InputError
from mnist_lightning.explain.saliency import grad_cam, input_gradients, occlusion

Method = Callable[..., Tensor]
METHODS: list[Method] = [grad_cam, input_gradients, occlusion]


@pytest.mark.parametrize("method", METHODS)
def test_unused_pixels_are_unimportant(method: Method, quarter: Classifier, images: Tensor) -> None:
    maps = method(quarter, images, torch.ones(len(images), dtype=torch.long))
    assert maps.shape == images.shape
    ink = images > 0
    used = torch.zeros_like(ink)
    used[:, :14, :14] = True
    assert (maps[ink & used].mean() > 10 * maps[ink & ~used].abs().mean()).item()
    far = torch.zeros_like(ink)
    far[:, 18:] = far[:, :, 18:] = True  # beyond the reach of occlusion windows and interpolation
    assert not maps[far].any()


def test_grad_cam_follows_the_paper(images: Tensor) -> None:
    model = LeNet5().eval()
    targets = torch.arange(len(images)) % 10
    (pixels,) = model.inputs(images)
    features = model.s4(model.activation(model.c3(model.s2(model.activation(model.c1(model.standardize(pixels)))))))
    units = model.activation(model.f6(model.activation(model.c5(features.flatten(1)))))
    logits = model.output(units)
    (gradient,) = torch.autograd.grad(logits.gather(1, targets[:, None]).sum(), features)
    coarse = (gradient.mean(dim=(2, 3), keepdim=True) * features).sum(dim=1).relu()
    maps = grad_cam(model, images, targets)
    # The centres of the 5x5 units are pixels 5.5, 9.5, ... 21.5: average the four pixels nearest to each.
    middles = torch.stack([maps[:, row::4, column::4][:, :5, :5] for row in (5, 6) for column in (5, 6)]).mean(dim=0)
    shares = torch.tensor([0.0625, 0.875, 0.0625])  # weights of the unit and its neighbours in that average
    blurred = nn.functional.conv2d(coarse[:, None], (shares[:, None] * shares)[None, None], padding=1)[:, 0]
    torch.testing.assert_close(middles, blurred)


def test_input_gradients_of_a_linear_model_equal_deletion(images: Tensor) -> None:
    model = MLP(widths=[]).eval()
    maps = input_gradients(model, images)
    logits = model.classify(images)
    predicted = logits.argmax(dim=1)
    for row, column in ((9, 14), (14, 14), (18, 11)):
        without = images.clone()
        without[:, row, column] = 0
        decrease = (logits - model.classify(without)).gather(1, predicted[:, None])[:, 0]
        torch.testing.assert_close(maps[:, row, column], decrease, atol=1e-5, rtol=1e-4)


def test_occlusion_averages_the_windows(images: Tensor) -> None:
    model = LeNet5().eval()
    targets = torch.arange(len(images)) % 10

    def log_probability(digits: Tensor) -> Tensor:
        return model.classify(digits).log_softmax(dim=1).gather(1, targets[:, None])[:, 0]

    maps = occlusion(model, images, targets)
    for row, column, windows in ((13, 12, 9), (0, 14, 3)):
        decreases = []
        for top in range(max(0, row - 2), row + 1):
            for left in range(column - 2, column + 1):
                covered = images.clone()
                covered[:, top : top + 3, left : left + 3] = 0
                decreases.append(log_probability(images) - log_probability(covered))
        assert len(decreases) == windows
        torch.testing.assert_close(maps[:, row, column], torch.stack(decreases).mean(dim=0), atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("method", METHODS)
def test_no_digits(method: Method) -> None:
    assert method(LeNet5().eval(), torch.empty(0, 28, 28, dtype=torch.uint8)).shape == (0, 28, 28)


DIGITS = torch.zeros(2, 28, 28, dtype=torch.uint8)
TARGETS = torch.tensor([1, 9])


@pytest.mark.parametrize("method", METHODS)
def test_valid_digits_and_targets(method: Method) -> None:
    assert method(LeNet5().eval(), DIGITS, TARGETS).shape == (2, 28, 28)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("digits", "targets", "words"),
    [
        (DIGITS.float(), None, "must be"),  # the words of `Classifier.classify`
        (DIGITS.float(), TARGETS, "digits must be torch.uint8 [N, 28, 28], got torch.float32 [2, 28, 28]"),
        (DIGITS[:, 1:], TARGETS, "digits must be torch.uint8 [N, 28, 28], got torch.uint8 [2, 27, 28]"),
        (DIGITS, TARGETS[:1], "targets must be torch.int64 [2], got torch.int64 [1]"),
        (DIGITS, TARGETS.float(), "targets must be torch.int64 [2], got torch.float32 [2]"),
        (DIGITS, TARGETS + 1, "target must be a class from 0 to 9, got 10"),
        (DIGITS, TARGETS - 2, "target must be a class from 0 to 9, got -1"),
    ],
)
def test_invalid_digits_or_targets(method: Method, digits: Tensor, targets: Tensor | None, words: str) -> None:
    with pytest.raises(InputError) as error:
        method(LeNet5().eval(), digits, targets)
    assert words in str(error.value)


@pytest.mark.parametrize("method", METHODS)
def test_gnn_has_no_pixels(method: Method, images: Tensor) -> None:
    with pytest.raises(InputError, match="need a model of images, got a GNN; explain a GNN with `connectivity`"):
        method(GNN(width=8, depth=1).eval(), images)


def test_grad_cam_needs_convolutions(images: Tensor) -> None:
    with pytest.raises(InputError, match=r"needs convolutions, and MLP has none; use input_gradients or occ"):
        grad_cam(MLP().eval(), images)


@pytest.mark.parametrize("method", METHODS)
def test_frozen_model_is_explained_and_unchanged(
    method: Method, images: Tensor, recwarn: pytest.WarningsRecorder
) -> None:
    model = LeNet5().eval()
    maps = method(model, images[:4])
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    assert torch.equal(method(model, images[:4]), maps)
    assert not list(recwarn)
    assert not any(module._forward_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())

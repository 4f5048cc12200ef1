"""Properties of all models. New models are tested automatically."""

import contextlib
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mnist_lightning import Classifier, InputError, MNISTDataModule, MNISTSuperpixelsDataModule, models

Inputs = tuple[Tensor, ...]
Take = Callable[[list[int]], tuple[Inputs, Tensor]]
FIRST = list(range(16))


@pytest.fixture(params=models.__all__)
def build(request: pytest.FixtureRequest) -> type[Classifier]:
    """Each model of the package."""
    cls: type[Classifier] = getattr(models, request.param)
    return cls


@pytest.fixture
def take(build: type[Classifier], digits: MNISTDataModule, graphs: MNISTSuperpixelsDataModule) -> Take:
    """Returns the model's inputs and the labels of training digits by index."""

    def inputs(indices: list[int]) -> tuple[Inputs, Tensor]:
        for data in (digits, graphs):
            batch = data._dataset("train", augmented=False).__getitems__(indices)
            with contextlib.suppress(InputError):
                return build().unpack(data.on_after_batch_transfer(batch, 0))
        raise AssertionError("no data module returns batches for the model")

    return inputs


def test_logits(build: type[Classifier], take: Take) -> None:
    logits = build()(*take(FIRST)[0])
    assert logits.shape == (16, 10)
    assert logits.isfinite().all()


def test_classify_equals_forward(build: type[Classifier], take: Take, digits: MNISTDataModule) -> None:
    model = build().eval()
    images = digits.images_and_labels("train")[0][FIRST]
    with torch.no_grad():
        torch.testing.assert_close(model.classify(images), model(*take(FIRST)[0]))
    assert model.classify(images[:0]).shape == (0, 10)
    with pytest.raises(InputError, match=r"digits must be a uint8 tensor .* got a float32 tensor \[16, 28, 28\]"):
        model.classify(images.float())


def test_shifts_average_the_probabilities_of_five_positions(build: type[Classifier], digits: MNISTDataModule) -> None:
    model, images = build().eval(), digits.images_and_labels("train")[0][:3].clone()
    images[:, 0] = 255  # pixels that leave at the top do not enter at the bottom
    up, down, left, right = (torch.zeros_like(images) for _ in range(4))
    up[:, :-1], down[:, 1:], left[:, :, :-1], right[:, :, 1:] = (
        *(images[:, 1:], images[:, :-1]),
        *(images[:, :, 1:], images[:, :, :-1]),
    )
    views = [model.classify(view).softmax(dim=1) for view in (images, up, down, left, right)]
    torch.testing.assert_close(model.classify(images, shifts=True).exp(), torch.stack(views).mean(dim=0))


def test_every_parameter_gets_a_gradient(build: type[Classifier], take: Take) -> None:
    model = build()
    inputs, labels = take(FIRST)
    model.loss(model(*inputs), labels).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not without


@pytest.mark.slow
def test_overfits_16_digits(build: type[Classifier], take: Take) -> None:
    inputs, labels = take(FIRST)
    model = build().train()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(60):
        loss = model.loss(model(*inputs), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.1
    assert (model(*inputs).argmax(1) == labels).all()


def test_logits_do_not_depend_on_the_batch(build: type[Classifier], take: Take) -> None:
    model = build().eval()
    batched = model(*take(FIRST)[0])
    single = torch.cat([model(*take([index])[0]) for index in FIRST])
    torch.testing.assert_close(single, batched, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(model(*take(FIRST[::-1])[0]).flip(0), batched, atol=1e-5, rtol=1e-4)


def test_model_standardises_its_inputs(build: type[Classifier], take: Take) -> None:
    """The first layer with weights gets inputs of about zero mean and unit variance."""
    model, standardised = build(), []
    first = next(m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear)))
    first.register_forward_pre_hook(lambda _, inputs: standardised.append(inputs[0]))
    inputs, _ = take(list(range(500)))
    model(*inputs)
    if inputs[0].ndim == 4:
        torch.testing.assert_close(standardised[0].reshape(inputs[0].shape), (inputs[0] - 0.1307) / 0.3081)
    else:
        assert standardised[0].mean(dim=0).abs().max() < 0.3
        assert (standardised[0].std(dim=0).log().abs() < 0.5).all()


def test_convolutions_run_channels_last(build: type[Classifier], take: Take) -> None:
    model, layouts = build(), []
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    for convolution in convolutions:
        convolution.register_forward_hook(
            lambda _, __, maps: layouts.append(maps.is_contiguous(memory_format=torch.channels_last))
        )
    model(*take(FIRST)[0])
    assert len(layouts) == len(convolutions)
    assert all(layouts)


def test_bfloat16_changes_little(build: type[Classifier], take: Take) -> None:
    model = build().eval()
    inputs, _ = take(FIRST)
    exact = model(*inputs)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(*inputs)
    assert F.cosine_similarity(rounded.float(), exact).min() > 0.99


def test_hyperparameters_rebuild_the_model(build: type[Classifier]) -> None:
    model = build()
    rebuilt = type(model)(**model.hparams)
    assert {k: v.shape for k, v in rebuilt.state_dict().items()} == {k: v.shape for k, v in model.state_dict().items()}


@pytest.mark.slow
def test_compiling_keeps_logits_and_weight_names(build: type[Classifier], take: Take) -> None:
    model = build().eval()
    inputs, _ = take(FIRST)
    expected, names = model(*inputs), list(model.state_dict())
    model.compile(backend="aot_eager")  # without the C++ compiler, which takes minutes
    torch.testing.assert_close(model(*inputs), expected, atol=1e-5, rtol=1e-4)
    assert list(model.state_dict()) == names

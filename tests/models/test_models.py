"""What is true of every model: a new one is found by itself."""

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
    """Every model of the package."""
    cls: type[Classifier] = getattr(models, request.param)
    return cls


@pytest.fixture
def take(build: type[Classifier], digits: MNISTDataModule, graphs: MNISTSuperpixelsDataModule) -> Take:
    """Gives training digits by number, as the model takes them: its inputs and the labels."""

    def inputs(numbers: list[int]) -> tuple[Inputs, Tensor]:
        for data in (digits, graphs):
            batch = data._dataset("train", augmented=False).__getitems__(numbers)
            with contextlib.suppress(InputError):
                return build().unpack(data.on_after_batch_transfer(batch, 0))
        raise AssertionError("no data module has what the model takes")

    return inputs


def test_logits(build: type[Classifier], take: Take) -> None:
    logits = build()(*take(FIRST)[0])
    assert logits.shape == (16, 10)
    assert logits.isfinite().all()


def test_classifies_digits_as_they_are_in_files(build: type[Classifier], take: Take, digits: MNISTDataModule) -> None:
    model = build().eval()
    images = digits.images_and_labels("train")[0][FIRST]
    with torch.no_grad():
        torch.testing.assert_close(model.classify(images), model(*take(FIRST)[0]))
    assert model.classify(images[:0]).shape == (0, 10)
    with pytest.raises(InputError, match=r"float32 tensor \[16, 28, 28\]; they must be uint8"):
        model.classify(images.float())


def test_every_parameter_learns(build: type[Classifier], take: Take) -> None:
    model = build()
    inputs, labels = take(FIRST)
    model.loss(model(*inputs), labels).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not without


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


def test_a_digit_is_judged_by_itself(build: type[Classifier], take: Take) -> None:
    model = build().eval()
    together = model(*take(FIRST)[0])
    alone = torch.cat([model(*take([number])[0]) for number in FIRST])
    torch.testing.assert_close(alone, together, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(model(*take(FIRST[::-1])[0]).flip(0), together, atol=1e-5, rtol=1e-4)


def test_standardises_by_itself(build: type[Classifier], take: Take) -> None:
    """The first thing a model does is to bring what it is given to about zero mean and unit variance."""
    model, seen = build(), []
    first = next(m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear)))
    first.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    inputs, _ = take(list(range(500)))
    model(*inputs)
    if inputs[0].ndim == 4:
        torch.testing.assert_close(seen[0].reshape(inputs[0].shape), (inputs[0] - 0.1307) / 0.3081)
    else:
        assert seen[0].mean(dim=0).abs().max() < 0.3
        assert (seen[0].std(dim=0).log().abs() < 0.5).all()


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


def test_arguments_are_plain_and_rebuild_the_model(build: type[Classifier]) -> None:
    model = build()
    again = type(model)(**model.hparams)
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in model.state_dict().items()}


@pytest.mark.slow
def test_compiles_without_a_trace_in_the_weights(build: type[Classifier], take: Take) -> None:
    model = build().eval()
    inputs, _ = take(FIRST)
    expected, names = model(*inputs), list(model.state_dict())
    model.compile(backend="aot_eager")  # all of torch.compile but the C++ compiler, which takes minutes here
    torch.testing.assert_close(model(*inputs), expected, atol=1e-5, rtol=1e-4)
    assert list(model.state_dict()) == names

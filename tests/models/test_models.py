"""What is true of every model: a new one is found by itself."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mnist_lightning import Classifier, MNISTDataModule, models

ALL = [getattr(models, name) for name in models.__all__]
all_models = pytest.mark.parametrize("build", ALL, ids=models.__all__)
Build = Callable[[], Classifier]


@pytest.fixture
def batch(digits: MNISTDataModule) -> tuple[Tensor, Tensor]:
    images, labels = next(digits.batches("train"))
    return images[:16], labels[:16]


@all_models
def test_logits(build: Build, batch: tuple[Tensor, Tensor]) -> None:
    logits = build()(batch[0])
    assert logits.shape == (16, 10)
    assert logits.isfinite().all()


@all_models
def test_every_parameter_learns(build: Build, batch: tuple[Tensor, Tensor]) -> None:
    model = build()
    model.loss(model(batch[0]), batch[1]).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not without


@all_models
def test_overfits_16_digits(build: Build, batch: tuple[Tensor, Tensor]) -> None:
    images, labels = batch
    model = build().train()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(60):
        loss = model.loss(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.1
    assert (model(images).argmax(1) == labels).all()


@all_models
def test_an_image_is_judged_by_itself(build: Build, batch: tuple[Tensor, Tensor]) -> None:
    model = build().eval()
    images = batch[0]
    together = model(images)
    torch.testing.assert_close(torch.cat([model(image[None]) for image in images]), together, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(model(images.flip(0)).flip(0), together, atol=1e-5, rtol=1e-4)


@all_models
def test_standardises_by_itself(build: Build, batch: tuple[Tensor, Tensor]) -> None:
    """The first thing a model does to an image is to subtract MNIST's mean."""
    model, seen = build(), []
    first = next(m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear)))
    first.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model(batch[0])
    expected = (batch[0] - 0.1307) / 0.3081
    torch.testing.assert_close(seen[0].reshape(expected.shape), expected)


@all_models
def test_convolutions_run_channels_last(build: Build, batch: tuple[Tensor, Tensor]) -> None:
    model, layouts = build(), []
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    for convolution in convolutions:
        convolution.register_forward_hook(
            lambda _, __, maps: layouts.append(maps.is_contiguous(memory_format=torch.channels_last))
        )
    model(batch[0])
    assert len(layouts) == len(convolutions)
    assert all(layouts)


@all_models
def test_bfloat16_changes_little(build: Build, batch: tuple[Tensor, Tensor]) -> None:
    model = build().eval()
    exact = model(batch[0])
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(batch[0])
    assert F.cosine_similarity(rounded.float(), exact).min() > 0.99


@all_models
def test_arguments_are_plain_and_rebuild_the_model(build: Build) -> None:
    model = build()
    again = type(model)(**model.hparams)
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in model.state_dict().items()}


@pytest.mark.slow
@all_models
def test_compiles_without_a_trace_in_the_weights(build: Build, batch: tuple[Tensor, Tensor]) -> None:
    model = build().eval()
    expected, names = model(batch[0]), list(model.state_dict())
    model.compile(backend="aot_eager")  # all of torch.compile but the C++ compiler, which takes minutes here
    torch.testing.assert_close(model(batch[0]), expected, atol=1e-5, rtol=1e-4)
    assert list(model.state_dict()) == names

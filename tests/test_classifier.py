from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn
from torch.nn import functional as F

from mnist_lightning import MLP, InputError, MNISTDataModule
from mnist_lightning.classifier import Classifier
from mnist_lightning.divergence import NonFiniteLossError

LOGITS = torch.tensor([[2.0, 0.0, -1.0] + [0.0] * 7, [0.0, 3.0, 0.0] + [0.0] * 7])
LABELS = torch.tensor([0, 2])


def quiet_trainer(**options: Any) -> Trainer:
    defaults: dict[str, Any] = {
        "max_epochs": 1,
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return Trainer(**{**defaults, **options})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lr": 0.0}, "lr must be positive and finite, got 0.0"),
        ({"weight_decay": -1.0}, "weight_decay must be 0 or more and finite, got -1.0"),
        ({"momentum": 1.0}, "momentum must be at least 0 and below 1, got 1.0"),
        ({"label_smoothing": float("nan")}, "label_smoothing must be at least 0 and below 1, got nan"),
    ],
)
def test_invalid_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        MLP(**arguments)


@pytest.mark.parametrize("arguments", [{"lr": 1e-9}, {"weight_decay": 0.0}, {"momentum": 0.9, "label_smoothing": 0.9}])
def test_valid_arguments(arguments: dict[str, Any]) -> None:
    assert arguments.items() <= MLP(**arguments).hparams.items()


def test_cross_entropy_equals_pytorchs() -> None:
    assert MLP().loss(LOGITS, LABELS) == F.cross_entropy(LOGITS, LABELS)
    smoothed = MLP().loss(LOGITS, LABELS, label_smoothing=0.1)
    assert smoothed == F.cross_entropy(LOGITS, LABELS, label_smoothing=0.1)


def test_mse_compares_probabilities_with_one_hot_labels() -> None:
    probabilities = LOGITS.softmax(dim=1)
    expected = sum((probabilities[i, c] - float(c == LABELS[i])) ** 2 for i in range(2) for c in range(10)) / 20
    assert MLP(loss="mse").loss(LOGITS, LABELS).item() == pytest.approx(float(expected))


def test_label_smoothing_mixes_in_the_uniform_distribution() -> None:
    target = torch.full((2, 10), 0.02)
    target[[0, 1], LABELS] = 0.82
    assert MLP(loss="mse").loss(LOGITS, LABELS, 0.2).item() == pytest.approx(
        ((LOGITS.softmax(1) - target) ** 2).mean().item()
    )


def test_logged_loss_excludes_label_smoothing(digits: MNISTDataModule) -> None:
    losses = []

    class Recording(MLP):
        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            losses.append(outputs["loss"].item())

    trainer = quiet_trainer()
    trainer.fit(Recording(widths=[8], lr=1e-12, label_smoothing=0.5), digits)
    train, val = (trainer.callback_metrics[f"{split}/loss"].item() for split in ("train", "val"))
    assert train == pytest.approx(val, rel=0.1)
    assert abs(sum(losses) / len(losses) - train) > 1e-3


def test_loss_is_computed_in_32_bits() -> None:
    assert MLP().loss(LOGITS.bfloat16(), LABELS).dtype == torch.float32


def test_biases_and_norm_layers_have_no_weight_decay(digits: MNISTDataModule) -> None:
    model = MLP(widths=[16], batch_norm=True, weight_decay=0.3)
    quiet_trainer(fast_dev_run=True).fit(model, digits)
    optimizer = model.optimizers()
    decayed, plain = optimizer.param_groups  # type: ignore[union-attr]
    assert {p.ndim for p in decayed["params"]} == {2}
    assert decayed["weight_decay"] == 0.3
    assert {p.ndim for p in plain["params"]} == {1}
    assert plain["weight_decay"] == 0
    assert len(decayed["params"]) + len(plain["params"]) == len(list(model.parameters()))


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [1, 1, 1, 1]),
        ("step", [1, 1, 0.1, 0.01]),
        ("cosine", [1, 0.8536, 0.5, 0.1464]),
        ("onecycle", [0.04, 0.93, 0.80, 0.27]),  # rises for 30 % of the steps, then falls
        ("exponential", [1, 0.7, 0.49, 0.343]),
    ],
)
def test_schedule(schedule: Any, expected: list[float], digits: MNISTDataModule) -> None:
    rates = []

    class Recording(MLP):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            rates.append(self.trainer.optimizers[0].param_groups[0]["lr"])

    quiet_trainer(max_epochs=4).fit(Recording(widths=[8], schedule=schedule, lr=1.0), digits)
    quarter = len(rates) // 4
    assert rates[::quarter] == pytest.approx(expected, abs=0.04)


def test_schedule_needs_an_end_of_training(digits: MNISTDataModule) -> None:
    with pytest.raises(InputError, match=r"schedule cosine needs .* set --trainer.max_epochs"):
        quiet_trainer(max_epochs=-1).fit(MLP(schedule="cosine"), digits)


@pytest.mark.parametrize(("optimizer", "lr"), [("sgd", 0.05), ("adam", 0.003), ("adamw", 0.003), ("adadelta", 1.0)])
def test_every_optimizer_learns(optimizer: Any, lr: float, digits: MNISTDataModule) -> None:
    model = MLP(widths=[32], optimizer=optimizer, lr=lr, momentum=0.9)
    trainer = quiet_trainer(max_epochs=3)
    trainer.fit(model, digits)
    assert trainer.callback_metrics["val/acc"] > 0.8
    assert trainer.callback_metrics["train/loss"] < 1


def test_metrics_cover_the_whole_split(digits: MNISTDataModule) -> None:
    model = MLP()
    trainer = quiet_trainer()
    trainer.test(model, digits, verbose=False)
    logits, labels = model.predictions["test"]
    images = digits.images_and_labels("test")[0].unsqueeze(1).float() / 255
    torch.testing.assert_close(logits, model.eval()(images))
    assert trainer.callback_metrics["test/acc"] == (logits.argmax(1) == labels).float().mean()
    torch.testing.assert_close(trainer.callback_metrics["test/loss"], F.cross_entropy(logits, labels))


def test_training_metrics_are_means_over_the_steps(digits: MNISTDataModule) -> None:
    model = MLP(widths=[8], lr=1e-12)  # too small to change the weights between steps
    trainer = quiet_trainer(log_every_n_steps=10_000)
    trainer.fit(model, digits)
    images, labels = digits.images_and_labels("train")
    logits = model.eval()(images.unsqueeze(1).float() / 255)
    assert trainer.callback_metrics["train/loss"].item() == pytest.approx(F.cross_entropy(logits, labels).item(), 1e-4)
    assert trainer.callback_metrics["train/acc"].item() == pytest.approx(
        (logits.argmax(1) == labels).float().mean().item(), abs=1e-6
    )


class NaNAfter(Classifier):
    """Returns NaN after `good_steps` training steps."""

    def __init__(self, good_steps: int, **training: Any) -> None:
        super().__init__(**training)
        self.good_steps = good_steps
        self.layer = nn.Linear(784, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.layer(images.flatten(1))
        return logits * float("nan") if self.training and self.global_step >= self.good_steps else logits


@pytest.mark.parametrize("log_every_n_steps", [1, 4, 1000])
@pytest.mark.parametrize("good_steps", [0, 7, 30])
def test_non_finite_loss_stops_training_and_names_the_step(
    good_steps: int, log_every_n_steps: int, digits: MNISTDataModule
) -> None:
    with pytest.raises(NonFiniteLossError, match=f"became nan at step {good_steps} ") as error:
        quiet_trainer(max_epochs=3, log_every_n_steps=log_every_n_steps).fit(NaNAfter(good_steps), digits)
    assert "--model.lr" in str(error.value)


@pytest.mark.parametrize(
    "batch",
    [
        torch.zeros(2, 1, 28, 28),
        (torch.zeros(2, 1, 28, 28),),
        (torch.zeros(2, 3, 28, 28), torch.zeros(2)),
        (torch.zeros(2, 1, 28, 28, dtype=torch.uint8), torch.zeros(2)),
        {"x": torch.zeros(2, 1, 28, 28)},
    ],
)
def test_other_batches_are_refused(batch: Any) -> None:
    with pytest.raises(InputError, match=r"MLP takes batches \(images, labels\) .* the data loader returned a"):
        MLP().unpack(batch)


def test_unpack() -> None:
    images, labels = torch.zeros(2, 1, 28, 28), torch.zeros(2)
    (image_input,), target = MLP().unpack([images, labels])
    assert image_input is images
    assert target is labels

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from scipy.special import log_softmax, softmax

from mnist_lightning import CNN, GNN, Classifier, InputError, LeNet5, MNISTDataModule, load
from mnist_lightning.checkpoint import temperature_of
from mnist_lightning.evaluation.calibration import (
    calibrate,
    fit_temperature,
    reliability_before_and_after,
    save_temperature,
)
from mnist_lightning.evaluation.statistics import Float, expected_calibration_error
from mnist_lightning.explain.gradcam import grad_cam

RANDOM = np.random.default_rng(0)


def drawn_labels(logits: Float) -> np.ndarray:
    """Labels that are as often so as the logits say."""
    return (softmax(logits, axis=1).cumsum(axis=1) < RANDOM.random((len(logits), 1))).sum(axis=1).clip(max=9)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_the_temperature_that_was_applied_is_found(temperature: float) -> None:
    honest = RANDOM.normal(scale=3, size=(20_000, 10))
    labels = drawn_labels(honest)
    logits = honest * temperature
    found = fit_temperature(logits, labels)
    assert found == pytest.approx(temperature, rel=0.02)
    assert expected_calibration_error(logits / found, labels) < 0.015

    def loss(t: float) -> float:
        return -float(log_softmax(logits / t, axis=1)[np.arange(len(labels)), labels].mean())

    assert loss(found) <= min(loss(found * factor) for factor in (0.5, 0.99, 0.999, 1.001, 1.01, 2))


@pytest.mark.parametrize("count", [1, 120, 5000])
@pytest.mark.parametrize("scale", [1, 50])
def test_where_all_answers_are_right_doubt_remains(count: int, scale: float) -> None:
    labels = RANDOM.integers(10, size=count)
    logits = scale * (np.eye(10)[labels] + RANDOM.uniform(0, 0.5, (count, 10)))
    found = fit_temperature(logits, labels)
    assert softmax(logits / found, axis=1).max(axis=1).mean() == pytest.approx((count + 1) / (count + 2), abs=1e-5)


@pytest.mark.parametrize(
    ("logits", "labels"),
    [
        (np.zeros((5, 10)), np.arange(5)),  # says nothing
        (9 * np.eye(10), np.roll(np.arange(10), 1)),  # all wrong
        (9 * np.eye(10)[[3] * 7], np.array([3] * 6 + [5])),  # one answer only
        (RANDOM.normal(size=(50, 10)), np.full(50, 4)),  # one class only
        (1e6 * RANDOM.normal(size=(50, 10)), RANDOM.integers(10, size=50)),
        (np.float32([[3e38, -3e38, *[0] * 8]] * 2), np.array([0, 1])),
    ],
)
def test_one_sided_cases_have_a_temperature_too(logits: Float, labels: np.ndarray) -> None:
    assert 0.0099 < fit_temperature(logits, labels) < 101


@pytest.mark.parametrize("logits", [np.empty((0, 10)), np.full((2, 10), np.nan), np.full((2, 10), np.inf)])
def test_what_is_no_number_is_refused(logits: Float) -> None:
    with pytest.raises(InputError, match="a temperature cannot be fitted"):
        fit_temperature(logits, np.zeros(len(logits), int))


@pytest.fixture
def saved(tmp_path: Path) -> Callable[[Classifier], Path]:
    """Writes a model's checkpoint and beside it a temperature above 1."""

    def save(model: Classifier) -> Path:
        path = tmp_path / "best.ckpt"
        checkpoint = {"state_dict": model.state_dict(), "hyper_parameters": dict(model.hparams)}
        model.on_save_checkpoint(checkpoint)
        torch.save(checkpoint, path)
        labels = torch.arange(100) % 10
        save_temperature(path, 20 * torch.eye(10)[labels.where(torch.arange(100) > 9, 3)], labels, "32-true")
        return path

    return save


@pytest.mark.parametrize("cls", [LeNet5, CNN, GNN])
def test_a_calibrated_model_divides_its_logits(
    cls: type[Classifier], saved: Callable[[Classifier], Path], digits: MNISTDataModule
) -> None:
    path = saved(cls().eval())
    plain, calibrated = load(path), load(path, calibrated=True)
    temperature = temperature_of(path)
    assert temperature > 1.5
    images = digits.images_and_labels("val")[0][:4]
    assert type(calibrated) is cls
    assert calibrated.state_dict().keys() == plain.state_dict().keys()
    torch.testing.assert_close(calibrated.classify(images), plain.classify(images) / temperature)
    assert torch.equal(calibrated(*calibrated.inputs(images)).cpu(), calibrated.classify(images))


@pytest.mark.slow
def test_a_calibrated_model_can_be_exported(saved: Callable[[Classifier], Path], digits: MNISTDataModule) -> None:
    model = load(saved(LeNet5()), calibrated=True)
    inputs = model.inputs(digits.images_and_labels("val")[0][:2])
    torch.testing.assert_close(torch.export.export(model, inputs).module()(*inputs), model(*inputs))


def test_a_calibrated_model_is_explained_as_before(
    saved: Callable[[Classifier], Path], digits: MNISTDataModule
) -> None:
    path = saved(LeNet5())
    two = digits.images_and_labels("val")[0][:2]
    temperature = temperature_of(path)
    torch.testing.assert_close(grad_cam(load(path, calibrated=True), two) * temperature, grad_cam(load(path), two))


def test_without_a_temperature_it_is_said_how_to_make_one(saved: Callable[[Classifier], Path]) -> None:
    path = saved(LeNet5())
    path.with_name("best.temperature.json").unlink()
    with pytest.raises(InputError, match=r'no temperature beside it, in best\.temperature\.json: .*calibrate\(".*"\)'):
        load(path, calibrated=True)
    assert isinstance(load(path), LeNet5)


def test_the_temperature_of_another_checkpoint_is_refused(saved: Callable[[Classifier], Path]) -> None:
    path = saved(LeNet5())
    beside = path.with_name("best.temperature.json")
    before = beside.read_text()
    saved(LeNet5(lr=0.5))
    beside.write_text(before)
    with pytest.raises(InputError, match=r"is of another checkpoint than the best\.ckpt beside it, .*calibrate"):
        load(path, calibrated=True)


def test_a_rotten_digit_is_noticed(saved: Callable[[Classifier], Path]) -> None:
    path = saved(LeNet5())
    beside = path.with_name("best.temperature.json")
    text = beside.read_text()
    place = text.index(".", text.index("temperature")) + 6
    beside.write_text(text[:place] + str((int(text[place]) + 1) % 10) + text[place + 1 :])
    with pytest.raises(InputError, match="or damaged"):
        load(path, calibrated=True)


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text[:40],
        lambda text: "[1]",
        lambda text: text.replace('"temperature"', '"heat"'),
        lambda text: text.replace('"seal"', '"sum"'),
        lambda text: '{"temperature": 0, "seal": ""}',
        lambda text: '{"temperature": NaN, "seal": ""}',
        lambda text: '{"temperature": -1, "seal": ""}',
        lambda text: '{"temperature": null, "seal": ""}',
        lambda text: "\x00" * 100,
    ],
)
def test_a_damaged_temperature_is_named(saved: Callable[[Classifier], Path], damage: Callable[[str], str]) -> None:
    path = saved(LeNet5())
    beside = path.with_name("best.temperature.json")
    beside.write_text(damage(beside.read_text()))
    with pytest.raises(InputError, match=r"best\.temperature\.json is damaged .*calibrate\(.*\) makes it anew"):
        load(path, calibrated=True)


@pytest.fixture
def older(logs: Path) -> Path:
    """A run of seed 1 that knows no temperature."""
    run = next(path.parent for path in logs.rglob("config.yaml") if "seed_everything: 1" in path.read_text())
    (run / "checkpoints" / "best.temperature.json").unlink(missing_ok=True)
    return run


def changed(run: Path, **data: Any) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["data"]["init_args"] |= data
    (run / "config.yaml").write_text(yaml.safe_dump(config))


@pytest.mark.parametrize(
    ("data", "seed"),
    [
        ({"stratify": True, "val_size": 200}, 1),
        ({"stratify": True, "seed": 7}, 7),
        ({"source": "mnist", "fallback": "digits", "root": "nowhere", "stratify": True}, 1),
    ],
    ids=["the run's seed", "the data's seed", "the fallback"],
)
def test_an_older_run_is_calibrated_on_what_it_was_validated_on(older: Path, data: dict[str, Any], seed: int) -> None:
    changed(older, **data)
    calibration = calibrate(older)
    validated = MNISTDataModule("digits", seed=seed, **{k: data[k] for k in ("stratify", "val_size") if k in data})
    validated.setup("validate")
    images, labels = validated.images_and_labels("val")
    logits, true = load(older).classify(images).numpy(), labels.numpy()
    assert calibration.validation_images == len(true)
    assert calibration.temperature == pytest.approx(fit_temperature(logits, true))
    assert calibration.ece_before == pytest.approx(expected_calibration_error(logits, true))
    assert calibration.ece_after == pytest.approx(expected_calibration_error(logits / calibration.temperature, true))
    assert calibration.loss_after < calibration.loss_before
    assert json.loads((older / "checkpoints" / "best.temperature.json").read_text()) == asdict(calibration)
    divided = load(older, calibrated=True).classify(images).numpy()
    np.testing.assert_allclose(divided, logits / calibration.temperature, rtol=1e-5, atol=1e-6)


def test_any_checkpoint_of_a_run_can_be_calibrated(older: Path) -> None:
    last = older / "checkpoints" / "last.ckpt"
    calibrate(str(last))
    assert isinstance(load(last, calibrated=True), LeNet5)
    with pytest.raises(InputError, match="has no temperature beside it"):
        load(older, calibrated=True)


def test_runs_that_cannot_be_calibrated(older: Path) -> None:
    config = older / "config.yaml"
    text = config.read_text()
    changed(older, val_size=5000)
    with pytest.raises(InputError, match="val_size is 5000"):
        calibrate(older)
    changed(older, wal_size=5)
    with pytest.raises(InputError, match=r"config\.yaml is damaged: .*wal_size"):
        calibrate(older)
    config.write_text(text.replace("mnist_lightning.MNISTDataModule", "mine.Data"))
    with pytest.raises(InputError, match=r"names data of another package, mine\.Data: give save_temperature"):
        calibrate(older)
    for damaged in ("", "[1]", "data: 3", "data:\n  class_path: 3\n  init_args: {}", text[:200], "\0"):
        config.write_text(damaged)
        with pytest.raises(InputError, match=r"config\.yaml is damaged"):
            calibrate(older)
    config.unlink()
    with pytest.raises(InputError, match=r"no config\.yaml"):
        calibrate(older)
    (older / "summary.json").unlink()
    with pytest.raises(InputError, match="not a finished run"):
        calibrate(older)
    assert not (older / "checkpoints" / "best.temperature.json").exists()


def test_reliability_is_drawn_before_and_after() -> None:
    logits = RANDOM.normal(scale=3, size=(3000, 10))
    labels = drawn_labels(logits)
    figure = reliability_before_and_after(
        ["bold", "modest"], [(3 * logits, labels, 3.0), (logits / 3, labels, 1 / 3)], ["#0072B2", "#D55E00"]
    )
    before, after = figure.axes

    def distances(axes: Any) -> list[float]:
        return [float(np.abs(np.diff(dots.get_offsets())).mean()) for dots in axes.collections]

    assert min(distances(before)) > 0.15
    assert max(distances(after)) < 0.05
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts[0].startswith("bold, T = 3.00: ")
    assert f"→ {100 * expected_calibration_error(logits, labels):.2f} %" in texts[1]

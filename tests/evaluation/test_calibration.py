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
from mnist_lightning.evaluation.calibration import calibrate, fit_temperature, save_temperature
from mnist_lightning.evaluation.statistics import Float, expected_calibration_error
from mnist_lightning.explain.saliency import grad_cam
from mnist_lightning.files import save_tensors
from mnist_lightning.runs.checkpoint import CALIBRATION, read_checkpoint, temperature_in
from mnist_lightning.runs.run import Run

RANDOM = np.random.default_rng(0)


def random_labels(logits: Float) -> np.ndarray:
    """Draws labels with the probabilities of the logits."""
    return (softmax(logits, axis=1).cumsum(axis=1) < RANDOM.random((len(logits), 1))).sum(axis=1).clip(max=9)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_temperature_is_recovered(temperature: float) -> None:
    calibrated = RANDOM.normal(scale=3, size=(20_000, 10))
    labels = random_labels(calibrated)
    logits = calibrated * temperature
    fitted = fit_temperature(logits, labels)
    assert fitted == pytest.approx(temperature, rel=0.02)
    assert expected_calibration_error(logits / fitted, labels) < 0.015

    def loss(t: float) -> float:
        return -float(log_softmax(logits / t, axis=1)[np.arange(len(labels)), labels].mean())

    assert loss(fitted) <= min(loss(fitted * factor) for factor in (0.5, 0.99, 0.999, 1.001, 1.01, 2))


@pytest.mark.parametrize("count", [1, 120, 5000])
@pytest.mark.parametrize("scale", [1, 50])
def test_confidence_stays_below_one_when_all_answers_are_correct(count: int, scale: float) -> None:
    labels = RANDOM.integers(10, size=count)
    logits = scale * (np.eye(10)[labels] + RANDOM.uniform(0, 0.5, (count, 10)))
    fitted = fit_temperature(logits, labels)
    assert softmax(logits / fitted, axis=1).max(axis=1).mean() == pytest.approx((count + 1) / (count + 2), abs=1e-5)


@pytest.mark.parametrize(
    ("logits", "labels"),
    [
        (np.zeros((5, 10)), np.arange(5)),  # no information
        (9 * np.eye(10), np.roll(np.arange(10), 1)),  # all wrong
        (9 * np.eye(10)[[3] * 7], np.array([3] * 6 + [5])),  # one answer only
        (RANDOM.normal(size=(50, 10)), np.full(50, 4)),  # one class only
        (1e6 * RANDOM.normal(size=(50, 10)), RANDOM.integers(10, size=50)),
        (np.float32([[3e38, -3e38, *[0] * 8]] * 2), np.array([0, 1])),
    ],
)
def test_temperature_stays_in_range(logits: Float, labels: np.ndarray) -> None:
    assert 0.0099 < fit_temperature(logits, labels) < 101


@pytest.mark.parametrize("logits", [np.empty((0, 10)), np.full((2, 10), np.nan), np.full((2, 10), np.inf)])
def test_missing_and_infinite_logits_are_refused(logits: Float) -> None:
    with pytest.raises(InputError, match="cannot fit a temperature: there are no logits, or some are infinite or NaN"):
        fit_temperature(logits, np.zeros(len(logits), int))


@pytest.fixture
def saved(tmp_path: Path) -> Callable[[Classifier], Path]:
    """Writes a model's checkpoint with a temperature above 1."""

    def save(model: Classifier) -> Path:
        path = tmp_path / "model.ckpt"
        checkpoint = {"state_dict": model.state_dict(), "hyper_parameters": dict(model.hparams)}
        model.on_save_checkpoint(checkpoint)
        save_tensors(checkpoint, path)
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
    temperature = temperature_in(read_checkpoint(path))
    assert temperature is not None
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


def test_calibration_scales_saliency_maps(saved: Callable[[Classifier], Path], digits: MNISTDataModule) -> None:
    path = saved(LeNet5())
    two = digits.images_and_labels("val")[0][:2]
    temperature = temperature_in(read_checkpoint(path))
    torch.testing.assert_close(grad_cam(load(path, calibrated=True), two) * temperature, grad_cam(load(path), two))


def equal(first: Any, second: Any) -> bool:
    """Compares nested containers; tensors must be equal to the bit."""
    if isinstance(first, torch.Tensor):
        return first.dtype == second.dtype and torch.equal(first, second)
    if isinstance(first, dict):
        return list(first) == list(second) and all(equal(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(equal, first, second))
    return bool(first == second) and type(first) is type(second)


@pytest.fixture
def older(logs: Path) -> Run:
    """A run of seed 1 by a version that did not fit temperatures."""
    run = next(run for run in map(Run, logs.glob("*/*")) if run.summary["seed"] == 1)
    content = read_checkpoint(run.last)
    del content[CALIBRATION]
    save_tensors(content, run.last)
    return run


def test_calibration_changes_nothing_else_in_the_checkpoint(older: Run) -> None:
    before = read_checkpoint(older.last)
    assert {"state_dict", "optimizer_states", "loops", "callbacks", "hyper_parameters"} <= before.keys()
    calibration = calibrate(older.last)
    after = read_checkpoint(older.last)
    assert after.pop(CALIBRATION) == asdict(calibration)
    assert equal(after, before)


def test_a_new_temperature_replaces_the_old_one(saved: Callable[[Classifier], Path]) -> None:
    path = saved(LeNet5())
    labels = torch.arange(100) % 10
    calibration = save_temperature(path, torch.eye(10)[labels], labels, "bf16-mixed")
    assert read_checkpoint(path)[CALIBRATION] == asdict(calibration)
    assert calibration.precision == "bf16-mixed"


def test_a_checkpoint_without_temperature(older: Run) -> None:
    with pytest.raises(InputError, match=r"has no temperature; .*calibrate\('.*'\) adds one"):
        load(older.last, calibrated=True)
    assert isinstance(load(older.last), LeNet5)
    calibrate(older.last)
    assert isinstance(load(older.last, calibrated=True), LeNet5)


def change_data(run: Run, **arguments: Any) -> None:
    config = yaml.safe_load(run.config_file.read_text())
    config["data"]["init_args"] |= arguments
    run.config_file.write_text(yaml.safe_dump(config))


@pytest.mark.parametrize(
    ("arguments", "seed"),
    [
        ({"stratify": True, "val_size": 200}, 1),
        ({"stratify": True, "seed": 7}, 7),
        ({"source": "mnist", "fallback": "digits", "root": "nowhere", "stratify": True}, 1),
    ],
    ids=["the run's seed", "the data's seed", "the fallback"],
)
def test_an_older_run_is_calibrated_on_its_validation_images(older: Run, arguments: dict[str, Any], seed: int) -> None:
    change_data(older, **arguments)
    assert older.folder is not None
    calibration = calibrate(older.folder)
    options = {name: arguments[name] for name in ("stratify", "val_size") if name in arguments}
    data = MNISTDataModule("digits", seed=seed, **options)
    data.setup("validate")
    images, labels = data.images_and_labels("val")
    logits, classes = load(older.folder).classify(images).numpy(), labels.numpy()
    assert calibration.validation_images == len(classes)
    assert calibration.temperature == pytest.approx(fit_temperature(logits, classes))
    assert calibration.ece_before == pytest.approx(expected_calibration_error(logits, classes))
    assert calibration.ece_after == pytest.approx(expected_calibration_error(logits / calibration.temperature, classes))
    assert calibration.loss_after < calibration.loss_before
    assert read_checkpoint(older.last)[CALIBRATION] == asdict(calibration)
    divided = load(older.folder, calibrated=True).classify(images).numpy()
    np.testing.assert_allclose(divided, logits / calibration.temperature, rtol=1e-5, atol=1e-6)


def test_only_the_named_checkpoint_of_a_run_is_calibrated(older: Run) -> None:
    copy = older.last.with_name("copy.ckpt")
    copy.write_bytes(older.last.read_bytes())
    calibrate(str(copy))
    assert isinstance(load(copy, calibrated=True), LeNet5)
    with pytest.raises(InputError, match="has no temperature"):
        load(older.last, calibrated=True)


def test_runs_that_cannot_be_calibrated(older: Run) -> None:
    assert older.folder is not None
    text = older.config_file.read_text()
    name = older.config_file.name
    change_data(older, val_size=5000)
    with pytest.raises(InputError, match=r"val_size.*5000"):
        calibrate(older.folder)
    change_data(older, wal_size=5)
    with pytest.raises(InputError, match=f"{name} is damaged: .*wal_size"):
        calibrate(older.folder)
    older.config_file.write_text(text.replace("mnist_lightning.MNISTDataModule", "mine.Data"))
    with pytest.raises(InputError, match=r"names data of another package, mine\.Data; give save_temperature"):
        calibrate(older.folder)
    for damaged in ("", "[1]", "data: 3", "data:\n  class_path: 3\n  init_args: {}", text[:200], "\0"):
        older.config_file.write_text(damaged)
        with pytest.raises(InputError, match=f"{name} is (damaged|not valid YAML)"):
            calibrate(older.folder)
    older.config_file.unlink()
    with pytest.raises(InputError, match=f"has no {name}, so its validation images are unknown"):
        calibrate(older.folder)
    older.summary_file.unlink()
    with pytest.raises(InputError, match="is not a finished run"):
        calibrate(older.folder)
    assert CALIBRATION not in read_checkpoint(older.last)


def test_a_checkpoint_outside_a_run_cannot_be_calibrated(saved: Callable[[Classifier], Path]) -> None:
    with pytest.raises(InputError, match="is not in a run folder; give save_temperature"):
        calibrate(saved(LeNet5()))

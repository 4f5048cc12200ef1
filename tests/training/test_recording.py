"""The files of a run folder."""

import json
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mnist_lightning import MNISTDataModule, load
from mnist_lightning.runs.checkpoint import read_checkpoint
from mnist_lightning.runs.run import Run


def test_files(folder: Path) -> None:
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    events = {name for name in names if name.startswith("events.out.tfevents")}
    assert names - events == {
        "config.yaml",
        "hparams.yaml",
        "summary.json",
        "test_predictions.npz",
        "checkpoints/last.ckpt",
    }
    assert events


def test_summary(folder: Path) -> None:
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["experiment"], summary["model"], summary["source"]) == ("lenet", "LeNet5", "digits")
    assert summary["seed"] == 5
    assert summary["parameters"] == 61_706
    assert summary["size_kib"] == pytest.approx(61_706 * 4 / 1024, abs=0.1)
    assert summary["layers"] == 5
    assert summary["epochs"] == 2
    assert summary["steps"] == 2 * -(-1317 // 32)
    assert summary["train_seconds"] > 0
    assert [sum(summary[split]["support"]) for split in ("train", "val", "test")] == [1317, 120, 360]
    assert summary["versions"]["torch"] == version("torch")
    assert summary["hyper_parameters"]["schedule"] == "onecycle"
    assert summary["data"].keys() == {"class", "batch_size", "val_size", "stratify", "fold", "seed", "augment"}


def test_the_weights_of_the_last_epoch_are_tested(folder: Path, events: EventAccumulator) -> None:
    losses = [event.value for event in events.Scalars("val/loss")]
    summary = json.loads((folder / "summary.json").read_text())
    assert len(set(losses)) == summary["epochs"] == 2
    assert summary["val"]["loss"] == pytest.approx(losses[-1])


def test_the_stored_logits_are_those_of_the_model(folder: Path, digits: MNISTDataModule) -> None:
    run = Run(folder)
    assert run.correct.mean() == pytest.approx(run.summary["test"]["accuracy"])
    images, labels = digits.images_and_labels("test")
    assert run.labels.tolist() == labels.tolist()
    with torch.autocast("cpu", torch.bfloat16):
        logits = load(folder)(images.unsqueeze(1).float() / 255).float()
    torch.testing.assert_close(torch.from_numpy(run.logits), logits, atol=0.05, rtol=0.05)


def test_the_temperature_is_fitted_on_the_validation_images(folder: Path) -> None:
    calibration = read_checkpoint(folder / "checkpoints" / "last.ckpt")["calibration"]
    summary = json.loads((folder / "summary.json").read_text())
    assert calibration["loss_before"] == pytest.approx(summary["val"]["loss"], rel=1e-5)
    assert calibration["validation_images"] == sum(summary["val"]["support"])
    assert calibration["precision"] == summary["precision"] == "bf16-mixed"
    zeros = torch.zeros(1, 28, 28, dtype=torch.uint8)
    calibrated = load(folder, calibrated=True).classify(zeros)
    torch.testing.assert_close(calibrated * calibration["temperature"], load(folder).classify(zeros))


def test_the_config_repeats_the_run(folder: Path) -> None:
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["model"]["init_args"]["lr"] == 0.006
    assert config["data"]["init_args"]["batch_size"] == 32
    assert config["seed_everything"] == 5
    assert config["experiment"] == "lenet"

"""What a run leaves behind, read back as TensorBoard and `compare` read it."""

import json
from dataclasses import asdict
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2
from torch import nn

from mnist_lightning import LeNet5, load, models
from mnist_lightning.cli import main
from mnist_lightning.evaluation.calibration import calibrate
from mnist_lightning.evaluation.predictions import load_predictions

CURVES = {"train/loss", "train/acc", "val/loss", "val/acc", "test/loss", "test/acc", "lr"}
FINAL = {f"final/{split}_{name}" for split in ("train", "val", "test") for name in ("acc", "loss")}


_MEASURED = ("temperature", "validation_images", "loss_before", "loss_after")
SHORT = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=2", "--trainer.enable_progress_bar=false"]


def fit(*args: str) -> None:
    main(["fit", "--data.source", "digits", "--trainer.enable_progress_bar", "false", *args])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One run of two epochs, shared by the tests of this file."""
    root = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("PL_GLOBAL_SEED", "0")
        fit("--config", "lenet", "--trainer.max_epochs", "2", "--data.batch_size", "32", "--seed_everything", "5")
    return root / "lightning_logs" / "lenet" / "version_0"


@pytest.fixture(scope="module")
def events(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder), size_guidance={"images": 0}).Reload()


def test_files(folder: Path) -> None:
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    events = {name for name in names if name.startswith("events.out.tfevents")}
    assert names - events == {
        "config.yaml",
        "hparams.yaml",
        "summary.json",
        "test_predictions.npz",
        "checkpoints/best.ckpt",
        "checkpoints/best.temperature.json",
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


def test_the_tested_checkpoint_is_the_one_with_the_best_validation(folder: Path, events: EventAccumulator) -> None:
    accuracies = [event.value for event in events.Scalars("val/acc")]
    summary = json.loads((folder / "summary.json").read_text())
    assert accuracies[summary["best_epoch"]] == max(accuracies)
    assert summary["val"]["accuracy"] == pytest.approx(max(accuracies))


@pytest.mark.slow
def test_of_equally_good_epochs_the_last_is_chosen(tmp_path: Path) -> None:
    fit("--config", "lenet", "--trainer.max_epochs", "3", "--data.val_size", "1", "--model.lr", "0.00001")
    run = tmp_path / "lightning_logs" / "lenet" / "version_0"
    events = EventAccumulator(str(run)).Reload()
    accuracies = [event.value for event in events.Scalars("val/acc")]
    assert accuracies.count(max(accuracies)) > 1
    last = len(accuracies) - 1 - accuracies[::-1].index(max(accuracies))
    assert json.loads((run / "summary.json").read_text())["best_epoch"] == last


def test_the_stored_logits_are_the_models(folder: Path, digits: Any) -> None:
    logits, labels = load_predictions(folder / "test_predictions.npz")
    summary = json.loads((folder / "summary.json").read_text())
    assert (logits.argmax(1) == labels).float().mean().item() == pytest.approx(summary["test"]["accuracy"])
    images, expected_labels = digits.images_and_labels("test")
    assert torch.equal(labels, expected_labels)
    with torch.autocast("cpu", torch.bfloat16):
        again = load(folder)(images.unsqueeze(1).float() / 255).float()
    torch.testing.assert_close(logits, again, atol=0.05, rtol=0.05)


def test_the_temperature_is_that_of_the_chosen_checkpoint_on_validation(folder: Path) -> None:
    content = json.loads((folder / "checkpoints" / "best.temperature.json").read_text())
    summary = json.loads((folder / "summary.json").read_text())
    assert content["loss_before"] == pytest.approx(summary["val"]["loss"], rel=1e-5)
    assert content["validation_images"] == sum(summary["val"]["support"])
    assert content["precision"] == summary["precision"] == "bf16-mixed"
    sealed = (folder / "checkpoints" / "best.ckpt").read_bytes() + str(content["temperature"]).encode()
    assert content["seal"] == sha256(sealed).hexdigest()
    zeros = torch.zeros(1, 28, 28, dtype=torch.uint8)
    calibrated = load(folder, calibrated=True).classify(zeros)
    torch.testing.assert_close(calibrated * content["temperature"], load(folder).classify(zeros))


def test_config_repeats_the_run(folder: Path) -> None:
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["model"]["init_args"]["lr"] == 0.006
    assert config["data"]["init_args"]["batch_size"] == 32
    assert config["seed_everything"] == 5
    assert config["experiment"] == "lenet"


def test_curves_have_the_same_tags_for_every_model(folder: Path, events: EventAccumulator) -> None:
    assert set(events.Tags()["scalars"]) == CURVES | FINAL | {"epoch"}
    assert len(events.Scalars("val/loss")) == 2
    assert len(events.Scalars("test/acc")) == 1  # the test set is looked at once


def test_train_and_validation_share_a_chart(events: EventAccumulator) -> None:
    assert "custom_scalars__config__" in events.Tags()["tensors"]
    layout = events.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0]
    for tag in ("train/loss", "val/loss", "train/acc", "val/acc"):
        assert tag.encode() in layout


def test_hyper_parameters_stand_beside_the_final_metrics(events: EventAccumulator) -> None:
    content = events.SummaryMetadata("_hparams_/experiment").plugin_data.content
    experiment = plugin_data_pb2.HParamsPluginData.FromString(content).experiment
    assert {info.name for info in experiment.hparam_infos} >= {"model", "source", "lr", "optimizer", "batch_size"}
    assert {info.name.tag for info in experiment.metric_infos} == FINAL
    assert events.Scalars("final/test_acc")[0].value == events.Scalars("test/acc")[0].value


def test_figures_and_graph(events: EventAccumulator) -> None:
    assert set(events.Tags()["images"]) == {
        f"figures/{name}" for name in ("confusion matrix", "training samples", "confident mistakes", "right answers")
    }
    for tag in events.Tags()["images"]:
        image = events.Images(tag)[0]
        assert image.encoded_image_string.startswith(b"\x89PNG")
        assert image.width > 500
    assert b"Conv2d[c1]" in events.Graph().SerializeToString()


@pytest.mark.slow
def test_a_compiled_model_leaves_its_graph_too(monkeypatch: pytest.MonkeyPatch) -> None:
    # All of torch.compile but the C++ compiler, which takes a minute.
    monkeypatch.setattr(LeNet5, "compile", lambda self: nn.Module.compile(self, backend="aot_eager"))
    fit("--model", "LeNet5", "--model.compile", "true", *SHORT)
    events = EventAccumulator("lightning_logs/lenet5/version_0").Reload()
    assert b"Conv2d[c1]" in events.Graph().SerializeToString()


@pytest.mark.slow
@pytest.mark.parametrize("name", models.__all__)
def test_every_model_leaves_the_same(name: str) -> None:
    data = "MNISTSuperpixelsDataModule" if name == "GNN" else "MNISTDataModule"
    main(["fit", "--model", name, "--data", data, "--data.source", "digits", "--data.batch_size", "128", *SHORT])
    run = Path("lightning_logs", name.lower(), "version_0")
    tags = EventAccumulator(str(run)).Reload().Tags()
    assert ("figures/connectivity" in tags["images"]) == (name == "GNN")
    assert set(tags["scalars"]) == CURVES | FINAL | {"epoch"}
    assert json.loads((run / "summary.json").read_text())["model"] == name
    assert type(load(run, calibrated=True)).__name__ == name
    trained = json.loads((run / "checkpoints" / "best.temperature.json").read_text())
    again = asdict(calibrate(run))  # gives an older run what a training writes
    assert list(again) == list(trained)
    assert [again[k] for k in _MEASURED] == pytest.approx([trained[k] for k in _MEASURED], rel=1e-3)

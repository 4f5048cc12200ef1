"""TensorBoard's files, read back."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2
from torch import nn

from mnist_lightning import LeNet5, load, models
from mnist_lightning.cli import main
from mnist_lightning.evaluation.calibration import calibrate
from mnist_lightning.runs.checkpoint import read_checkpoint

CURVES = {"train/loss", "train/acc", "val/loss", "val/acc", "test/loss", "test/acc", "lr"}
FINAL = {f"final/{split}_{name}" for split in ("train", "val", "test") for name in ("acc", "loss")}
SHORT = [
    *("--data.source=digits", "--trainer.max_epochs=1", "--trainer.limit_train_batches=2"),
    "--trainer.enable_progress_bar=false",
]


def test_curves_have_the_same_tags_for_every_model(events: EventAccumulator) -> None:
    assert set(events.Tags()["scalars"]) == CURVES | FINAL | {"epoch"}
    assert len(events.Scalars("val/loss")) == 2
    assert len(events.Scalars("test/acc")) == 1  # the model is tested once


def test_train_and_validation_share_a_chart(events: EventAccumulator) -> None:
    assert "custom_scalars__config__" in events.Tags()["tensors"]
    layout = events.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0]
    for tag in ("train/loss", "val/loss", "train/acc", "val/acc"):
        assert tag.encode() in layout


def test_hyper_parameters_and_final_metrics(events: EventAccumulator) -> None:
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
def test_graph_of_a_compiled_model(monkeypatch: pytest.MonkeyPatch) -> None:
    # All of torch.compile except the C++ compiler, which takes a minute.
    monkeypatch.setattr(LeNet5, "compile", lambda self: nn.Module.compile(self, backend="aot_eager"))
    main(["fit", "--model", "LeNet5", "--model.compile", "true", *SHORT])
    events = EventAccumulator("lightning_logs/lenet5/version_0").Reload()
    assert b"Conv2d[c1]" in events.Graph().SerializeToString()


@pytest.mark.slow
@pytest.mark.parametrize("name", models.__all__)
def test_every_model_writes_the_same_files(name: str) -> None:
    data = "MNISTSuperpixelsDataModule" if name == "GNN" else "MNISTDataModule"
    main(["fit", "--model", name, "--data", data, "--data.batch_size", "128", *SHORT])
    run = Path("lightning_logs", name.lower(), "version_0")
    tags = EventAccumulator(str(run)).Reload().Tags()
    assert ("figures/connectivity" in tags["images"]) == (name == "GNN")
    assert set(tags["scalars"]) == CURVES | FINAL | {"epoch"}
    assert json.loads((run / "summary.json").read_text())["model"] == name
    assert type(load(run, calibrated=True)).__name__ == name
    fitted = read_checkpoint(run / "checkpoints" / "last.ckpt")["calibration"]
    again = asdict(calibrate(run))  # in 32 bits
    assert list(again) == list(fitted)
    measured = ("temperature", "validation_images", "loss_before", "loss_after")
    assert [again[key] for key in measured] == pytest.approx([fitted[key] for key in measured], rel=1e-3)

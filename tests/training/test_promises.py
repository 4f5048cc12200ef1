"""Options of Lightning's Trainer: each keeps what it promises, and the run folder is whole after it."""

import csv
import json
import logging
from collections.abc import Callable
from pathlib import Path
from subprocess import Popen
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import Logger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mnist_lightning import MLP, load
from mnist_lightning.cli import main
from mnist_lightning.runs.checkpoint import read_checkpoint

MLP_RUN = Path("lightning_logs/mlp/version_0")
FIT = [
    *("fit", "--data.source=digits", "--trainer.max_epochs=1", "--trainer.limit_train_batches=2"),
    *("--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"),
]
TINY = {
    "MLP": ["--model=MLP", "--model.widths=[8]"],
    "GNN": ["--model=GNN", "--model.width=8", "--model.depth=1", "--data=MNISTSuperpixelsDataModule"],
}
PROCESSES = ["--trainer.devices=2", "--trainer.accelerator=cpu"]


def callback(name: str, **arguments: object) -> list[str]:
    return [f"--trainer.callbacks+={name}", *(f"--trainer.callbacks.{k}={v}" for k, v in arguments.items())]


OPTIONS = {
    "clipping by norm": [
        *("--trainer.precision=bf16-mixed", "--trainer.gradient_clip_val=1", "--trainer.inference_mode=false"),
        *callback("ModelCheckpoint", monitor="val/loss", dirpath="mine"),
        *callback("EarlyStopping", monitor="val/loss"),
    ],
    "clipping by value": [
        *("--trainer.precision=64-true", "--trainer.gradient_clip_val=1", "--trainer.gradient_clip_algorithm=value"),
        *("--trainer.detect_anomaly=true", "--trainer.reload_dataloaders_every_n_epochs=1"),
        *callback("Timer", duration="00:00:10:00"),
        *callback("LearningRateMonitor"),
    ],
    "bfloat16 weights": [
        *("--trainer.precision=bf16-true", "--trainer.overfit_batches=2", "--trainer.deterministic=true"),
        *callback("GradientAccumulationScheduler", scheduling="{0: 2}"),
        *callback("DeviceStatsMonitor", cpu_stats="true"),
    ],
    "float16 weights": [
        *("--trainer.precision=16-true", "--model.optimizer=sgd", "--trainer.max_epochs=2"),
        *callback("StochasticWeightAveraging", swa_lrs=0.01),
    ],
}


def check_run(folder: Path) -> dict[str, Any]:
    """Checks that a run is complete: its model loads, was tested and calibrated. Returns the summary."""
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    assert sum(summary["test"]["support"]) == 360
    tags = EventAccumulator(str(folder), size_guidance={"images": 0}).Reload().Tags()
    assert {"val/acc", "test/acc", "lr", "final/train_acc"} <= set(tags["scalars"])
    assert "figures/confusion matrix" in tags["images"]
    assert ("figures/connectivity" in tags["images"]) == (summary["model"] == "GNN")
    assert read_checkpoint(folder / "checkpoints" / "last.ckpt")["calibration"]["validation_images"] == 120
    assert load(folder, calibrated=True).classify(torch.zeros(1, 28, 28, dtype=torch.uint8)).isfinite().all()
    return summary


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "name"),
    [
        *(("MLP", name) for name in ("clipping by value", "bfloat16 weights", "float16 weights")),
        *(("GNN", name) for name in ("clipping by norm", "clipping by value", "bfloat16 weights")),
    ],
)
def test_the_run_is_whole(model: str, name: str, tmp_path: Path) -> None:
    main([*FIT, *TINY[model], *OPTIONS[name]])
    check_run(tmp_path / "lightning_logs" / model.lower() / "version_0")
    assert not list(tmp_path.glob(".*"))


class FakeLogger(Logger):
    """Records what a logger with pictures, such as W&B's, receives."""

    name, version = "fake", 0

    def __init__(self) -> None:
        super().__init__()
        self.scalars: set[str] = set()
        self.params: dict[str, Any] = {}
        self.pictures: dict[str, list[Any]] = {}
        FakeLogger.last = self  # type: ignore[attr-defined]

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.scalars |= set(metrics)

    def log_hyperparams(self, params: dict[str, Any]) -> None:  # type: ignore[override]
        self.params |= params

    def log_image(self, key: str, images: list[Any], step: int | None = None) -> None:
        self.pictures[key] = images


@pytest.fixture
def reports(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Messages of Lightning's loggers."""
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    monkeypatch.setattr(logging.getLogger("lightning.pytorch"), "handlers", [handler])
    return messages


@pytest.mark.slow
def test_loggers_and_profilers(reports: list[str]) -> None:
    options = [
        "--trainer.profiler=simple",
        f"--trainer.logger+={__name__}.FakeLogger",
        "--trainer.logger+=CSVLogger",
        "--trainer.logger.save_dir=logs",
    ]
    main([*FIT, *TINY["MLP"], *options, *OPTIONS["clipping by norm"]])
    check_run(MLP_RUN)
    tags = EventAccumulator(str(MLP_RUN), size_guidance={"images": 0}).Reload().Tags()
    rows = list(csv.DictReader(Path("logs/lightning_logs/version_0/metrics.csv").read_text().splitlines()))
    assert set(rows[0]) - {"step"} == set(tags["scalars"])
    assert float(rows[-1]["final/test_acc"]) == json.loads((MLP_RUN / "summary.json").read_text())["test"]["accuracy"]
    fake: FakeLogger = FakeLogger.last  # type: ignore[attr-defined]
    assert fake.scalars == set(tags["scalars"])
    assert set(fake.pictures) == set(tags["images"])
    assert fake.params["model"] == "MLP"
    assert fake.params["lr"] == 0.001
    assert [message.splitlines()[0] for message in reports] == ["FIT Profiler Report"]
    assert "run_training_epoch" in reports[0]


@pytest.mark.slow
def test_a_profiler_with_a_file_writes_the_report_there(reports: list[str]) -> None:
    profiler = ["--trainer.profiler=AdvancedProfiler", "--trainer.profiler.dirpath=.", "--trainer.profiler.filename=p"]
    main([*FIT, *TINY["MLP"], *profiler])
    assert [path.name for path in Path().glob("*.txt")] == ["fit-p.txt"]
    assert not reports


@pytest.mark.slow
def test_a_learning_rate_finder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    finder = callback("LearningRateFinder", num_training_steps=20)
    schedule = ["--model.schedule=onecycle", "--trainer.max_epochs=12"]
    main([*FIT, *TINY["MLP"], *schedule, *finder])
    summary = check_run(MLP_RUN)
    rate = summary["hyper_parameters"]["lr"]
    assert rate == summary["found_lr"] != 0.001
    assert summary["steps"] == 24
    assert f"LearningRateFinder found {rate:.3g}" in capsys.readouterr().out
    used = [event.value for event in EventAccumulator(str(MLP_RUN)).Reload().Scalars("lr")]
    assert 0.8 * rate < max(used) <= rate * 1.001  # the maximum of the schedule
    assert not list(tmp_path.glob(".*"))


@pytest.mark.slow
def test_spawned_processes_leave_the_same_run(run: Callable[..., str]) -> None:
    output = run(*FIT, *TINY["MLP"], *PROCESSES, "--trainer.strategy=ddp_spawn", "--trainer.profiler=simple")
    assert check_run(MLP_RUN)["devices"] == 2
    assert output.count("Profiler Report") == 1
    assert output.count("test accuracy") == 1


@pytest.mark.slow
def test_an_error_of_all_processes_is_printed_once(spawn: Callable[..., Popen[str]]) -> None:
    process = spawn(*FIT, *TINY["MLP"], *PROCESSES, "--trainer.strategy=ddp", "--data.val_size=1")
    output, _ = process.communicate()
    assert process.returncode == 2
    assert output.count("2 processes need 2 or more val images, but digits has 1") == 1
    assert "Traceback" not in output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--trainer.precision=transformer-engine"], "transformer_engine"),
        (["--trainer.accelerator=tpu"], "torch_xla"),
        (["--trainer.limit_train_batches=0"], "limit_train_batches must be above 0"),
        (["--trainer.barebones=true"], "turns off all that a run records"),
        (callback("BatchSizeFinder"), "set --data.batch_size"),
        (callback("EarlyStopping", monitor="val_loss"), "use any of the following: `val/loss`, `val/acc`"),
        (["--data.batch_size=1", "--model.batch_norm=true"], "batch norm needs two or more images"),
    ],
)
def test_refusals(options: list[str], message: str, fails: Callable[..., str]) -> None:
    assert message in fails(*FIT, *TINY["MLP"], *options)


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a bug")

    for method, cause in (("setup", "unexpected keyword argument"), ("on_fit_start", "a bug")):
        monkeypatch.setattr(MLP, method, broken)
        with pytest.raises((RuntimeError, TypeError), match=cause):
            main([*FIT, *TINY["MLP"]])
        monkeypatch.undo()


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize(
    ("precision", "clip", "fused"),
    [("32", None, True), ("32", 1, True), ("bf16-mixed", None, True), ("bf16-mixed", 1, False)],
)
def test_the_optimizer_is_fused_where_gradients_can_be_clipped(
    optimizer: Any, precision: Any, clip: float | None, fused: bool
) -> None:
    model = MLP(widths=[8], optimizer=optimizer)
    options = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    model.trainer = Trainer(precision=precision, gradient_clip_val=clip, **options)  # type: ignore[arg-type]
    assert model.configure_optimizers().defaults["fused"] is fused  # type: ignore[union-attr]

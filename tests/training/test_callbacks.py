"""Runs from Python: `record` leaves the run folder that the command line leaves."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from mnist_lightning import MLP, Augmentation, Classifier, InputError, MNISTDataModule, load, record
from mnist_lightning.classifier import Standardize
from mnist_lightning.cli import main
from mnist_lightning.explain.saliency import grad_cam
from mnist_lightning.runs.checkpoint import read_checkpoint
from mnist_lightning.runs.finding import finished_runs, group_by_test_set, names_of
from mnist_lightning.runs.run import Run
from mnist_lightning.training.checkpoints import AtomicCheckpointIO
from mnist_lightning.training.tensorboard import RunLogger


class MyNet(nn.Module):
    """A module that knows nothing of this package."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            Standardize(), nn.Conv2d(1, width, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(width * 13**2, 10)
        )

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.layers(images)
        return logits


def trainer_of(*callbacks: Any, **options: Any) -> Trainer:
    quiet = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False}
    return Trainer(callbacks=list(callbacks), **{**quiet, "max_epochs": 1, "limit_train_batches": 5, **options})


def train(model: Classifier, experiment: str | None = None, seed: int = 0, data: Any = None, **options: Any) -> Trainer:
    data = data or MNISTDataModule(source="digits")
    trainer = trainer_of(*record(experiment, seed), **{"logger": CSVLogger("logs", "all"), **options})
    trainer.fit(model, data)
    trainer.test(model, data, ckpt_path="last", verbose=False)
    return trainer


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of a model with two seeds and two other settings, and of a plain module. No test changes them."""
    root = tmp_path_factory.mktemp("python")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        for seed in (0, 1):
            train(MLP(widths=[8]), seed=seed)
        train(MLP(widths=[8]), max_epochs=2)
        train(MLP(widths=[8]), data=MNISTDataModule(source="digits", augment=Augmentation()))
        train(Classifier.of(MyNet(), lr=0.01, schedule="onecycle"))
    return root / "logs" / "all"


def test_a_run_has_all_files_but_the_config(logs: Path) -> None:
    folder = logs / "version_0"
    assert {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} == {
        "checkpoints/last.ckpt",
        "hparams.yaml",
        "metrics.csv",
        "summary.json",
        "test_predictions.npz",
    }
    summary = Run(logs / "version_1").summary
    assert (summary["experiment"], summary["model"], summary["seed"]) == ("mlp", "MLP", 1)
    assert [summary[split]["loss"] > 0 for split in ("train", "val", "test")] == [True] * 3
    calibrated = load(folder, calibrated=True)
    digit = torch.zeros(1, 28, 28, dtype=torch.uint8)
    temperature = read_checkpoint(Run(folder).last)["calibration"]["temperature"]
    torch.testing.assert_close(calibrated.classify(digit) * temperature, load(folder).classify(digit))


def test_settings_tell_models_apart_and_seeds_do_not(logs: Path) -> None:
    runs, problems = finished_runs([str(logs)])
    assert not problems
    (groups,) = group_by_test_set(runs)
    sizes = {name: len(group) for name, group in zip(names_of(groups), groups, strict=True)}
    names = {"mlp, augment null, max_epochs 1": 2, "mlp, augment null, max_epochs 2": 1, "mynet": 1}
    assert names.items() <= sizes.items()
    (augmented,) = sizes.keys() - names.keys()
    assert "rotate 12.0" in augmented


@pytest.mark.slow
def test_plain_modules_of_one_class_are_told_apart() -> None:
    for width in (2, 3):
        train(Classifier.of(MyNet(width)))
    (groups,) = group_by_test_set(finished_runs(["logs"])[0])
    assert [len(group) for group in groups] == [1, 1]
    assert all(name.startswith("mynet, module ") for name in names_of(groups))


@pytest.mark.slow
@pytest.mark.parametrize(
    "logger",
    [True, "RunLogger", "several"],
)
def test_every_logger_names_the_folder(logger: Any) -> None:
    loggers = {
        "RunLogger": lambda: RunLogger(logs="runs", experiment="named"),
        "several": lambda: [TensorBoardLogger("runs", "named"), CSVLogger("others")],
    }
    trainer = train(MLP(widths=[4]), "my experiment", 7, logger=loggers[logger]() if logger in loggers else logger)
    run = Run("lightning_logs/version_0" if logger is True else "runs/named/version_0")
    assert trainer.log_dir is not None
    assert Path(trainer.log_dir).samefile(str(run.folder))
    assert (run.summary["experiment"], run.summary["seed"]) == ("my experiment", 7)
    assert run.last.is_file()
    assert isinstance(load(str(run.folder)), MLP)
    assert isinstance(trainer.strategy.checkpoint_io, AtomicCheckpointIO)
    assert any(path.name.startswith("events.out.tfevents") for path in run.last.parents[1].iterdir())


@pytest.mark.slow
def test_every_verb_takes_the_folder(
    logs: Path, capsys: pytest.CaptureFixture[str], digits: MNISTDataModule, fails: Callable[..., str]
) -> None:
    run, plain = str(logs / "version_0"), str(logs / "version_4")
    Image.fromarray(255 - digits.images_and_labels("test")[0][7].numpy()).resize((100, 100)).save("seven.png")
    main(["compare", str(logs)])
    main(["robustness", run])
    main(["classify", run, "seven.png"])
    main(["gradcam", run, "--index", "7"])
    output = capsys.readouterr().out
    assert "mynet" in output
    assert Path("report/index.html").is_file()
    assert Path("robustness/index.html").is_file()
    assert "module=MyNet()" in fails("classify", plain, "seven.png")


def test_a_plain_module_is_trained_and_loaded(logs: Path, digits: MNISTDataModule) -> None:
    folder = logs / "version_4"
    summary = Run(folder).summary
    assert summary["model"] == "MyNet"
    assert summary["hyper_parameters"]["schedule"] == "onecycle"
    assert summary["parameters"] == sum(p.numel() for p in MyNet().parameters())
    content = torch.load(Run(folder).last, weights_only=True)
    assert content["classifier"] == f"{__name__}.MyNet"
    assert "module" not in content["hyper_parameters"]
    module = MyNet()
    model = load(folder, module=module)
    images, labels = digits.images_and_labels("test")
    assert torch.equal(model.classify(images), model(images.unsqueeze(1).float() / 255))
    assert (model.classify(images).argmax(dim=1) == labels).float().mean().item() == pytest.approx(
        summary["test"]["accuracy"]
    )
    assert torch.equal(module(images.unsqueeze(1).float() / 255), model.classify(images))
    assert grad_cam(model, images[:2]).shape == (2, 28, 28)
    calibrated = load(folder, module=MyNet(), calibrated=True)
    assert not torch.equal(calibrated.classify(images), model.classify(images))


def test_a_plain_module_is_loaded_into_a_module_that_fits(logs: Path) -> None:
    path = Run(logs / "version_4").last
    with pytest.raises(InputError, match=r"contains a .*MyNet, which is unknown: .* use load\(path, module=MyNet\(\)"):
        load(path)
    with pytest.raises(InputError, match=r"last\.ckpt: the weights do not fit the current class MyNet: size mismatch"):
        load(path, module=MyNet(4))


@pytest.mark.parametrize("module", [5, MyNet, MLP()], ids=["number", "class", "classifier"])
def test_a_classifier_is_made_of_modules_only(module: Any) -> None:
    with pytest.raises(InputError, match=r"Classifier\.of takes a plain torch\.nn\.Module, got "):
        Classifier.of(module)


def test_a_module_with_other_outputs_is_refused() -> None:
    with pytest.raises(InputError, match=r"Sequential must return logits \[B, 10\], got a float32 tensor \[\d+, 5\]"):
        train(Classifier.of(nn.Sequential(nn.Flatten(), nn.Linear(784, 5))))


@pytest.mark.slow
def test_a_compiled_module_keeps_its_weights_names(logs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # All of torch.compile except the C++ compiler, which takes a minute.
    monkeypatch.setattr(Classifier, "compile", lambda self: nn.Module.compile(self, backend="eager"))
    trainer = train(Classifier.of(nn.Sequential(nn.Flatten(), nn.Linear(784, 10)), compile=True))
    names = read_checkpoint(Run(str(trainer.log_dir)).last)["state_dict"].keys()
    assert list(names) == ["module.1.weight", "module.1.bias"]


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_finished_run_is_not_overwritten(logs: Path) -> None:
    before = contents(logs)
    same = TensorBoardLogger(str(logs.parent), logs.name, version=0)
    with pytest.raises(InputError, match=r"version_0 holds a finished run; use a new Trainer, or another version"):
        train(MLP(widths=[8]), logger=same)
    assert before.items() <= contents(logs).items()  # Lightning's logger adds an empty file of events


def test_callbacks_belong_to_one_trainer() -> None:
    callbacks, data = record(), MNISTDataModule(source="digits")
    trainer_of(*callbacks, logger=CSVLogger("logs")).fit(MLP(widths=[4]), data)
    with pytest.raises(InputError, match=r"call record\(\) for each Trainer"):
        trainer_of(*callbacks, logger=CSVLogger("logs")).fit(MLP(widths=[4]), data)


def test_without_a_logger_the_folder_must_be_named() -> None:
    with pytest.raises(InputError, match="a run needs a folder of its own; use a logger, or name a default_root_dir"):
        trainer_of(*record(), logger=False).fit(MLP(widths=[4]), MNISTDataModule(source="digits"))
    assert not list(Path().iterdir())
    trainer = train(MLP(widths=[4]), logger=False, default_root_dir="run")
    assert Run("run").is_finished
    assert isinstance(load(str(trainer.default_root_dir)), MLP)


def test_other_modules_are_refused() -> None:
    class Other(LightningModule):
        def training_step(self, batch: Any) -> None: ...
        def configure_optimizers(self) -> None: ...

    with pytest.raises(InputError, match=r"a run needs a Classifier, got Other; use Classifier\.of\(module\)"):
        trainer_of(*record()).fit(Other(), MNISTDataModule(source="digits"))


def test_a_test_of_other_weights_is_not_recorded() -> None:
    model, data = MLP(widths=[4]), MNISTDataModule(source="digits")
    trainer = trainer_of(*record(), logger=CSVLogger("logs"))
    trainer.fit(model, data)
    with pytest.warns(UserWarning, match='this test is not recorded; a run is, when .*: ckpt_path="last"'):
        trainer.test(model, data, verbose=False)
    run = Run(str(trainer.log_dir))
    assert not run.is_finished
    relative = run.last.absolute().relative_to(Path.cwd())
    trainer.test(model, data, ckpt_path=str(relative), verbose=False)
    assert run.is_finished


def test_plain_data_loaders(digits: MNISTDataModule) -> None:
    sets = [digits.images_and_labels(split) for split in ("train", "val", "test")]
    loaders = [DataLoader(TensorDataset(x.unsqueeze(1).float() / 255, y), 64) for x, y in sets]
    trainer, model = trainer_of(*record(), logger=CSVLogger("logs")), MLP(widths=[4])
    trainer.fit(model, loaders[0], loaders[1])
    trainer.test(model, loaders[2], ckpt_path="last", verbose=False)
    summary = json.loads(Run(str(trainer.log_dir)).summary_file.read_text())
    assert (summary["source"], summary["data"]) == ("TensorDataset", {"class": "NoneType"})
    assert np.isfinite(summary["test"]["loss"])
    assert "val" not in summary


@pytest.mark.parametrize(
    ("arguments", "message"), [((5,), "experiment must be str or None, got 5"), ((None, -1), "seed must be 0 or more")]
)
def test_arguments_of_record(arguments: Any, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        record(*arguments)

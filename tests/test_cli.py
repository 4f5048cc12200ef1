"""The command line as users type it."""

import csv
import hashlib
import json
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from conftest import CONFIGS, MNIST
from PIL import Image

import mnist_lightning
from mnist_lightning import MLP
from mnist_lightning.cli import TRAINER_VERBS, VERBS, main
from mnist_lightning.data.sources import read

QUICK = ["--data.source", "digits", "--trainer.max_epochs", "1", "--trainer.enable_progress_bar", "false"]
MAIN = sorted(path.stem for path in CONFIGS.glob("*.yaml"))
PUBLISHED = sorted(path.stem for path in (CONFIGS / "published").glob("*.yaml") if path.stem != "mse")
RUN = Path("lightning_logs", "mlp", "version_0")


def fit(*args: str) -> None:
    main(["fit", *QUICK, *args])


def shown(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    with pytest.raises(SystemExit) as exit_:
        main(list(args))
    assert exit_.value.code in (0, None)
    return capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(capsys, "--version").split() == ["mnist-lightning", mnist_lightning.__version__]


def test_help_lists_the_verbs(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, "--help")
    assert max(map(len, text.splitlines())) <= 80
    for verb in (*TRAINER_VERBS, *VERBS):
        assert f"\n  {verb} " in text


def test_a_bare_call_prints_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main([])
    assert exit_.value.code == 2
    assert capsys.readouterr().out == shown(capsys, "--help")


@pytest.mark.parametrize("verb", [*TRAINER_VERBS, *VERBS])
def test_every_verb_has_a_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, verb, "--help")
    assert text.startswith((f"usage: mnist-lightning {verb}", f"usage: mnist-lightning [options] {verb}"))
    assert "  --" in text


# Verbs that read test images.
READERS = ("compare", "robustness", "explore", "connectivity", "gradcam", "export")


@pytest.mark.parametrize("verb", READERS)
def test_every_verb_that_reads_data_takes_their_root(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = " ".join(shown(capsys, verb, "--help").split())
    assert "Folder of the data. Default: $MNIST_LIGHTNING_DATA, or `data` if that is not set." in text
    assert "--root" in text


def test_help_of_a_model_lists_its_arguments_and_the_shared_ones(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, "fit", "--model.help", "CNN")
    for name in ("channels", "kernel_size", "batch_norm", "label_smoothing", "schedule"):
        assert f"--model.{name}" in text


@pytest.mark.parametrize("name", MAIN + PUBLISHED)
def test_every_shipped_config_is_found_by_its_name_and_valid(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    config = yaml.safe_load(shown(capsys, "fit", "--config", name, "--print_config"))
    assert config["data"]["init_args"]["fallback"] == "digits"


def test_a_second_config_changes_the_first(capsys: pytest.CaptureFixture[str]) -> None:
    config = yaml.safe_load(shown(capsys, "fit", "--config", "densenet", "--config", "mse", "--print_config"))
    assert config["model"]["class_path"].endswith("DenseNet")
    assert config["model"]["init_args"]["loss"] == "mse"
    assert config["model"]["init_args"]["schedule"] == "onecycle"


@pytest.mark.slow
@pytest.mark.parametrize("name", MAIN)
def test_fit_by_config(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    fit("--config", str(CONFIGS / f"{name}.yaml"), "--trainer.limit_train_batches", "2")
    out, err = capsys.readouterr()
    assert "digits" in out
    assert "test accuracy " in out
    assert Path("lightning_logs", name, "version_0", "summary.json").is_file()
    assert "💡" not in out + err
    assert "warning" not in err.lower()


@pytest.fixture
def trained() -> Path:
    fit("--model", "MLP", "--model.lr", "0.003")
    return RUN


def test_a_run_is_tested_validated_and_predicted_by_its_folder_alone(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = json.loads((trained / "summary.json").read_text())
    capsys.readouterr()
    for verb, split in (("test", "test"), ("validate", "val")):
        main([verb, "--ckpt_path", str(trained), "--trainer.enable_progress_bar", "false"])
        assert f"{100 * summary[split]['accuracy']:.2f} %" in capsys.readouterr().out
    main(["test", "--ckpt_path", str(trained), "--shifts", "true"])
    plain, shifted = capsys.readouterr().out.split("MLP on digits")[1:]
    assert "mean of five positions" in shifted
    assert plain.split() != shifted.split()
    main(["predict", "--ckpt_path", str(trained / "checkpoints" / "last.ckpt")])
    rows = list(csv.DictReader(Path("predictions.csv").read_text().splitlines()))
    assert len(rows) == 360
    assert sum(row["label"] == row["predicted"] for row in rows) / 360 == pytest.approx(summary["test"]["accuracy"])
    assert all(0.1 <= float(row["confidence"]) <= 1 for row in rows)
    assert [path.name for path in RUN.parent.iterdir()] == ["version_0"]  # only fit creates run folders


def folder_hash(folder: Path) -> str:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    content = [(str(path.relative_to(folder)).encode(), path.read_bytes()) for path in files]
    return hashlib.sha256(repr(content).encode()).hexdigest()


@pytest.mark.slow
def test_the_other_verbs_take_every_form_of_a_run_quietly_and_only_read_it(
    capsys: pytest.CaptureFixture[str],
    recwarn: pytest.WarningsRecorder,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fit("--model", "LeNet5", "--trainer.limit_train_batches", "2")
    experiment = Path("lightning_logs/lenet5")
    run, best = experiment / "version_0", experiment / "version_0" / "checkpoints" / "last.ckpt"
    for events in list(run.glob("events*")):
        shutil.copy(events, f"{events}.2")  # a second graph, as in a resumed run
    Path("link.ckpt").symlink_to(best)
    digit = read("digits", train=False)[0][7].numpy()
    Image.fromarray(255 - digit).resize((280, 280)).save("seven.png")
    before = folder_hash(run)
    monkeypatch.setattr("mnist_lightning.evaluation.robustness.report._pictures", lambda *_: ([], [], []))  # slow
    recwarn.clear()
    for args in (
        ["test", "--ckpt_path", f"{experiment}/", "--trainer.enable_progress_bar", "false"],
        ["validate", "--ckpt_path=link.ckpt", "--trainer.enable_progress_bar=false"],
        ["compare", str(best)],
        ["robustness", str(best), "--root", "elsewhere"],
        ["gradcam", "lightning_logs", "--index", "7"],
        ["export", str(run / "checkpoints"), "--output", "model.pt2"],
        ["classify", str(experiment), "seven.png"],
    ):
        main(args)
    assert folder_hash(run) == before
    assert capsys.readouterr().err == ""
    assert [str(warning.message) for warning in recwarn] == []
    assert [(r.name, r.levelname, r.getMessage()) for r in caplog.records if r.levelno > 20] == []


def test_a_checkpoint_outside_of_runs_gets_no_config(trained: Path, fails: Callable[..., str]) -> None:
    shutil.copy(trained / "checkpoints" / "last.ckpt", "foo.ckpt")
    Path("my_module.py").write_text("raise SystemExit('the class of a stranger was imported')")
    Path("config.yaml").write_text("model: my_module.MyNet")
    for path in ("foo.ckpt", "./foo.ckpt", str(Path("foo.ckpt").absolute())):
        line = fails("test", "--ckpt_path", path)
        assert "foo.ckpt is not part of a run with a config; name its model and data with --config" in line
    main(["test", "--config", str(trained / "config.yaml"), "--ckpt_path", "foo.ckpt"])


def test_the_checkpoints_arguments_win_with_a_warning(trained: Path) -> None:
    with pytest.warns(UserWarning, match=r"--model.lr 7.0 is ignored: the checkpoint's model has 0.003"):
        main(["test", *QUICK[:2], "--model", "MLP", "--model.lr", "7", "--ckpt_path", str(trained)])


def test_a_resumed_run_continues_in_its_folder(trained: Path) -> None:
    main(["fit", "--ckpt_path", str(trained), "--trainer.max_epochs", "3"])
    assert [path.name for path in trained.parent.iterdir()] == ["version_0"]
    summary = json.loads((trained / "summary.json").read_text())
    assert summary["epochs"] == 3
    assert summary["steps"] == 33


def test_fit_without_a_logger_or_checkpoints(capsys: pytest.CaptureFixture[str]) -> None:
    fit("--model", "MLP", "--trainer.fast_dev_run", "true")
    fit("--model", "MLP", "--trainer.enable_checkpointing", "false")
    assert Path("lightning_logs/mlp/version_0/config.yaml").is_file()


MY_NET = """
import torch
from torch import nn
from mnist_lightning import Classifier


class MyNet(Classifier):
    def __init__(self, width: int = 32, **training):
        super().__init__(**training)
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(784, width), nn.ReLU(), nn.Linear(width, 10))

    def forward(self, images):
        return self.layers(images)
"""


def test_custom_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.path", sys.path[:])
    Path("my_module.py").write_text(MY_NET)
    fit("--model", "my_module.MyNet", "--model.width", "24", "--model.lr", "0.01", "--trainer.max_epochs", "3")
    run = Path("lightning_logs/mynet/version_0")
    summary = json.loads((run / "summary.json").read_text())
    assert summary["model"] == "MyNet"
    assert summary["hyper_parameters"]["width"] == 24
    assert summary["test"]["accuracy"] > 0.5
    main(["test", "--ckpt_path", str(run)])
    assert type(mnist_lightning.load(run)).__name__ == "MyNet"


@pytest.mark.parametrize(
    ("model", "data", "expected", "actual"),
    [
        ("MLP", "MNISTSuperpixelsDataModule", "MLP takes batches (images, labels)", "returned a DataBatch"),
        (
            "GNN",
            "MNISTDataModule",
            "GNN takes batches of graphs (--data MNISTSuperpixelsDataModule)",
            "returned a tuple",
        ),
    ],
)
def test_data_of_the_wrong_kind(model: str, data: str, expected: str, actual: str, fails: Callable[..., str]) -> None:
    args = ["--model", model, "--data", data, "--data.source", "digits", "--trainer.enable_progress_bar", "false"]
    line = fails("fit", *args)
    assert expected in line
    assert f"but {data} {actual}" in line


MY_DATA = """
import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, TensorDataset


class MyData(LightningDataModule):
    def train_dataloader(self):
        return DataLoader(TensorDataset(torch.rand(40, 1, 28, 28), torch.arange(40) % 10), batch_size=8)

    val_dataloader = test_dataloader = train_dataloader
"""


@pytest.mark.slow
def test_custom_data_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.path", sys.path[:])
    Path("my_data.py").write_text(MY_DATA)
    main(["fit", "--model", "MLP", "--data", "my_data.MyData", "--trainer.max_epochs", "1"])
    summary = json.loads((RUN / "summary.json").read_text())
    assert summary["source"] == "MyData"
    assert sum(summary["test"]["support"]) == 40


def test_the_same_arguments_without_a_mistake() -> None:
    options = ["--model.lr", "0.01", "--model.loss", "mse", "--model.dropout", "0.2", "--data.batch_size", "16"]
    fit("--model", "MLP", *options, "--data.augment.rotate", "3", "--trainer.limit_train_batches", "2")
    assert (RUN / "summary.json").is_file()


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["fitt"], "unknown verb 'fitt'; did you mean fit?"),
        (["train"], "unknown verb 'train'; use one of fit, validate,"),
        (["fit"], "fit needs --config"),
        (
            ["fit", "--model", "ResNett"],
            "unknown model ResNett; use CNN, DenseNet, EfficientNet, GNN, LeNet5, MLP, ResNet or",
        ),
        (["fit", "--model", "torch.nn.Linear"], "model torch.nn.Linear is not a subclass of Classifier"),
        (["fit", "--model", "MLP", "--model.widht", "3"], "unknown option model.widht; did you mean widths?"),
        (["fit", "--model", "MLP", "--model.lr", "fast"], "model.lr must be a float, got 'fast'"),
        (["fit", "--model", "MLP", "--model.lr", "-1"], "lr must be positive and finite, got -1"),
        (["fit", "--model", "MLP", "--model.loss", "hinge"], "model.loss must be one of"),
        (["fit", "--model", "MLP", "--model.dropout", "2"], "dropout must be at least 0 and below 1, got 2"),
        (["fit", "--model", "MLP", "--data.batch_size", "0"], "batch_size must be 1 or more, got 0"),
        (["fit", "--model", "MLP", "--data.batchsize", "8"], "did you mean batch_size?"),
        (["fit", "--model", "MLP", "--data.source", "mnits"], "did you mean mnist?"),
        (["fit", "--model", "MLP", "--trainer.max_epoks", "8"], "did you mean trainer.max_epochs?"),
        (["fit", "--model", "MLP", "--trainer.devices", "-7"], "should be an int > 0"),
        (["fit", "--config", "densenett"], "there is no config densenett"),
        (["fit", "--config", "missing.yaml"], "there is no config missing.yaml"),
        (["fit", "--config", "mlp", "--ckpt_path", "missing.ckpt"], "there is no run or checkpoint missing.ckpt"),
        (["test", "--config", "mlp"], "test needs a trained model: --ckpt_path"),
        (["predict", "--config", "mlp"], "predict needs a trained model: --ckpt_path"),
        (["validate", "--config", "mlp"], "validate needs a trained model: --ckpt_path"),
    ],
)
def test_wrong_arguments_get_one_clear_line(args: list[str], says: str, fails: Callable[..., str]) -> None:
    assert says in fails(*args)
    assert not Path("lightning_logs").exists()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("model: [unclosed\n  x: : y", "not valid YAML"),
        ("just words", "must be a mapping"),
        ("model: MLP\ntrainr: {max_epochs: 3}", "unknown option trainr"),
        ("model: MLP\ntrainer: {max_epoks: 3}", "did you mean trainer.max_epochs?"),
        ("model: {class_path: MLP, init_args: {lrr: 3}}", "unknown option model.lrr; did you mean lr?"),
        ("model: LeNet6", "unknown model LeNet6"),
        ("model: MLP\ndata: {batch_sizes: 3}", "unknown option data.batch_sizes; did you mean batch_size?"),
        ("model: MLP\ndata: {augment: {rotate: much}}", "data.augment.rotate must be a float, got 'much'"),
        ("model: MLP\ndata: {augment: {rotat: 3}}", "unknown option data.augment.rotat"),
        ("model: MLP\ndata: {augment: {rotate: -3}}", "augment.rotate must be 0 or more and finite, got -3"),
    ],
)
def test_wrong_configs_get_one_clear_line(text: str, says: str, fails: Callable[..., str]) -> None:
    Path("wrong.yaml").write_text(text)
    assert says in fails("fit", "--config", "wrong.yaml")


class Hostile:
    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (Path("executed"),))


@pytest.mark.parametrize("verb", ["fit", "test"])
def test_wrong_checkpoints_get_one_clear_line(verb: str, fails: Callable[..., str]) -> None:
    Path("hostile.ckpt").write_bytes(pickle.dumps(Hostile()))
    torch.save(Hostile(), "hostile_zip.ckpt")
    Path("text.ckpt").write_text("hello")
    for name, says in (
        ("hostile", "refused and nothing in it was run"),
        ("hostile_zip", "refused and nothing in it was run"),
        ("text", "not a checkpoint"),
    ):
        assert says in fails(verb, "--config", "mlp", "--ckpt_path", f"{name}.ckpt")
    assert not Path("executed").exists()


def test_a_checkpoint_of_another_model(trained: Path, fails: Callable[..., str]) -> None:
    assert "contains a MLP, but --model is LeNet5" in fails("test", "--config", "lenet", "--ckpt_path", str(trained))


@pytest.mark.mnist
def test_a_truncated_file(tmp_path: Path, fails: Callable[..., str]) -> None:
    raw = tmp_path / "here" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for path in (MNIST / "MNIST" / "raw").iterdir():
        (raw / path.name).write_bytes(path.read_bytes()[:9_000_000])
    line = fails("fit", "--config", "mlp", "--data.root", "here")
    assert "train-images-idx3-ubyte is damaged (expected 47040016 bytes, found 9000000)" in line


def test_an_unreadable_folder(fails: Callable[..., str]) -> None:
    Path("MNIST").write_text("a file where a folder is expected")
    line = fails("fit", "--config", "mlp", "--data.root", ".", "--data.fallback", "null")
    assert "MNIST" in line
    assert not Path("lightning_logs").exists()


def test_a_learning_rate_that_explodes(fails: Callable[..., str]) -> None:
    line = fails("fit", *QUICK, "--model", "MLP", "--model.optimizer", "sgd", "--model.lr", "1e30")
    assert "the training loss became" in line
    assert "Try a lower learning rate (--model.lr is 1e+30)" in line
    assert not (RUN / "summary.json").exists()


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def forward(self: MLP, images: torch.Tensor) -> torch.Tensor:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(MLP, "forward", forward)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        fit("--model", "MLP")

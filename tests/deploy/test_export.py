"""`mnist-lightning export`: what is in the files, and when none is written."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mnist_lightning import CNN, GNN, MLP, Classifier, DenseNet, InputError, LeNet5, ResNet, load
from mnist_lightning.cli import main
from mnist_lightning.data.sources import read
from mnist_lightning.deploy.export import export_model

Fails = Callable[..., str]


class Mine(Classifier):
    """A class of a user's own, with another name for its input."""

    def __init__(self, **training: Any) -> None:
        super().__init__(**training)
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))

    def forward(self, *x: Tensor) -> Tensor:
        logits: Tensor = self.layers(x[0])
        return logits


class Inverting(Mine):
    """Takes dark digits on light ground."""

    def inputs(self, digits: Tensor) -> tuple[Tensor, ...]:
        return super().inputs(255 - digits)


class Branching(Mine):
    """Does one thing or another, depending on what it sees."""

    def forward(self, *x: Tensor) -> Tensor:
        return super().forward(*x) if x[0].mean() > 0 else x[0].new_zeros(len(x[0]), 10)


class Wavy(Mine):
    """Uses a function that ONNX does not know."""

    def forward(self, *x: Tensor) -> Tensor:
        return torch.special.bessel_j0(super().forward(*x))


class Comparing(Mine):
    """Sees each digit beside the others of its batch."""

    def forward(self, *x: Tensor) -> Tensor:
        return super().forward(x[0] - x[0].mean(dim=0))


def run_of(model: Classifier, folder: Path) -> Path:
    """A run's folder with this model in it, whose batch norms have seen something."""
    with torch.no_grad():
        for _ in range(3 if not isinstance(model, GNN) else 0):
            model.train()(torch.rand(64, 1, 28, 28).pow(3))
    content = {"state_dict": model.state_dict(), "hyper_parameters": dict(model.hparams), "epoch": 2}
    model.on_save_checkpoint(content)
    (folder / "checkpoints").mkdir(parents=True)
    torch.save(content, folder / "checkpoints" / "best.ckpt")
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has trained an MLP for a moment."""
    root = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("PL_GLOBAL_SEED", "0")
        options = ["--data.source=digits", "--trainer.max_epochs=1", "--trainer.enable_progress_bar=false"]
        main(["fit", "--model=MLP", "--model.dropout=0.5", "--model.batch_norm=true", *options])
    return root / "lightning_logs" / "mlp" / "version_0"


@pytest.mark.slow
def test_an_onnx_file_is_all_that_is_needed(trained: Path, capfd: pytest.CaptureFixture[str]) -> None:
    import onnxruntime

    main(["export", str(trained)])
    said = capfd.readouterr()
    assert said.err == ""
    assert said.out.startswith("model.onnx: ")
    assert "KiB; on 360 test digits of digits, in batches of 1, 7 and 256, its logits are within" in said.out
    assert [path.name for path in Path().iterdir()] == ["model.onnx"]  # the weights are in it

    session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
    (images,), (logits,) = session.get_inputs(), session.get_outputs()
    assert (images.name, images.shape, images.type) == ("images", ["batch", 1, 28, 28], "tensor(float)")
    assert (logits.name, logits.shape) == ("logits", ["batch", 10])
    digits, labels = read("digits", train=False)
    (answers,) = session.run(None, {"images": digits.unsqueeze(1).float().div(255).numpy()})
    torch.testing.assert_close(torch.from_numpy(answers), load(trained).classify(digits), atol=1e-5, rtol=0)

    facts = session.get_modelmeta().custom_metadata_map
    accuracy = json.loads((trained / "summary.json").read_text())["test"]["accuracy"]
    assert facts["test_accuracy"] == str(accuracy)
    assert float(accuracy) == pytest.approx(float((answers.argmax(axis=1) == labels.numpy()).mean()))
    assert (facts["model"], facts["source"], facts["classes"]) == ("MLP", "digits", "0,1,2,3,4,5,6,7,8,9")
    assert {"mnist-lightning", "torch", "onnx"} <= json.loads(facts["versions"]).keys()
    assert str(Path(torch.__file__).parents[1]).encode() not in Path("model.onnx").read_bytes()
    assert str(Path(__file__).parents[2]).encode() not in Path("model.onnx").read_bytes()


def test_a_torch_export_program(tmp_path: Path) -> None:
    model = CNN(channels=[4, 8], batch_norm="pooled", dropout=0.3, dense_dropout=0.5, crop=2, widths=[16])
    run = run_of(model, tmp_path / "run")
    exported = export_model(str(run), "model.pt2", source="digits")
    assert exported.differences.keys() == {1, 7, 256}
    assert max(exported.differences.values()) <= 1e-4
    assert str(Path(__file__).parents[2]).encode() not in Path("model.pt2").read_bytes()
    extra = {"metadata.json": ""}
    program = torch.export.load("model.pt2", extra_files=extra).module()
    digits, _ = read("digits", train=False)
    for count in (1, 3, 360):
        logits = program(digits[:count].unsqueeze(1).float() / 255)
        torch.testing.assert_close(logits, load(run).classify(digits[:count]), atol=1e-5, rtol=0)
    facts = json.loads(extra["metadata.json"])
    assert facts["model"] == "CNN"
    assert not {"source", "test_accuracy"} & facts.keys()  # the run does not say, so neither does the file


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["onnx", "pt2"])
@pytest.mark.parametrize(
    "model", [MLP(), LeNet5(), CNN(), ResNet(), DenseNet(blocks=(2, 2))], ids=lambda model: type(model).__name__
)
def test_every_image_model(model: Classifier, suffix: str, tmp_path: Path) -> None:
    exported = export_model(str(run_of(model, tmp_path / "run")), f"model.{suffix}", source="digits")
    assert 0 < max(exported.differences.values()) <= 1e-4
    assert exported.digits == "360 test digits of digits"


@pytest.mark.mnist
def test_real_digits_by_default(tmp_path: Path) -> None:
    exported = export_model(str(run_of(MLP(widths=[]), tmp_path / "run")), "model.pt2")
    assert exported.digits == "1,000 test digits of mnist"


def test_a_model_of_ones_own(tmp_path: Path) -> None:
    export_model(str(run_of(Mine(), tmp_path / "run")), "mine.pt2", source="digits")
    assert torch.export.load("mine.pt2").graph_signature.user_inputs == ("images",)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (GNN(width=4, depth=1), "holds a GNN, which cannot be exported: it takes graphs of superpixels"),
        (Inverting(), "holds a Inverting, which cannot be exported: its `inputs` makes of digits something else"),
        (Branching(), "holds a Branching, which torch cannot export: Could not guard on data-dependent"),
        (Comparing(), "nothing was written: in batches of 1 the exported model's logits differ by up to"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_cannot_be_exported_is_refused_with_the_reason(
    model: Classifier, words: str, tmp_path: Path, fails: Fails
) -> None:
    run = run_of(model, tmp_path / "run")
    Path("model.pt2").write_text("an earlier one")
    assert words in fails("export", str(run), "--output=model.pt2", "--source=digits")
    assert Path("model.pt2").read_text() == "an earlier one"
    assert not list(Path().glob(".*"))


@pytest.mark.slow
def test_what_onnx_does_not_know_is_named(tmp_path: Path, fails: Fails) -> None:
    run = run_of(Wavy(), tmp_path / "run")
    line = fails("export", str(run), "--source=digits")
    assert "holds a Wavy, which torch cannot export: No ONNX function found for" in line
    assert not Path("model.onnx").exists()


def test_the_reason_for_refusing_a_gnn_is_true() -> None:
    model = GNN(width=4, depth=1).eval()
    digits, _ = read("digits", train=False)
    with pytest.raises(Exception, match="equal"):
        torch.export.export(model, model.inputs(digits[:2]), strict=False)


def test_a_broken_model_is_not_exported(tmp_path: Path) -> None:
    model = Mine()
    model.layers[1].bias.data[3] = torch.nan
    with pytest.raises(InputError, match=r"nothing was written: .* by up to nan"):
        export_model(str(run_of(model, tmp_path / "run")), "model.pt2", source="digits")
    assert not Path("model.pt2").exists()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--output", "model.h5"], "output is model.h5; it must end in .onnx or .pt2"),
        (["--output", "nowhere/model.onnx"], "there is no folder"),
        (["--source", "minst"], "did you mean mnist?"),
        (["--source", "kmnist"], "kmnist needs"),  # nothing takes the place of what was asked for
        (["--ouput", "model.onnx"], "did you mean output?"),
    ],
)
def test_wrong_arguments_get_one_line_and_leave_nothing(
    args: list[str], words: str, trained: Path, fails: Fails
) -> None:
    assert words in fails("export", str(trained), *args)
    assert not list(Path().iterdir())


def test_a_checkpoint_that_is_not_there(fails: Fails) -> None:
    assert "there is no checkpoint absent.ckpt" in fails("export", "absent.ckpt")


def test_without_what_onnx_needs(trained: Path, fails: Fails, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("onnx", "onnxruntime"):
        monkeypatch.setitem(sys.modules, package, None)
    line = fails("export", str(trained))
    assert "an .onnx file needs onnx, onnxruntime: pip install 'mnist-lightning[export]', or write a .pt2 file" in line
    monkeypatch.undo()
    monkeypatch.setattr(torch, "__version__", "2.6.0+cpu")
    line = fails("export", str(trained), "--source=digits")
    assert "an .onnx file needs torch 2.7 or newer, not 2.6.0+cpu: pip install" in line


def test_a_source_that_is_not_on_disk_any_more(trained: Path, tmp_path: Path) -> None:
    run = shutil.copytree(trained, tmp_path / "run")
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps({**summary, "source": "kmnist"}))
    exported = export_model(str(run), "model.pt2")
    assert exported.digits == "360 test digits of digits (as kmnist cannot be read here)"
    extra = {"metadata.json": ""}
    torch.export.load("model.pt2", extra_files=extra)
    assert json.loads(extra["metadata.json"])["source"] == "kmnist"


def test_accuracy_is_that_of_the_tested_checkpoint_or_not_said(trained: Path, tmp_path: Path) -> None:
    run = shutil.copytree(trained, tmp_path / "run")
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps({**summary, "best_epoch": summary["best_epoch"] + 1}))
    export_model(str(run / "checkpoints" / "last.ckpt"), "model.pt2")
    extra = {"metadata.json": ""}
    torch.export.load("model.pt2", extra_files=extra)
    facts = json.loads(extra["metadata.json"])
    assert facts["source"] == "digits"
    assert "test_accuracy" not in facts
    (run / "summary.json").write_text("{")
    with pytest.raises(InputError, match=r"summary.json is damaged"):
        export_model(str(run), "other.pt2")

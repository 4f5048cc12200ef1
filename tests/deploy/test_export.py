"""`mnist-lightning export`: content of the files, and models that are refused."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mnist_lightning import CNN, GNN, MLP, Classifier, DenseNet, EfficientNet, InputError, LeNet5, ResNet, load
from mnist_lightning.cli import main
from mnist_lightning.data.sources import read
from mnist_lightning.deploy import export as module
from mnist_lightning.deploy.export import export_model
from mnist_lightning.runs.run import Run

Fails = Callable[..., str]


class Custom(Classifier):
    """A user's model, whose input is called `x`."""

    def __init__(self, **training: Any) -> None:
        super().__init__(**training)
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))

    def forward(self, *x: Tensor) -> Tensor:
        logits: Tensor = self.layers(x[0])
        return logits


class Inverting(Custom):
    """Inverts the digits before `forward`."""

    def inputs(self, digits: Tensor) -> tuple[Tensor, ...]:
        return super().inputs(255 - digits)


class Branching(Custom):
    """Branches on its input, which cannot be traced."""

    def forward(self, *x: Tensor) -> Tensor:
        return super().forward(*x) if x[0].mean() > 0 else x[0].new_zeros(len(x[0]), 10)


class Bessel(Custom):
    """Uses a function that ONNX does not have."""

    def forward(self, *x: Tensor) -> Tensor:
        return torch.special.bessel_j0(super().forward(*x))


class Comparing(Custom):
    """Gives logits that depend on the other digits of the batch."""

    def forward(self, *x: Tensor) -> Tensor:
        return super().forward(x[0] - x[0].mean(dim=0))


def run_of(model: Classifier, folder: Path) -> Path:
    """Writes a run folder with a checkpoint of the model, after some updates of its batch norms."""
    with torch.no_grad():
        for _ in range(3 if not isinstance(model, GNN) else 0):
            model.train()(torch.rand(64, 1, 28, 28).pow(3))
    content = {"state_dict": model.state_dict(), "hyper_parameters": dict(model.hparams), "epoch": 2}
    model.on_save_checkpoint(content)
    Run(folder).checkpoints.mkdir(parents=True)
    torch.save(content, Run(folder).last)
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of an MLP trained for one epoch."""
    root = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("PL_GLOBAL_SEED", "0")
        options = ["--data.source=digits", "--trainer.max_epochs=1", "--trainer.enable_progress_bar=false"]
        main(["fit", "--model=MLP", "--model.dropout=0.5", "--model.batch_norm=true", *options])
    return root / "lightning_logs" / "mlp" / "version_0"


@pytest.mark.slow
def test_onnx(trained: Path, capfd: pytest.CaptureFixture[str]) -> None:
    import onnxruntime

    main(["export", str(trained)])
    printed = capfd.readouterr()
    assert printed.err == ""
    assert printed.out.startswith("model.onnx: ")
    assert "KiB; on 360 test digits of digits, in batches of 1, 7 and 256, its logits are within" in printed.out
    assert [path.name for path in Path().iterdir()] == ["model.onnx"]  # contains the weights

    session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
    (images,), (logits,) = session.get_inputs(), session.get_outputs()
    assert (images.name, images.shape, images.type) == ("images", ["batch", 1, 28, 28], "tensor(float)")
    assert (logits.name, logits.shape) == ("logits", ["batch", 10])
    digits, labels = read("digits", train=False)
    (answers,) = session.run(None, {"images": digits.unsqueeze(1).float().div(255).numpy()})
    torch.testing.assert_close(torch.from_numpy(answers), load(trained).classify(digits), atol=1e-5, rtol=0)

    facts = session.get_modelmeta().custom_metadata_map
    accuracy = Run(trained).summary["test"]["accuracy"]
    assert facts["test_accuracy"] == str(accuracy)
    assert float(accuracy) == pytest.approx(float((answers.argmax(axis=1) == labels.numpy()).mean()))
    assert (facts["model"], facts["source"], facts["classes"]) == ("MLP", "digits", "0,1,2,3,4,5,6,7,8,9")
    assert {"mnist-lightning", "torch", "onnx"} <= json.loads(facts["versions"]).keys()
    assert str(Path(torch.__file__).parents[1]).encode() not in Path("model.onnx").read_bytes()
    assert str(Path(__file__).parents[2]).encode() not in Path("model.onnx").read_bytes()


@pytest.mark.slow
def test_torch_export_program(tmp_path: Path) -> None:
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
    assert not {"source", "test_accuracy"} & facts.keys()  # the run has no summary


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["onnx", "pt2"])
@pytest.mark.parametrize(
    "model",
    [MLP(), LeNet5(), CNN(), ResNet(), DenseNet(blocks=(2, 2)), EfficientNet()],
    ids=lambda model: type(model).__name__,
)
def test_every_image_model(model: Classifier, suffix: str, tmp_path: Path) -> None:
    exported = export_model(str(run_of(model, tmp_path / "run")), f"model.{suffix}", source="digits")
    assert 0 < max(exported.differences.values()) <= 1e-4
    assert exported.digits == "360 test digits of digits"


@pytest.mark.mnist
def test_mnist_by_default(tmp_path: Path) -> None:
    exported = export_model(str(run_of(MLP(widths=[]), tmp_path / "run")), "model.pt2")
    assert exported.digits == "1,000 test digits of mnist"


def test_custom_model(tmp_path: Path) -> None:
    export_model(str(run_of(Custom(), tmp_path / "run")), "custom.pt2", source="digits")
    assert torch.export.load("custom.pt2").graph_signature.user_inputs == ("images",)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (
            GNN(width=4, depth=1),
            "contains a GNN, which cannot be exported: scikit-image computes its superpixel graphs",
        ),
        (Inverting(), "contains a Inverting, which cannot be exported: its `inputs` does not return images"),
        (Branching(), "contains a Branching, which torch cannot export: Could not guard on data-dependent"),
        (
            Comparing(),
            "nothing was written: in batches of 1, the exported model's logits differ from PyTorch's by up to",
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_models_that_cannot_be_exported(model: Classifier, words: str, tmp_path: Path, fails: Fails) -> None:
    run = run_of(model, tmp_path / "run")
    Path("model.pt2").write_text("an earlier model")
    assert words in fails("export", str(run), "--output=model.pt2", "--source=digits")
    assert Path("model.pt2").read_text() == "an earlier model"
    assert not list(Path().glob(".*"))


@pytest.mark.slow
def test_missing_onnx_function(tmp_path: Path, fails: Fails) -> None:
    run = run_of(Bessel(), tmp_path / "run")
    line = fails("export", str(run), "--source=digits")
    assert "contains a Bessel, which torch cannot export: No ONNX function found for" in line
    assert not Path("model.onnx").exists()


def test_torch_cannot_trace_a_gnn() -> None:
    model = GNN(width=4, depth=1).eval()
    digits, _ = read("digits", train=False)
    with pytest.raises(Exception, match="data-dependent"):
        torch.export.export(model, model.inputs(digits[:2]), strict=False)


def test_model_with_nan_weights(tmp_path: Path) -> None:
    model = Custom()
    model.layers[1].bias.data[3] = torch.nan
    with pytest.raises(InputError, match=r"weights contain NaN or infinite values"):
        export_model(str(run_of(model, tmp_path / "run")), "model.pt2", source="digits")
    assert not Path("model.pt2").exists()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--output", "model.h5"], "output must end in .onnx or .pt2, got model.h5"),
        (["--output", "nowhere/model.onnx"], "there is no folder"),
        (["--source", "minst"], "did you mean mnist?"),
        (["--source", "kmnist"], "kmnist needs"),  # no fallback for a given source
        (["--ouput", "model.onnx"], "did you mean output?"),
    ],
)
def test_wrong_arguments_write_nothing(args: list[str], words: str, trained: Path, fails: Fails) -> None:
    assert words in fails("export", str(trained), *args)
    assert not list(Path().iterdir())


def test_missing_checkpoint(fails: Fails) -> None:
    assert "there is no checkpoint absent.ckpt" in fails("export", "absent.ckpt")


def test_missing_packages(trained: Path, fails: Fails, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("onnx", "onnxruntime"):
        monkeypatch.setitem(sys.modules, package, None)
    line = fails("export", str(trained))
    assert "an .onnx file needs onnx, onnxruntime: pip install 'mnist-lightning[export]', or write a .pt2 file" in line
    monkeypatch.undo()
    monkeypatch.setattr(module, "version", lambda name: "2.6.0+cpu")
    line = fails("export", str(trained), "--source=digits")
    assert "an .onnx file needs torch 2.7 or newer, not 2.6.0+cpu: pip install" in line


def test_source_that_cannot_be_read(trained: Path, tmp_path: Path) -> None:
    run = Run(shutil.copytree(trained, tmp_path / "run"))
    run.summary_file.write_text(json.dumps({**run.summary, "source": "kmnist"}))
    exported = export_model(str(run.folder), "model.pt2")
    assert exported.digits == "360 test digits of digits (as kmnist cannot be read here)"
    extra = {"metadata.json": ""}
    torch.export.load("model.pt2", extra_files=extra)
    assert json.loads(extra["metadata.json"])["source"] == "kmnist"


def test_accuracy_of_the_tested_checkpoint_only(trained: Path, tmp_path: Path) -> None:
    run = Run(shutil.copytree(trained, tmp_path / "run"))
    run.summary_file.write_text(json.dumps({**run.summary, "steps": run.summary["steps"] + 1}))
    export_model(str(run.last), "model.pt2")
    extra = {"metadata.json": ""}
    torch.export.load("model.pt2", extra_files=extra)
    facts = json.loads(extra["metadata.json"])
    assert facts["source"] == "digits"
    assert "test_accuracy" not in facts
    run.summary_file.write_text("{")
    with pytest.raises(InputError, match=rf"{run.summary_file.name} is damaged"):
        export_model(str(run.folder), "other.pt2")

import functools
import os
import pickle
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image
from torch import nn

from mnist_lightning import CNN, MLP, Classifier, InputError, LeNet5, MNISTDataModule, load
from mnist_lightning.runs.checkpoint import CALIBRATION, find_checkpoint, read_checkpoint, temperature_in
from mnist_lightning.runs.run import Run


class Custom(Classifier):
    """A model outside the package."""

    def __init__(self, width: int = 4, **training: Any) -> None:
        super().__init__(**training)
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(784, width), nn.Linear(width, 10))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.layers(images)
        return logits


@pytest.fixture
def fitted(tmp_path: Path, digits: MNISTDataModule) -> Callable[[Classifier], Path]:
    """Trains a model with a plain Trainer, as a library user does, and returns the checkpoint."""

    def train(model: Classifier) -> Path:
        trainer = Trainer(
            max_epochs=1,
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[ModelCheckpoint(tmp_path / "run" / "checkpoints", filename="last")],
        )
        trainer.fit(model, digits)
        return tmp_path / "run" / "checkpoints" / "last.ckpt"

    return train


@pytest.mark.parametrize(
    "model",
    [
        MLP(widths=(16, 8), dropout=0.5, betas=(0.7, 0.9)),
        CNN(channels=[4], kernel_size=[5], widths=[], dense_activation="tanh"),
        LeNet5("relu", "max", schedule="onecycle", optimizer="sgd"),
        Custom(width=7, lr=0.01),
    ],
    ids=lambda model: type(model).__name__,
)
def test_the_saved_model_is_loaded(model: Classifier, fitted: Callable[[Classifier], Path]) -> None:
    path = fitted(model)
    for source in (path, str(path), path.parents[1]):
        loaded = load(source)
        assert type(loaded) is type(model)
        assert not loaded.training
        assert dict(loaded.hparams) == dict(model.hparams)
        images = torch.rand(3, 1, 28, 28)
        assert torch.equal(loaded(images), model.eval()(images))


@pytest.mark.slow
def test_load_in_a_new_process(fitted: Callable[[Classifier], Path]) -> None:
    model = LeNet5()
    code = "import sys, torch, mnist_lightning as m; print(m.load(sys.argv[1])(torch.ones(1, 1, 28, 28)).sum().item())"
    output = subprocess.check_output([sys.executable, "-c", code, fitted(model)], text=True)
    assert float(output) == pytest.approx(model.eval()(torch.ones(1, 1, 28, 28)).sum().item(), abs=1e-5)


@pytest.mark.slow
def test_a_class_that_is_not_imported(fitted: Callable[[Classifier], Path]) -> None:
    path = fitted(Custom())
    code = "import sys, mnist_lightning; mnist_lightning.load(sys.argv[1])"
    output = subprocess.run([sys.executable, "-c", code, path], text=True, capture_output=True).stderr
    assert "Custom, which is unknown: import the module that defines it first" in output


@pytest.mark.slow
def test_a_checkpoint_of_a_compiled_model_loads_without_compiling(fitted: Callable[[Classifier], Path]) -> None:
    class Spied(MLP):
        compiled = 0

        def compile(self, *args: Any, **kwargs: Any) -> None:
            self.compiled += 1
            super().compile(backend="aot_eager")

    model = Spied(widths=[8], compile=True)
    path = fitted(model)
    assert model.compiled == 1
    loaded = load(path)
    assert isinstance(loaded, Spied)
    assert loaded.hparams["compile"] is False
    images = torch.rand(3, 1, 28, 28)
    torch.testing.assert_close(loaded(images), model.eval()(images))


class Malicious:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("executed"),))


class System:
    def __reduce__(self) -> Any:
        return (os.system, ("touch executed",))


def legacy(content: Any, path: Path) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=False)


def pickled(content: Any, path: Path) -> None:
    path.write_bytes(pickle.dumps(content))


@pytest.mark.parametrize("write", [torch.save, legacy, pickled])
@pytest.mark.parametrize("wrap", [lambda value: value, lambda value: {"state_dict": {}, "hyper_parameters": value}])
@pytest.mark.parametrize(
    "content",
    [Malicious(), System(), np.random.default_rng(0), np.float64(1.5), functools.partial(os.system, "touch executed")],
    ids=["path", "system", "generator", "numpy", "partial"],
)
def test_a_malicious_pickle_is_refused_and_not_executed(tmp_path: Path, content: Any, write: Any, wrap: Any) -> None:
    path = tmp_path / "malicious.ckpt"
    write(wrap(content), path)
    with pytest.raises(InputError, match="is refused and nothing in it was run") as refused:
        load(path)
    assert not Path("executed").exists()
    assert "weights_only" not in str(refused.value)  # torch advises to turn it off


def as_torchscript(path: Path) -> None:
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)), path)


def as_tar(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            archive.addfile(tarfile.TarInfo(name))


def as_safetensors(path: Path) -> None:
    header = b'{"weight": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}'
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))


def as_huge(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"")
        archive.infolist()[0].file_size = 2**40


def as_bomb(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", bytes(2**20))
        archive.infolist()[0].file_size = 2**50


def as_empty(path: Path) -> None:
    zipfile.ZipFile(path, "w").close()


@pytest.mark.filterwarnings("ignore:.*torch.jit.*")
@pytest.mark.parametrize("write", [as_torchscript, as_tar, as_safetensors, as_huge, as_bomb, as_empty])
def test_a_file_of_another_format_is_refused_in_our_words(tmp_path: Path, write: Callable[[Path], None]) -> None:
    path = tmp_path / "other.ckpt"
    write(path)
    says = r"other\.ckpt is not a checkpoint.* refused and nothing in it was run$"
    with pytest.raises(InputError, match=says) as refused:
        load(path)
    assert "weights_only" not in str(refused.value)


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04" + bytes(100), bytes(1000)])
def test_a_file_that_is_not_a_checkpoint(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "text.ckpt"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"text\.ckpt is not a checkpoint, or it is damaged"):
        load(path)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_truncated_checkpoint(fitted: Callable[[Classifier], Path], share: float) -> None:
    path = fitted(MLP(widths=[8]))
    assert isinstance(load(path), MLP)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(InputError, match="not a checkpoint, or it is damaged"):
        load(path)


def test_a_flipped_bit(fitted: Callable[[Classifier], Path]) -> None:
    path = fitted(MLP(widths=[8]))
    content = bytearray(path.read_bytes())
    weight = next(iter(load(path).state_dict().values())).numpy().tobytes()
    content[content.index(weight) + 100] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match="not a checkpoint, or it is damaged"):
        load(path)


def test_a_damaged_checkpoint_of_a_run_names_an_intact_one_and_the_config(logs: Path) -> None:
    run = Run(logs / "mlp" / "version_0")
    copy = run.last.with_name("copy.ckpt")
    copy.write_bytes(run.last.read_bytes())
    run.last.write_bytes(run.last.read_bytes()[:-100])
    with pytest.raises(InputError) as refused:
        load(run.last)
    assert str(refused.value).endswith(f"; use {copy}, or train again with --config {run.config_file}")
    assert isinstance(load(copy), MLP)


def test_a_checkpoint_of_another_program(tmp_path: Path) -> None:
    torch.save({"state_dict": {}, "epoch": 3}, tmp_path / "other.ckpt")
    with pytest.raises(InputError, match="not written by mnist-lightning: it does not name its model"):
        load(tmp_path / "other.ckpt")


def test_weights_that_do_not_fit(fitted: Callable[[Classifier], Path]) -> None:
    path = fitted(MLP(widths=[8]))
    content = torch.load(path, weights_only=True)
    content["hyper_parameters"]["widths"] = [9]
    torch.save(content, path)
    with pytest.raises(
        InputError, match=r"last\.ckpt: the weights do not fit the current class MLP: size mismatch for dense\.0"
    ):
        load(path)


def test_find_checkpoint(logs: Path) -> None:
    run = Run(logs / "mlp" / "version_0")
    assert run.folder is not None
    assert find_checkpoint(run.folder) == find_checkpoint(str(run.folder), "tested") == run.last
    assert find_checkpoint(run.folder, "last") == find_checkpoint(run.last) == run.last


def test_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there is no checkpoint .*none\.ckpt"):
        find_checkpoint(tmp_path / "none.ckpt")
    with pytest.raises(InputError, match=r"there is no run in .*; give a run folder or a \.ckpt file"):
        find_checkpoint(tmp_path)


def test_temperature_of_a_checkpoint(logs: Path) -> None:
    checkpoint = read_checkpoint(Run(logs / "mlp" / "version_0").last)
    temperature = temperature_in(checkpoint)
    assert temperature is not None
    assert temperature == checkpoint[CALIBRATION]["temperature"] > 0
    del checkpoint[CALIBRATION]
    assert temperature_in(checkpoint) is None


@pytest.mark.parametrize(
    ("part", "name", "value", "message"),
    [
        ("hyper_parameters", "activation", "swish", "activation must be one of relu, sigmoid, tanh, got 'swish'"),
        ("hyper_parameters", "widths", "abc", "widths must be a list of int, got 'abc'"),
        ("hyper_parameters", "widths", {"a": 1}, "widths must be a list of int, got {'a': 1}"),
        ("hyper_parameters", "unknown", 1, "does not fit the current class .*MLP: TypeError: .*'unknown'"),
        ("hyper_parameters", "", [1], "was not written by mnist-lightning"),
        ("state_dict", "", 5, "was not written by mnist-lightning"),
        ("classifier", "", 5, "was not written by mnist-lightning"),
        ("state_dict", "dense.0.bias", "a", "the weights do not fit the current class MLP: .*dense.0.bias.* expected"),
        (
            "state_dict",
            "unknown",
            torch.ones(1),
            "the weights do not fit the current class MLP: Unexpected key.*unknown",
        ),
        ("calibration", "", 5, "does not fit the current class .*MLP: TypeError"),
        (
            "state_dict",
            "dense.0.weight",
            torch.full((128, 784), torch.nan),
            r"the weights contain NaN or infinite values \(dense.0.weight\): the training diverged; train again with",
        ),
    ],
)
def test_a_checkpoint_with_other_values(part: str, name: str, value: Any, message: str, logs: Path) -> None:
    path = Run(logs / "mlp" / "version_0").last
    content = torch.load(path, weights_only=True)
    content[part] = {**content[part], name: value} if name else value
    torch.save(content, path)
    with pytest.raises(InputError, match=f"last.ckpt.* {message}") as refused:
        load(path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("weights", [torch.ones(3, 784), torch.full((128, 784), torch.inf)], ids=["shape", "infinite"])
def test_weights_that_cannot_be_used_end_every_verb_in_one_line(
    weights: torch.Tensor, logs: Path, fails: Callable[..., str]
) -> None:
    path = Run(logs / "mlp" / "version_0").last
    content = torch.load(path, weights_only=True)
    content["state_dict"]["dense.0.weight"] = weights
    torch.save(content, path)
    Image.new("L", (40, 40)).save("dark.png")
    for words in (["test", "--ckpt_path", str(path)], ["classify", str(path), "dark.png"]):
        error = fails(*words)
        assert "the weights " in error
        assert "dense.0.weight" in error


def test_infinite_buffers_are_accepted() -> None:
    class Masked(Custom):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mask", torch.tensor([0.0, float("-inf")]))

    model = Masked()
    model.load_state_dict(Masked().state_dict())
    with pytest.raises(InputError, match=r"NaN or infinite values \(mask\)"):
        model.load_state_dict({**model.state_dict(), "mask": torch.tensor([0.0, torch.nan])})


def test_logits_that_are_not_finite_are_refused() -> None:
    model = LeNet5("relu").eval()
    digits = torch.full((3, 28, 28), 255, dtype=torch.uint8)
    assert model.classify(digits).isfinite().all()
    for weights in model.parameters():
        weights.data.fill_(3e37)
    with pytest.raises(InputError, match="the logits of LeNet5 are NaN or infinite for 3 of 3 digits"):
        model.classify(digits)

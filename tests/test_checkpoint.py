import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from mnist_lightning import CNN, MLP, Classifier, InputError, LeNet5, MNISTDataModule, load
from mnist_lightning.checkpoint import find_checkpoint


class Mine(Classifier):
    """A class of a user's own."""

    def __init__(self, width: int = 4, **training: Any) -> None:
        super().__init__(**training)
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(784, width), nn.Linear(width, 10))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.layers(images)
        return logits


@pytest.fixture
def trained(tmp_path: Path, digits: MNISTDataModule) -> Callable[[Classifier], Path]:
    """Trains with a plain Trainer, as a library user does, and gives back the checkpoint."""

    def train(model: Classifier) -> Path:
        trainer = Trainer(
            max_epochs=1,
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[ModelCheckpoint(tmp_path / "run" / "checkpoints", filename="best")],
        )
        trainer.fit(model, digits)
        return tmp_path / "run" / "checkpoints" / "best.ckpt"

    return train


@pytest.mark.parametrize(
    "model",
    [
        MLP(widths=(16, 8), dropout=0.5, betas=(0.7, 0.9)),
        CNN(channels=[4], kernel_size=[5], widths=[], dense_activation="tanh"),
        LeNet5("relu", "max", schedule="onecycle", optimizer="sgd"),
        Mine(width=7, lr=0.01),
    ],
    ids=lambda model: type(model).__name__,
)
def test_the_model_comes_back(model: Classifier, trained: Callable[[Classifier], Path]) -> None:
    path = trained(model)
    for where in (path, str(path), path.parents[1]):
        loaded = load(where)
        assert type(loaded) is type(model)
        assert not loaded.training
        assert dict(loaded.hparams) == dict(model.hparams)
        images = torch.rand(3, 1, 28, 28)
        assert torch.equal(loaded(images), model.eval()(images))


@pytest.mark.slow
def test_in_a_fresh_process(trained: Callable[[Classifier], Path]) -> None:
    model = LeNet5()
    code = "import sys, torch, mnist_lightning as m; print(m.load(sys.argv[1])(torch.ones(1, 1, 28, 28)).sum().item())"
    output = subprocess.check_output([sys.executable, "-c", code, trained(model)], text=True)
    assert float(output) == pytest.approx(model.eval()(torch.ones(1, 1, 28, 28)).sum().item(), abs=1e-5)


@pytest.mark.slow
def test_a_class_that_is_not_imported_is_named(trained: Callable[[Classifier], Path]) -> None:
    path = trained(Mine())
    code = "import sys, mnist_lightning; mnist_lightning.load(sys.argv[1])"
    output = subprocess.run([sys.executable, "-c", code, path], text=True, capture_output=True).stderr
    assert "Mine, which is not known here: import the module that defines it first" in output


@pytest.mark.slow
def test_a_checkpoint_of_a_compiled_model_loads_without_compiling(trained: Callable[[Classifier], Path]) -> None:
    class Spied(MLP):
        compiled = 0

        def compile(self, *args: Any, **kwargs: Any) -> None:
            self.compiled += 1
            super().compile(backend="aot_eager")

    model = Spied(widths=[8], compile=True)
    path = trained(model)
    assert model.compiled == 1
    loaded = load(path)
    assert isinstance(loaded, Spied)
    assert loaded.hparams["compile"] is False
    images = torch.rand(3, 1, 28, 28)
    torch.testing.assert_close(loaded(images), model.eval()(images))


class Hostile:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("executed"),))


@pytest.mark.parametrize("write", [torch.save, lambda evil, path: path.write_bytes(pickle.dumps(evil))])
@pytest.mark.parametrize("wrap", [lambda evil: evil, lambda evil: {"state_dict": {}, "hyper_parameters": evil}])
def test_a_hostile_pickle_is_refused_and_not_executed(tmp_path: Path, write: Any, wrap: Any) -> None:
    path = tmp_path / "evil.ckpt"
    write(wrap(Hostile()), path)
    with pytest.raises(InputError, match="is refused and nothing in it was run"):
        load(path)
    assert not Path("executed").exists()


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04" + bytes(100), bytes(1000)])
def test_what_is_no_checkpoint_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "text.ckpt"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"text\.ckpt is not a checkpoint, or it is damaged"):
        load(path)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_truncated_checkpoint_is_named(trained: Callable[[Classifier], Path], share: float) -> None:
    path = trained(MLP(widths=[8]))
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(InputError, match="not a checkpoint, or it is damaged"):
        load(path)


def test_somebody_elses_checkpoint_is_named(tmp_path: Path) -> None:
    torch.save({"state_dict": {}, "epoch": 3}, tmp_path / "other.ckpt")
    with pytest.raises(InputError, match="not written by mnist-lightning"):
        load(tmp_path / "other.ckpt")


def test_weights_that_do_not_fit_are_named(trained: Callable[[Classifier], Path]) -> None:
    path = trained(MLP(widths=[8]))
    content = torch.load(path, weights_only=True)
    content["hyper_parameters"]["widths"] = [9]
    torch.save(content, path)
    with pytest.raises(InputError, match="does not fit the class MLP"):
        load(path)


def test_where_there_is_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no checkpoint"):
        find_checkpoint(tmp_path / "none.ckpt")
    with pytest.raises(InputError, match="a folder without checkpoints/best"):
        find_checkpoint(tmp_path)

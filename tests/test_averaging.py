"""Averaged weights: what is averaged, validated, saved and tested."""

from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from mnist_lightning import MLP, MNISTDataModule, load
from mnist_lightning.errors import InputError
from mnist_lightning.runs.checkpoint import read_checkpoint
from mnist_lightning.runs.run import Run
from mnist_lightning.training.callbacks import record

DECAY = 0.7
QUIET = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False}


class Reference(Callback):
    """Averages the weights step by step, as the formula says."""

    def __init__(self) -> None:
        self.average: dict[str, Tensor] = {}
        self.step = 0

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
        decay = min(DECAY, (1 + self.step) / (10 + self.step)) if self.step else 0.0
        for name, value in pl_module.state_dict().items():
            old = self.average.get(name, value)
            new = decay * old + (1 - decay) * value if value.is_floating_point() else value
            self.average[name] = new.clone()
        self.step += 1


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Trainer, MLP, Reference]:
    torch.manual_seed(0)
    model, data, reference = MLP(widths=[16], batch_norm=True, ema=DECAY), MNISTDataModule("digits"), Reference()
    root = tmp_path_factory.mktemp("averaged")
    trainer = Trainer(max_epochs=2, callbacks=[*record(), reference], default_root_dir=str(root), **QUIET)
    trainer.fit(model, data)
    trainer.test(model, data, ckpt_path="last", verbose=False)
    return trainer, model, reference


def test_weights_and_batch_norm_statistics_are_averaged(trained: tuple[Trainer, MLP, Reference]) -> None:
    trainer, model, reference = trained
    saved = read_checkpoint(Run(str(trainer.log_dir)).last)
    assert reference.step == 22
    for name, value in reference.average.items():
        torch.testing.assert_close(saved["state_dict"][name], value)
        assert torch.equal(model.state_dict()[name], saved["state_dict"][name])
    last = saved["current_model_state"]
    assert not torch.equal(last["dense.0.weight"], saved["state_dict"]["dense.0.weight"])


def test_the_average_is_validated_and_tested(trained: tuple[Trainer, MLP, Reference]) -> None:
    trainer, _, _ = trained
    run = Run(str(trainer.log_dir))
    assert run.curve("val/loss")[-1] == pytest.approx(run.summary["val"]["loss"], rel=1e-5)
    data = MNISTDataModule("digits")
    data.setup("test")
    logits = load(str(run.folder)).classify(data.images_and_labels("test")[0])
    torch.testing.assert_close(logits, torch.from_numpy(run.logits))


def test_without_averaging_a_checkpoint_has_the_weights_only(tmp_path: Path, digits: MNISTDataModule) -> None:
    trainer = Trainer(max_steps=2, callbacks=record(), default_root_dir=str(tmp_path), **QUIET)
    trainer.fit(MLP(widths=[4]), digits)
    assert "current_model_state" not in read_checkpoint(Run(str(trainer.log_dir)).last)


@pytest.mark.parametrize("decay", [1.0, -0.1, float("nan")])
def test_a_decay_out_of_range_is_refused(decay: float) -> None:
    with pytest.raises(InputError, match="ema must be at least 0 and below 1"):
        MLP(ema=decay)
    assert MLP(ema=0.999).hparams["ema"] == 0.999

"""Work that training steps skip."""

import os

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from mnist_lightning import MLP, MNISTDataModule
from mnist_lightning.lean import IdleInSteps

GPU_SEARCH = "PYTORCH_NVML_BASED_CUDA_CHECK"
OPTIONS = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}


class Watch(Callback):
    """Records the variable of the GPU search and the name of the running hook in every step."""

    def __init__(self) -> None:
        self.values: set[tuple[str | None, str | None]] = set()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: object) -> None:
        self.values.add((os.environ.get(GPU_SEARCH), pl_module._current_fx_name))


@pytest.mark.skipif(torch.cuda.is_available(), reason="the search is needed where there is a GPU")
def test_a_plain_trainer_searches_for_a_gpu_outside_of_fits_only(
    digits: MNISTDataModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(GPU_SEARCH, "1")
    watch = Watch()
    Trainer(max_epochs=1, limit_train_batches=3, callbacks=[watch], **OPTIONS).fit(MLP(widths=[4]), digits)
    assert watch.values == {("0", "on_train_batch_end")}
    assert os.environ[GPU_SEARCH] == "1"


def test_a_variable_that_nobody_set_stays_unset(digits: MNISTDataModule, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(GPU_SEARCH, raising=False)
    watch = Watch()
    Trainer(max_epochs=1, limit_train_batches=1, callbacks=[watch], **OPTIONS).fit(MLP(widths=[4]), digits)
    assert watch.values == {(None, "on_train_batch_end")}
    assert GPU_SEARCH not in os.environ


def test_models_register_parameters_and_modules_as_before() -> None:
    model = MLP(widths=[4])
    model.scale, model.layer = nn.Parameter(torch.ones(1)), nn.Linear(1, 1)
    assert {"scale", "layer.weight", "layer.bias"} <= set(model.state_dict())


def test_idle_callbacks_keep_their_other_hooks(digits: MNISTDataModule) -> None:
    calls = []

    class Epochs(IdleInSteps):
        def on_train_epoch_end(self, *args: object) -> None:
            calls.append("epoch")

    Trainer(max_epochs=2, limit_train_batches=1, callbacks=[Epochs()], **OPTIONS).fit(MLP(widths=[4]), digits)
    assert calls == ["epoch", "epoch"]

"""`fit --distill_from`: a model learns the probabilities of trained models."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import LightningModule, Trainer
from torch.nn import functional as F

from mnist_lightning import MLP, Distillation, MNISTDataModule, load
from mnist_lightning.cli import main
from mnist_lightning.errors import InputError
from mnist_lightning.runs.checkpoint import read_checkpoint
from mnist_lightning.runs.run import Run
from mnist_lightning.training.tensorboard import TensorBoardFigures

OPTIONS = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}


def test_the_targets_are_the_mean_probabilities_of_all_runs(logs: Path, digits: MNISTDataModule) -> None:
    runs = [Run(logs / "lenet5" / f"version_{number}") for number in range(3)]
    teachers = [load(str(run.folder)) for run in runs if run.is_finished]
    batch = next(digits.batches("val"))
    expected = torch.stack([teacher(batch[0]).softmax(dim=1) for teacher in teachers]).mean(dim=0)
    torch.testing.assert_close(Distillation(logs / "lenet5").probabilities(batch), expected)


def test_a_student_learns_the_targets_and_not_the_labels(logs: Path, digits: MNISTDataModule) -> None:
    distillation = Distillation(logs / "mlp" / "version_0")
    student = MLP(widths=[8], label_smoothing=0.2)
    losses = []
    loss = student.loss
    student.loss = lambda *args: losses.append((args, loss(*args))) or losses[-1][1]  # type: ignore[method-assign]
    trainer = Trainer(max_steps=1, limit_val_batches=0, accelerator="cpu", callbacks=[distillation], **OPTIONS)
    trainer.fit(student, digits)
    (logits, targets, smoothing), value = losses[0]
    assert targets.shape == logits.shape
    torch.testing.assert_close(targets.sum(dim=1), torch.ones(len(targets)))
    torch.testing.assert_close(value, F.cross_entropy(logits, targets, label_smoothing=smoothing))
    assert student.teacher is None
    assert student.state_dict().keys() == MLP(widths=[8]).state_dict().keys()


@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
def test_certain_probabilities_are_labels(loss: str) -> None:
    model = MLP(loss=loss)
    logits, labels = torch.randn(5, 10), torch.arange(5)
    targets = F.one_hot(labels, 10).float()
    torch.testing.assert_close(model.loss(logits, targets, 0.1), model.loss(logits, labels, 0.1))


@pytest.mark.slow
def test_a_run_names_its_teachers_and_is_resumed_with_them(logs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TensorBoardFigures, "on_test_end", lambda *_: None)
    fit = ["fit", "--model=MLP", "--model.widths=[8]", "--data.source=digits", "--trainer.enable_progress_bar=false"]
    fit += [f"--distill_from={logs.relative_to(Path.cwd())}/lenet5", "--trainer.max_epochs=2"]
    main([*fit, "--experiment=whole"])
    whole = Run("lightning_logs/whole/version_0")
    assert yaml.safe_load(whole.config_file.read_text())["distill_from"] == str(logs / "lenet5")
    assert whole.settings["distill_from"] == str(logs / "lenet5")
    stop = Run("lightning_logs/cut/version_0")

    def interrupt(self: Distillation, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Distillation, "on_train_epoch_start", interrupt)
        with pytest.raises(SystemExit):
            main([*fit, "--experiment=cut"])
    assert not stop.is_finished
    main(["fit", f"--ckpt_path={stop.folder}"])
    one, two = (read_checkpoint(run.last)["state_dict"] for run in (whole, stop))
    assert all(torch.equal(one[key], two[key]) for key in one)


@pytest.mark.parametrize(
    ("path", "message"),
    [("nowhere", "nowhere"), (".", r"there is no finished run in .* to learn from")],
)
def test_teachers_that_do_not_exist(path: str, message: str, fails: Callable[..., str]) -> None:
    with pytest.raises(InputError, match=message):
        Distillation(path)
    assert "Traceback" not in fails("fit", "--model=MLP", "--data.source=digits", f"--distill_from={path}")


def test_teachers_of_other_classes_are_refused(logs: Path, digits: MNISTDataModule) -> None:
    distillation = Distillation(logs / "mlp" / "version_0")
    distillation._origins = {"model.ckpt": {"source": "kmnist", "classes": list("abcdefghij")}}
    trainer = Trainer(max_steps=1, accelerator="cpu", callbacks=[distillation], **OPTIONS)
    with pytest.raises(InputError, match=r"model\.ckpt was trained on kmnist, whose classes are not those of digits"):
        trainer.fit(MLP(widths=[8]), digits)

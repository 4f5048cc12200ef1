from pathlib import Path

import pytest
import torch

from mnist_lightning import DenseNet, InputError, MNISTDataModule
from mnist_lightning.evaluation.predictions import load_predictions, predict, save_predictions


def test_predicting_is_evaluation_and_leaves_the_model_as_it_was(digits: MNISTDataModule) -> None:
    model = DenseNet(growth_rate=4, blocks=[1, 1], stem=4).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    logits, labels = predict(model, digits.batches("val"))
    again, _ = predict(model, digits.batches("val"))
    assert torch.equal(logits, again)
    assert torch.equal(labels, digits.images_and_labels("val")[1])
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_predictions_survive_the_disk(tmp_path: Path) -> None:
    path = tmp_path / "test_predictions.npz"
    logits, labels = torch.randn(7, 10), torch.arange(7)
    save_predictions(path, logits, labels)
    saved_logits, saved_labels = load_predictions(path)
    assert torch.equal(saved_logits, logits)
    assert torch.equal(saved_labels, labels)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("size", [0, 10, 300])
def test_damaged_predictions_are_named(tmp_path: Path, size: int) -> None:
    path = tmp_path / "test_predictions.npz"
    save_predictions(path, torch.randn(70, 10), torch.arange(70))
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(InputError, match=r"test_predictions\.npz is damaged"):
        load_predictions(path)


def test_absent_predictions_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no predictions"):
        load_predictions(tmp_path / "none.npz")

from pathlib import Path

import numpy as np
import pytest
import torch

from mnist_lightning import DenseNet, InputError, MNISTDataModule
from mnist_lightning.runs.predictions import load_predictions, predict, save_predictions

LOGITS = np.random.default_rng(0).normal(size=(70, 10)).astype(np.float32)
LABELS = np.arange(70) % 10


def test_predict_evaluates_and_leaves_the_model_unchanged(digits: MNISTDataModule) -> None:
    model = DenseNet(growth_rate=4, blocks=[1, 1], stem=4).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    logits, labels = predict(model, digits.batches("val"))
    again, _ = predict(model, digits.batches("val"))
    assert torch.equal(logits, again)
    assert torch.equal(labels, digits.images_and_labels("val")[1])
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_saved_predictions_are_loaded_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "predictions.npz"
    save_predictions(path, LOGITS, LABELS)
    logits, labels = load_predictions(path)
    np.testing.assert_array_equal(logits, LOGITS, strict=True)
    np.testing.assert_array_equal(labels, LABELS, strict=True)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("size", [0, 10, 300])
def test_truncated_predictions_are_refused(tmp_path: Path, size: int) -> None:
    path = tmp_path / "predictions.npz"
    save_predictions(path, LOGITS, LABELS)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(InputError, match=r"predictions\.npz is damaged"):
        load_predictions(path)


def test_missing_predictions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there are no predictions at .*none\.npz"):
        load_predictions(tmp_path / "none.npz")

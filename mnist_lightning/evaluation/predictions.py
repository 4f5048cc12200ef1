"""Predictions: made outside a Trainer, written to disk, read back."""

from collections.abc import Iterable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mnist_lightning.classifier import Classifier
from mnist_lightning.errors import InputError
from mnist_lightning.files import write_whole


def predict(model: Classifier, batches: Iterable[Any]) -> tuple[Tensor, Tensor]:
    """A model's logits on some batches, in evaluation mode and without gradients.

    Args:
        model: Any classifier.
        batches: Batches on the model's device, as `data.batches("val")` gives them.

    Returns:
        Logits float [N, 10] and labels int64 [N], on the CPU.

    Example:
        >>> from mnist_lightning import MLP, MNISTDataModule
        >>> data = MNISTDataModule(source="digits")
        >>> data.setup("test")
        >>> logits, labels = predict(MLP(), data.batches("test"))
        >>> logits.shape, labels.shape
        (torch.Size([360, 10]), torch.Size([360]))
    """
    was_training = model.training
    model.eval()
    results = []
    with torch.inference_mode():
        for batch in batches:
            inputs, labels = model.unpack(batch)
            results.append((model(*inputs).float().cpu(), labels.cpu()))
    model.train(was_training)
    logits, labels = (torch.cat(parts) for parts in zip(*results, strict=True))
    return logits, labels


def save_predictions(path: Path, logits: Tensor, labels: Tensor) -> None:
    """Writes logits (as float32) and labels to an .npz file."""
    content = BytesIO()
    np.savez_compressed(content, logits=logits.numpy(), labels=labels.numpy())
    write_whole(path, content.getvalue())


def load_predictions(path: Path) -> tuple[Tensor, Tensor]:
    """Reads what `save_predictions` wrote.

    Raises:
        InputError: If the file is absent or damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return torch.from_numpy(arrays["logits"]), torch.from_numpy(arrays["labels"])
    except FileNotFoundError:
        raise InputError(f"there are no predictions at {path}") from None
    except Exception as error:  # a damaged archive can raise anything
        raise InputError(f"{path} is damaged: {error}") from error

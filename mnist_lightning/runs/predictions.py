"""Predictions of a model: computed without a Trainer, written to disk and read back."""

from collections.abc import Iterable
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mnist_lightning.errors import InputError
from mnist_lightning.files import write_whole

if TYPE_CHECKING:  # `compare --help` answers before torch is imported
    from torch import Tensor

    from mnist_lightning.classifier import Classifier


def predict(model: "Classifier", batches: "Iterable[Any]") -> "tuple[Tensor, Tensor]":
    """Computes a model's logits in evaluation mode, without gradients.

    Args:
        model: Any classifier.
        batches: Batches on the model's device, such as `data.batches("val")`.

    Returns:
        Logits, float [N, 10], and labels, int64 [N], on the CPU.

    Example:
        >>> from mnist_lightning import MLP, MNISTDataModule
        >>> data = MNISTDataModule(source="digits")
        >>> data.setup("test")
        >>> logits, labels = predict(MLP(), data.batches("test"))
        >>> logits.shape, labels.shape
        (torch.Size([360, 10]), torch.Size([360]))
    """
    import torch

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


def save_predictions(path: Path, logits: NDArray[np.float32], labels: NDArray[np.int64]) -> None:
    """Writes logits [N, 10] and labels [N] to an .npz file."""
    content = BytesIO()
    np.savez_compressed(content, logits=logits, labels=labels)
    write_whole(path, content.getvalue())


def load_predictions(path: Path) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Reads a file of `save_predictions`.

    Returns:
        Logits, float [N, 10], and labels, int64 [N].

    Raises:
        InputError: If the file is missing or damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return arrays["logits"], arrays["labels"]
    except FileNotFoundError:
        raise InputError(f"there are no predictions at {path}") from None
    except Exception as error:  # a damaged archive can raise anything
        raise InputError(f"{path} is damaged: {error}") from error

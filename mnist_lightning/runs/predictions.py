"""Predictions of a model: computed without a Trainer, written to disk and read back."""

from collections.abc import Iterable
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import ZipFile

import numpy as np
from numpy.typing import NDArray

from mnist_lightning.errors import InputError, one_line
from mnist_lightning.files import write_whole

if TYPE_CHECKING:  # `compare --help` answers before torch is imported
    from torch import Tensor

    from mnist_lightning.classifier import Classifier


_MAX_BYTES = 2**28  # unpacked: five million test images


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
        Logits, finite, float32 [N, 10], and labels from 0 to 9, int64 [N].

    Raises:
        InputError: If the file is missing or damaged.
    """
    if not path.is_file():  # opening a pipe would wait
        raise InputError(f"there are no predictions at {path}")
    try:
        with ZipFile(path) as archive:
            if sum(member.file_size for member in archive.infolist()) > _MAX_BYTES:
                raise InputError(f"it holds more than {_MAX_BYTES // 2**20} MiB")
        with np.load(path, allow_pickle=False) as arrays, np.errstate(over="ignore"):
            logits, labels = arrays["logits"], arrays["labels"]
            if labels.dtype.kind not in "iu" or logits.dtype.kind != "f" or logits.shape != (*labels.shape, 10):
                raise InputError(f"it holds logits {logits.dtype} {logits.shape}, labels {labels.dtype} {labels.shape}")
            if labels.ndim != 1 or not len(labels) or labels.min() < 0 or labels.max() > 9:
                raise InputError("its labels are not a list of digits from 0 to 9")
            logits = logits.astype(np.float32)
            if not np.isfinite(logits).all():
                raise InputError("some logits are infinite or NaN")
            return logits, labels.astype(np.int64)
    except Exception as error:  # a damaged archive can raise anything
        raise InputError(f"{path} is damaged: {one_line(error)}") from error

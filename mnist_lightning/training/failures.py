"""Failed trainings: refusals by Lightning become one line, and one of several processes prints it."""

import traceback
from pathlib import Path

import lightning
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException

_LIGHTNING = Path(lightning.__file__).parent
_REFUSALS_OF_TORCH = {
    "more than 1 value per channel": "batch norm needs two or more images in a training batch; use a larger "
    "--data.batch_size",
    "SyncBatchNorm": "trainer.sync_batchnorm needs GPUs; use --trainer.sync_batchnorm false",
}


def refusal(error: Exception) -> str | None:
    """Explains an error that the user's options caused, or returns None for a bug.

    Args:
        error: Error of a training. It is a refusal if a statement `raise` of Lightning raised it.
    """
    if isinstance(error, ValueError):
        for message, explanation in _REFUSALS_OF_TORCH.items():
            if message in str(error):
                return explanation
    last = traceback.extract_tb(error.__traceback__)[-1]
    by_lightning = last.filename.startswith(str(_LIGHTNING)) and str(last.line).startswith("raise ")
    return str(error) if by_lightning or isinstance(error, MisconfigurationException) else None


def fails_first() -> bool:
    """Whether no other process of this training has failed before: only the first one says why."""
    if not torch.distributed.is_initialized():
        return True
    try:
        return bool(torch.distributed.distributed_c10d._get_default_store().add("failed", 1) == 1)
    except torch.distributed.DistError:  # the process that holds the store has failed
        return False

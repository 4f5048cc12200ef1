"""Names a diverged training: losses and weights that are infinite or NaN."""

import math
from itertools import islice
from typing import Any

from lightning.pytorch import LightningModule
from torch import Tensor, nn

from mnist_lightning.errors import InputError, one_line


class NonFiniteLossError(InputError):
    """The training loss became infinite or NaN, so training stopped."""


def non_finite_loss(model: LightningModule, losses: list[float]) -> NonFiniteLossError:
    """Names the step and the cause. Call it only after a failure: checking every step would be slow.

    Args:
        model: The model in training.
        losses: Losses of the last steps.
    """
    last = (len(losses) - 1, math.inf)  # each loss may be finite while their sum overflows
    index, value = next(((index, loss) for index, loss in enumerate(losses) if not math.isfinite(loss)), last)
    # Lightning counts a step after training_step and before on_train_epoch_end.
    step = model.trainer.fit_loop.epoch_loop.total_batch_idx - len(losses) + 1 + index
    lr = model.hparams["lr"]
    tip = f"Try a lower learning rate (--model.lr is {lr}), --trainer.gradient_clip_val 1 or --trainer.precision 32"
    batches: Any = islice(model.trainer.train_dataloader, 10_000)  # type: ignore[arg-type]  # it may be endless
    inputs = (batch[0] for batch in batches if isinstance(batch, (tuple, list)))
    if count := sum(isinstance(x, Tensor) and not x.isfinite().all() for x in inputs):
        tip = f"The data are the cause: {count} training batches contain infinite values or NaN"
    where = f"step {step} (epoch {model.current_epoch})"
    return NonFiniteLossError(f"the training loss became {value} at {where}. {tip}")


def check_weights(model: nn.Module) -> None:
    """Refuses weights that are infinite or NaN, and buffers that are NaN. An attention mask may be infinite.

    Raises:
        InputError: If there are any.
    """
    broken = [name for name, weights in model.named_parameters() if not weights.isfinite().all()]
    broken += [name for name, values in model.named_buffers() if values.isnan().any()]
    if broken:
        raise InputError(
            f"the weights contain NaN or infinite values ({one_line(', '.join(broken), 80)}): the training diverged; "
            "train again with a lower learning rate"
        )

"""Exponential moving average of the weights in a training."""

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor


class MovingAverage(WeightAveraging):
    """Averages weights and batch norm statistics after every step; the average is validated, saved and kept.

    The averaging follows Polyak and Juditsky 1992 ("Acceleration of stochastic approximation by averaging"). After n
    steps the decay rate is at most (1 + n) / (10 + n), so that the average soon forgets the random initial weights.

    A checkpoint contains the averaged weights as `state_dict`. It also contains the weights of the last step, from
    which a stopped training is resumed.

    Args:
        decay: Decay rate, such as 0.999, which averages over about 1,000 steps.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        super().__init__(device=None, use_buffers=True, multi_avg_fn=self._update)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Moves the average to the model's device, which is not known before."""
        if self._average_model is not None:
            self._average_model.to(pl_module.device)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Restores average and weights of a training. A test needs the average only, which Lightning has loaded."""
        if self._average_model is not None:
            super().on_load_checkpoint(trainer, pl_module, checkpoint)

    def _update(self, averages: list[Tensor], values: list[Tensor], steps: Tensor | int) -> None:
        decay = min(self.decay, (1 + int(steps)) / (10 + int(steps)))
        if averages[0].is_floating_point():
            torch._foreach_lerp_(averages, values, 1 - decay)
        else:  # batch norm's number of batches
            torch._foreach_copy_(averages, values)

"""Optimisers and learning rate schedules of all models."""

import math
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch.optim import SGD, Adadelta, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, ExponentialLR, LRScheduler, MultiStepLR, OneCycleLR

from mnist_lightning.errors import InputError


def optimizer_and_schedule(model: LightningModule) -> OptimizerLRScheduler:
    """Builds the optimiser and the schedule of a model in training, as `configure_optimizers` returns them.

    All schedules but `exponential` end with the last training step.

    Args:
        model: A model with the hyper-parameters of `Classifier`.

    Raises:
        InputError: If the schedule needs a last step, and the training has none.
    """
    optimizer, name = _optimizer(model, model.hparams), model.hparams["schedule"]
    if name == "constant":
        return optimizer
    if name == "exponential":
        return {"optimizer": optimizer, "lr_scheduler": ExponentialLR(optimizer, gamma=0.7)}
    steps = model.trainer.estimated_stepping_batches
    if steps == math.inf:
        raise InputError(f"schedule {name} needs a last step; set --trainer.max_epochs or --trainer.max_steps")
    schedule = _schedule(optimizer, name, model.hparams["lr"], max(1, int(steps)))
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def _optimizer(model: LightningModule, hparams: Mapping[str, Any]) -> Optimizer:
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": hparams["weight_decay"]},
        {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    # Fused kernels unscale gradients themselves, so Lightning refuses to clip them in mixed precision.
    clips = model.trainer.gradient_clip_val or is_overridden("configure_gradient_clipping", model)
    fused = not (clips and "mixed" in str(model.trainer.precision))
    if hparams["optimizer"] == "sgd":
        momentum = hparams["momentum"]
        return SGD(groups, lr=hparams["lr"], momentum=momentum, nesterov=momentum > 0, fused=fused)
    if hparams["optimizer"] == "adadelta":  # without a fused kernel
        return Adadelta(groups, lr=hparams["lr"])
    cls = AdamW if hparams["optimizer"] == "adamw" else Adam
    return cls(groups, lr=hparams["lr"], betas=tuple(hparams["betas"]), fused=fused)


def _schedule(optimizer: Optimizer, name: str, lr: float, steps: int) -> LRScheduler:
    if name == "step":
        return MultiStepLR(optimizer, milestones=[steps // 2, steps * 3 // 4], gamma=0.1)
    if name == "cosine":
        return CosineAnnealingLR(optimizer, T_max=steps)
    return OneCycleLR(optimizer, max_lr=lr, total_steps=steps, cycle_momentum=False)

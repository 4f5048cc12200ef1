"""The same random numbers in a resumed training as in an uninterrupted one."""

import torch
from lightning.pytorch import LightningModule, Trainer

from mnist_lightning.data.images import mixed_seed
from mnist_lightning.lean import IdleInSteps


class ReproducibleEpochs(IdleInSteps):
    """Seeds dropout's random numbers at the start of every epoch, because checkpoints do not hold a generator's state.

    Args:
        seed: Seed of the run.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Seeds torch's generator by run, epoch and process."""
        torch.manual_seed(mixed_seed(self.seed, trainer.current_epoch, trainer.global_rank))

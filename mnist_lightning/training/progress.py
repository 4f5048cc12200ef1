"""Progress bar of a training."""

import time
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import RichProgressBar

from mnist_lightning.lean import IdleInSteps


class CalmProgressBar(IdleInSteps, RichProgressBar):
    """A progress bar that updates twice a second.

    Lightning's bar updates after every step, and its thread takes milliseconds of a core that the step needs.
    """

    def __init__(self) -> None:
        super().__init__(refresh_rate=20)  # checks of the thread, per second
        self._due = 0.0

    def on_train_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:  # type: ignore[override]
        """Updates the bar if half a second has passed."""
        if time.monotonic() >= self._due or trainer.is_last_batch:
            RichProgressBar.on_train_batch_end(self, trainer, *args, **kwargs)

    def refresh(self, hard: bool = False) -> None:
        """Draws the bar if half a second has passed, or at the end."""
        now = time.monotonic()
        if hard or now >= self._due:
            self._due = now + 0.5
            super().refresh(hard)

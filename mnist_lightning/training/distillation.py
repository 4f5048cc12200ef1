"""Distillation: a model learns the answers of trained models."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from mnist_lightning.classifier import Classifier
from mnist_lightning.errors import InputError
from mnist_lightning.lean import IdleInSteps
from mnist_lightning.runs.checkpoint import data_in, load, read_checkpoint
from mnist_lightning.runs.finding import existing, runs_at
from mnist_lightning.training.recording import own_data


class Distillation(IdleInSteps):
    """Replaces the labels of the training images by the mean probabilities of trained models.

    The teachers see each image as augmented for the student. The method is that of Hinton et al. 2015 ("Distilling the
    knowledge in a neural network", section 2) with temperature 1 and without labels.

    Args:
        path: A run or a checkpoint, or a folder that contains runs at any depth. All of them are teachers.

    Raises:
        InputError: If there is no run, or a run has no checkpoint that can be read.
    """

    def __init__(self, path: str | Path) -> None:
        path = existing(path)
        checkpoints = [path] if path.is_file() else [run.checkpoint() for run in runs_at(path, []) if run.is_finished]
        files = [file for file in checkpoints if file is not None]
        if not files:
            raise InputError(f"there is no finished run in {path} to learn from")
        self._teachers = [load(file) for file in files]
        self._origins = {str(file): data_in(read_checkpoint(file)) for file in files}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuses teachers of other classes, when the data are known."""
        data = own_data(trainer)
        if stage != "fit" or data is None:
            return
        for file, origin in self._origins.items():
            if origin.get("classes") not in (None, data.state_dict()["classes"]):
                source = origin["source"]
                raise InputError(f"{file} was trained on {source}, whose classes are not those of {data.source}")

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gives the model its teachers."""
        for teacher in self._teachers:
            teacher.to(pl_module.device)
        assert isinstance(pl_module, Classifier)
        pl_module.teacher = self.probabilities

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes the teachers away."""
        assert isinstance(pl_module, Classifier)
        pl_module.teacher = None

    @torch.no_grad()
    def probabilities(self, batch: Any) -> Tensor:
        """Computes the mean probabilities of the teachers, float [B, 10].

        Args:
            batch: Batch of the student's data.

        Raises:
            InputError: If a teacher takes other data, as a GNN does.
        """
        answers = [teacher(*teacher.unpack(batch)[0]).float().softmax(dim=1) for teacher in self._teachers]
        return torch.stack(answers).mean(dim=0)

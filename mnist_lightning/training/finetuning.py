"""Starts a training from the weights of another one."""

from pathlib import Path

from lightning.pytorch import LightningModule, Trainer
from torch import nn

from mnist_lightning.classifier import Classifier
from mnist_lightning.errors import InputError
from mnist_lightning.lean import IdleInSteps
from mnist_lightning.runs.checkpoint import data_in, find_checkpoint, read_weights
from mnist_lightning.training.recording import own_data


class InitialWeights(IdleInSteps):
    """Copies weights into a model before its training.

    The head, which is the last linear layer, keeps its initial weights if the classes differ.

    Args:
        path: A run, a checkpoint, or a state dict that was written by `torch.save`.
        model: The model that will be trained.

    Attributes:
        facts: Origin of the weights, for the run's summary.

    Raises:
        InputError: If the file cannot be read, or its weights do not fit the model.
    """

    def __init__(self, path: str | Path, model: Classifier) -> None:
        file = find_checkpoint(path)
        self._weights, checkpoint = read_weights(file)
        name, trained = type(model).__name__, str(checkpoint.get("classifier", "")).split(".")[-1]
        if trained not in ("", name):
            raise InputError(f"{file} contains a {trained}, but the model is a {name}")
        self._origin = data_in(checkpoint)
        self._head = _head_of(model)
        shapes = {key: tensor.shape for key, tensor in model.state_dict().items()}
        given = {key: tensor.shape for key, tensor in self._weights.items()}
        different = {key for key in shapes.keys() | given.keys() if shapes.get(key) != given.get(key)}
        if wrong := sorted(different - self._head):
            raise InputError(f"the weights in {file} do not fit this {name}; different are {', '.join(wrong[:5])}")
        self.facts = {
            "path": str(file.absolute()),
            "source": self._origin.get("source"),
            "head": "re-initialised" if different else "kept",
        }

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Copies the weights, when the data are known."""
        if stage != "fit":
            return
        data = own_data(trainer)
        if data is not None and self._origin.get("classes") not in (None, data.state_dict()["classes"]):
            self.facts["head"] = "re-initialised"
        skipped = self._head if self.facts["head"] != "kept" else set()
        weights = {key: tensor for key, tensor in self._weights.items() if key not in skipped}
        pl_module.load_state_dict(weights, strict=False)


def _head_of(model: nn.Module) -> set[str]:
    """Names of the parameters of a model's last linear layer."""
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    return {name for name, _ in model.named_parameters() if name.rpartition(".")[0] in linear[-1:]}

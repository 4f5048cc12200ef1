"""Base class of all models: steps, loss and metrics."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn import functional as F

from mnist_lightning.averaging import MovingAverage
from mnist_lightning.checks import at_least, check_plain, check_types, fraction, hints_of
from mnist_lightning.data.sources import CLASSES as CLASSES
from mnist_lightning.distributed import interleaved
from mnist_lightning.divergence import check_weights, non_finite_loss
from mnist_lightning.errors import InputError, one_line
from mnist_lightning.lean import LeanModule
from mnist_lightning.optimization import optimizer_and_schedule


class Standardize(nn.Module):
    """Subtracts MNIST's mean and divides by its standard deviation. The first layer of every image model.

    Standardisation belongs to the model, not to the data. Checkpoints, exported files and the web app therefore
    standardise images exactly as in training.

    Example:
        >>> round(Standardize()(torch.zeros(1, 1, 28, 28)).mean().item(), 4)
        -0.4242
    """

    mean = 0.1307
    std = 0.3081

    def forward(self, images: Tensor) -> Tensor:
        """Maps images, float [B, 1, 28, 28] in [0, 1], to the same shape with zero mean and unit variance on MNIST."""
        return (images - self.mean) / self.std


class Classifier(LeanModule, LightningModule, ABC):
    """Base class of all models. A subclass defines `forward`, and an `__init__` that passes `**training` on.

    Logs `train/loss train/acc val/loss val/acc test/loss test/acc` and `lr`. Training metrics are means over the steps
    since the last log (every `log_every_n_steps` and at the end of an epoch), on augmented images and with the weights
    of each step. Logged losses exclude label smoothing.

    Args:
        loss: `cross_entropy`, or `mse` between softmax probabilities and one-hot labels.
        label_smoothing: Fraction of the training target that is spread over all classes (Szegedy et al. 2016).
        optimizer: `sgd` (with Nesterov momentum if `momentum` is not 0), `adam`, `adamw` or `adadelta` (Zeiler 2012).
        lr: Learning rate; the maximum if there is a schedule.
        momentum: SGD momentum, 0 for none.
        betas: Decay rates of the moving averages of `adam` and `adamw`.
        weight_decay: Weight decay for weight matrices and kernels; biases and norm layers are excluded.
        schedule: Learning rate schedule: `constant`; `step`, divided by 10 after 1/2 and 3/4 of the training;
            `cosine`, down to zero (Loshchilov and Hutter 2017, without restarts); `onecycle` (Smith and Topin 2018);
            `exponential`, multiplied by 0.7 after each epoch (PyTorch's MNIST example).
        ema: Decay rate of the exponential moving average of the weights, which is validated, saved and tested in place
            of the weights; 0 for none. 0.999 averages over about 1,000 steps.
        compile: Whether to run `forward` through `torch.compile`. Checkpoints are the same with and without it.

    Attributes:
        predictions: Logits [N, 10] and labels [N] of the whole split, in its order, on the CPU, for each finished stage
            ("val", "test" or "predict"). They are the same in every process.
        teacher: Maps a training batch to the probabilities [B, 10] that replace its labels (see `Distillation`).

    Raises:
        InputError: If an argument, also one of a subclass, does not fit its type hint or cannot be stored in a
            checkpoint, or a number is out of range.
    """

    def __init__(
        self,
        loss: Literal["cross_entropy", "mse"] = "cross_entropy",
        label_smoothing: float = 0.0,
        optimizer: Literal["sgd", "adam", "adamw", "adadelta"] = "adamw",
        lr: float = 1e-3,
        momentum: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
        schedule: Literal["constant", "step", "cosine", "onecycle", "exponential"] = "constant",
        ema: float = 0.0,
        compile: bool = False,  # noqa: A002 - named like torch.compile
    ) -> None:
        super().__init__()
        self.save_hyperparameters()  # includes the subclass's arguments
        check_types(hints_of(type(self)), self.hparams)
        check_plain(self.hparams)
        if not 0 < lr < math.inf:
            raise InputError(f"lr must be positive and finite, got {lr}")
        at_least(0, weight_decay=weight_decay)
        fraction(label_smoothing=label_smoothing, momentum=momentum, betas=betas, ema=ema)
        self.predictions: dict[str, tuple[Tensor, Tensor]] = {}
        self.teacher: Callable[[Any], Tensor] | None = None
        self.example_input_array = torch.zeros(1, 1, 28, 28)
        self._evaluated: list[tuple[Tensor, Tensor]] = []  # logits and labels of each batch of the split
        self._unlogged: list[tuple[Tensor, Tensor]] = []  # logits and labels of each training step since the last log

    @staticmethod
    def of(module: nn.Module, **training: Any) -> "Classifier":
        """Makes a classifier of a plain module, to train, compare and explain it like the models of this package.

        A checkpoint holds the module's weights, but not its class. `load` needs a module to put the weights into:
        `load(path, module=MyNet())`.

        Args:
            module: Maps images, float [B, 1, 28, 28] in [0, 1], to logits [B, 10]. Nothing standardises the images for
                it; it may begin with `Standardize()`.
            **training: Loss, optimiser and schedule, as in `Classifier`.

        Raises:
            InputError: If `module` is not a module, or an argument is not accepted.

        Example:
            >>> model = Classifier.of(nn.Sequential(Standardize(), nn.Flatten(), nn.Linear(784, 10)), lr=0.01)
        """
        if not isinstance(module, nn.Module) or isinstance(module, Classifier):
            raise InputError(f"Classifier.of takes a plain torch.nn.Module, got {one_line(repr(module), 80)}")
        model = _Wrapped(**training)
        model.module = module
        return model

    @property
    def architecture(self) -> type[nn.Module]:
        """Class that names the model in tables and checkpoints."""
        return type(self)

    def setup(self, stage: str) -> None:
        """Compiles `forward` if `compile` is set."""
        if self.hparams["compile"] and self._compiled_call_impl is None:  # setup runs once per stage
            self.compile()

    @abstractmethod
    def forward(self, *inputs: Any) -> Tensor:
        """Maps the inputs from `unpack` to logits [B, 10]."""

    def unpack(self, batch: Any) -> tuple[tuple[Tensor, ...], Tensor]:
        """Splits a batch into the inputs of `forward` and the labels. Override it if your model takes other data.

        Raises:
            InputError: If the model cannot use the batch.
        """
        if isinstance(batch, (tuple, list)) and len(batch) == 2:
            images, labels = batch
            if isinstance(images, Tensor) and images.is_floating_point() and images.shape[1:] == (1, 28, 28):
                return (images,), labels
        raise self._wrong_batch("batches (images, labels) with float images [B, 1, 28, 28]", batch)

    def inputs(self, digits: Tensor) -> tuple[Tensor, ...]:
        """Converts digits to the inputs of `forward`. Override it together with `unpack`.

        Args:
            digits: Images, uint8 [N, 28, 28].
        """
        return (digits.to(self.device).unsqueeze(1).float().div_(255),)

    @torch.no_grad()
    def classify(self, digits: Tensor, shifts: bool = False) -> Tensor:
        """Computes the logits of digits, for image and graph models alike. Call `eval()` first.

        Args:
            digits: Images, uint8 [N, 28, 28], light on dark and centred as in MNIST (see `handwriting.digit_of`).
            shifts: Whether to average the probabilities over five positions of each digit: as it is, and one pixel up,
                down, left and right. A GNN divides each of the five into superpixels of its own. Takes five times as
                long.

        Returns:
            Logits, float [N, 10], on the CPU.

        Raises:
            InputError: If `digits` has another type or shape, or the logits are not finite.
        """
        if digits.dtype != torch.uint8 or digits.shape[1:] != (28, 28):
            raise InputError(f"digits must be a uint8 tensor [N, 28, 28], got {_describe(digits)}")
        if not len(digits):
            return torch.empty(0, CLASSES)
        # With 512, a GNN takes 2.5 times as long per digit.
        parts = torch.split(digits, 256)
        if shifts:
            logits = torch.cat([self._over_shifts(part) for part in parts])
        else:
            logits = torch.cat([self(*self.inputs(part)).float().cpu() for part in parts])
        if failed := int(logits.softmax(dim=1).isnan().any(dim=1).sum()):
            raise InputError(
                f"the logits of {self.architecture.__name__} are NaN or infinite for {failed} of {len(digits)} digits"
            )
        return logits

    def _over_shifts(self, digits: Tensor) -> Tensor:
        """Logarithm of the mean probabilities [N, 10] over five positions."""
        wide = F.pad(digits, (1, 1, 1, 1))
        views = [wide[:, y : y + 28, x : x + 28] for y, x in ((1, 1), (0, 1), (2, 1), (1, 0), (1, 2))]
        logs = torch.stack([self(*self.inputs(view)).float().cpu().log_softmax(dim=1) for view in views])
        return logs.logsumexp(dim=0) - math.log(len(views))

    def _wrong_batch(self, expected: str, batch: Any) -> InputError:
        data = getattr(self._trainer, "datamodule", None)
        loader = type(data).__name__ if data is not None else "the data loader"
        return InputError(f"{self.architecture.__name__} takes {expected}, but {loader} returned {_describe(batch)}")

    def loss(self, logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
        """Computes the loss, always in 32 bits.

        Args:
            logits: Float [B, 10].
            labels: int64 [B], or probabilities, float [B, 10].
            label_smoothing: Fraction of the target that is spread over all classes.

        Returns:
            Mean over the batch, a scalar.

        Raises:
            InputError: If `logits` has another shape.
        """
        if logits.shape != (len(labels), CLASSES):
            raise InputError(f"{self.architecture.__name__} must return logits [B, {CLASSES}], got {_describe(logits)}")
        logits = logits.float()
        if self.hparams["loss"] == "cross_entropy":
            return F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
        target = labels if labels.ndim > 1 else F.one_hot(labels, CLASSES).float()
        return F.mse_loss(logits.softmax(dim=1), target * (1 - label_smoothing) + label_smoothing / CLASSES)

    def on_train_start(self) -> None:
        """Forgets the steps of a learning rate search, which are no part of the training."""
        self._unlogged.clear()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Computes the loss. Metrics are logged every `log_every_n_steps` only, because they are slow."""
        inputs, labels = self.unpack(batch)
        logits = self(*inputs)
        self._unlogged.append((logits.detach(), labels))
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every and (batch_idx + 1) % every == 0:
            self._log_training()
        targets = labels if self.teacher is None else self.teacher(batch)
        return self.loss(logits, targets, self.hparams["label_smoothing"])

    def on_train_epoch_end(self) -> None:
        """Logs the metrics of the epoch's last steps."""
        if self._unlogged:
            self._log_training()

    def _log_training(self) -> None:
        steps = self._unlogged.copy()
        self._unlogged.clear()
        logits, labels = (torch.cat(parts) for parts in zip(*steps, strict=True))
        # Without label smoothing, losses of train, validation and other runs are comparable.
        loss, accuracy = self.loss(logits, labels), (logits.argmax(dim=1) == labels).float().mean()
        if not loss.isfinite():
            raise non_finite_loss(self, [float(self.loss(*step)) for step in steps])
        self.log_dict({"train/loss": loss, "train/acc": accuracy}, prog_bar=True, sync_dist=True)
        self.log("lr", self.trainer.optimizers[0].param_groups[0]["lr"], sync_dist=True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the name of the class to the checkpoint, so that it can be loaded without a config."""
        checkpoint["classifier"] = f"{self.architecture.__module__}.{self.architecture.__qualname__}"

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Loads weights. The arguments are those of `torch.nn.Module.load_state_dict`.

        Raises:
            InputError: If the weights do not fit the model, or are not finite.
        """
        try:
            result = super().load_state_dict(state_dict, *args, **kwargs)
        except (RuntimeError, TypeError, AttributeError) as error:
            misfits = one_line(str(error).partition(":\n\t")[2] or error)
            raise InputError(
                f"the weights do not fit the current class {self.architecture.__name__}: {misfits}"
            ) from error
        check_weights(self)
        return result

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Returns the batch's logits [B, 10]. The metrics are computed once, at the end of the epoch."""
        inputs, labels = self.unpack(batch)
        logits: Tensor = self(*inputs).float()
        self._evaluated.append((logits, labels))
        return logits

    validation_step = test_step = predict_step

    def on_validation_epoch_end(self) -> None:
        """Logs `val/loss` and `val/acc`."""
        self._log_evaluation("val")

    def on_test_epoch_end(self) -> None:
        """Logs `test/loss` and `test/acc`."""
        self._log_evaluation("test")

    def on_predict_epoch_end(self) -> None:
        """Adds `predictions["predict"]`."""
        self.predictions["predict"] = self._gather()

    def _log_evaluation(self, split: str) -> None:
        logits, labels = self.predictions[split] = self._gather()
        accuracy = (logits.argmax(dim=1) == labels).float().mean()
        metrics = {f"{split}/loss": self.loss(logits, labels), f"{split}/acc": accuracy}
        # All processes have the same metrics. Without sync_dist, Lightning warns that they may differ.
        self.log_dict(metrics, prog_bar=split == "val", sync_dist=True)

    def _gather(self) -> tuple[Tensor, Tensor]:
        """Gathers logits and labels from all processes, in the order of the split."""
        logits, labels = (torch.cat(parts) for parts in zip(*self._evaluated, strict=True))
        self._evaluated.clear()
        if self.trainer.world_size > 1:
            logits, labels = interleaved(logits), interleaved(labels)
        return logits.cpu(), labels.cpu()

    def configure_callbacks(self) -> list[Callback]:
        """Adds the averaging of the weights to the Trainer."""
        return [MovingAverage(self.hparams["ema"])] if self.hparams["ema"] else []

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Builds the optimiser and the schedule."""
        return optimizer_and_schedule(self)


class _Wrapped(Classifier):
    """A plain module, see `Classifier.of`. The module is no argument, because a checkpoint cannot hold it."""

    module: nn.Module

    @property
    def architecture(self) -> type[nn.Module]:
        return type(self.module)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.module(images)
        return logits


def _describe(batch: Any) -> str:
    if isinstance(batch, Tensor):
        return f"a {str(batch.dtype).removeprefix('torch.')} tensor {list(batch.shape)}"
    if isinstance(batch, (tuple, list)):
        return f"a {type(batch).__name__} of " + ", ".join(_describe(part) for part in batch)
    return f"a {type(batch).__name__}"

"""What all models share: steps, loss, metrics, optimiser, schedule."""

import math
from abc import ABC, abstractmethod
from itertools import islice
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LRScheduler, MultiStepLR, OneCycleLR

from mnist_lightning.errors import InputError

CLASSES = 10


class NonFiniteLossError(InputError):
    """The loss became infinite or not a number; nothing that comes after it is worth anything."""


class Standardize(nn.Module):
    """Subtracts MNIST's mean and divides by its standard deviation: the first layer of every image model.

    It belongs to the model and not to the data, so that a checkpoint, an exported file and a web page cannot
    disagree with training.

    Example:
        >>> round(Standardize()(torch.zeros(1, 1, 28, 28)).mean().item(), 4)
        -0.4242
    """

    mean = 0.1307
    std = 0.3081

    def forward(self, images: Tensor) -> Tensor:
        """Maps float [B, 1, 28, 28] in [0, 1] to the same shape with zero mean and unit variance on MNIST."""
        return (images - self.mean) / self.std


class Classifier(LightningModule, ABC):
    """Base of all models: a subclass defines `__init__`, which passes `**training` on, and `forward`.

    Logs `train/loss train/acc val/loss val/acc test/loss test/acc` and `lr`. Training values are means over the
    steps since they were last logged (every `log_every_n_steps` and at the end of an epoch), of the weights as they
    were, on the images as they were distorted. No loss that is logged has label smoothing in it.

    Args:
        loss: `cross_entropy`, or `mse` between softmax probabilities and one-hot labels.
        label_smoothing: Share of the training target that is spread over all classes (Szegedy et al. 2016).
        optimizer: `sgd` (with Nesterov momentum, where there is momentum), `adam` or `adamw`.
        lr: Learning rate; with the schedules it is the highest.
        momentum: Of `sgd`.
        betas: Of `adam` and `adamw`.
        weight_decay: Of weight matrices and kernels; biases and normalisations are not decayed.
        schedule: `constant`; `step`: a tenth at 1/2 and 3/4 of the training; `cosine` to zero (Loshchilov and
            Hutter 2017, without restarts); `onecycle` (Smith and Topin 2018).
        compile: Runs `forward` through `torch.compile`. Checkpoints are the same with and without it.

    Attributes:
        predictions: After a validation ("val"), test ("test") or prediction ("predict"): logits [N, 10] and
            labels [N] of the whole split, in its order, on the CPU, the same on every process.
    """

    def __init__(
        self,
        loss: Literal["cross_entropy", "mse"] = "cross_entropy",
        label_smoothing: float = 0.0,
        optimizer: Literal["sgd", "adam", "adamw"] = "adamw",
        lr: float = 1e-3,
        momentum: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
        schedule: Literal["constant", "step", "cosine", "onecycle"] = "constant",
        compile: bool = False,  # noqa: A002 - the name that torch has for it
    ) -> None:
        super().__init__()
        if not 0 < lr < math.inf:
            raise InputError(f"lr is {lr}; it must be positive")
        if not 0 <= weight_decay < math.inf:
            raise InputError(f"weight_decay is {weight_decay}; it must be 0 or more")
        for name, share in (("label_smoothing", label_smoothing), ("momentum", momentum)):
            if not 0 <= share < 1:
                raise InputError(f"{name} is {share}; it must be at least 0 and below 1")
        self.save_hyperparameters()  # finds the subclass's arguments too
        self.predictions: dict[str, tuple[Tensor, Tensor]] = {}
        self.example_input_array = torch.zeros(1, 1, 28, 28)
        self._collected: list[tuple[Tensor, Tensor]] = []
        self._since_logged: list[tuple[Tensor, Tensor]] = []  # logits and labels of each step

    def __setattr__(self, name: str, value: Any) -> None:
        # Lightning notes the running hook's name 42 times a step, and torch looks each time whether it is a parameter.
        if name == "_current_fx_name":
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    def setup(self, stage: str) -> None:
        """Compiles, where that was asked for."""
        if self.hparams["compile"] and self._compiled_call_impl is None:  # each stage sets the model up
            self.compile()

    @abstractmethod
    def forward(self, *inputs: Any) -> Tensor:
        """Maps what `unpack` takes out of a batch to logits [B, 10]."""

    def unpack(self, batch: Any) -> tuple[tuple[Tensor, ...], Tensor]:
        """Divides a batch into what `forward` takes and the labels; a model of other data overrides this.

        Raises:
            InputError: If this is no batch that the model can take.
        """
        if isinstance(batch, (tuple, list)) and len(batch) == 2:
            images, labels = batch
            if isinstance(images, Tensor) and images.is_floating_point() and images.shape[1:] == (1, 28, 28):
                return (images,), labels
        raise self._refusal("batches (images, labels) with float images [B, 1, 28, 28]", batch)

    def inputs(self, digits: Tensor) -> tuple[Tensor, ...]:
        """What `forward` takes, of digits as they are in files; a model of other data overrides this.

        Args:
            digits: uint8 [N, 28, 28].
        """
        return (digits.to(self.device).unsqueeze(1).float().div_(255),)

    @torch.no_grad()
    def classify(self, digits: Tensor) -> Tensor:
        """Logits of digits as they are in files, whatever the model is made for; in evaluation mode, for use.

        Args:
            digits: uint8 [N, 28, 28], light on dark, in MNIST's manner (`handwriting.digit_of` makes them so).

        Returns:
            float [N, 10], on the CPU.

        Raises:
            InputError: If these are no such digits.
        """
        if digits.dtype != torch.uint8 or digits.shape[1:] != (28, 28):
            raise InputError(f"digits are {_description(digits)}; they must be uint8 [N, 28, 28]")
        if not len(digits):
            return torch.empty(0, CLASSES)
        # Of 512 at once, a GNN takes 2.5 times as long for each digit.
        return torch.cat([self(*self.inputs(part)).float().cpu() for part in torch.split(digits, 256)])

    def _refusal(self, wanted: str, batch: Any) -> InputError:
        data = getattr(self._trainer, "datamodule", None)
        giver = type(data).__name__ if data is not None else "the data loader"
        return InputError(f"{type(self).__name__} takes {wanted}, but {giver} gave it {_description(batch)}")

    def loss(self, logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
        """The loss, always computed in 32 bits.

        Args:
            logits: [B, 10].
            labels: int64 [B].
            label_smoothing: Share of the target that is spread over all classes.

        Returns:
            A scalar, the mean over the batch.
        """
        logits = logits.float()
        if self.hparams["loss"] == "cross_entropy":
            return F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
        classes = logits.shape[1]
        target = F.one_hot(labels, classes).float() * (1 - label_smoothing) + label_smoothing / classes
        return F.mse_loss(logits.softmax(dim=1), target)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """One step; keeps its logits and logs now and then, because metrics are not free."""
        inputs, labels = self.unpack(batch)
        logits = self(*inputs)
        self._since_logged.append((logits.detach(), labels))
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every and (batch_idx + 1) % every == 0:
            self._log_training()
        return self.loss(logits, labels, self.hparams["label_smoothing"])

    def on_train_epoch_end(self) -> None:
        """Logs what the epoch's last steps have left."""
        if self._since_logged:
            self._log_training()

    def _log_training(self) -> None:
        steps = self._since_logged.copy()
        self._since_logged.clear()
        logits, labels = (torch.cat(parts) for parts in zip(*steps, strict=True))
        # Without label smoothing, so that curves of train and validation, and of all runs, can be compared.
        loss, accuracy = self.loss(logits, labels), (logits.argmax(dim=1) == labels).float().mean()
        if not loss.isfinite():
            self._stop_on_non_finite([float(self.loss(*step)) for step in steps])
        self.log_dict({"train/loss": loss, "train/acc": accuracy}, prog_bar=True, sync_dist=True)
        self.log("lr", self.trainer.optimizers[0].param_groups[0]["lr"], sync_dist=True)

    def _stop_on_non_finite(self, losses: list[float]) -> None:
        last = (len(losses) - 1, math.inf)  # if only their sum is too large
        index, value = next(((index, loss) for index, loss in enumerate(losses) if not math.isfinite(loss)), last)
        # training_step is called before the step is counted, on_train_epoch_end after it.
        step = self.trainer.fit_loop.epoch_loop.total_batch_idx - len(losses) + 1 + index
        remedy = (
            f"Try a lower learning rate (--model.lr is {self.hparams['lr']}), --trainer.gradient_clip_val 1, or "
            "--trainer.precision 32"
        )
        if bad := self._batches_that_are_not_finite():
            remedy = f"It is the data: {bad} of the training batches hold values that are not finite"
        where = f"step {step} (epoch {self.current_epoch})"
        raise NonFiniteLossError(f"the training loss became {value} at {where}. {remedy}")

    def _batches_that_are_not_finite(self) -> int:
        """Looked for when all is lost already: in every step it would cost time."""
        batches = islice(self.trainer.train_dataloader, 10_000)  # type: ignore[arg-type]  # there may be no end
        inputs = (batch[0] for batch in batches if isinstance(batch, (tuple, list)))
        return sum(isinstance(x, Tensor) and x.is_floating_point() and not x.isfinite().all() for x in inputs)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Writes down which class this is: the weights alone do not tell."""
        checkpoint["classifier"] = f"{type(self).__module__}.{type(self).__qualname__}"

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Keeps the batch's logits; all metrics are computed once an epoch from all of them."""
        self._collect(batch)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Keeps the batch's logits."""
        self._collect(batch)

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Returns the batch's logits [B, 10]."""
        return self._collect(batch)

    def on_validation_epoch_end(self) -> None:
        """Logs `val/loss` and `val/acc`."""
        self._log_evaluation("val")

    def on_test_epoch_end(self) -> None:
        """Logs `test/loss` and `test/acc`."""
        self._log_evaluation("test")

    def on_predict_epoch_end(self) -> None:
        """Completes `predictions`."""
        self.predictions["predict"] = self._gather_collected()

    def _collect(self, batch: Any) -> Tensor:
        inputs, labels = self.unpack(batch)
        logits: Tensor = self(*inputs).float()
        self._collected.append((logits, labels))
        return logits

    def _log_evaluation(self, split: str) -> None:
        logits, labels = self.predictions[split] = self._gather_collected()
        accuracy = (logits.argmax(dim=1) == labels).float().mean()
        metrics = {f"{split}/loss": self.loss(logits, labels), f"{split}/acc": accuracy}
        # All processes have the same numbers; sync_dist is what keeps Lightning from warning that they may not.
        self.log_dict(metrics, prog_bar=split == "val", sync_dist=True)

    def _gather_collected(self) -> tuple[Tensor, Tensor]:
        """Logits and labels of all processes, in the split's order."""
        logits, labels = (torch.cat(parts) for parts in zip(*self._collected, strict=True))
        self._collected.clear()
        if self.trainer.world_size > 1:
            logits, labels = _interleaved(logits), _interleaved(labels)
        return logits.cpu(), labels.cpu()

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimiser, and the schedule sized to the training's steps."""
        optimizer = self._optimizer()
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": self._scheduler(optimizer), "interval": "step", "name": None},
        }

    def _optimizer(self) -> Optimizer:
        hparams = self.hparams
        decayed = [p for p in self.parameters() if p.ndim > 1]
        plain = [p for p in self.parameters() if p.ndim <= 1]
        groups = [
            {"params": decayed, "weight_decay": hparams["weight_decay"]},
            {"params": plain, "weight_decay": 0.0},
        ]
        # The fused kernels unscale gradients themselves, which Lightning cannot combine with clipping in 16-mixed.
        fused = self.trainer.precision != "16-mixed"
        if hparams["optimizer"] == "sgd":
            momentum = hparams["momentum"]
            return SGD(groups, lr=hparams["lr"], momentum=momentum, nesterov=momentum > 0, fused=fused)
        cls = AdamW if hparams["optimizer"] == "adamw" else Adam
        return cls(groups, lr=hparams["lr"], betas=tuple(hparams["betas"]), fused=fused)

    def _scheduler(self, optimizer: Optimizer) -> LRScheduler:
        name = self.hparams["schedule"]
        if name == "constant":
            return LambdaLR(optimizer, _unchanged)
        steps = self.trainer.estimated_stepping_batches
        if steps == float("inf"):
            raise InputError(
                f"the schedule `{name}` needs an end of training: set --trainer.max_epochs or --trainer.max_steps"
            )
        steps = max(1, int(steps))
        if name == "step":
            return MultiStepLR(optimizer, milestones=[steps // 2, steps * 3 // 4], gamma=0.1)
        if name == "cosine":
            return CosineAnnealingLR(optimizer, T_max=steps)
        return OneCycleLR(optimizer, max_lr=self.hparams["lr"], total_steps=steps, cycle_momentum=False)


def _unchanged(step: int) -> float:
    return 1.0  # a function and no lambda, because LambdaLR's state must be plain


def _interleaved(shard: Tensor) -> Tensor:
    """All processes' shards in the split's order: process r of W holds the elements r, r + W, r + 2W, ..."""
    from torchmetrics.utilities.distributed import gather_all_tensors

    shards = gather_all_tensors(shard)
    whole = shard.new_empty((sum(map(len, shards)), *shard.shape[1:]))
    for rank, part in enumerate(shards):
        whole[rank :: len(shards)] = part
    return whole


def _description(batch: Any) -> str:
    if isinstance(batch, Tensor):
        return f"a {str(batch.dtype).removeprefix('torch.')} tensor {list(batch.shape)}"
    if isinstance(batch, (tuple, list)):
        return f"a {type(batch).__name__} of " + ", ".join(_description(part) for part in batch)
    return f"a {type(batch).__name__}"

"""Gain of each item of `mnist_lightning/lean.py`, and the cost of a plain Trainer over a bare loop.

Gains are shares of a training step of the default MLP in a plain `lightning.Trainer`: real MNIST, batches of 128, one
thread, no checkpoints, no validation. The script switches one item off at a time, in alternation. The gain of
`IdleInSteps` is measured with the command line's five callbacks. All times are CPU times of the main thread, because
other processes hardly affect them.

    python benchmarks/lean.py                 # writes results/lean.json, about 3 minutes
"""

import argparse
import json
import logging
import os
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from statistics import median
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from throughput import machine, terminal
from torch.nn import functional as F

from mnist_lightning import MLP, MNISTDataModule
from mnist_lightning.lean import IdleInSteps, LeanModule
from mnist_lightning.training.checkpoints import LastCheckpoint
from mnist_lightning.training.recording import RunRecorder
from mnist_lightning.training.reproducibility import ReproducibleEpochs
from mnist_lightning.training.tensorboard import TensorBoardFigures

RESULTS = Path(__file__).parent / "results" / "lean.json"
BATCH = 128
HOOKS = [name for name, hook in vars(IdleInSteps).items() if hook is None]
GPU_SEARCH = "PYTORCH_NVML_BASED_CUDA_CHECK"


class Clock(Callback):
    """Measures the milliseconds per step of an epoch."""

    def on_train_epoch_start(self, *_: Any) -> None:
        """Starts the clock."""
        self.began = time.thread_time()

    def on_train_epoch_end(self, trainer: Trainer, *_: Any) -> None:
        """Stops the clock."""
        self.milliseconds = 1000 * (time.thread_time() - self.began) / trainer.num_training_batches


for hook in HOOKS:  # Clock must stay idle in steps while IdleInSteps is switched off
    setattr(Clock, hook, None)


@contextmanager
def without(cls: type, names: Sequence[str]) -> Iterator[None]:
    """Removes attributes of a class, which then inherits them."""
    removed = {name: vars(cls)[name] for name in names}
    for name in names:
        delattr(cls, name)
    try:
        yield
    finally:
        for name, value in removed.items():
            setattr(cls, name, value)


def step(data: MNISTDataModule, off: AbstractContextManager[Any] | None = None, callbacks: bool = False) -> float:
    """Measures the milliseconds per step of a Trainer.

    Args:
        data: The data module.
        off: Context in which an item is switched off.
        callbacks: Add the command line's callbacks. They write checkpoints after the epoch, which is not measured.
    """
    os.environ[GPU_SEARCH] = "1"  # as set by Lightning
    clock = Clock()
    used: list[Callback] = [clock]
    if callbacks:
        used += [
            ReproducibleEpochs(0),
            RunRecorder("lean", 0),
            TensorBoardFigures(),
            LastCheckpoint(),
        ]
    with tempfile.TemporaryDirectory() as folder, terminal(), off or nullcontext():
        trainer = Trainer(
            max_epochs=1,
            accelerator="cpu",
            limit_val_batches=0,
            enable_checkpointing=callbacks,
            default_root_dir=folder,
            callbacks=used,
        )
        trainer.fit(MLP(), data)
    return clock.milliseconds


def bare(data: MNISTDataModule, gpu_search: str) -> float:
    """Measures the milliseconds per step of a bare loop with the same model and optimizer.

    Args:
        data: The data module.
        gpu_search: "1" as in a process that has imported Lightning, "0" as in one that has not.
    """
    os.environ[GPU_SEARCH] = gpu_search
    model = MLP()
    optimizer = torch.optim.AdamW(model.parameters(), lr=model.hparams["lr"], fused=True)
    images, labels = data.images_and_labels("train")
    batches = torch.randperm(len(labels)).split(BATCH)
    began = time.thread_time()
    for index in batches:
        loss = F.cross_entropy(model(images[index].unsqueeze(1).float().div_(255)), labels[index])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return 1000 * (time.thread_time() - began) / len(batches)


def main() -> None:
    """Measures and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    data = MNISTDataModule(batch_size=BATCH)
    data.setup("fit")
    bare(data, "0")  # warm-up
    rounds = []
    for _ in range(arguments.rounds):
        row = {
            "bare loop": bare(data, "0"),
            "bare loop, Lightning imported": bare(data, "1"),
            "plain": step(data),
            "without __setattr__": step(data, without(LeanModule, ["__setattr__"])),
            "without on_fit_start": step(data, without(LeanModule, ["on_fit_start", "on_fit_end"])),
            "callbacks": step(data, callbacks=True),
            "callbacks without IdleInSteps": step(data, without(IdleInSteps, HOOKS), callbacks=True),
        }
        rounds.append(row)
        print({way: round(value, 3) for way, value in row.items()}, flush=True)
    pairs = {
        "LeanModule.__setattr__": ("without __setattr__", "plain"),
        "LeanModule.on_fit_start": ("without on_fit_start", "plain"),
        "IdleInSteps": ("callbacks without IdleInSteps", "callbacks"),
    }
    gains = {item: [100 * (r[off] - r[on]) / r["plain"] for r in rounds] for item, (off, on) in pairs.items()}
    results = {
        **machine(),
        "batch_size": BATCH,
        "rounds": arguments.rounds,
        "ms": {way: round(median(r[way] for r in rounds), 3) for way in rounds[0]},
        "plain_over": {
            way: round(median(r["plain"] / r[way] for r in rounds), 3)
            for way in ("bare loop", "bare loop, Lightning imported")
        },
        "gain_percent": {item: round(median(values), 1) for item, values in gains.items()},
        "gain_percent_all": {item: [round(value, 1) for value in values] for item, values in gains.items()},
    }
    print(json.dumps(results, indent=2))
    arguments.output.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()

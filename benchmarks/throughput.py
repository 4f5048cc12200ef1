"""Cost of the framework: seconds per training step of a bare loop, `fit` and stock Lightning, in alternation.

- bare: a PyTorch loop over tensors in memory, with the same model, loss, optimiser, schedule, precision and validation;
- fit: `mnist-lightning fit` as users run it, with logging, metrics, checkpoints and a progress bar on a terminal;
- stock: the same LightningModule with torchvision's dataset, one transform per image, and a DataLoader.

Uses a GPU if there is one. Augmentation is off in all three. Also measures batches without training: the data module
against torchvision with one transform per image.

    python benchmarks/throughput.py            # writes results/throughput.json, about 15 minutes on two cores
"""

import argparse
import contextlib
import json
import os
import platform
import pty
import tempfile
import threading
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import lightning
import torch
import torchvision
import yaml
from lightning.pytorch import Callback, Trainer
from torch.nn import functional as F
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader
from torchvision import transforms

from mnist_lightning import MNISTDataModule, models
from mnist_lightning.cli import main as command_line
from mnist_lightning.data.sources import data_root
from mnist_lightning.runs.finding import finished_runs
from mnist_lightning.training.recording import device_name

CONFIGS = Path(__file__).parents[1] / "configs"
RESULTS = Path(__file__).parent / "results" / "throughput.json"
# An epoch, or a part of one.
STEPS = {"mlp": 430, "lenet": 430, "cnn": 215, "resnet": 215, "densenet": 100, "efficientnet": 215}
EPOCHS = {"mlp": 3, "lenet": 2, "cnn": 1, "resnet": 1, "densenet": 1, "efficientnet": 1}
BATCH = 128
EVALUATED = 4 * BATCH  # the data module's choice
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def machine() -> dict[str, Any]:
    """Describes the hardware and the versions."""
    return {
        "device": device_name(DEVICE),
        "threads": torch.get_num_threads(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "lightning": lightning.__version__,
        },
    }


def build(name: str) -> Any:
    """Builds the model of a config, with new weights."""
    model = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())["model"]
    torch.manual_seed(0)
    return getattr(models, model["class_path"])(**model["init_args"])


def bare(name: str, data: MNISTDataModule, epochs: int, steps: int) -> float:
    """Measures the seconds per step of a bare loop that validates after each epoch."""
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "0"  # as without Lightning, which slows the optimizer's step
    model = build(name).to(DEVICE)
    h = model.hparams
    decayed = {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": h["weight_decay"]}
    plain = {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0}
    optimizer = torch.optim.AdamW([decayed, plain], lr=h["lr"], fused=True)
    schedule = OneCycleLR(optimizer, h["lr"], total_steps=steps * epochs, cycle_momentum=False)
    images, labels = (part.to(DEVICE) for part in data.images_and_labels("train"))
    val_images, val_labels = (part.to(DEVICE) for part in data.images_and_labels("val"))
    began = time.perf_counter()
    for _ in range(epochs):
        model.train()
        for index in torch.randperm(len(labels)).to(DEVICE).split(BATCH)[:steps]:
            with torch.autocast(DEVICE.type, torch.bfloat16):
                logits = model(images[index].unsqueeze(1).float().div_(255))
            loss = F.cross_entropy(logits.float(), labels[index], label_smoothing=h["label_smoothing"])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        model.eval()
        right = 0
        with torch.inference_mode(), torch.autocast(DEVICE.type, torch.bfloat16):
            parts = zip(val_images.split(EVALUATED), val_labels.split(EVALUATED), strict=True)
            for x, y in islice(parts, steps // 40):  # as many images as in `fit`
                right += int((model(x.unsqueeze(1).float().div_(255)).argmax(1) == y).sum())
    return (time.perf_counter() - began) / (epochs * steps)


@contextlib.contextmanager
def terminal() -> Iterator[None]:
    """Redirects the output to a pseudo-terminal, so that the progress bar is drawn."""
    ours, theirs = pty.openpty()

    def drain() -> None:
        with contextlib.suppress(OSError):
            while os.read(ours, 65536):
                pass

    threading.Thread(target=drain, daemon=True).start()
    with os.fdopen(theirs, "w") as screen, contextlib.redirect_stdout(screen):
        yield


def fit(name: str, epochs: int, steps: int) -> float:
    """Measures the seconds per step of `mnist-lightning fit`."""
    with tempfile.TemporaryDirectory() as folder, terminal():
        command_line(
            [
                *("fit", "--config", name, "--data.augment", "null", "--data.fallback", "null"),
                *("--data.batch_size", str(BATCH)),
                *("--trainer.max_epochs", str(epochs), "--trainer.default_root_dir", folder),
                *("--trainer.limit_train_batches", str(steps), "--trainer.limit_val_batches", str(steps // 40)),
            ]
        )
        (run,), _ = finished_runs([folder])
        return float(run.summary["train_seconds"]) / (epochs * steps)


class Clock(Callback):
    """Measures the same seconds as `RunRecorder`."""

    def on_train_start(self, *_: Any) -> None:
        """Starts the clock."""
        self.began = time.perf_counter()

    def on_train_epoch_end(self, *_: Any) -> None:
        """Stops the clock."""
        self.seconds = time.perf_counter() - self.began


def stock_loaders(workers: int) -> tuple[DataLoader[Any], DataLoader[Any]]:
    """Builds loaders as in torchvision's documentation, of 55,000 training and 5,000 validation images."""
    whole = torchvision.datasets.MNIST(data_root(None), train=True, transform=transforms.ToTensor())
    parts = torch.utils.data.random_split(whole, [55_000, 5_000])
    train = DataLoader(parts[0], BATCH, shuffle=True, num_workers=workers, persistent_workers=workers > 0)
    return train, DataLoader(parts[1], BATCH, num_workers=workers, persistent_workers=workers > 0)


def stock(name: str, epochs: int, steps: int, workers: int = 0) -> float:
    """Measures the seconds per step of stock Lightning."""
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder, terminal():
        trainer = Trainer(
            max_epochs=epochs,
            precision="bf16-mixed",
            default_root_dir=folder,
            callbacks=[clock],
            limit_train_batches=steps,
            limit_val_batches=steps // 10,
            accelerator="auto",
        )
        trainer.fit(build(name), *stock_loaders(workers))
    return clock.seconds / (epochs * steps)


def batches(data: MNISTDataModule) -> dict[str, float]:
    """Measures the milliseconds per batch of 128, of the data module and of torchvision."""

    def milliseconds(loader: Any, count: int) -> float:
        iterator = iter(loader)
        next(iterator)
        began = time.perf_counter()
        for _ in range(count):
            data.on_after_batch_transfer(next(iterator), 0)
        return 1000 * (time.perf_counter() - began) / count

    ours, theirs = data.train_dataloader(), stock_loaders(0)[0]
    rounds = [(milliseconds(ours, 400), milliseconds(theirs, 40)) for _ in range(5)]
    return {
        "ours_ms": round(median(r[0] for r in rounds), 4),
        "torchvision_ms": round(median(r[1] for r in rounds), 3),
        "ratio": round(median(r[1] / r[0] for r in rounds), 1),
    }


def main() -> None:
    """Measures and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=list(STEPS), help="models to measure; default: all")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    data = MNISTDataModule(batch_size=BATCH)
    data.setup("fit")
    results: dict[str, Any] = json.loads(arguments.output.read_text()) if arguments.output.exists() else {}
    results |= {
        **machine(),
        "batch_size": BATCH,
        "batches": batches(data),
    }
    for name in arguments.models:
        steps, epochs = STEPS[name], EPOCHS[name]
        bare(name, data, 1, 10)  # warm-up
        rounds = []
        for number in range(arguments.rounds):
            row = {"fit": fit(name, epochs, steps), "bare": bare(name, data, epochs, steps)}
            if number < 3:  # a large difference needs fewer rounds
                row["stock"] = stock(name, epochs, steps)
                if name == "mlp":
                    row["stock_2_workers"] = stock(name, epochs, steps, workers=2)
            rounds.append(row)
        results[name] = {
            "epochs": epochs,
            "steps_an_epoch": steps,
            "rounds": arguments.rounds,
            **{f"{way}_ms": round(1000 * median(r[way] for r in rounds if way in r), 3) for way in rounds[0]},
            "fit_over_bare": round(median(r["fit"] / r["bare"] for r in rounds), 3),
            "stock_over_fit": round(median(r["stock"] / r["fit"] for r in rounds[:3]), 2),
            "fit_over_bare_all": [round(r["fit"] / r["bare"], 3) for r in rounds],
        }
        print(name, results[name], flush=True)
        arguments.output.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()

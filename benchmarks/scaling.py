"""Time against the number of images, the batch size, threads and processes, and for the GNN against nodes and edges.

python benchmarks/scaling.py       # writes results/scaling.json and results/scaling.png, about 6 minutes on two cores
"""

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, Trainer
from matplotlib.figure import Figure
from throughput import machine
from torch.nn import functional as F

from mnist_lightning import GNN, LeNet5, MNISTDataModule, MNISTSuperpixelsDataModule
from mnist_lightning.cli import _keep_freed_memory
from mnist_lightning.files import write_whole
from mnist_lightning.runs.finding import finished_runs

RESULTS = Path(__file__).parent / "results" / "scaling.json"
IMAGES = (1_000, 3_000, 10_000, 30_000, 60_000, 600_000)
BATCHES = (32, 64, 128, 256, 512, 1024, 2048)
GRAPHS = (8, 16, 32, 64, 128, 256)
NEIGHBOURS = (2, 4, 6, 8)
PROCESSES = {"1 process, 1 thread": (1, 1), "1 process, 2 threads": (1, 2), "2 processes, 1 thread each": (2, 1)}


class Clock(Callback):
    """Measures the seconds of the last epoch."""

    def on_train_epoch_start(self, *_: Any) -> None:
        """Starts the clock."""
        self.began = time.perf_counter()

    def on_train_epoch_end(self, *_: Any) -> None:
        """Stops the clock."""
        self.seconds = time.perf_counter() - self.began


def epoch(count: int, batch_size: int, rounds: int) -> float:
    """Measures the seconds of one epoch of LeNet-5 over `count` images. More than 60,000 are made by repetition."""
    data = MNISTDataModule(batch_size=batch_size)
    data.setup("fit")
    parts = zip(data.images_and_labels("train"), data.images_and_labels("val"), strict=True)
    whole = [torch.cat(pair) for pair in parts]
    data._splits["train"] = tuple(values[torch.arange(count) % len(values)] for values in whole)  # type: ignore[assignment]
    seconds = []
    for _ in range(rounds):
        clock = Clock()
        trainer = Trainer(
            max_epochs=1,
            accelerator="cpu",
            precision="bf16-mixed",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            limit_val_batches=0,
            callbacks=[clock],
        )
        trainer.fit(LeNet5(), data)
        seconds.append(clock.seconds)
    return median(seconds)


def processes(count: int, threads: int) -> float:
    """Measures the seconds of one epoch of `fit` with `count` processes of `threads` threads each."""
    with tempfile.TemporaryDirectory() as folder:
        spread = ["--trainer.strategy", "ddp"] if count > 1 else []
        subprocess.run(
            [
                *(sys.executable, "-m", "mnist_lightning", "fit", "--config", "cnn", "--data.fallback", "null"),
                *("--trainer.max_epochs", "1", "--trainer.default_root_dir", folder),
                *("--data.batch_size", str(128 // count), "--trainer.devices", str(count), *spread),
            ],
            check=True,
            stdout=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        )
        (run,), _ = finished_runs([folder])
        return float(run.summary["train_seconds"])


def graph_step(data: MNISTSuperpixelsDataModule, graphs: int, neighbours: int, rounds: int) -> dict[str, float]:
    """Measures the milliseconds of a training step of the GNN, with the nearest `neighbours` of each node's 8."""
    batch = next(data.batches("train"))
    nodes = int(batch.ptr[graphs])
    sources, targets = batch.edge_index[:, batch.edge_index[1] < nodes]
    lengths = (batch.pos[sources] - batch.pos[targets]).norm(dim=1)
    order = torch.from_numpy(np.lexsort((lengths.numpy(), targets.numpy())))
    edges = torch.stack([sources, targets])[:, order]
    first = torch.searchsorted(edges[1], torch.arange(nodes))
    edges = edges[:, torch.arange(edges.shape[1]) - first[edges[1]] < neighbours]
    model = GNN()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(batch.x[:nodes], edges, batch.pos[:nodes], batch.batch[:nodes])
        F.cross_entropy(logits.float(), batch.y[:graphs]).backward()
        optimizer.step()
        optimizer.zero_grad()
        times.append(1000 * (time.perf_counter() - began))
    return {"nodes": nodes, "edges": edges.shape[1], "ms": round(median(times), 2)}


def exponent(sizes: Sequence[float], times: Sequence[float]) -> float:
    """Fits the exponent of a power law to the logarithms of the points. 1 is linear."""
    return round(float(np.polyfit(np.log(sizes), np.log(times), 1)[0]), 2)


def plot(results: dict[str, Any]) -> Figure:
    """Draws the four scaling curves."""
    figure = Figure(figsize=(11, 7), layout="constrained")
    panels = figure.subplots(2, 2).ravel()
    for axes, (name, x, y) in zip(
        panels,
        (
            ("images", "images", "seconds"),
            ("batch_sizes", "batch size", "images a second"),
            ("nodes", "nodes", "ms"),
            ("edges", "edges", "ms"),
        ),
        strict=True,
    ):
        points = results[name]
        axes.plot([p[x] for p in points], [p[y] for p in points], "o-", color="#0072B2")
        axes.set(xlabel=x, ylabel=y, xscale="log", yscale="log", title=f"exponent {results['exponents'][name]}")
        axes.grid(alpha=0.3, which="both")
    panels[0].set_ylabel("seconds per epoch, LeNet-5")
    panels[1].set_ylabel("images per second, LeNet-5")
    panels[2].set_ylabel("ms per step, GNN, 8 neighbours")
    panels[3].set_ylabel("ms per step, GNN, 128 graphs")
    return figure


def main() -> None:
    """Measures, and writes the results and the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "0"
    _keep_freed_memory()
    epoch(1_000, 128, 1)  # warm-up
    images = [{"images": n, "seconds": epoch(n, 128, rounds if n < 100_000 else 1)} for n in IMAGES]
    batch_sizes = [{"batch size": b, "images a second": 20_000 / epoch(20_000, b, rounds)} for b in BATCHES]
    data = MNISTSuperpixelsDataModule(batch_size=max(GRAPHS))
    data.prepare_data()
    data.setup("fit")
    graph_step(data, 128, 8, 5)  # warm-up
    nodes = [graph_step(data, graphs, 8, 4 * rounds) for graphs in GRAPHS]
    edges = [graph_step(data, 128, neighbours, 4 * rounds) for neighbours in NEIGHBOURS]
    seconds: dict[str, list[float]] = {}
    for _ in range(3):
        for name, (count, threads) in PROCESSES.items():
            seconds.setdefault(name, []).append(processes(count, threads))
    power_laws: dict[str, tuple[list[dict[str, Any]], str, str]] = {
        "images": (images, "images", "seconds"),
        "batch_sizes": (batch_sizes, "batch size", "images a second"),
        "nodes": (nodes, "nodes", "ms"),
        "edges": (edges, "edges", "ms"),
    }
    results: dict[str, Any] = {
        **machine(),
        "rounds": rounds,
        **{name: points for name, (points, _, _) in power_laws.items()},
        "exponents": {
            name: exponent([p[x] for p in points], [p[y] for p in points])
            for name, (points, x, y) in power_laws.items()
        },
        "cnn_epoch_seconds": {name: median(values) for name, values in seconds.items()},
    }
    write_whole(RESULTS, (json.dumps(results, indent=2) + "\n").encode())
    plot(results).savefig(RESULTS.with_suffix(".png"), dpi=80)


if __name__ == "__main__":
    main()

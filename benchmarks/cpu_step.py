"""A training step on a CPU: the time of each kind of kernel, and the gain of each of this package's settings.

- kernels: each kind's share of a training step with augmentation, measured with torch's profiler;
- settings: milliseconds per step with all settings, and without each of them. Most settings cannot be undone within a
  process, so each measurement runs in a new process. The measurements alternate.

    python benchmarks/cpu_step.py           # writes results/cpu_step.json, about 10 minutes on two cores
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
import yaml
from throughput import CONFIGS, build, machine
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from mnist_lightning import Augmentation, MNISTDataModule
from mnist_lightning.cli import _keep_freed_memory

RESULTS = Path(__file__).parent / "results" / "cpu_step.json"
MODELS = ("lenet", "cnn", "resnet", "densenet", "efficientnet")
WITHOUT = {
    "all settings": "",
    "32 bits instead of bfloat16": "bf16",
    "channels first": "channels_last",
    "freed memory given back": "kept_memory",
    "one thread of two": "threads",
    "denormal numbers set to zero": "denormals",
}
KERNELS = {
    "convolutions": ("convolution",),
    "batch norm": ("batch_norm",),
    "pooling": ("pool",),
    "dense layers": ("aten::addmm", "aten::mm", "aten::linear"),
    "augmentation's sampling": ("grid_sampl",),
    "optimiser": ("Optimizer", "_fused_adam"),
}


def training(name: str, bf16: bool = True, channels_last: bool = True) -> Callable[[], None]:
    """Returns a function that runs one training step of a config."""
    model = build(name)
    if not channels_last:
        model.to(memory_format=torch.contiguous_format)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    config = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    data = MNISTDataModule(batch_size=128, augment=Augmentation(**config["data"].get("augment", {})))
    data.setup("fit")
    batches = iter(data.train_dataloader())

    def step() -> None:
        images, labels = data.on_after_batch_transfer(next(batches), 0)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            logits = model(images)
        F.cross_entropy(logits.float(), labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def milliseconds(name: str, without: str) -> float:
    """Measures the median milliseconds of 40 steps, after 10 warm-up steps."""
    if without != "kept_memory":
        _keep_freed_memory()
    if without == "denormals":
        torch.set_flush_denormal(True)
    step = training(name, without != "bf16", without != "channels_last")
    times = []
    for _ in range(50):
        began = time.perf_counter()
        step()
        times.append(1000 * (time.perf_counter() - began))
    return median(times[10:])


def shares(name: str) -> dict[str, float]:
    """Measures each kind of kernel's share of a training step, in percent."""
    step = training(name)
    for _ in range(5):
        step()
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        began = time.perf_counter()
        for _ in range(30):
            step()
        whole = 1e6 * (time.perf_counter() - began)
    times: Counter[str] = Counter()
    for event in profiler.key_averages():
        kind = next((kind for kind, parts in KERNELS.items() if any(part in event.key for part in parts)), None)
        if kind:
            times[kind] += event.self_cpu_time_total
    percent = {kind: round(100 * microseconds / whole, 1) for kind, microseconds in times.most_common()}
    return {**percent, "the rest": round(100 - sum(percent.values()), 1)}


def in_new_process(name: str, without: str) -> float:
    """Measures the milliseconds per step in a new process."""
    env = {**os.environ, "OMP_NUM_THREADS": "1"} if without == "threads" else dict(os.environ)
    return float(subprocess.check_output([sys.executable, __file__, name, "--without", without], text=True, env=env))


def main() -> None:
    """Measures and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=MODELS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--without", help="only print the milliseconds per step without this setting")
    arguments = parser.parse_args()
    if arguments.without is not None:
        print(milliseconds(arguments.models[0], arguments.without))
        return
    results: dict[str, Any] = {
        **machine(),
        "rounds": arguments.rounds,
    }
    _keep_freed_memory()
    for name in arguments.models:
        rounds = [
            {way: in_new_process(name, without) for way, without in WITHOUT.items()} for _ in range(arguments.rounds)
        ]
        results[name] = {
            "percent_of_a_step": shares(name),
            "ms": {way: round(median(r[way] for r in rounds), 2) for way in WITHOUT},
            "times_as_long": {way: round(median(r[way] / r["all settings"] for r in rounds), 2) for way in WITHOUT},
        }
        print(name, results[name], flush=True)
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()

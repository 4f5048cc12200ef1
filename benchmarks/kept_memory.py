"""What `cli._keep_freed_memory` is worth: milliseconds a training step with it and without, alternating.

glibc's setting cannot be undone in a process, so every measurement has a process of its own.

    python benchmarks/kept_memory.py           # writes results/kept_memory.json, about 4 minutes on two cores
"""

import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import torch
from throughput import build
from torch.nn import functional as F

from mnist_lightning.callbacks import _device_name
from mnist_lightning.cli import _keep_freed_memory

RESULTS = Path(__file__).parent / "results" / "kept_memory.json"
MODELS = ("lenet", "cnn", "resnet", "densenet")
ROUNDS = 5


def step_milliseconds(name: str) -> float:
    """Median of 30 training steps of a bare loop, after 10 to warm up."""
    model = build(name)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    images, labels = torch.rand(128, 1, 28, 28), torch.arange(128) % 10
    times = []
    for _ in range(40):
        began = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(images)
        F.cross_entropy(logits.float(), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
        times.append(1000 * (time.perf_counter() - began))
    return median(times[10:])


def measured(name: str, keep: bool) -> float:
    """The same in a fresh process."""
    command = [sys.executable, __file__, name, "keep" if keep else "default"]
    return float(subprocess.check_output(command, text=True))


def main() -> None:
    """Alternates and writes medians."""
    results: dict[str, object] = {
        "device": _device_name(torch.device("cpu")),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "rounds": ROUNDS,
    }
    for name in MODELS:
        pairs = [(measured(name, False), measured(name, True)) for _ in range(ROUNDS)]
        results[name] = {
            "default_ms": round(median(default for default, _ in pairs), 2),
            "kept_ms": round(median(kept for _, kept in pairs), 2),
            "default_over_kept": round(median(default / kept for default, kept in pairs), 3),
        }
        print(name, results[name], flush=True)
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    if len(sys.argv) == 3:
        if sys.argv[2] == "keep":
            _keep_freed_memory()
        print(step_milliseconds(sys.argv[1]))
    else:
        main()

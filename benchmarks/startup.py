"""Seconds until the command line answers, and peak memory of a training; every measurement is a new process.

- seconds: `--version`, `--help`, a bare call, a mistyped verb, `compare --help`, `fit --help`, and `fit --config mlp`
  until its first training step begins, each over `python -c "import lightning.pytorch"` of the same round;
- peak memory: `fit --config mlp` over a bare loop with the same images and model.

    python benchmarks/startup.py               # writes results/startup.json, about 3 minutes
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from lightning.pytorch import Callback

RESULTS = Path(__file__).parent / "results" / "startup.json"
RIVAL = "import lightning.pytorch"
BARE = """
import torch, torchvision
from torch import nn
from torch.nn import functional as F
data = torchvision.datasets.MNIST(ROOT)
layers = [nn.Flatten(), nn.Linear(784, 256), nn.BatchNorm1d(256), nn.ReLU(), nn.Linear(256, 128), nn.BatchNorm1d(128)]
model = nn.Sequential(*layers, nn.ReLU(), nn.Linear(128, 10))
optimizer = torch.optim.AdamW(model.parameters(), fused=True)
for index in torch.randperm(55_000).split(128):
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(data.data[index].unsqueeze(1).float().div_(255))
    loss = F.cross_entropy(logits.float(), data.targets[index])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
"""


class FirstStep(Callback):
    """Ends the process when the first step begins."""

    def on_train_batch_start(self, *_: Any) -> None:
        """Exits without any cleanup."""
        os._exit(0)


def process(*command: str) -> tuple[float, float]:
    """Runs a process and returns its seconds and its peak memory in MiB."""
    data = str(Path(os.environ.get("MNIST_LIGHTNING_DATA", "data")).resolve())
    env = {**os.environ, "MNIST_LIGHTNING_DATA": data, "PYTHONPATH": str(Path(__file__).parent)}
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        started = subprocess.Popen([sys.executable, *command], cwd=folder, env=env, **quiet)
        _, status, usage = os.wait4(started.pid, 0)
        seconds = time.perf_counter() - began
    if os.waitstatus_to_exitcode(status) not in (0, 2):  # 2: a bare call and a mistyped verb
        raise SystemExit(f"{' '.join(command)[:80]} failed")
    return seconds, usage.ru_maxrss / 1024


def main() -> None:
    """Measures, and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    ours = ("-m", "mnist_lightning")
    fit = (*ours, "fit", "--config", "mlp", "--data.fallback", "null")
    root = f"ROOT = {str(Path(os.environ.get('MNIST_LIGHTNING_DATA', 'data')).resolve())!r}\n"
    ways: dict[str, tuple[str, ...]] = {
        RIVAL: ("-c", RIVAL),
        "--version": (*ours, "--version"),
        "--help": (*ours, "--help"),
        "bare call": ours,
        "mistyped verb": (*ours, "fitt"),
        "compare --help": (*ours, "compare", "--help"),
        "fit --help": (*ours, "fit", "--help"),
        "fit to the first step": (*fit, "--trainer.callbacks+=startup.FirstStep"),
    }
    memory = {"bare loop": ("-c", root + BARE), "fit": (*fit, "--trainer.max_epochs", "1")}
    results: dict[str, list[tuple[float, float]]] = {name: [] for name in (*ways, *memory)}
    for _ in range(rounds):
        for name, command in ways.items():
            results[name].append(process(*command))
    for _ in range(3):
        for name, command in memory.items():
            results[name].append(process(*command))
    mebibytes = {name: round(median(m for _, m in values)) for name, values in results.items()}
    from throughput import machine  # here, because FirstStep must be fast to import

    content = {
        **machine(),
        "rounds": rounds,
        "seconds": {name: round(median(s for s, _ in results[name]), 3) for name in ways},
        "seconds_over_import": {
            name: round(median(s / i for (s, _), (i, _) in zip(results[name], results[RIVAL], strict=True)), 3)
            for name in ways
        },
        "peak_mebibytes": {name: mebibytes[name] for name in (RIVAL, *memory)},
        "peak_fit_over_bare": round(mebibytes["fit"] / mebibytes["bare loop"], 2),
    }
    RESULTS.write_text(json.dumps(content, indent=2) + "\n")
    print(json.dumps(content, indent=2))


if __name__ == "__main__":
    main()

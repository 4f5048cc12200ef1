"""What a process costs before its first step, and in memory; each in processes of their own, alternating.

- seconds: importing torch, lightning and torchmetrics and nothing else, not even an orderly end of the process, against
  `mnist-lightning --help`, `compare --help`, and `fit` until its first training step begins;
- peak memory: `fit --config mlp` against a bare loop over the same images with the same model.

    python benchmarks/startup.py               # writes results/startup.json, some 3 minutes
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
    """Ends the process where the first step begins."""

    def on_train_batch_start(self, *_: Any) -> None:
        """Lightning's hook."""
        os._exit(0)


def process(*command: str) -> tuple[float, float]:
    """Seconds and peak MiB of a process."""
    data = str(Path(os.environ.get("MNIST_LIGHTNING_DATA", "data")).resolve())
    env = {**os.environ, "MNIST_LIGHTNING_DATA": data, "PYTHONPATH": str(Path(__file__).parent)}
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        started = subprocess.Popen([sys.executable, *command], cwd=folder, env=env, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(started.pid, 0)
        seconds = time.perf_counter() - began
    if status:
        raise SystemExit(f"{' '.join(command)[:80]} failed")
    return seconds, usage.ru_maxrss / 1024


def main() -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    ours = ("-m", "mnist_lightning")
    fit = (*ours, "fit", "--config", "mlp", "--data.fallback", "null")
    root = f"ROOT = {str(Path(os.environ.get('MNIST_LIGHTNING_DATA', 'data')).resolve())!r}\n"
    ways: dict[str, tuple[str, ...]] = {
        "import torch, lightning, torchmetrics": ("-c", "import os, torch, lightning, torchmetrics; os._exit(0)"),
        "--help": (*ours, "--help"),
        "compare --help": (*ours, "compare", "--help"),
        "fit to the first step": (*fit, "--trainer.callbacks+=startup.FirstStep"),
        "bare loop": ("-c", root + BARE),
        "fit": (*fit, "--trainer.max_epochs", "1"),
    }
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, command in ways.items():
            found[name].append(process(*command))
    seconds = {name: round(median(s for s, _ in values), 2) for name, values in found.items()}
    mebibytes = {name: round(median(m for _, m in values)) for name, values in found.items()}
    imports = "import torch, lightning, torchmetrics"
    from throughput import machine  # here, because `FirstStep` must be imported fast

    results = {
        **machine(),
        "rounds": rounds,
        "seconds": {name: value for name, value in seconds.items() if name not in ("bare loop", "fit")},
        "seconds_over_imports": {
            name: round(median(s / i for (s, _), (i, _) in zip(found[name], found[imports], strict=True)), 2)
            for name in ("--help", "compare --help", "fit to the first step")
        },
        "peak_mebibytes": {name: mebibytes[name] for name in (imports, "bare loop", "fit")},
        "peak_fit_over_bare": round(mebibytes["fit"] / mebibytes["bare loop"], 2),
    }
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()

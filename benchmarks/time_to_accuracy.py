"""Seconds to 99 % test accuracy on MNIST: `mnist-lightning fit --config speedrun` against four alternatives.

Each training runs in its own process, which imports, loads the data, trains, tests and writes. The trainings alternate.
The slow ones run in fewer rounds.

    python benchmarks/time_to_accuracy.py                # writes results/time_to_accuracy.json, about 20 minutes
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

from throughput import machine

from mnist_lightning.runs.finding import finished_runs

RESULTS = Path(__file__).parent / "results" / "time_to_accuracy.json"
RIVALS = Path(__file__).with_name("rivals.py")


def speedrun(seed: int) -> dict[str, float]:
    """Trains the speedrun as a user would."""
    with tempfile.TemporaryDirectory() as folder:
        where = ["--trainer.default_root_dir", folder, "--data.fallback", "null", "--seed_everything", str(seed)]
        whole, _ = timed([sys.executable, "-m", "mnist_lightning", "fit", "--config", "speedrun", *where])
        (run,), _ = finished_runs([folder])
        summary = run.summary
    return {"whole": whole, "seconds": summary["train_seconds"], "accuracy": summary["test"]["accuracy"]}


def rival(name: str, seed: int) -> dict[str, float]:
    """Trains one alternative of `rivals.py`."""
    with tempfile.TemporaryDirectory() as folder:
        whole, printed = timed([sys.executable, str(RIVALS), name, "--seed", str(seed)], folder)
    result: dict[str, float] = json.loads(printed.splitlines()[-1])
    return {"whole": whole, **result}


def timed(command: list[str], folder: str | None = None) -> tuple[float, str]:
    """Runs a process and returns its seconds and its output."""
    data = str(Path(os.environ.get("MNIST_LIGHTNING_DATA", "data")).resolve())
    began = time.perf_counter()
    done = subprocess.run(
        command,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        cwd=folder,
        env={**os.environ, "MNIST_LIGHTNING_DATA": data},
    )
    return time.perf_counter() - began, done.stdout


def summary(rounds: list[dict[str, float]]) -> dict[str, Any]:
    """Summarises the rounds of one recipe: median seconds, mean accuracy."""
    accuracies = [100 * r["accuracy"] for r in rounds]
    return {
        "n": len(rounds),
        "accuracy": round(mean(accuracies), 3),
        "accuracy_sd": round(stdev(accuracies), 3) if len(rounds) > 1 else None,
        "train_seconds": round(median(r["seconds"] for r in rounds), 3),
        "whole_seconds": round(median(r["whole"] for r in rounds), 2),
        "all": [{name: round(value, 4) for name, value in r.items()} for r in rounds],
    }


def main() -> None:
    """Measures and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=30, help="seeds of the other recipes")
    parser.add_argument("--slow-seeds", type=int, default=3, help="seeds of PyTorch's example and stock Lightning")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    rounds: dict[str, list[dict[str, float]]] = {}
    for seed in range(arguments.seeds):
        rounds.setdefault("speedrun", []).append(speedrun(seed))
        for name in ("bare", "one_epoch", "stock", "official"):
            if name in ("bare", "one_epoch") or seed < arguments.slow_seeds:
                rounds.setdefault(name, []).append(rival(name, seed))
        print(seed, {name: {k: round(v, 3) for k, v in r[-1].items()} for name, r in rounds.items()}, flush=True)
    ours = rounds["speedrun"]
    results = {
        **machine(),
        **{name: summary(r) for name, r in rounds.items()},
        "train_over_bare": round(
            median(o["seconds"] / b["seconds"] for o, b in zip(ours, rounds["bare"], strict=False)), 3
        ),
        "train_over_one_epoch": round(
            median(o["seconds"] / b["seconds"] for o, b in zip(ours, rounds["one_epoch"], strict=False)), 3
        ),
        "official_over_whole": round(
            median(b["whole"] / o["whole"] for o, b in zip(ours, rounds["official"], strict=False)), 1
        ),
    }
    arguments.output.write_text(json.dumps(results, indent=2) + "\n")
    print({name: value for name, value in results.items() if "over" in name})


if __name__ == "__main__":
    main()

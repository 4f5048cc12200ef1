"""Test accuracy of configs over seeds: runs `mnist-lightning fit` for each and notes its summary in a CSV file.

Run it again and it goes on where it was stopped: a config and seed that has its row is not run again.

    python benchmarks/accuracy.py                            # all main and published configs, seeds 0, 1, 2: 4 hours
    python benchmarks/accuracy.py --seeds 0 -- densenet+mse  # or any others
    python benchmarks/document.py lightning_logs             # writes docs/results.md
"""

import argparse
import csv
import json
import subprocess
import sys
from collections import defaultdict
from datetime import date
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from rich.console import Console
from rich.table import Table

CONFIGS = Path(__file__).parents[1] / "configs"
RESULTS = Path(__file__).parent / "results" / "accuracy.csv"
MAIN = ("speedrun", "mlp", "lenet", "cnn", "resnet", "densenet", "gnn", "robust")
PUBLISHED = tuple(sorted(path.stem for path in (CONFIGS / "published").glob("*.yaml") if path.stem != "mse"))
MSE = tuple(f"{name}+mse" for name in MAIN if name not in ("speedrun", "robust"))


def train(config: str, seed: int, *options: str, name: str | None = None) -> dict[str, Any]:
    """Runs a config (`a+b` is config a changed by config b) and gives back its row; the run's folder stays.

    Args:
        config: Its name.
        seed: The training's seed.
        *options: More arguments of `fit`.
        name: What to call the run, if not like its config.
    """
    name = name or config
    names = [argument for name in config.split("+") for argument in ("--config", name)]
    command = [sys.executable, "-m", "mnist_lightning", "fit", *names, "--data.fallback", "null"]
    subprocess.run([*command, "--seed_everything", str(seed), "--experiment", name, *options], check=True)
    paths = Path("lightning_logs", name).glob("version_*/summary.json")
    summary = json.loads(max(paths, key=lambda path: path.stat().st_mtime).read_text())
    return {
        "config": name,
        "seed": seed,
        "model": summary["model"],
        "source": summary["source"],
        "parameters": summary["parameters"],
        "loss": summary["hyper_parameters"]["loss"],
        "epochs": summary["epochs"],
        "best_epoch": summary["best_epoch"],
        "train_seconds": summary["train_seconds"],
        **{
            f"{split}_{name}": f"{summary[split][name]:.6f}"
            for split in ("train", "val", "test")
            for name in ("accuracy", "loss")
        },
        "precision": summary["precision"],
        "device": summary["device"],
        "threads": summary["cpu_threads"],
        "torch": summary["versions"]["torch"],
        "lightning": summary["versions"]["lightning"],
        "date": date.today().isoformat(),
    }


def table(rows: list[dict[str, str]]) -> Table:
    """Mean and sample standard deviation over the seeds of each config."""
    groups = defaultdict(list)
    for row in rows:
        groups[row["config"]].append(row)
    result = Table("config", "parameters", "n", "test accuracy %", "test loss", "validation accuracy %", "seconds")
    for config, group in groups.items():
        cells = [spread([100 * float(row["test_accuracy"]) for row in group], 2)]
        cells.append(spread([float(row["test_loss"]) for row in group], 4))
        cells.append(spread([100 * float(row["val_accuracy"]) for row in group], 2))
        cells.append(spread([float(row["train_seconds"]) for row in group], 0))
        result.add_row(config, f"{int(group[0]['parameters']):,}", str(len(group)), *cells)
    return result


def spread(values: list[float], digits: int) -> str:
    """Mean ± sample standard deviation."""
    text = f"{mean(values):.{digits}f}"
    return f"{text} ± {stdev(values):.{digits}f}" if len(values) > 1 else text


def read(path: Path) -> list[dict[str, str]]:
    """The rows that are there already."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def add(path: Path, row: dict[str, Any]) -> None:
    """Adds a row to a CSV file."""
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, row, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(row)


def main() -> None:
    """Trains what is missing and shows the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = ", ".join((*MAIN, *PUBLISHED, *MSE))
    parser.add_argument(
        "configs", nargs="*", default=(*MAIN, *PUBLISHED), help=f"any of {known}; a+b is config a changed by b"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    done = {(row["config"], int(row["seed"])) for row in read(arguments.output)} if arguments.output.exists() else set()
    for seed in arguments.seeds:
        for config in arguments.configs:
            if (config, seed) in done:
                continue
            add(arguments.output, train(config, seed))
    Console().print(table(read(arguments.output)))


if __name__ == "__main__":
    main()

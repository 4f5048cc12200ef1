"""Test accuracy of configs over seeds: runs `mnist-lightning fit` for each and adds a row to a CSV file.

An interrupted script continues where it stopped: configs and seeds that have a row are skipped.

    python benchmarks/accuracy.py                            # all main and published configs, seeds 0, 1, 2: 4 hours
    python benchmarks/accuracy.py --seeds 0 -- densenet+mse  # any other configs
    python benchmarks/document.py lightning_logs             # writes docs/results.md
"""

import argparse
import csv
import subprocess
import sys
from collections import defaultdict
from datetime import date
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from rich.console import Console
from rich.table import Table

from mnist_lightning.runs.finding import finished_runs

CONFIGS = Path(__file__).parents[1] / "configs"
RESULTS = Path(__file__).parent / "results" / "accuracy.csv"
MAIN = ("speedrun", "mlp", "lenet", "cnn", "resnet", "densenet", "gnn", "robust")
PUBLISHED = tuple(sorted(path.stem for path in (CONFIGS / "published").glob("*.yaml") if path.stem != "mse"))
MSE = tuple(f"{name}+mse" for name in MAIN if name not in ("speedrun", "robust"))


def train(config: str, seed: int, *options: str, name: str | None = None) -> dict[str, Any]:
    """Trains a config and keeps its run folder.

    Args:
        config: Name of a config. `a+b` is config a with the changes of config b.
        seed: Seed of the training.
        *options: More arguments of `fit`.
        name: Name of the experiment. Default: the config's name.

    Returns:
        The run's row for the CSV file.
    """
    name = name or config
    names = [argument for name in config.split("+") for argument in ("--config", name)]
    command = [sys.executable, "-m", "mnist_lightning", "fit", *names, "--data.fallback", "null"]
    subprocess.run([*command, "--seed_everything", str(seed), "--experiment", name, *options], check=True)
    runs, _ = finished_runs([f"lightning_logs/{name}"])
    summary = max(runs, key=lambda run: run.summary_file.stat().st_mtime).summary
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
    """Makes a table of each config's mean and sample standard deviation over the seeds."""
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
    """Formats mean ± sample standard deviation."""
    text = f"{mean(values):.{digits}f}"
    return f"{text} ± {stdev(values):.{digits}f}" if len(values) > 1 else text


def read(path: Path) -> list[dict[str, str]]:
    """Reads the rows of a CSV file."""
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
    """Trains the missing runs and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = ", ".join((*MAIN, *PUBLISHED, *MSE))
    parser.add_argument(
        "configs", nargs="*", default=(*MAIN, *PUBLISHED), help=f"any of {known}; a+b is config a with the changes of b"
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

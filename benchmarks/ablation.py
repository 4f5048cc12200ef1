"""Ablation of the GNN: trains `configs/gnn.yaml` for three epochs with one part changed; one CSV row per run.

An interrupted script continues where it stopped.

    python benchmarks/ablation.py              # writes results/ablation.csv
"""

import argparse
from pathlib import Path

from accuracy import add, read, table, train
from rich.console import Console

RESULTS = Path(__file__).parent / "results" / "ablation.csv"
EPOCHS = ("--trainer.max_epochs", "3")
VARIANTS: dict[str, tuple[str, ...]] = {
    "gnn": (),
    "no augmentation": ("--data.augment", "null"),
    "mean pooling only": ("--model.pooling", "mean"),
    "max pooling only": ("--model.pooling", "max"),
    **{f"conv {name}": ("--model.conv", name) for name in ("gcn", "gin", "gat", "gatedgcn")},
}


def main() -> None:
    """Trains the missing runs and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    done = {(row["config"], int(row["seed"])) for row in read(arguments.output)} if arguments.output.exists() else set()
    for seed in arguments.seeds:
        for name, options in VARIANTS.items():
            if (name, seed) not in done:
                add(arguments.output, train("gnn", seed, *EPOCHS, *options, name=name))
    Console().print(table(read(arguments.output)))


if __name__ == "__main__":
    main()

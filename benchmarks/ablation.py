"""Ablation of the GNN: trains `configs/gnn.yaml` for three epochs with one part changed; one CSV row per variant.

python benchmarks/ablation.py    # writes results/ablation.csv; continues where it stopped
"""

import argparse
from pathlib import Path

from mnist_lightning.evaluation.compare.comparison import compare, raw_table
from mnist_lightning.files import write_whole
from mnist_lightning.studies import study

RESULTS = Path(__file__).parent / "results" / "ablation.csv"
EPOCHS = ("--trainer.max_epochs", "3")
VARIANTS = ((), ("data.augment=null",), ("model.pooling=mean,max",), ("model.conv=gcn,gin,gat,gatedgcn",))


def main() -> None:
    """Trains the missing runs and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1)
    arguments = parser.parse_args()
    runs = [run for variant in VARIANTS for run in study("gnn", seeds=arguments.seeds, settings=variant, fit=EPOCHS)]
    write_whole(RESULTS, raw_table(compare(runs)).csv())


if __name__ == "__main__":
    main()

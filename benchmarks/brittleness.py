"""Why does the CNN fail on corrupted digits? Trains `configs/cnn.yaml` in eight ways and measures the 15 corruptions.

The eight ways are all combinations of three choices: with and without standardisation of the images, batch norm, and
affine augmentation. The corruptions have the severities of MNIST-C. The corrupted digits are test digits, and nothing
is chosen by the results.

    python benchmarks/brittleness.py              # writes results/brittleness.csv; continues where it stopped
    python benchmarks/brittleness.py --seeds 1 --output tiny.csv -- --data.source digits
"""

import argparse
from pathlib import Path

from mnist_lightning.cli import _keep_freed_memory
from mnist_lightning.data.corruptions import corrupt
from mnist_lightning.evaluation.page import Table
from mnist_lightning.evaluation.robustness.measure import PUBLISHED_CONDITIONS, Robustness, measure, test_sets
from mnist_lightning.files import write_whole
from mnist_lightning.runs.run import Run
from mnist_lightning.studies import study

RESULTS = Path(__file__).parent / "results" / "brittleness.csv"
CHOICES = ("model.standardize=true,false", "model.batch_norm=pooled,false", "data.augment={},null")


def choices(run: Run) -> list[str]:
    """Returns the choices of a run: standardisation, batch norm and augmentation, each yes or no."""
    arguments, augment = run.summary["hyper_parameters"], run.full_config["data"]["init_args"]["augment"]
    made = (arguments["standardize"], arguments["batch_norm"], augment is not None)
    return ["yes" if each else "no" for each in made]


def table(results: Robustness) -> Table:
    """Makes one row per model of error rates in percent, the lowest mean first."""
    header = ["standardisation", "batch norm", "augmentation", "seeds", "mean of 15", "sd"]
    header += [condition.name for condition in results.conditions]  # the first is clean
    rows = []
    for model, errors in zip(results.models, results.errors, strict=True):
        means = 100 * errors[:, 1:].mean(axis=1)
        sd = f"{means.std(ddof=1):.2f}" if len(means) > 1 else ""
        each = [f"{100 * error:.2f}" for error in errors.mean(axis=0)]
        rows.append([*choices(model.runs[0]), len(means), f"{means.mean():.2f}", sd, *each])
    return Table("Error rates in percent", header, sorted(rows, key=lambda row: float(row[4])))


def main() -> None:
    """Trains the missing runs, measures them and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("fit", nargs="*", help="more arguments of each `fit`, after --")
    arguments = parser.parse_args()
    fit = ("--trainer.max_epochs", str(arguments.epochs), *arguments.fit)
    runs = study("cnn", seeds=arguments.seeds, settings=CHOICES, fit=fit)
    _keep_freed_memory()
    problems: list[str] = []
    (test_set,) = test_sets(runs, problems, None)
    print(*problems, sep="\n")
    results = measure(
        test_set,
        PUBLISHED_CONDITIONS,
        lambda condition: corrupt(test_set.images, *condition),
        unknown={},
        progress=lambda condition, model: print(f"{condition.name}, {model}", flush=True),
    )
    write_whole(arguments.output, table(results).csv())


if __name__ == "__main__":
    main()

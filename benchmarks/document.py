"""From the runs of `accuracy.py` to docs/results.md and its pictures, by what `mnist-lightning compare` is made of.

python benchmarks/document.py lightning_logs
"""

import argparse
import csv
from collections import Counter
from io import BytesIO
from pathlib import Path

from accuracy import MAIN, MSE, PUBLISHED
from PIL import Image

from mnist_lightning.data.sources import read
from mnist_lightning.evaluation import comparison_figures as pictures
from mnist_lightning.evaluation.comparison import COLUMNS, Comparison, Row, compare, markdown
from mnist_lightning.evaluation.runs import Run, read_runs
from mnist_lightning.files import write_whole

REPORTED = Path(__file__).parent / "results" / "reported.csv"
DOCUMENT = Path(__file__).parents[1] / "docs" / "results.md"

TEXT = """# Results

Every config of the project on real MNIST: 55,000 images train, 5,000 choose the checkpoint, and 10,000 test it, once.
Written by `benchmarks/document.py` from the run folders that `benchmarks/accuracy.py` left; one row a run is in
[accuracy.csv](../benchmarks/results/accuracy.csv). What the columns and the verdicts mean is told in
[the README](../README.md#compare). Runs: {machine} Two ran side by side, and some were stopped for a while,
so their seconds are left out here; [the README](../README.md#train) has those of trainings that had the machine for
themselves. On another number of threads a seed gives other weights, because sums are taken in another order.

## The families

![Test accuracy of the families with 95 % intervals](accuracies.png)

{main}
![Loss and error over the epochs](curves.png)

## Models of earlier reports

Rebuilt to the parameter (the reports count batch norm's running statistics) and trained under one protocol. Learning
rates and epochs that a report does not tell are ours. A report that names no validation images has chosen on the test
set, or not at all.

{published}

## Cross-entropy and mean squared error

The families were also compared by the mean squared error between probabilities and one-hot labels; that was reported as
pictures only. The losses are those of the training, and cannot be compared along a line.

{mse}
"""


def document(runs: list[Run]) -> tuple[str, Comparison]:
    """The text, and the comparison of the main configs for the pictures."""
    by_name: dict[str, list[Run]] = {}
    for run in runs:
        by_name.setdefault(run.name, []).append(run)

    def of(*names: str) -> Comparison:
        (comparison,) = compare([run for name in names for run in by_name.get(name, [])])
        return comparison

    main = of(*MAIN)
    rows = {row.name: row for row in of(*PUBLISHED).rows}
    published = [_reported(line, rows[line["config"]]) for line in csv.DictReader(REPORTED.open(newline=""))]
    pairs = [of(name.removesuffix("+mse"), name) for name in MSE if name in by_name]
    return TEXT.format(
        machine=_machine(runs),
        main=markdown(main, [name for name in COLUMNS if name not in ("seconds", "images/s")]),
        published=_table("config|parameters|reported %|reported loss|measured %|n|95 % interval|loss|", published),
        mse=_table("cross-entropy|accuracy %|loss|`mse`|accuracy %|loss|verdict", [_mse(pair) for pair in pairs]),
    ), main


def _machine(runs: list[Run]) -> str:
    devices = Counter((run.summary["device"], run.summary["cpu_threads"]) for run in runs)
    versions = Counter((run.summary["versions"]["torch"], run.summary["versions"]["lightning"]) for run in runs)
    parts = [f"{count} on {device}, {threads} thread(s)" for (device, threads), count in devices.items()]
    return ", ".join([*parts, *(f"torch {torch}, Lightning {lightning}" for torch, lightning in versions)]) + "."


def _reported(line: dict[str, str], row: Row) -> list[str]:
    """Reported beside measured; what falls short has its reason."""
    parameters = f"{int(line['parameters']):,}" if line["parameters"] else "not told"
    short = line["accuracy"] and 100 * row.test_accuracy < float(line["accuracy"])
    loss_short = line["loss"] and row.test_loss > float(line["loss"])
    if (short or loss_short) and not line["remark"]:
        raise SystemExit(f"{REPORTED}: {line['config']} falls short of what was reported, and has no remark")
    return [
        f"`{line['config']}`",
        parameters,
        line["accuracy"] or "pictures only",
        line["loss"],
        _accuracy(row),
        str(row.seeds),
        f"{100 * row.low:.2f} to {100 * row.high:.2f}",
        f"{row.test_loss:.4f}",
        line["remark"],
    ]


def _accuracy(row: Row) -> str:
    spread = "" if row.seeds == 1 else f" ± {100 * row.test_accuracy_sd:.2f}"
    return f"{100 * row.test_accuracy:.2f}{spread}"


def _mse(comparison: Comparison) -> list[str]:
    plain, mse = sorted(comparison.rows, key=lambda row: row.name)
    sides = [[f"`{row.name}` (n = {row.seeds})", _accuracy(row), f"{row.test_loss:.5f}"] for row in (plain, mse)]
    return [*sides[0], *sides[1], comparison.pairs[0].verdict]


def _table(heads: str, rows: list[list[str]]) -> str:
    columns = heads.split("|")
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    """Writes text and pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="?", default=Path("lightning_logs"))
    runs, problems = read_runs([parser.parse_args().runs])
    print(*(f"left out: {problem}" for problem in problems), sep="\n")
    text, families = document(runs)
    images, _ = read("mnist", train=False)
    figures = {
        "accuracies": pictures.accuracies(families),
        "curves": pictures.curves(families),
        "shared-mistakes": pictures.shared_mistakes(families, images, count=10),
    }
    for name, figure in figures.items():
        drawn, small = BytesIO(), BytesIO()
        figure.savefig(drawn, format="png", dpi=100)
        Image.open(drawn).convert("RGB").quantize(64).save(small, format="png", optimize=True)
        write_whole(DOCUMENT.with_name(f"{name}.png"), small.getvalue())
    write_whole(DOCUMENT, text.encode())


if __name__ == "__main__":
    main()

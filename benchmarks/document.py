"""Writes docs/results.md, its figures and results/accuracy.csv from runs, with the code of `mnist-lightning compare`.

mnist-lightning study all --seeds 5
mnist-lightning study mlp+mse lenet+mse cnn+mse resnet+mse densenet+mse efficientnet+mse gnn+mse --seeds 3
python benchmarks/document.py lightning_logs
"""

import argparse
import csv
from collections import Counter
from io import BytesIO
from pathlib import Path

from PIL import Image

from mnist_lightning.arguments import shipped_configs
from mnist_lightning.data.sources import read
from mnist_lightning.evaluation.compare import figures
from mnist_lightning.evaluation.compare.comparison import COLUMNS, Comparison, Row, compare, results_table
from mnist_lightning.evaluation.compare.runs import raw_runs
from mnist_lightning.files import write_whole
from mnist_lightning.runs.finding import finished_runs
from mnist_lightning.runs.run import Run

RESULTS = Path(__file__).parent / "results"
REPORTED = RESULTS / "reported.csv"
PUBLISHED = [name for name, path in shipped_configs().items() if path.parent.name == "published" and name != "mse"]
MAIN = [name for name, path in shipped_configs().items() if path.parent.name == "configs"]
MSE = [f"{name}+mse" for name in MAIN if name not in ("speedrun", "robust")]
DOCUMENT = Path(__file__).parents[1] / "docs" / "results.md"

TEXT = """# Results

All configs of the project on real MNIST: 55,000 images for training, 5,000 validation images, and 10,000
test images. The weights of the last epoch are tested, once. `benchmarks/document.py` writes this page from the runs of
`mnist-lightning study`. [accuracy.csv](../benchmarks/results/accuracy.csv) has one row per run.
[The README](../README.md#compare) explains the columns and the verdicts. Runs: {machine} Two trainings ran at the same
time, and some were interrupted, so this page lists no durations. [The README](../README.md#train) lists durations on an
otherwise idle machine. With another number of threads, the same seed gives other weights, because sums are computed in
another order.

## The families

![Test accuracy of the families with 95 % intervals](accuracies.png)

{main}
![Loss and error over the epochs](curves.png)

## Models of earlier reports

These models have exactly the reported number of parameters (the reports count batch norm's running statistics) and were
all trained under one protocol. Where a report omits the learning rate or the number of epochs, we chose it. A report
that mentions no validation images selected its model on the test set, or did not select one.

{published}

## Cross-entropy and mean squared error

The earlier reports also compare the families with the mean squared error between probabilities and one-hot labels, in
figures only. Each loss below is the loss of that training, so the losses in one row cannot be compared.

{mse}
"""


def document(runs: list[Run]) -> tuple[str, Comparison]:
    """Returns the page, and the comparison of the main configs for the figures."""
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
        main=_main(main),
        published=_table("config|parameters|reported %|reported loss|measured %|n|95 % interval|loss|", published),
        mse=_table("cross-entropy|accuracy %|loss|`mse`|accuracy %|loss|verdict", [_mse(pair) for pair in pairs]),
    ), main


def _main(comparison: Comparison) -> str:
    table = results_table(comparison, [name for name in COLUMNS if name not in ("seconds", "images/s")])
    return "\n".join([table.markdown(), *(f"- {pair}" for pair in comparison.pairs), ""])


def _machine(runs: list[Run]) -> str:
    devices = Counter((run.summary["device"], run.summary["cpu_threads"]) for run in runs)
    versions = Counter((run.summary["versions"]["torch"], run.summary["versions"]["lightning"]) for run in runs)
    parts = [f"{count} on {device}, {threads} thread(s)" for (device, threads), count in devices.items()]
    return ", ".join([*parts, *(f"torch {torch}, Lightning {lightning}" for torch, lightning in versions)]) + "."


def _reported(line: dict[str, str], row: Row) -> list[str]:
    """Makes a row of reported and measured results. A result below the reported one needs a remark."""
    parameters = f"{int(line['parameters']):,}" if line["parameters"] else "not reported"
    short = line["accuracy"] and 100 * row.test_accuracy < float(line["accuracy"])
    loss_short = line["loss"] and row.test_loss > float(line["loss"])
    if (short or loss_short) and not line["remark"]:
        raise SystemExit(f"{REPORTED}: {line['config']} is worse than reported and has no remark; add one")
    return [
        f"`{line['config']}`",
        parameters,
        line["accuracy"] or "figures only",
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


def _table(header: str, rows: list[list[str]]) -> str:
    columns = header.split("|")
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    """Writes the page and the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="?", default="lightning_logs", help="folder of the runs")
    runs, problems = finished_runs([parser.parse_args().runs])
    print(*(f"left out: {problem}" for problem in problems), sep="\n")
    text, families = document(runs)
    images, _ = read("mnist", train=False)
    for name, figure in (
        ("accuracies", figures.accuracies(families)),
        ("curves", figures.curves(families)),
        ("shared-mistakes", figures.shared_mistakes(families, images, count=10)),
    ):
        png, small = BytesIO(), BytesIO()
        figure.savefig(png, format="png", dpi=100)
        Image.open(png).convert("RGB").quantize(64).save(small, format="png", optimize=True)
        write_whole(DOCUMENT.with_name(f"{name}.png"), small.getvalue())
    write_whole(RESULTS / "accuracy.csv", raw_runs(compare(runs)).csv())
    write_whole(DOCUMENT, text)


if __name__ == "__main__":
    main()

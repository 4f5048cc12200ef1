"""Tables of the single runs in a comparison."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from mnist_lightning.evaluation.compare.comparison import MAIN_COLUMNS, Comparison, number, percent, results_table
from mnist_lightning.evaluation.page import Table
from mnist_lightning.runs.finding import mean_of
from mnist_lightning.runs.run import Run

_MOST_IN_A_CELL = 10


def terminal_table(comparison: Comparison) -> Table:
    """Makes the table of the main results. The last column has the test accuracies of each model's 2 to 10 runs."""
    table = results_table(comparison, MAIN_COLUMNS)
    each = [
        " ".join(percent(run.correct.mean()) for run in group) if 2 <= len(group) <= _MOST_IN_A_CELL else ""
        for group in comparison.groups
    ]
    if not any(each):
        return table
    rows = [[*row, accuracies] for row, accuracies in zip(table.rows, each, strict=True)]
    return Table(table.title, [*table.header, "each run %"], rows)


def runs_table(comparison: Comparison) -> Table:
    """Makes a table of one comparison with a row per run, with rounded numbers. Ensembles are left out."""
    rows = [_cells(facts) for facts in _all_facts(comparison)]
    header = [name for name in rows[0] if name != "fold" or any(row["fold"] for row in rows)]
    return Table("Runs", header, [[row[name] for name in header] for row in rows])


def raw_runs(comparisons: Sequence[Comparison]) -> Table:
    """Makes one table of all runs, with unrounded numbers. Ensembles are left out."""
    rows = [{"source": one.source, **facts} for one in comparisons for facts in _all_facts(one)]
    return Table("Runs", list(rows[0]), [list(row.values()) for row in rows])


def _all_facts(comparison: Comparison) -> Iterator[dict[str, Any]]:
    for name, group in zip(comparison.names, comparison.groups, strict=True):
        yield from (_facts(name, run) for run in group if run.folder)


def _facts(name: str, run: Run) -> dict[str, Any]:
    """Results of a run. Accuracies lie between 0 and 1, and unknown values are NaN."""
    seed, data_seed = run.seeds or (np.nan, np.nan)
    fold, folds = run.fold or (0, 0)
    return {
        "name": name,
        "seed": seed,
        "data_seed": data_seed,
        "fold": fold,
        "folds": folds,
        "test_accuracy": float(run.correct.mean()),
        "val_accuracy": mean_of([run], "val", "accuracy"),
        "epochs": run.summary.get("epochs", np.nan),
        "train_seconds": run.summary.get("train_seconds", np.nan),
        "folder": str(run.folder),
    }


def _cells(facts: dict[str, Any]) -> dict[str, str]:
    seed, data_seed = str(facts["seed"]), str(facts["data_seed"])  # integers of any size
    return {
        "model": facts["name"],
        "seed": "?" if seed == "nan" else seed if seed == data_seed else f"{seed}, data {data_seed}",
        "fold": f"{facts['fold']}/{facts['folds']}" if facts["folds"] else "",
        "test accuracy %": percent(facts["test_accuracy"]),
        "validation accuracy %": percent(facts["val_accuracy"]),
        "epochs": number(float(facts["epochs"]), ".0f"),
        "seconds": number(float(facts["train_seconds"]), ".0f"),
        "folder": facts["folder"],
    }

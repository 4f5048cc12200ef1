import csv
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from mnist_lightning.evaluation.compare.comparison import Comparison, compare, ensembles
from mnist_lightning.evaluation.compare.runs import raw_runs, runs_table, terminal_table
from mnist_lightning.evaluation.page import Table
from mnist_lightning.runs.run import Run

LABELS = np.arange(1000) % 10


def run(name: str, mistakes: int, seed: int = 0, fold: tuple[int, int] | None = None, **summary: Any) -> Run:
    answers = np.where(np.arange(1000) < mistakes, (LABELS + 1) % 10, LABELS)
    values = {"experiment": name, "source": "digits", "seed": seed, "val": {"accuracy": 0.9}, **summary}
    made = Run.computed(values, np.eye(10, dtype=np.float32)[answers], LABELS)
    made.folder, made.fold = Path("logs", name, str(seed)), fold
    return made


def one(*runs: Run) -> Comparison:
    (comparison,) = compare(runs)
    return comparison


def shown(table: Table, width: int) -> list[str]:
    console = Console(width=width, file=StringIO())
    with console.capture() as capture:
        console.print(table)
    return capture.get().splitlines()


def test_runs_table() -> None:
    facts = {"epochs": 5, "train_seconds": 7.6}
    runs = [run("a", 10, **facts), run("a", 12, 1), run("b", 20, val={"accuracy": 0.8})]
    runs[1].seeds, runs[2].seeds = (1, 5), None
    table = runs_table(one(*runs, *ensembles(runs)))
    assert list(table.header) == [
        *("model", "seed", "test accuracy %", "validation accuracy %", "epochs", "seconds", "folder")
    ]
    assert table.rows == [
        ["a", "0", "99.00", "90.00", "5", "8", "logs/a/0"],
        ["a", "1, data 5", "98.80", "90.00", "?", "?", "logs/a/1"],
        ["b", "?", "98.00", "80.00", "?", "?", "logs/b/0"],
    ]


def test_runs_table_names_folds() -> None:
    table = runs_table(one(run("a", 10, fold=(2, 5)), run("a", 10, fold=(1, 5)), run("b", 20, val={"accuracy": 0.8})))
    assert [row[:3] for row in table.rows] == [["a, 5 folds", "0", "1/5"], ["a, 5 folds", "0", "2/5"], ["b", "0", ""]]


def test_raw_runs_are_not_rounded() -> None:
    runs = [run("a", 333, fold=(2, 5), epochs=1), run("b", 1, 3, val={"accuracy": 1 / 3}, source="mnist")]
    first, second = csv.DictReader(StringIO(raw_runs(compare(runs)).csv()))
    assert (first["source"], first["name"], first["seed"], first["data_seed"]) == ("digits", "a, 5 folds", "0", "0")
    assert (first["fold"], first["folds"], first["test_accuracy"], first["epochs"]) == ("2", "5", "0.667", "1")
    assert (second["fold"], second["folds"], float(second["val_accuracy"])) == ("0", "0", 1 / 3)
    assert (second["epochs"], second["folder"]) == ("nan", "logs/b/3")


def test_the_accuracies_of_all_runs_are_the_last_column_of_a_wide_terminal() -> None:
    many = [run("many", 50, seed, val={"accuracy": 0.5}) for seed in range(11)]
    table = terminal_table(one(run("a", 10), run("a", 12, 1), run("b", 20, val={"accuracy": 0.8}), *many))
    assert table.header[-1] == "each run %"
    assert [row[-1] for row in table.rows] == ["99.00 98.80", "", ""]
    assert "99.00 98.80" in "".join(shown(table, 200))
    narrow = "".join(shown(table, 80))
    assert "98.90 ± 0.14" in narrow
    assert "each run" not in narrow


def test_single_runs_have_no_such_column() -> None:
    assert "each run %" not in terminal_table(one(run("a", 10), run("b", 10))).header

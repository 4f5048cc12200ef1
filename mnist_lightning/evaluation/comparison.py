"""Which of some models is better, and whether that can be known."""

import csv
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, fields
from io import StringIO
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from mnist_lightning.evaluation.runs import Run, chosen_of, grouped, mean_of
from mnist_lightning.evaluation.statistics import bootstrapped_accuracies, expected_calibration_error, holm, mcnemar

# Test images whose label at least three of five people gave as another digit: index, and that digit. From the human
# annotations of MNIST's test set by Northcutt, Athalye and Mueller 2021 ("Pervasive label errors in test sets").
CONSENSUS = {947: 9, 1621: 6, 1901: 4, 2462: 0, 2597: 3, 3558: 0, 5937: 3, 6651: 6, 6783: 6, 9729: 6}


@dataclass(frozen=True)
class Row:
    """One model; means over its seeds. Accuracies and their like are shares, not percent; NaN is unknown.

    Attributes:
        name: The experiment's, numbered where two have the same.
        seeds: How many runs n there are.
        test_accuracy: Mean.
        test_accuracy_sd: Sample standard deviation over the seeds; NaN for one.
        low: Lower end of the 95 % interval of the mean test accuracy, over other images and seeds.
        high: Its upper end.
        corrected_accuracy: Test accuracy where the ten labels of MNIST are corrected that people agree are wrong.
        calibration_error: Expected calibration error, 15 bins.
        layers: Linear maps and convolutions.
        images_per_second: Training images, in training.
    """

    name: str
    model: str
    seeds: int
    test_accuracy: float
    test_accuracy_sd: float
    low: float
    high: float
    test_loss: float
    corrected_accuracy: float
    calibration_error: float
    val_accuracy: float
    val_loss: float
    train_accuracy: float
    train_loss: float
    parameters: int
    size_kib: float
    layers: int
    lr: float
    epochs: float
    train_seconds: float
    images_per_second: float


@dataclass(frozen=True)
class Pair:
    """Two models on the same test images.

    Attributes:
        first: The one that validation prefers.
        second: The other.
        difference: First minus second, of the mean test accuracies.
        low: Lower end of the difference's 95 % interval, over other images and seeds.
        high: Its upper end.
        p: McNemar's exact test between the run of each that validation prefers, adjusted for the number of pairs
            (Holm).
        better: Which one is better; None if that cannot be known.
        verdict: The same in words.
    """

    first: str
    second: str
    difference: float
    low: float
    high: float
    p: float
    better: str | None
    verdict: str


@dataclass(frozen=True)
class Comparison:
    """Models on one test set, those first that validation prefers.

    Attributes:
        source: The test set's source.
        images: Number of its images.
        groups: The runs of each row.
        chosen: Of each group the run that validation prefers.
        rows: One a model.
        pairs: Every two models.
    """

    source: str
    images: int
    groups: list[list[Run]]
    chosen: list[Run]
    rows: list[Row]
    pairs: list[Pair]


def compare(runs: Sequence[Run]) -> list[Comparison]:
    """Compares runs; those on different test sets apart.

    A model is said to be better only if both hold: the interval of the difference, which other seeds and other test
    images would give, has one sign; and McNemar's test finds a difference after Holm's adjustment.

    Args:
        runs: Any, of any number of models, sources and seeds.

    Returns:
        One comparison a test set, the largest first.
    """
    by_test_set: dict[tuple[str, int], list[list[Run]]] = {}
    for group in grouped(runs):
        by_test_set.setdefault(group[0].test_set, []).append(group)
    return sorted((_comparison(groups) for groups in by_test_set.values()), key=lambda c: -len(c.rows))


def _comparison(groups: list[list[Run]]) -> Comparison:
    names = distinct([group[0].name for group in groups])
    drawn = bootstrapped_accuracies([np.stack([run.correct for run in group]) for group in groups])
    rows = [_row(*of_group) for of_group in zip(names, groups, drawn, strict=True)]
    chosen = [chosen_of(group) for group in groups]
    both = list(combinations(range(len(groups)), 2))
    p_values = holm([mcnemar(chosen[first].correct, chosen[second].correct) for first, second in both])
    pairs = [
        _pair(rows[first], rows[second], drawn[first] - drawn[second], p)
        for (first, second), p in zip(both, p_values, strict=True)
    ]
    return Comparison(groups[0][0].test_set[0], len(groups[0][0].labels), groups, chosen, rows, pairs)


def distinct(names: Sequence[str]) -> list[str]:
    """The same names, with a number where one comes again."""
    return [f"{name} ({names[: i + 1].count(name)})" if names.count(name) > 1 else name for i, name in enumerate(names)]


def _row(name: str, group: list[Run], drawn: NDArray[np.float64]) -> Row:
    summary = group[0].summary
    accuracies = [run.correct.mean() for run in group]
    low, high = np.percentile(drawn, [2.5, 97.5])
    seconds = _mean(group, "train_seconds")
    images = sum(summary.get("train", {}).get("support", []))
    return Row(
        name=name,
        model=str(summary.get("model")),
        seeds=len(group),
        test_accuracy=float(np.mean(accuracies)),
        test_accuracy_sd=float(np.std(accuracies, ddof=1)) if len(group) > 1 else np.nan,
        low=float(low),
        high=float(high),
        test_loss=mean_of(group, "test", "loss"),
        corrected_accuracy=float(np.mean([_corrected_accuracy(run) for run in group])),
        calibration_error=float(np.mean([expected_calibration_error(run.logits, run.labels) for run in group])),
        val_accuracy=mean_of(group, "val", "accuracy"),
        val_loss=mean_of(group, "val", "loss"),
        train_accuracy=mean_of(group, "train", "accuracy"),
        train_loss=mean_of(group, "train", "loss"),
        parameters=int(summary.get("parameters", 0)),
        size_kib=float(summary.get("size_kib", np.nan)),
        layers=int(summary.get("layers", 0)),
        lr=float(summary.get("hyper_parameters", {}).get("lr", np.nan)),
        epochs=_mean(group, "epochs"),
        train_seconds=seconds,
        images_per_second=images * _mean(group, "epochs") / seconds if images and seconds else np.nan,
    )


def _mean(group: list[Run], name: str) -> float:
    return float(np.mean([run.summary.get(name, np.nan) for run in group]))


def _corrected_accuracy(run: Run) -> float:
    """NaN for what is not MNIST's test set in its own order."""
    if run.summary["source"] != "mnist" or len(run.labels) != 10_000:
        return np.nan
    labels = run.labels.copy()
    labels[list(CONSENSUS)] = list(CONSENSUS.values())
    return float((run.logits.argmax(axis=1) == labels).mean())


def _pair(first: Row, second: Row, drawn: NDArray[np.float64], p: float) -> Pair:
    low, high = (float(end) for end in np.percentile(drawn, [2.5, 97.5]))
    difference = first.test_accuracy - second.test_accuracy
    n = f"n = {first.seeds}" if first.seeds == second.seeds else f"n = {first.seeds} and {second.seeds}"
    better_one = None
    if p < 0.05 and (low > 0 or high < 0):
        better, worse, points = (first, second, (difference, low, high))
        if difference < 0:
            better, worse, points = (second, first, (-difference, -high, -low))
        better_one = better.name
        gain, least, most = (100 * value for value in points)
        verdict = f"{better.name} is better than {worse.name} by {gain:.2f} points ({least:.2f} to {most:.2f}), {n}"
    else:
        verdict = f"{first.name} and {second.name} are not distinguishable at {n}"
    return Pair(first.name, second.name, difference, low, high, p, better_one, verdict)


def _percent(value: float) -> str:
    return _number(100 * value, ".2f")


def _number(value: float, form: str) -> str:
    return "?" if np.isnan(value) else format(value, form)


def _accuracy(row: Row) -> str:
    spread = "" if np.isnan(row.test_accuracy_sd) else f" ± {_percent(row.test_accuracy_sd)}"
    return _percent(row.test_accuracy) + spread


COLUMNS: dict[str, Callable[[Row], str]] = {
    "model": lambda row: row.name,
    "n": lambda row: str(row.seeds),
    "test accuracy %": _accuracy,
    "95 % interval": lambda row: f"{_percent(row.low)} to {_percent(row.high)}",
    "error %": lambda row: _percent(1 - row.test_accuracy),
    "test loss": lambda row: _number(row.test_loss, ".4f"),
    "validation %": lambda row: _percent(row.val_accuracy),
    "validation loss": lambda row: _number(row.val_loss, ".4f"),
    "train %": lambda row: _percent(row.train_accuracy),
    "train loss": lambda row: _number(row.train_loss, ".4f"),
    "calibration error %": lambda row: _percent(row.calibration_error),
    "corrected labels %": lambda row: _percent(row.corrected_accuracy),
    "parameters": lambda row: f"{row.parameters:,}",
    "KiB": lambda row: _number(row.size_kib, ".0f"),
    "layers": lambda row: str(row.layers),
    "learning rate": lambda row: _number(row.lr, "g"),
    "epochs": lambda row: _number(row.epochs, "g"),
    "seconds": lambda row: _number(row.train_seconds, ".0f"),
    "images/s": lambda row: _number(row.images_per_second, ",.0f"),
}
# More than these do not fit side by side.
_ON_A_TERMINAL = (
    *("model", "n", "test accuracy %", "95 % interval", "test loss", "validation %", "train %"),
    *("calibration error %", "parameters", "epochs", "seconds"),
)


def rich_table(comparison: Comparison) -> Table:
    """The rows for a terminal, without the columns that do not fit there."""
    table = Table(title=_title(comparison), title_justify="left")
    for name in _ON_A_TERMINAL:
        table.add_column(name, justify="left" if name == "model" else "right", overflow="fold")
    for row in comparison.rows:
        table.add_row(*(COLUMNS[name](row) for name in _ON_A_TERMINAL))
    return table


def markdown(comparison: Comparison, columns: Sequence[str] = tuple(COLUMNS)) -> str:
    """The rows and the verdicts, to paste.

    Args:
        comparison: Of any models.
        columns: Some of `COLUMNS`.
    """
    lines = [f"**{_title(comparison)}**", ""]
    lines += [f"| {' | '.join(columns)} |", f"| --- |{' ---: |' * (len(columns) - 1)}"]
    lines += [f"| {' | '.join(COLUMNS[name](row) for name in columns)} |" for row in comparison.rows]
    lines += ["", *(f"- {pair.verdict} (p = {pair.p:.2g})" for pair in comparison.pairs), ""]
    return "\n".join(lines)


def _title(comparison: Comparison) -> str:
    return f"{comparison.images:,} test images of {comparison.source}"


def csv_text(comparisons: Sequence[Comparison]) -> str:
    """All rows of all comparisons, unrounded."""
    text = StringIO()
    writer = csv.writer(text)
    writer.writerow(["source", *(field.name for field in fields(Row))])
    for comparison in comparisons:
        writer.writerows([comparison.source, *astuple(row)] for row in comparison.rows)
    return text.getvalue()

"""Compares models: accuracies, confidence intervals and significance tests."""

from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, fields
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from mnist_lightning.evaluation.page import Table
from mnist_lightning.evaluation.statistics import bootstrapped_accuracies, expected_calibration_error, holm, mcnemar
from mnist_lightning.runs.run import Run, best_by_validation, group_by_test_set, mean_of, names_of

# MNIST test images that at least three of five annotators gave the same other digit: index and digit.
# Northcutt, Athalye and Mueller 2021, "Pervasive label errors in test sets".
CONSENSUS = {947: 9, 1621: 6, 1901: 4, 2462: 0, 2597: 3, 3558: 0, 5937: 3, 6651: 6, 6783: 6, 9729: 6}


@dataclass(frozen=True)
class Row:
    """Results of one model, averaged over its seeds. Accuracies and errors lie between 0 and 1; unknown values are NaN.

    Attributes:
        name: Name of the experiment, with the settings that tell it from others of the same name.
        model: Name of the class.
        seeds: Number of runs n.
        test_accuracy: Mean test accuracy.
        test_accuracy_sd: Sample standard deviation of the test accuracy over the seeds; NaN for one seed.
        low: Lower end of the 95 % confidence interval of the mean test accuracy, over test images and seeds.
        high: Upper end of the same interval.
        test_loss: Mean test loss.
        corrected_accuracy: Mean test accuracy after the labels in `CONSENSUS` are corrected; NaN for other test sets.
        calibration_error: Mean expected calibration error of 15 bins.
        val_accuracy: Mean validation accuracy.
        val_loss: Mean validation loss.
        train_accuracy: Mean accuracy on the training images without augmentation.
        train_loss: Mean loss on the training images without augmentation.
        parameters: Number of parameters.
        size_kib: Size of the weights in KiB.
        layers: Number of linear layers and convolutions.
        lr: Learning rate.
        epochs: Mean number of epochs.
        train_seconds: Mean duration of the training in seconds.
        images_per_second: Training images per second of training.
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
        first: Name of the model with the higher validation accuracy.
        second: Name of the other model.
        difference: Mean test accuracy of the first model minus that of the second.
        low: Lower end of the difference's 95 % confidence interval, over test images and seeds.
        high: Upper end of the same interval.
        p: p-value of McNemar's exact test between the models' best runs by validation accuracy, adjusted for the number
            of pairs (Holm).
        better: Name of the better model, or None if the models are not distinguishable.
        verdict: The result as a sentence.
    """

    first: str
    second: str
    difference: float
    low: float
    high: float
    p: float
    better: str | None
    verdict: str

    def __str__(self) -> str:
        return f"{self.verdict} (p = {self.p:.2g})"


@dataclass(frozen=True)
class Comparison:
    """Models on one test set, sorted by validation accuracy, the best first.

    Attributes:
        source: Name of the data source.
        images: Number of test images.
        groups: Runs of each model, one per seed.
        chosen: Run of each model with the best validation accuracy.
        rows: Results of each model.
        pairs: All pairs of models.
    """

    source: str
    images: int
    groups: list[list[Run]]
    chosen: list[Run]
    rows: list[Row]
    pairs: list[Pair]

    @property
    def names(self) -> list[str]:
        """Names of the models."""
        return [row.name for row in self.rows]


def compare(runs: Sequence[Run]) -> list[Comparison]:
    """Compares the models on each test set.

    One model is better than another if two conditions hold: the bootstrapped 95 % confidence interval of the difference
    excludes zero, and McNemar's test with Holm's adjustment gives p < 0.05.

    Args:
        runs: Finished runs of any models, sources and seeds.

    Returns:
        One comparison per test set, the one with the most models first.
    """
    return [_comparison(groups) for groups in group_by_test_set(runs)]


def ensembles(runs: Sequence[Run]) -> list[Run]:
    """Combines the models on each test set by mean probability and by majority vote.

    A model takes part with its best run by validation accuracy. The mean probability breaks ties between votes. The
    parameters, size and training time of an ensemble are the sums over its members.

    Args:
        runs: Finished runs of any models, sources and seeds.

    Returns:
        Two ensembles per test set with at least two models.
    """
    combined = []
    for groups in group_by_test_set(runs):
        members = [best_by_validation(group) for group in groups]
        if len(members) < 2:
            continue
        probabilities = np.mean([softmax(run.logits.astype(float), axis=1) for run in members], axis=0)
        votes = np.mean([np.eye(10)[run.logits.argmax(axis=1)] for run in members], axis=0)
        votes = (votes + 1e-3 * probabilities) / 1.001
        sums = {
            name: sum(run.summary.get(name, 0) for run in members)
            for name in ("parameters", "size_kib", "train_seconds")
        }
        for name, values in {"mean probability": probabilities, "majority vote": votes}.items():
            summary = {
                "experiment": f"ensemble: {name}",
                "model": f"{len(members)} models",
                "source": members[0].source,
            }
            logits = np.log(values + 1e-12).astype(np.float32)
            combined.append(Run.computed({**summary, "seed": 0, **sums}, logits, members[0].labels))
    return combined


def _comparison(groups: list[list[Run]]) -> Comparison:
    samples = bootstrapped_accuracies([np.stack([run.correct for run in group]) for group in groups])
    rows = [_row(*model) for model in zip(names_of(groups), groups, samples, strict=True)]
    chosen = [best_by_validation(group) for group in groups]
    indices = list(combinations(range(len(groups)), 2))
    p_values = holm([mcnemar(chosen[first].correct, chosen[second].correct) for first, second in indices])
    pairs = [
        _pair(rows[first], rows[second], samples[first] - samples[second], p)
        for (first, second), p in zip(indices, p_values, strict=True)
    ]
    return Comparison(chosen[0].source, len(chosen[0].labels), groups, chosen, rows, pairs)


def _row(name: str, group: list[Run], samples: NDArray[np.float64]) -> Row:
    summary = group[0].summary
    accuracies = [run.correct.mean() for run in group]
    low, high = np.percentile(samples, [2.5, 97.5])
    epochs, seconds = _mean(group, "epochs"), _mean(group, "train_seconds")
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
        epochs=epochs,
        train_seconds=seconds,
        images_per_second=images * epochs / seconds if images and seconds else np.nan,
    )


def _mean(group: list[Run], name: str) -> float:
    return float(np.mean([run.summary.get(name, np.nan) for run in group]))


def _corrected_accuracy(run: Run) -> float:
    if run.source != "mnist" or len(run.labels) != 10_000:  # the indices in CONSENSUS are those of MNIST's test set
        return np.nan
    labels = run.labels.copy()
    labels[list(CONSENSUS)] = list(CONSENSUS.values())
    return float((run.logits.argmax(axis=1) == labels).mean())


def _pair(first: Row, second: Row, samples: NDArray[np.float64], p: float) -> Pair:
    low, high = (float(end) for end in np.percentile(samples, [2.5, 97.5]))
    difference = first.test_accuracy - second.test_accuracy
    n = f"n = {first.seeds}" if first.seeds == second.seeds else f"n = {first.seeds} and {second.seeds}"
    better = None
    verdict = f"{first.name} and {second.name} are not distinguishable at {n}"
    if p < 0.05 and (low > 0 or high < 0):
        winner, loser, interval = first, second, (difference, low, high)
        if difference < 0:
            winner, loser, interval = second, first, (-difference, -high, -low)
        better = winner.name
        gain, least, most = (100 * value for value in interval)
        verdict = f"{better} is better than {loser.name} by {gain:.2f} points ({least:.2f} to {most:.2f}), {n}"
    return Pair(first.name, second.name, difference, low, high, p, better, verdict)


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
# The columns that fit on a terminal.
MAIN_COLUMNS = (
    *("model", "n", "test accuracy %", "95 % interval", "test loss", "validation %", "train %"),
    *("calibration error %", "parameters", "epochs", "seconds"),
)


def results_table(comparison: Comparison, columns: Sequence[str] = tuple(COLUMNS)) -> Table:
    """Makes a table of one comparison, with rounded numbers.

    Args:
        comparison: The comparison.
        columns: Names of columns, keys of `COLUMNS`.
    """
    title = f"{comparison.images:,} test images of {comparison.source}"
    return Table(title, columns, [[COLUMNS[name](row) for name in columns] for row in comparison.rows])


def raw_table(comparisons: Sequence[Comparison]) -> Table:
    """Makes one table of all comparisons, with unrounded numbers."""
    header = ["source", *(field.name for field in fields(Row))]
    rows = [[comparison.source, *astuple(row)] for comparison in comparisons for row in comparison.rows]
    return Table("Comparison", header, rows)

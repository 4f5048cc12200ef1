"""Compares models: accuracies, confidence intervals and significance tests."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, fields, replace
from itertools import combinations

import numpy as np
from scipy.special import softmax

from mnist_lightning.evaluation.page import Table
from mnist_lightning.evaluation.statistics import (
    Float,
    Pair,
    bootstrapped_accuracies,
    compare_pairs,
    expected_calibration_error,
    mcnemar,
    seeds_needed,
)
from mnist_lightning.runs.finding import best_by_validation, folds_of, group_by_test_set, mean_of, names_of
from mnist_lightning.runs.run import Run

# MNIST test images that at least three of five annotators gave the same other digit: index and digit.
# Northcutt, Athalye and Mueller 2021, "Pervasive label errors in test sets".
CONSENSUS = {947: 9, 1621: 6, 1901: 4, 2462: 0, 2597: 3, 3558: 0, 5937: 3, 6651: 6, 6783: 6, 9729: 6}


@dataclass(frozen=True)
class Row:
    """Results of one model, averaged over its runs. Accuracies and errors lie between 0 and 1; unknown values are NaN.

    Attributes:
        name: Name of the experiment, with the settings that tell it from others of the same name.
        model: Name of the class.
        runs: Number of runs.
        seeds: Number of seeds, which is the number of runs if there are no folds.
        folds: Number K of folds of a cross-validation; 0 without folds.
        test_accuracy: Mean test accuracy.
        test_accuracy_sd: Sample standard deviation of the test accuracy over the runs; NaN for one run.
        low: Lower end of the 95 % confidence interval of the mean test accuracy, over test images and runs.
        high: Upper end of the same interval.
        test_loss: Mean test loss.
        corrected_accuracy: Mean test accuracy after the labels in `CONSENSUS` are corrected; NaN for other test sets.
        calibration_error: Mean expected calibration error of 15 bins.
        val_accuracy: Mean validation accuracy.
        val_accuracy_sd: Sample standard deviation of the validation accuracy over the runs; NaN for one run.
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
    runs: int
    seeds: int
    folds: int
    test_accuracy: float
    test_accuracy_sd: float
    low: float
    high: float
    test_loss: float
    corrected_accuracy: float
    calibration_error: float
    val_accuracy: float
    val_accuracy_sd: float
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

    @property
    def n(self) -> str:
        """Number of runs in words: `3` seeds, `3 of 5 folds`, `5 folds` or `5 folds x 2 seeds`."""
        if not self.folds:
            return str(self.runs)
        several = self.seeds > 1
        whole = f"{self.folds} folds" + (f" x {self.seeds} seeds" if several else "")
        is_whole = self.runs == self.folds * self.seeds
        return whole if is_whole else f"{self.runs}{' runs' if several else ''} of {whole}"


@dataclass(frozen=True)
class Comparison:
    """Models on one test set, sorted by validation accuracy, the best first.

    Attributes:
        source: Name of the data source.
        images: Number of test images.
        groups: Runs of each model, one per seed, or one per seed and fold.
        chosen: Run of each model with the best validation accuracy.
        rows: Results of each model.
        pairs: All pairs of models. The p-values are those of McNemar's exact test between the chosen runs. The number
            of seeds needed is unknown for folds, which are not independent runs, and for models that have as many seeds
            already, because the number of test images then limits the comparison.
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

    @property
    def best(self) -> str:
        """Name of the model with the highest test accuracy."""
        return max(self.rows, key=lambda row: row.test_accuracy).name

    @property
    def caution(self) -> str:
        """Warning in one line if models have a single run, or fewer runs than others; otherwise empty.

        Ensembles, which are not trained, and folds, which are not seeds, are left out.
        """
        pairs = zip(self.rows, self.groups, strict=True)
        trained = [row for row, group in pairs if group[0].folder and not row.folds]
        counts = [row.runs for row in trained]
        least, most = min(counts, default=0), max(counts, default=0)
        meanings = ["one run says nothing about the spread over seeds"] if least == 1 else []
        meanings += ["means over fewer runs are less certain"] if least < most else []
        few = [row.name for row in trained if row.runs == least]
        more = f" and {len(few) - 3} more" if len(few) > 3 else ""
        names = f"{'; '.join(few[:3])}{more}; others up to n = {most}" if least < most else f"all on {self.source}"
        return f"Caution: {', and '.join(meanings)} (n = {least}: {names})." if meanings else ""


def compare(runs: Sequence[Run]) -> list[Comparison]:
    """Compares the models on each test set.

    One model is better than another if two conditions hold: the bootstrapped 95 % confidence interval of the difference
    excludes zero, and McNemar's exact test with Holm's adjustment gives p < 0.05.

    Args:
        runs: Finished runs of any models, sources and seeds.

    Returns:
        One comparison per test set, the one with the most models first.
    """
    return [_comparison(groups) for groups in group_by_test_set(runs)]


def ensembles(runs: Sequence[Run]) -> list[Run]:
    """Combines the seeds of each model by mean probability, and the models by mean probability and by majority vote.

    In the ensembles of models, a model takes part with its best run by validation accuracy. The mean probability breaks
    ties between votes. The parameters, size and training time of an ensemble are the sums over its members.

    Args:
        runs: Finished runs of any models, sources and seeds.

    Returns:
        For each test set, an ensemble per model of two or more runs, and two ensembles of two or more models.
    """
    combined = []
    for groups in group_by_test_set(runs):
        for name, group in zip(names_of(groups), groups, strict=True):
            if len(group) > 1:
                combined.append(_ensemble(f"ensemble: {len(group)} x {name}", group, _mean_probability(group)))
        members = [best_by_validation(group) for group in groups]
        if len(members) > 1:
            probabilities = _mean_probability(members)
            votes = np.mean([np.eye(10)[run.logits.argmax(axis=1)] for run in members], axis=0)
            votes = (votes + 1e-3 * probabilities) / 1.001
            combined.append(_ensemble("ensemble: mean probability", members, probabilities))
            combined.append(_ensemble("ensemble: majority vote", members, votes))
    return combined


def _mean_probability(members: Sequence[Run]) -> Float:
    mean: Float = np.mean([softmax(run.logits.astype(float), axis=1) for run in members], axis=0)
    return mean


def _ensemble(name: str, members: Sequence[Run], probabilities: Float) -> Run:
    summary = {"experiment": name, "model": f"{len(members)} models", "source": members[0].source, "seed": 0}
    for fact in ("parameters", "size_kib", "train_seconds"):
        summary[fact] = sum(run.summary.get(fact, 0) for run in members)
    return Run.computed(summary, np.log(probabilities + 1e-12).astype(np.float32), members[0].labels)


def _comparison(groups: list[list[Run]]) -> Comparison:
    correct = [np.stack([run.correct for run in group]) for group in groups]
    accuracies, samples = [runs.mean(axis=1) for runs in correct], bootstrapped_accuracies(correct)
    names = names_of(groups)
    chosen = [best_by_validation(group) for group in groups]
    p_values = [mcnemar(first.correct, second.correct) for first, second in combinations(chosen, 2)]
    rows = [_row(*model) for model in zip(names, groups, accuracies, samples, strict=True)]
    pairs = compare_pairs(names, accuracies, samples, p_values, counts=[row.n for row in rows])
    models = combinations(zip(rows, accuracies, strict=True), 2)
    return Comparison(
        source=chosen[0].source,
        images=len(chosen[0].labels),
        groups=groups,
        chosen=chosen,
        rows=rows,
        pairs=[_with_seeds_needed(pair, *two) for pair, two in zip(pairs, models, strict=True)],
    )


def _with_seeds_needed(pair: Pair, first: tuple[Row, Float], second: tuple[Row, Float]) -> Pair:
    """Completes a pair. A model is its row and the accuracies of its runs."""
    (row, accuracies), (other_row, other_accuracies) = first, second
    if pair.better is not None or row.folds or other_row.folds:
        return pair
    needed = seeds_needed(accuracies, other_accuracies)
    return replace(pair, seeds_needed=needed) if needed and needed > min(row.runs, other_row.runs) else pair


def _row(name: str, group: list[Run], accuracies: Float, samples: Float) -> Row:
    summary, folds = group[0].summary, folds_of(group[0])
    validation = [run.summary.get("val", {}).get("accuracy", np.nan) for run in group]
    low, high = map(float, np.percentile(samples, [2.5, 97.5]))
    costs = [(run.summary.get("epochs", np.nan), run.summary.get("train_seconds", np.nan)) for run in group]
    epochs, seconds = np.mean(costs, axis=0).tolist()
    images = sum(summary.get("train", {}).get("support", []))
    return Row(
        name=name,
        model=str(summary.get("model")),
        runs=len(group),
        seeds=_seeds(group) if folds else len(group),
        folds=folds,
        test_accuracy=float(accuracies.mean()),
        test_accuracy_sd=_sd(accuracies),
        low=low,
        high=high,
        test_loss=mean_of(group, "test", "loss"),
        corrected_accuracy=float(np.mean([_corrected_accuracy(run) for run in group])),
        calibration_error=float(np.mean([expected_calibration_error(run.logits, run.labels) for run in group])),
        val_accuracy=mean_of(group, "val", "accuracy"),
        val_accuracy_sd=_sd(np.array(validation)),
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


def _seeds(group: Sequence[Run]) -> int:
    """Number of seeds of a cross-validation. Runs without a seed differ in it if they have the same fold."""
    return max(len({run.seeds for run in group}), *Counter(run.fold for run in group).values())


def _sd(values: Float) -> float:
    return float(values.std(ddof=1)) if len(values) > 1 else np.nan


def _corrected_accuracy(run: Run) -> float:
    if run.source != "mnist" or len(run.labels) != 10_000:  # the indices in CONSENSUS are those of MNIST's test set
        return np.nan
    labels = run.labels.copy()
    labels[list(CONSENSUS)] = list(CONSENSUS.values())
    return float((run.logits.argmax(axis=1) == labels).mean())


def percent(value: float) -> str:
    """Formats a share, from 0 to 1, as percent. NaN becomes a question mark."""
    return number(100 * value, ".2f")


def number(value: float, form: str) -> str:
    """Formats a number. NaN becomes a question mark."""
    return "?" if np.isnan(value) else format(value, form)


def _accuracy(mean: float, sd: float) -> str:
    return percent(mean) + ("" if np.isnan(sd) else f" ± {percent(sd)}")


COLUMNS: dict[str, Callable[[Row], str]] = {
    "model": lambda row: row.name,
    "n": lambda row: row.n,
    "test accuracy %": lambda row: _accuracy(row.test_accuracy, row.test_accuracy_sd),
    "95 % interval": lambda row: f"{percent(row.low)} to {percent(row.high)}",
    "error %": lambda row: percent(1 - row.test_accuracy),
    "test loss": lambda row: number(row.test_loss, ".4f"),
    "validation %": lambda row: _accuracy(row.val_accuracy, row.val_accuracy_sd if row.folds else np.nan),
    "validation loss": lambda row: number(row.val_loss, ".4f"),
    "train %": lambda row: percent(row.train_accuracy),
    "train loss": lambda row: number(row.train_loss, ".4f"),
    "calibration error %": lambda row: percent(row.calibration_error),
    "corrected labels %": lambda row: percent(row.corrected_accuracy),
    "parameters": lambda row: f"{row.parameters:,}",
    "KiB": lambda row: number(row.size_kib, ".0f"),
    "layers": lambda row: str(row.layers),
    "learning rate": lambda row: number(row.lr, "g"),
    "epochs": lambda row: number(row.epochs, "g"),
    "seconds": lambda row: number(row.train_seconds, ".0f"),
    "images/s": lambda row: number(row.images_per_second, ",.0f"),
}
# For terminals, the most important first.
MAIN_COLUMNS = (
    *("model", "n", "test accuracy %", "95 % interval", "validation %", "parameters", "seconds"),
    *("train %", "test loss", "calibration error %", "epochs"),
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

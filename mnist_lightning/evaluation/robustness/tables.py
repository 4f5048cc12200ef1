"""Tables of robustness: rounded ones for people, raw ones for table.csv and unknowns.csv."""

from collections.abc import Sequence
from dataclasses import astuple

import numpy as np

from mnist_lightning.evaluation.page import Table
from mnist_lightning.evaluation.robustness.measure import SEVERITIES, Robustness
from mnist_lightning.evaluation.statistics import Float


def ranking_table(results: Robustness) -> Table:
    """Makes a table of the main results: one row per model, the lowest mean error first."""
    rows = [
        (
            str(results.models[m]),
            _mean(results.mean_errors[m]),
            f"{100 * results.intervals[m, 0]:.2f} to {100 * results.intervals[m, 1]:.2f}",
            *_means(results.errors[m : m + 1], [0]),
            *_means(results.calibration_errors[m : m + 1], results.published),
        )
        for m in sorted(range(len(results.models)), key=lambda m: results.mean_errors[m].mean())
    ]
    title = f"{len(results.test_set.labels):,} test images of {results.test_set.source}: mean of the 15 corruptions"
    return Table(title, ["model", "mean error %", "95 % interval", "clean error %", "calibration error %"], rows)


def error_table(results: Robustness) -> Table:
    """Makes a table of error rates in percent: one row per corruption and one column per model."""
    intervals = (f"{100 * low:.2f} to {100 * high:.2f}" for low, high in results.intervals)
    increases = (mean - errors[:, 0] for mean, errors in zip(results.mean_errors, results.errors, strict=True))
    rows = [[results.conditions[k].name, *_means(results.errors, [k])] for k in (0, *results.published)]
    rows.append(["mean of the 15", *map(_mean, results.mean_errors)])
    rows.append(["95 % interval of the mean", *intervals])
    rows.append(["mean minus clean", *map(_mean, increases)])
    if results.has_all_severities:
        rows += [[f"mean at severity {s}", *_means(results.errors, results.at_severity(s))] for s in SEVERITIES]
    images, source = len(results.test_set.labels), results.test_set.source
    title = f"{images:,} test images of {source}, corrupted as in MNIST-C: error %"
    return Table(title, ["", *map(str, results.models)], rows, narrow=0)


def calibration_table(results: Robustness) -> Table:
    """Makes a table of expected calibration errors in percent, before and after temperature scaling."""
    rows = [
        ["clean", *_means(results.calibration_errors, [0])],
        ["clean, temperature-scaled", *_means(results.scaled_errors, [0])],
        ["mean of the 15", *_means(results.calibration_errors, results.published)],
        ["mean of the 15, temperature-scaled", *_means(results.scaled_errors, results.published)],
        ["temperature", *(_mean(np.array(model.temperatures, float), 1) for model in results.models)],
    ]
    return Table("Expected calibration error %", ["", *map(str, results.models)], rows, narrow=0)


def unknown_table(results: Robustness) -> Table:
    """Makes a table of mean AUROC and FPR95 in percent: one row per set and score, one column per model."""
    rows = [
        [f"{row[0].set}, {row[0].score}", *(f"{100 * cell.auroc:.2f} / {100 * cell.fpr95:.2f}" for cell in row)]
        for row in zip(*results.mean_detections, strict=True)
    ]
    return Table("Pictures without digits: AUROC % / FPR95 %", ["", *map(str, results.models)], rows, narrow=0)


def _means(shares: Sequence[Float], conditions: Sequence[int]) -> list[str]:
    """Formats the mean of each model's shares [n, K] over some conditions."""
    return [_mean(of_model[:, conditions].mean(axis=1)) for of_model in shares]


def _mean(values: Float, unit: float = 100.0) -> str:
    """Formats the mean ± sample standard deviation of values [n]. The default unit is percent."""
    if np.isnan(values).any():
        return "?"
    spread = f" ± {unit * values.std(ddof=1):.2f}" if len(values) > 1 else ""
    return f"{unit * values.mean():.2f}{spread}"


def raw_errors(all_results: Sequence[Robustness]) -> Table:
    """Makes a table of the error and expected calibration error of every run in every condition, as shares."""
    rows: list[list[object]] = []
    for results in all_results:
        numbers = (results.errors, results.calibration_errors, results.scaled_errors)
        for model, *of_model in zip(results.models, *numbers, strict=True):
            for run, *of_run in zip(model.runs, *of_model, strict=True):
                for condition, *values in zip(results.conditions, *of_run, strict=True):
                    cells = ["" if np.isnan(value) else float(value) for value in values]
                    rows.append([run.source, model.name, run.summary["seed"], *condition, *cells])
    header = ["source", "model", "seed", "corruption", "severity", "error", "ece", "ece_at_temperature"]
    return Table("Errors", header, rows)


def raw_detections(all_results: Sequence[Robustness]) -> Table:
    """Makes a table of the AUROC and FPR95 of every run, as shares."""
    rows = [
        [run.source, model.name, run.summary["seed"], *astuple(row)]
        for results in all_results
        for model, of_runs in zip(results.models, results.detections, strict=True)
        for run, of_run in zip(model.runs, of_runs, strict=True)
        for row in of_run
    ]
    header = ["source", "model", "seed", "set", "score", "auroc", "fpr95", "pictures"]
    return Table("Pictures without digits", header, rows)

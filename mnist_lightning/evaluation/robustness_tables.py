"""Robustness in numbers: tables to read, rows to compute with."""

import csv
from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace
from html import escape
from io import StringIO

import numpy as np
from rich.table import Table as RichTable

from mnist_lightning.evaluation.robustness import SEVERITIES, Float, Robustness
from mnist_lightning.evaluation.unknowns import Detection


@dataclass(frozen=True)
class Table:
    """Cells, to be shown on a page, in a terminal and in Markdown; the first column has names, the others numbers."""

    title: str
    header: list[str]
    rows: list[list[str]]

    def html(self) -> str:
        """For a page; where it is too wide, its columns move under the first."""
        head = "".join(f"<th>{escape(cell)}</th>" for cell in self.header)
        rows = ["<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in self.rows]
        return f'<div class="scroll"><table><thead><tr>{head}</tr></thead>{"".join(rows)}</table></div>'

    def markdown(self) -> str:
        """To paste."""
        rule = "| --- |" + " ---: |" * (len(self.header) - 1)
        head, *rows = (f"| {' | '.join(row)} |" for row in (self.header, *self.rows))
        return "\n".join([f"**{self.title}**", "", head, rule, *rows, ""])

    def __rich__(self) -> RichTable:
        table = RichTable(title=self.title, title_justify="left")
        for index, name in enumerate(self.header):
            table.add_column(name, justify="right" if index else "left", overflow="fold")
        for row in self.rows:
            table.add_row(*row)
        return table


def error_table(found: Robustness) -> Table:
    """Errors in percent, a row a corruption and a column a model."""
    means = [found.mean_errors(model) for model in range(len(found.models))]
    intervals = [found.interval(model) for model in range(len(found.models))]
    above = [mean - errors[:, 0] for mean, errors in zip(means, found.errors, strict=True)]
    rows = [
        [found.conditions[index].name, *(_spread(errors[:, index]) for errors in found.errors)]
        for index in (0, *found.published)
    ]
    rows.append(["mean of the 15", *map(_spread, means)])
    rows.append(["its 95 % interval", *(f"{100 * low:.2f} to {100 * high:.2f}" for low, high in intervals)])
    rows.append(["mean above clean", *map(_spread, above)])
    for severity in SEVERITIES if found.all_severities else ():
        there = found.at(severity)
        rows.append([f"mean at severity {severity}", *_spreads(found.errors, there)])
    title = f"{len(found.labels):,} test images of {found.source}, corrupted as in MNIST-C: error %"
    return Table(title, ["", *_names(found)], rows)


def calibration_table(found: Robustness) -> Table:
    """Expected calibration errors in percent, as trained and at the runs' temperatures."""
    rows = [
        ["clean", *_spreads(found.calibration_errors, [0])],
        ["clean, at its temperature", *_spreads(found.scaled_errors, [0])],
        ["mean of the 15", *_spreads(found.calibration_errors, found.published)],
        ["mean of the 15, at its temperature", *_spreads(found.scaled_errors, found.published)],
        ["temperature", *(_spread(model.temperatures, 1) for model in found.models)],
    ]
    return Table("Expected calibration error %", ["", *_names(found)], rows)


def unknown_table(found: Robustness) -> Table:
    """AUROC and FPR95 in percent, a row a set and score, a column a model; means over the seeds."""
    columns = [
        [f"{100 * row.auroc:.2f} / {100 * row.fpr95:.2f}" for row in mean_detections(of_runs)]
        for of_runs in found.detections
    ]
    names = [f"{row.set}, {row.score}" for row in found.detections[0][0]]
    rows = [list(cells) for cells in zip(names, *columns, strict=True)]
    return Table("Unknown pictures: AUROC % / FPR95 %", ["", *_names(found)], rows)


def mean_detections(of_runs: Sequence[Sequence[Detection]]) -> list[Detection]:
    """Mean over runs, of the same sets and scores."""
    return [
        replace(
            rows[0],
            auroc=float(np.mean([row.auroc for row in rows])),
            fpr95=float(np.mean([row.fpr95 for row in rows])),
        )
        for rows in zip(*of_runs, strict=True)
    ]


def _names(found: Robustness) -> list[str]:
    return [f"{model.name} (n = {len(model.runs)})" for model in found.models]


def _spreads(shares: Sequence[Float], conditions: Sequence[int]) -> list[str]:
    """Of shares [n, K] of each model: `_spread` of the mean over some conditions."""
    return [_spread(of_model[:, list(conditions)].mean(axis=1)) for of_model in shares]


def _spread(values: Float, unit: float = 100.0) -> str:
    """Mean and sample standard deviation of values [n], shares in percent."""
    if np.isnan(values).any():
        return "?"
    spread = f" ± {unit * values.std(ddof=1):.2f}" if len(values) > 1 else ""
    return f"{unit * values.mean():.2f}{spread}"


def robustness_csv(all_found: Sequence[Robustness]) -> str:
    """Errors and expected calibration errors of every run in every condition, as shares, unrounded."""
    text = StringIO()
    writer = csv.writer(text)
    writer.writerow(["source", "model", "seed", "corruption", "severity", "error", "ece", "ece_at_temperature"])
    for found in all_found:
        for model, *values in zip(
            found.models, found.errors, found.calibration_errors, found.scaled_errors, strict=True
        ):
            for run, *of_run in zip(model.runs, *values, strict=True):
                for condition, *numbers in zip(found.conditions, *of_run, strict=True):
                    cells = ["" if np.isnan(number) else float(number) for number in numbers]
                    writer.writerow([found.source, model.name, run.summary["seed"], *condition, *cells])
    return text.getvalue()


def unknowns_csv(all_found: Sequence[Robustness]) -> str:
    """AUROC and FPR95 of every run, as shares, unrounded."""
    text = StringIO()
    writer = csv.writer(text)
    writer.writerow(["source", "model", "seed", "set", "score", "auroc", "fpr95", "pictures"])
    for found in all_found:
        for model, of_runs in zip(found.models, found.detections, strict=True):
            for run, rows in zip(model.runs, of_runs, strict=True):
                writer.writerows([found.source, model.name, run.summary["seed"], *astuple(row)] for row in rows)
    return text.getvalue()

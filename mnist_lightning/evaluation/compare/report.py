"""The verb `compare`: a report on finished runs."""

from dataclasses import fields
from functools import partial
from io import StringIO
from typing import TYPE_CHECKING

from mnist_lightning.evaluation.page import Picture, Report, Table, markdown_text, picture, render, report_folder
from mnist_lightning.files import write_whole
from mnist_lightning.runs.finding import finished_runs
from mnist_lightning.runs.run import Run

if TYPE_CHECKING:  # `compare --help` answers before torch is imported
    from mnist_lightning.evaluation.compare.comparison import Comparison


def compare_runs(*runs: str, output: str = "report", ensemble: bool = False, root: str | None = None) -> Report:
    """Compares runs: tables, significance tests and figures on one HTML page.

    Runs that differ only in the seed count as one model, and so do the folds of a cross-validation. Runs on different
    test sets are compared separately. Figures and tests that need a single run per model use the run with the best
    validation accuracy.

    For a single run, the report adds precision, recall and F1 of each digit, also as text in summary.txt.

    Args:
        runs: Run folders, checkpoints, or folders that contain runs. Default: lightning_logs.
        output: Folder of the report: index.html, table.csv, table.md, runs.csv and the figures as PNG files.
        ensemble: Add an ensemble of each model's seeds, and two of the models: mean probability and majority vote.
        root: Folder of the data. Default: $MNIST_LIGHTNING_DATA, or `data` if that is not set.

    Returns:
        The report.

    Raises:
        InputError: If a path names no run, there is no finished run, or the output folder holds other files.
    """
    # `compare --help` doesn't wait for these imports.
    from rich.console import Console

    from mnist_lightning.evaluation.compare.comparison import compare, ensembles, raw_table, results_table
    from mnist_lightning.evaluation.compare.figures import draw_all
    from mnist_lightning.evaluation.compare.runs import raw_runs, runs_table, terminal_table
    from mnist_lightning.evaluation.statistics import verdicts

    folder = report_folder(output)
    finished, left_out = finished_runs(runs)
    comparisons = compare([*finished, *ensembles(finished)] if ensemble else finished)
    folder.mkdir(parents=True, exist_ok=True)
    sections: list[tuple[Comparison, Table, Table, list[Picture]]] = [
        (one, results_table(one), runs_table(one), []) for one in comparisons
    ]
    page = partial(
        render, "evaluation/templates/compare.html", runs=len(finished), left_out=left_out, sections=sections
    )
    markdown = [
        "\n".join([table.markdown(), *(f"- {markdown_text(pair)}" for pair in one.pairs), ""])
        for one, table, *_ in sections
    ]
    write_whole(folder / "table.csv", raw_table(comparisons).csv())
    write_whole(folder / "runs.csv", raw_runs(comparisons).csv())
    write_whole(folder / "table.md", "\n".join(markdown))
    write_whole(folder / "index.html", page())  # a figure that fails costs no table
    for number, (comparison, *_, pictures) in enumerate(sections, start=1):
        prefix = f"{number}-" if number > 1 else ""
        figures = draw_all(comparison, root)
        pictures += [picture(figure, caption, folder / f"{prefix}{name}.png") for name, figure, caption in figures]
    write_whole(folder / "index.html", page())
    tables = [terminal_table(comparison) for comparison in comparisons]
    lines = [each.caution for each in comparisons if each.caution]
    lines += [line for each in comparisons for line in verdicts(each.pairs, each.best)]
    if len(finished) == 1:
        table, lines = _summary(finished[0])
        tables.append(table)
        text = StringIO()
        Console(file=text, width=160).print(table)
        print(*lines, sep="\n", file=text)
        write_whole(folder / "summary.txt", text.getvalue())
    return Report(folder / "index.html", tables, lines, left_out)


def _summary(run: Run) -> tuple[Table, list[str]]:
    """Returns the metrics of each digit, and facts about the training."""
    from mnist_lightning.evaluation.metrics import Metrics, metrics_table

    summary = run.summary
    names = {field.name for field in fields(Metrics)}
    complete = [split for split in ("test", "val", "train") if names <= summary.get(split, {}).keys()]
    splits = {split: Metrics(**{name: summary[split][name] for name in names}) for split in complete}
    facts = ("parameters", "epochs", "train_seconds", "device", "hyper_parameters", "versions")
    seed = "unknown seed" if run.seeds is None else f"seed {summary['seed']}"
    fold = f", fold {run.fold[0]} of {run.fold[1]}" if run.fold else ""
    title = f"{run.name}: {summary.get('model')} on {run.source}, {seed}{fold}"
    lines = [f"{name.replace('_', ' ')}: {_words(summary.get(name))}" for name in facts]
    return metrics_table(splits, title), lines


def _words(value: object) -> str:
    return ", ".join(f"{key} {each}" for key, each in value.items()) if isinstance(value, dict) else str(value)

"""`mnist-lightning compare`: from folders of runs to a report."""

import warnings
from collections.abc import Callable, Iterator
from html import escape
from io import StringIO
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from scipy.special import softmax

from mnist_lightning.data.sources import read
from mnist_lightning.errors import InputError
from mnist_lightning.evaluation import comparison_figures as pictures
from mnist_lightning.evaluation.comparison import (
    COLUMNS,
    Comparison,
    Pair,
    compare,
    csv_text,
    markdown,
    rich_table,
)
from mnist_lightning.evaluation.metrics import Metrics, metrics_table
from mnist_lightning.evaluation.page import page, picture
from mnist_lightning.evaluation.runs import Run, chosen_of, grouped, read_runs
from mnist_lightning.files import write_whole

_PICTURES: dict[str, tuple[Callable[[Comparison], Figure], str]] = {
    "curves": (pictures.curves, "Loss and error over the epochs, a line a run."),
    "accuracies": (
        pictures.accuracies,
        "Bars are means, lines 95 % intervals over images and seeds, circles single seeds.",
    ),
    "costs": (pictures.costs, "What accuracy costs in memory and in time."),
    "calibration": (
        pictures.reliability,
        "Below the diagonal a model is surer than it should be. Bins with fewer than ten images are left out.",
    ),
    "f1": (pictures.f1_scores, "F1 of each digit, mean over the seeds."),
    "agreement": (pictures.agreement, "Models that make different mistakes are worth averaging."),
    "frequent-confusions": (pictures.frequent_confusions, "What is most often taken for what."),
    "confusions": (pictures.confusions, "Rows are labels, columns predictions; colours show mistakes only."),
}


_SUMMED = ("parameters", "size_kib", "train_seconds")  # what an ensemble costs is what its members cost


def write_report(*runs: str, output: str = "report", ensemble: bool = False) -> Path:
    """Compares runs: a table, statistics and pictures, as a page that needs no network.

    Of a single run it gives precision, recall and F1 of every digit, as text, too (summary.txt).

    Runs that differ in nothing but the seed are one model. Runs on different test sets are compared apart. Where a
    picture or a test is of one run a model, it is of the run with the best validation accuracy.

    Args:
        runs: Runs, or folders with runs in them; by default lightning_logs.
        output: Folder to write index.html, table.csv, table.md and the pictures to.
        ensemble: Whether to add ensembles of the models: mean probability and majority vote of each one's best run.

    Returns:
        The page.

    Raises:
        InputError: If there is no run to compare, or the folder cannot be made.
    """
    found, problems = read_runs([Path(run) for run in runs or ("lightning_logs",)])
    if not found:
        raise InputError(
            "; ".join([f"there is no finished run in {', '.join(runs) or 'lightning_logs'}", *problems[:1]])
        )
    comparisons = compare([*found, *_ensembles(found)] if ensemble else found)
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    console = Console()
    if not console.is_terminal:
        console.width = 240
    for problem in problems:
        console.print(f"left out: {problem}", highlight=False, markup=False, soft_wrap=True)
    body = ["<header><h1>Comparison</h1>", f"<p>{len(found)} runs.</p>", *_problem_lines(problems), "</header>"]
    for number, comparison in enumerate(comparisons):
        console.print(rich_table(comparison))
        for pair in comparison.pairs:
            console.print(f"  {pair.verdict} (p = {pair.p:.2g})", highlight=False, markup=False, soft_wrap=True)
        body += _section(comparison, folder, f"{number + 1}-" if number else "")
    if len(found) == 1:
        text = _summary(found[0])
        console.print(text, highlight=False, soft_wrap=True)
        write_whole(folder / "summary.txt", text.encode())
    write_whole(folder / "table.csv", csv_text(comparisons).encode())
    write_whole(folder / "table.md", "\n".join(map(markdown, comparisons)).encode())
    write_whole(folder / "index.html", page("Comparison", body).encode())
    return folder / "index.html"


def _summary(run: Run) -> str:
    """What a run has come to, for people: settings, and each digit's precision, recall and F1."""
    known = run.summary
    text = StringIO()
    console = Console(file=text, width=160)
    splits = {split: Metrics(**known[split]) for split in ("train", "val", "test") if known.get(split)}
    console.print(metrics_table(splits, f"{run.name}: {known['model']} on {known['source']}, seed {known['seed']}"))
    for name in ("parameters", "epochs", "best_epoch", "train_seconds", "device", "hyper_parameters", "versions"):
        console.print(f"{name.replace('_', ' ')}: {known.get(name)}", highlight=False, soft_wrap=True)
    return text.getvalue()


def _ensembles(runs: list[Run]) -> Iterator[Run]:
    """Of the runs that validation prefers: the test set has no say in who is in."""
    by_test_set: dict[tuple[str, int], list[Run]] = {}
    for group in grouped(runs):
        by_test_set.setdefault(group[0].test_set, []).append(chosen_of(group))
    for (source, _), members in by_test_set.items():
        if len(members) < 2:
            continue
        probabilities = np.mean([softmax(run.logits.astype(float), axis=1) for run in members], axis=0)
        votes = np.mean([np.eye(10)[run.logits.argmax(axis=1)] for run in members], axis=0)
        votes = (votes + 1e-3 * probabilities) / 1.001  # of equally many votes the mean probability decides
        sums = {name: sum(run.summary.get(name, 0) for run in members) for name in _SUMMED}
        for name, values in {"mean probability": probabilities, "majority vote": votes}.items():
            summary = {
                "experiment": f"ensemble: {name}",
                "model": f"{len(members)} models",
                "source": source,
                "seed": 0,
            }
            logits = np.log(values + 1e-12).astype(np.float32)
            yield Run(None, {**summary, **sums}, logits, members[0].labels, name)


def _problem_lines(problems: list[str]) -> list[str]:
    return [f'<p class="problem">Left out: {escape(problem)}</p>' for problem in problems]


def _section(comparison: Comparison, folder: Path, prefix: str) -> Iterator[str]:
    """The HTML of one comparison; its pictures are written beside the page, too."""
    yield f"<section><h2>{comparison.images:,} test images of {escape(comparison.source)}</h2>"
    yield (
        '<div class="scroll"><table><thead><tr>' + "".join(f"<th>{column}</th>" for column in COLUMNS) + "</tr></thead>"
    )
    for row in comparison.rows:
        yield "<tr>" + "".join(f"<td>{escape(cell(row))}</td>" for cell in COLUMNS.values()) + "</tr>"
    yield "</table></div>"
    yield "<p>Models that validation prefers come first. Accuracy: mean ± sample standard deviation over n seeds; its"
    yield "interval is over other test images and other seeds (bootstrap), for n = 1 over images alone."
    yield "Corrected labels: those ten of MNIST's that at least three of five people gave otherwise. A question mark:"
    yield "not known.</p>"
    if comparison.pairs:
        yield "<h2>Which is better?</h2>"
        better = [pair for pair in comparison.pairs if pair.better]
        same = [pair for pair in comparison.pairs if not pair.better]
        yield from _verdicts(better)
        yield f"<details><summary>{len(same)} pairs are not distinguishable</summary>"
        yield from _verdicts(same)
        yield "</details><p>Better: the 95 % interval of the difference has one sign, and McNemar's exact test,"
        yield "adjusted for the number of pairs (Holm), finds p &lt; 0.05.</p>"
    yield '<div class="pictures">'
    for name, figure, caption in _drawn(comparison):
        yield picture(figure, caption, folder / f"{prefix}{name}.png")
    yield "</div></section>"


def _verdicts(pairs: list[Pair]) -> Iterator[str]:
    yield "<ul>"
    for pair in pairs:
        yield f"<li>{escape(pair.verdict)} (p = {pair.p:.2g})</li>"
    yield "</ul>"


def _drawn(comparison: Comparison) -> Iterator[tuple[str, Figure, str]]:
    for name, (draw, caption) in _PICTURES.items():
        yield name, draw(comparison), caption
    try:
        images, labels = read(comparison.source, train=False)
    except InputError as error:
        warnings.warn(f"no pictures of mistakes: {error}", stacklevel=2)
        return
    if not np.array_equal(labels.numpy(), comparison.chosen[0].labels):
        warnings.warn(f"no pictures of mistakes: the {comparison.source} on disk has other labels", stacklevel=2)
        return
    yield "shared-mistakes", pictures.shared_mistakes(comparison, images), "Hard for everybody, or wrongly labelled."
    if len(comparison.rows) > 1:
        yield "lonely-mistakes", pictures.lonely_mistakes(comparison, images), "What one model has not learnt."

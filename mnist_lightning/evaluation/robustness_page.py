"""Robustness as a page that needs no network, and as files beside it."""

from collections.abc import Iterable, Iterator, Sequence
from html import escape
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from mnist_lightning.evaluation import robustness_figures as pictures
from mnist_lightning.evaluation.calibration import reliability_before_and_after
from mnist_lightning.evaluation.comparison_figures import palette
from mnist_lightning.evaluation.page import page, picture
from mnist_lightning.evaluation.robustness import Pair, Robustness, costliest, pairs
from mnist_lightning.evaluation.robustness_tables import (
    Table,
    calibration_table,
    error_table,
    mean_detections,
    robustness_csv,
    unknown_table,
    unknowns_csv,
)
from mnist_lightning.evaluation.runs import chosen_of
from mnist_lightning.evaluation.unknowns import detection_map, sheet
from mnist_lightning.files import write_whole

_Picture = tuple[str, Figure, str]  # its file's name, and a caption


def write_page(found: Sequence[Robustness], problems: Sequence[str], public: bool, folder: Path) -> Path:
    """Writes all files of a report, the page last.

    Args:
        found: Models on each test set.
        problems: What was left out, and why.
        public: Whether the corrupted digits are MNIST-C's own.
        folder: Where to.

    Returns:
        The page.
    """
    count = sum(len(model.runs) for one in found for model in one.models)
    body = ["<header><h1>Robustness</h1>", f"<p>{count} run{'s' if count > 1 else ''}.</p>"]
    body += [f'<p class="problem">Left out: {escape(problem)}</p>' for problem in problems]
    body.append("</header>")
    for number, one in enumerate(found):
        body += _section(one, public, folder, f"{number + 1}-" if number else "")
    write_whole(folder / "table.csv", robustness_csv(found).encode())
    write_whole(folder / "unknowns.csv", unknowns_csv(found).encode())
    texts = [table.markdown() for one in found for table in tables(one)]
    write_whole(folder / "table.md", "\n".join(texts).encode())
    write_whole(folder / "index.html", page("Robustness", body).encode())
    return folder / "index.html"


def tables(found: Robustness) -> tuple[Table, Table, Table]:
    """Errors, calibration, unknown pictures."""
    return error_table(found), calibration_table(found), unknown_table(found)


def sentences(found: Robustness) -> list[str]:
    """What costs each model most, and which model is better than which."""
    costs = [costliest(found, model) for model in range(len(found.models))]
    return [*costs, *map(_said, pairs(found))]


def _said(pair: Pair) -> str:
    return f"{pair.verdict} (p {f'= {pair.p:.2g}' if pair.p >= 1e-4 else '< 0.0001'})"


def _section(found: Robustness, public: bool, folder: Path, prefix: str) -> Iterator[str]:
    """The HTML of one test set; its pictures are written beside the page, too."""
    errors, calibration, unknown = tables(found)
    by = "are those of MNIST-C's files" if public else "were corrupted here, with the parameters of MNIST-C"
    yield f"<section><h2>{escape(errors.title)}</h2>"
    yield errors.html()
    yield f"<p>The digits {by} (Mu and Gilmer 2019). They are the test images: nothing was trained on them or chosen by"
    yield "them. Mean ± sample standard deviation over n seeds. The interval of the mean is over other test images and"
    yield "other seeds (bootstrap), for n = 1 over images alone; it says nothing about other corruptions.</p>"
    yield from _listed(costliest(found, model) for model in range(len(found.models)))
    yield from _verdicts(found)
    yield from _shown(_error_pictures(found), folder, prefix)
    yield f"</section><section><h2>{escape(calibration.title)}</h2>"
    yield calibration.html()
    yield "<p>How far confidence is from accuracy, in 15 bins (Guo et al. 2017). Temperatures were fitted on clean"
    yield "validation digits.</p>"
    if lacking := found.without_temperature:
        yield f"<p>Without a temperature: {escape(', '.join(lacking))}."
        yield "mnist_lightning.evaluation.calibration.calibrate(RUN) fits one and puts it beside the checkpoint.</p>"
    yield from _shown(_calibration_pictures(found), folder, prefix)
    yield f"</section><section><h2>{escape(unknown.title)}</h2>"
    yield unknown.html()
    yield "<p>Whether a score tells test digits from pictures that show none; of the logits as they are, mean over the"
    yield "seeds. AUROC: probability that a digit scores higher; 50 % is chance. FPR95: share of the other pictures"
    yield "that pass where 95 % of the digits do.</p>"
    yield from _shown(_unknown_pictures(found), folder, prefix)
    yield "</section>"


def _listed(lines: Iterable[str]) -> Iterator[str]:
    yield "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>"


def _verdicts(found: Robustness) -> Iterator[str]:
    every = pairs(found)
    if not every:
        return
    yield "<h2>Which withstands corruption better?</h2>"
    yield from _listed(_said(pair) for pair in every if pair.known)
    if same := [_said(pair) for pair in every if not pair.known]:
        yield f"<details><summary>{len(same)} pair{'s are' if len(same) > 1 else ' is'} not distinguishable</summary>"
        yield from _listed(same)
        yield "</details>"
    yield "<p>Better: the 95 % interval of the difference of the mean errors has one sign, and p &lt; 0.05, adjusted"
    yield "for the number of pairs (Holm). p is the larger one of images and seeds (bootstrap) and, where there are"
    yield "several seeds, of these alone (t-test).</p>"


def _shown(drawn: Iterable[_Picture], folder: Path, prefix: str) -> Iterator[str]:
    yield '<div class="pictures">'
    for name, figure, caption in drawn:
        shown = picture(figure, caption, folder / f"{prefix}{name}.png")
        wide = figure.get_figwidth() > 8  # inches: in half the page its words would be too small
        yield f'<div style="grid-column: 1 / -1">{shown}</div>' if wide else shown
    yield "</div>"


def _error_pictures(found: Robustness) -> Iterator[_Picture]:
    yield "errors", pictures.error_map(found), "Error by corruption, mean over the seeds."
    yield (
        "corrupted-digits",
        pictures.corrupted_digits(found),
        "The first test digit of each class under each corruption.",
    )
    if found.all_severities:
        yield (
            "severities",
            pictures.severity_curves(found),
            "Error against severity, linear up to 1 % and logarithmic above; rings: as in MNIST-C's files.",
        )
        yield (
            "digits-by-severity",
            pictures.digits_by_severity(found),
            "A digit under each corruption at each severity; framed: as in MNIST-C's files.",
        )
    yield (
        "mean-errors",
        pictures.mean_errors(found),
        "Mean error over the 15 corruptions: lines are 95 % intervals, circles single seeds, ticks clean errors.",
    )


def _calibration_pictures(found: Robustness) -> Iterator[_Picture]:
    yield "calibration", pictures.calibration_map(found), "Expected calibration error by corruption, as trained."
    names, models, colours = [], [], []
    for model, logits, colour in zip(found.models, found.clean_logits, palette(len(found.models)), strict=True):
        place = model.runs.index(chosen_of(model.runs))
        if not np.isnan(temperature := float(model.temperatures[place])):
            names.append(model.name)
            models.append((logits[place], found.labels, temperature))
            colours.append(colour)
    if names:
        yield (
            "reliability",
            reliability_before_and_after(names, models, colours),
            "Clean digits, of each model the run that validation prefers. Below the diagonal it is too sure.",
        )


def _unknown_pictures(found: Robustness) -> Iterator[_Picture]:
    names = [model.name for model in found.models]
    scores = detection_map(names, [mean_detections(of_runs) for of_runs in found.detections])
    yield "unknowns", scores, "How well digits are told from other pictures, mean over the seeds."
    yield "unknown-pictures", sheet(found.unknown), "Pictures that show no digit."

"""The verb `robustness`: a report on corrupted digits, calibration and out-of-distribution detection."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_type_hints

from mnist_lightning.checks import check_types
from mnist_lightning.errors import InputError, printable
from mnist_lightning.evaluation.page import Picture, Report, Table, picture, render, report_folder
from mnist_lightning.files import write_whole
from mnist_lightning.runs.finding import finished_runs

if TYPE_CHECKING:  # `robustness --help` answers before torch is imported
    from torch import Tensor

    from mnist_lightning.evaluation.robustness.measure import Condition, Robustness, TestSet


def measure_robustness(
    *runs: str,
    output: str = "robustness",
    severities: Literal["published", "all"] = "published",
    source: Literal["computed", "mnist_c"] = "computed",
    root: str | None = None,
) -> Report:
    """Measures models on corrupted digits and on pictures without digits: tables and figures on one HTML page.

    The test images are corrupted in the 15 ways of MNIST-C (Mu and Gilmer 2019). Runs that differ only in the seed
    count as one model. A GNN gets the superpixel graphs of the corrupted digits. No model is trained or chosen on these
    images.

    Args:
        runs: Run folders, checkpoints, or folders that contain runs. Default: lightning_logs.
        output: Folder of the report: index.html, table.csv, table.md, unknowns.csv and the figures as PNG files.
        severities: Severities to measure: those of MNIST-C's files, or all from 1 to 5, which takes five times as long.
        source: Origin of the corrupted digits: computed here, or read from MNIST-C's files in the data folder.
        root: Folder of the data. Default: $MNIST_LIGHTNING_DATA, or `data` if that is not set.

    Returns:
        The report.

    Raises:
        InputError: If no run can be measured, MNIST-C's files are requested and cannot be used, or the output folder
            holds other files.
    """
    check_types(get_type_hints(measure_robustness), {"severities": severities, "source": source})
    if source == "mnist_c" and severities == "all":
        raise InputError("--source mnist_c has one severity per corruption: use --severities published, not all")
    # `robustness --help` doesn't wait for these imports.
    from mnist_lightning.evaluation.robustness.measure import ALL_CONDITIONS, PUBLISHED_CONDITIONS, measure, test_sets
    from mnist_lightning.evaluation.robustness.unknowns import unknown_sets

    folder = report_folder(output)
    finished, problems = finished_runs(runs)
    subjects = [
        (test_set, _corrupted(test_set, source, root), unknown_sets(test_set.images, test_set.labels, root=root))
        for test_set in test_sets(finished, problems, root)
    ]
    if not subjects:
        raise InputError(f"no run can be measured: {problems[-1]}")
    folder.mkdir(parents=True, exist_ok=True)  # fails before the work begins
    conditions = ALL_CONDITIONS if severities == "all" else PUBLISHED_CONDITIONS
    evaluations = sum(len(test_set.models) for test_set, *_ in subjects) * (len(conditions) + 2)  # clean, no digits
    with _progress(evaluations) as progress:
        results = [measure(test_set, conditions, corrupt, sets, progress) for test_set, corrupt, sets in subjects]
    return write_page(results, problems, folder, mnist_c=source == "mnist_c")


def write_page(results: "Sequence[Robustness]", left_out: Sequence[str], folder: Path, mnist_c: bool) -> Report:
    """Writes all files of a report, the page last.

    Args:
        results: Results on each test set.
        left_out: One line for each run that could not be measured.
        folder: Folder of the report.
        mnist_c: Whether the corrupted digits are those of MNIST-C's files.
    """
    from mnist_lightning.evaluation.robustness import tables
    from mnist_lightning.evaluation.robustness.measure import pairs, worst_corruption
    from mnist_lightning.evaluation.statistics import FEW_PAIRS, verdicts

    sections: list[tuple[Any, ...]] = []
    all_tables: list[Table] = []
    printed: list[Table] = []
    lines: list[str] = []
    for one in results:
        shown = tables.error_table(one), tables.calibration_table(one), tables.unknown_table(one)
        worst = [worst_corruption(one, model) for model in range(len(one.models))]
        compared = pairs(one)
        sections.append((one, *shown, worst, compared, [], [], []))  # pictures follow below
        all_tables += shown
        printed += [tables.ranking_table(one), *shown]
        lines += worst if len(compared) <= FEW_PAIRS else []
        lines += verdicts(compared, one.best)
    runs = sum(len(model.runs) for one in results for model in one.models)
    page = partial(
        render, "evaluation/templates/robustness.html", runs=runs, left_out=left_out, mnist_c=mnist_c, sections=sections
    )
    write_whole(folder / "table.csv", tables.raw_errors(results).csv())
    write_whole(folder / "unknowns.csv", tables.raw_detections(results).csv())
    write_whole(folder / "table.md", "\n".join(table.markdown() for table in all_tables))
    write_whole(folder / "index.html", page())  # a figure that fails costs no table
    for number, (one, *_, errors, calibration, unknowns) in enumerate(sections, start=1):
        drawn = _pictures(one, folder, f"{number}-" if number > 1 else "")
        for shown_pictures, pictures in zip((errors, calibration, unknowns), drawn, strict=True):
            shown_pictures.extend(pictures)
    write_whole(folder / "index.html", page())
    return Report(folder / "index.html", printed, lines, left_out)


def _pictures(results: "Robustness", folder: Path, prefix: str) -> list[list[Picture]]:
    """Draws the figures of errors, calibration and detection, and writes them next to the page."""
    from mnist_lightning.evaluation.robustness import figures

    return [
        [picture(figure, caption, folder / f"{prefix}{name}.png") for name, figure, caption in draw(results)]
        for draw in (figures.draw_errors, figures.draw_calibration, figures.draw_unknowns)
    ]


def _corrupted(test_set: "TestSet", source: str, root: str | None) -> "Callable[[Condition], Tensor]":
    """Returns a function that returns the corrupted test images.

    All of MNIST-C's files are read here, so that a missing file is reported before the work begins.
    """
    from mnist_lightning.data.corruptions import CORRUPTIONS, corrupt, read_mnist_c

    if source == "computed":
        return lambda condition: corrupt(test_set.images, *condition)
    if test_set.source != "mnist":
        raise InputError(f"--source mnist_c needs runs on mnist, got runs on {test_set.source}")
    images = {}
    for corruption in CORRUPTIONS:
        images[corruption], labels = read_mnist_c(corruption, root)
        if not labels.equal(test_set.labels):
            raise InputError(f"the labels of MNIST-C's {corruption} differ from the test labels of mnist")
    return lambda condition: images[condition.corruption]


@contextmanager
def _progress(evaluations: int) -> "Iterator[Callable[[Condition, str], None]]":
    """Shows progress: a bar on a terminal, one line per corruption elsewhere.

    Args:
        evaluations: Number of evaluations.

    Yields:
        A callback for `measure`.
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import Progress

    console = Console()
    with Progress(console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task("", total=evaluations)
        corruption = ""

        def advance(condition: "Condition", model: str) -> None:
            nonlocal corruption
            bar.update(task, advance=1, description=escape(printable(f"{condition}, {model}").ljust(34)))
            if not console.is_terminal and condition.corruption != corruption:
                corruption = condition.corruption
                print(f"{bar.tasks[0].completed} of {evaluations}: {condition.name}", flush=True)

        yield advance

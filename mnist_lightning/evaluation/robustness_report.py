"""`mnist-lightning robustness`: from folders of runs to a report of what corrupted and unknown pictures do to them."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from rich import progress
from rich.console import Console
from torch import Tensor

from mnist_lightning.checkpoint import find_checkpoint, load, temperature_file, temperature_of
from mnist_lightning.classifier import Classifier
from mnist_lightning.data.corruptions import CORRUPTIONS, corrupt, read_mnist_c
from mnist_lightning.data.sources import read
from mnist_lightning.errors import InputError
from mnist_lightning.evaluation.comparison import distinct
from mnist_lightning.evaluation.robustness import (
    ALL_CONDITIONS,
    CLEAN,
    PUBLISHED_CONDITIONS,
    Condition,
    Model,
    measure,
)
from mnist_lightning.evaluation.robustness_page import sentences, tables, write_page
from mnist_lightning.evaluation.runs import Run, grouped, read_runs
from mnist_lightning.evaluation.unknowns import unknown_sets

Seen = Callable[[Condition, str], None]


def write_robustness(
    *runs: str,
    output: str = "robustness",
    severities: Literal["published", "all"] = "published",
    source: Literal["computed", "mnist_c"] = "computed",
) -> Path:
    """Measures what corrupted digits, and pictures of no digit, do to models: tables and pictures on a page.

    The test digits are corrupted in the 15 ways of MNIST-C (Mu and Gilmer 2019). Runs that differ in nothing but the
    seed are one model; a GNN gets the superpixel graphs of the corrupted digits. Nothing is trained or chosen by it.

    Args:
        runs: Runs, or folders with runs in them; by default lightning_logs.
        output: Folder to write index.html, table.csv, table.md, unknowns.csv and the pictures to.
        severities: Those that MNIST-C's files have, or all from 1 to 5, which takes five times as long.
        source: Digits that are corrupted here, or MNIST-C's own files, where they are in the data folder.

    Returns:
        The page.

    Raises:
        InputError: If there is nothing to measure, or MNIST-C's files are asked for and cannot be used.
    """
    if source == "mnist_c" and severities == "all":
        raise InputError("MNIST-C's files have one severity each: --source mnist_c needs --severities published")
    read_ones, problems = read_runs([Path(run) for run in runs or ("lightning_logs",)])
    if not read_ones:
        raise InputError(
            "; ".join([f"there is no finished run in {', '.join(runs) or 'lightning_logs'}", *problems[:1]])
        )
    measurable = list(test_sets(read_ones, problems))
    if not measurable:
        raise InputError(f"nothing can be measured: {problems[-1]}")
    digits = [(_public if source == "mnist_c" else _computed)(test_set) for test_set in measurable]
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)  # before the work: it may be impossible
    console = Console()
    if not console.is_terminal:
        console.width = 240
    for problem in problems:
        console.print(f"left out: {problem}", highlight=False, markup=False, soft_wrap=True)
    conditions = ALL_CONDITIONS if severities == "all" else PUBLISHED_CONDITIONS
    unknown = [unknown_sets(test_set.images, test_set.labels) for test_set in measurable]
    looks = [
        len(test_set.models) * (1 + len(conditions) + len(sets))
        for test_set, sets in zip(measurable, unknown, strict=True)
    ]
    with _followed(console, sum(looks)) as seen:
        found = [
            measure(of.source, of.models, of.labels, conditions, corrupted, sets, seen)
            for of, corrupted, sets in zip(measurable, digits, unknown, strict=True)
        ]
    for one in found:
        for table in tables(one):
            console.print(table)
        for line in sentences(one):
            console.print(f"  {line}", highlight=False, markup=False, soft_wrap=True)
    return write_page(found, problems, source == "mnist_c", folder)


@dataclass(frozen=True)
class TestSet:
    """Models that are measured on the same digits.

    Attributes:
        source: The digits' source.
        images: uint8 [N, 28, 28].
        labels: int64 [N].
        models: Those first that validation prefers.
    """

    source: str
    images: Tensor
    labels: Tensor
    models: list[Model]


def test_sets(runs: Sequence[Run], problems: list[str]) -> Iterator[TestSet]:
    """Puts runs beside their test digits, which are read, and loads their checkpoints.

    Args:
        runs: Any.
        problems: A line is added for each run that cannot be measured.

    Yields:
        A test set at a time, that of the most models first.
    """
    by_test_set: dict[tuple[str, int], list[list[Run]]] = {}
    for group in grouped(runs):
        by_test_set.setdefault(group[0].test_set, []).append(group)
    for (source, _), groups in sorted(by_test_set.items(), key=lambda item: -len(item[1])):
        try:
            images, labels = read(source, train=False)
        except InputError as error:
            problems.append(f"the runs on {source}: {error}")
            continue
        if not np.array_equal(labels.numpy(), groups[0][0].labels):
            problems.append(f"the runs on {source}: the test labels on disk are others than those of the runs")
            continue
        loaded = [_loaded(group, problems) for group in groups]
        names = distinct([group[0].name for group in groups])
        models = [
            Model(name, [run for run, _, _ in group], [c for _, c, _ in group], np.array([t for _, _, t in group]))
            for name, group in zip(names, loaded, strict=True)
            if group
        ]
        if models:
            yield TestSet(source, images, labels, models)


def _loaded(group: list[Run], problems: list[str]) -> list[tuple[Run, Classifier, float]]:
    """The group's runs with their best checkpoints and temperatures, which are NaN where none has been fitted."""
    loaded = []
    for run in group:
        if run.folder is None:
            continue
        try:
            checkpoint = find_checkpoint(run.folder)
            classifier = load(checkpoint)
        except InputError as error:
            problems.append(str(error))
            continue
        try:
            temperature = temperature_of(checkpoint)
        except InputError as error:
            temperature = np.nan
            if temperature_file(checkpoint).exists():
                problems.append(str(error))
        loaded.append((run, classifier, temperature))
    return loaded


def _computed(test_set: TestSet) -> Callable[[Condition], Tensor]:
    """Gives the test images as they are, or corrupted here."""
    return lambda of: test_set.images if of == CLEAN else corrupt(test_set.images, of.corruption, of.severity)


def _public(test_set: TestSet) -> Callable[[Condition], Tensor]:
    """Gives the test images as they are, or MNIST-C's."""
    if test_set.source != "mnist":
        raise InputError(f"--source mnist_c is for runs on mnist; some of these are on {test_set.source}")
    found = {}
    for corruption in CORRUPTIONS:  # all of them now: an absent file is known before the work is done
        found[corruption], labels = read_mnist_c(corruption)
        if not labels.equal(test_set.labels):
            raise InputError(f"MNIST-C's {corruption} has other labels than the test images of mnist")
    return lambda of: test_set.images if of == CLEAN else found[of.corruption]


@contextmanager
def _followed(console: Console, looks: int) -> Iterator[Seen]:
    """Shows how much is done: a bar in a terminal, a line a corruption elsewhere."""
    columns = (
        progress.TextColumn("{task.description:<34}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(),
    )
    with progress.Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task("", total=looks)
        begun, done = "", 0

        def seen(condition: Condition, model: str) -> None:
            nonlocal begun, done
            done += 1
            severity = f" {condition.severity}" if condition.severity else ""
            bar.update(task, advance=1, description=f"{condition.name}{severity}, {model}")
            if not console.is_terminal and condition.corruption != begun:
                begun = condition.corruption
                console.print(f"{done} of {looks}: {condition.name}", highlight=False, markup=False)

        yield seen

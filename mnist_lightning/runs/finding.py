"""Finds runs on disk, and groups, chooses and names them."""

import json
import math
import os
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from mnist_lightning.errors import InputError
from mnist_lightning.runs.run import LOGS, Run


def find_run(path: str | Path) -> Run:
    """Finds the one run that a path names.

    Args:
        path: A run folder, a checkpoint of a run, or a folder that contains, at any depth, one run or the runs of one
            experiment. Of several finished runs, the one with the best validation accuracy is used, with a warning.

    Raises:
        InputError: If the path names no run, or runs of several experiments.
    """
    path = existing(path)
    runs = runs_at(path, [])
    if not runs:
        raise InputError(f"there is no run in {path}; give a run folder or a .ckpt file")
    if len(runs) == 1:
        return runs[0]
    finished = [run for run in runs if _is_readable(run)]
    experiments: dict[tuple[str, str], Run] = {}  # the first run of each, by name and data source
    for run in finished or runs:
        experiments.setdefault((run.experiment, run.source if finished else ""), run)
    if not finished or len(experiments) > 1:
        examples = [str(run.folder) for run in (experiments.values() if len(experiments) > 1 else runs)]
        raise InputError(f"{path} contains {len(runs)} runs; give one of them, such as {' or '.join(examples[:3])}")
    best = best_by_validation(finished)
    accuracy = f"{100 * mean_of([best], 'val', 'accuracy'):.2f} %"
    warnings.warn(
        f"of the {len(finished)} finished runs in {path}, {best.folder} is used: its validation accuracy is the best, "
        f"{accuracy}",
        stacklevel=2,
    )
    return best


def run_to_resume(path: str | Path) -> Run:
    """Finds the one run that a path names, or else the one that is not finished.

    Args:
        path: A run folder, a checkpoint of a run, or a folder that contains runs at any depth.

    Raises:
        InputError: If the path names no run, or several runs and not exactly one of them is unfinished.
    """
    runs = runs_at(existing(path), [])
    unfinished = [run for run in runs if not run.is_finished]
    if len(runs) > 1 and len(unfinished) == 1:
        return unfinished[0]
    if len(runs) > 1:
        examples = " or ".join(str(run.folder) for run in (unfinished or runs)[:3])
        raise InputError(f"{path} contains {len(runs)} runs; give one of them, such as {examples}")
    return find_run(path)


def finished_runs(paths: Sequence[str]) -> tuple[list[Run], list[str]]:
    """Reads all finished runs in some folders.

    Of runs with the same experiment, settings, fold and seed, only the last one is returned, by the order of version
    numbers.

    Args:
        paths: Runs, checkpoints of runs, or folders that contain runs at any depth. Default: `lightning_logs`.

    Returns:
        The runs, and one line for each run that is left out: unfinished, unreadable or repeated. Runs that are not to
        be tested have one line for each experiment.

    Raises:
        InputError: If a path does not exist or is another file, or there is no finished run.
    """
    paths = paths or [LOGS]
    problems: list[str] = []
    found = {os.path.realpath(str(run.folder)): run for path in paths for run in runs_at(existing(path), problems)}
    runs: dict[str, Run] = {}
    untested: Counter[Path] = Counter()
    for folder in sorted(found, key=_natural):
        run = found[folder]
        try:
            identity = [run.test_set, run.name, run.settings, run.fold, run.seeds or folder]
        except InputError as error:
            if run.skips_test and not run.is_finished and run.folder is not None:
                untested[run.folder.parent] += 1
            else:
                problems.append(str(error))
            continue
        key = json.dumps(identity, sort_keys=True, default=str)
        if key in runs:
            problems.append(f"{runs[key].folder} repeats {run.folder} (same settings and seed); the later one counts")
        runs[key] = run
    problems += [
        f"{count} {'run' if count == 1 else 'runs'} in {experiment} {'was' if count == 1 else 'were'} not tested "
        "(--trainer.limit_test_batches 0)"
        for experiment, count in untested.items()
    ]
    if not runs:
        raise InputError("; ".join([f"there is no finished run in {', '.join(map(str, paths))}", *problems[:1]]))
    return list(runs.values()), problems


def existing(path: str | Path) -> Path:
    """Returns the path of a checkpoint or folder, with `~` expanded.

    Raises:
        InputError: If it does not exist.
    """
    path = Path(path)
    with suppress(RuntimeError):  # ~name of an unknown user
        path = path.expanduser()
    if not path.exists():
        raise InputError(f"there is no {'checkpoint' if path.suffix == '.ckpt' else 'folder'} {path}")
    return path


def runs_at(path: Path, problems: list[str]) -> list[Run]:
    """Finds the run of a path, or else all runs in a folder, at any depth and through links.

    Hidden folders are left out: a run that arrives from another machine is written to one.

    Args:
        path: An existing path.
        problems: List that gets a line for each folder that cannot be read.

    Raises:
        InputError: If the path is a file that belongs to no run.
    """
    run = Run.of(path)
    if run is None:
        raise InputError(f"{path} belongs to no run: it is not in the folder of a run's checkpoints; give a run folder")
    if path.is_file() or run.exists:
        return [run]
    runs: list[Run] = []
    visited: set[str] = set()  # folders may be linked in a circle

    def unreadable(error: OSError) -> None:
        problems.append(f"{error.filename} cannot be read: {error.strerror}")

    for folder, children, _ in os.walk(path, onerror=unreadable, followlinks=True):
        run, real = Run(folder), os.path.realpath(folder)
        try:
            is_run = real not in visited and run.exists
        except OSError as error:
            unreadable(error)
            is_run = False
        runs += [run] if is_run else []
        visible = [child for child in children if not child.startswith(".")]
        children[:] = [] if is_run or real in visited else sorted(visible, key=_natural)
        visited.add(real)
    return runs


def _natural(path: str) -> list[int | str]:
    """Sorts version_2 before version_10."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", path)]


def _is_readable(run: Run) -> bool:
    """Whether a run is finished and its summary is not damaged."""
    with suppress(InputError):
        return bool(run.summary)
    return False


def group_by_test_set(runs: Iterable[Run]) -> list[list[list[Run]]]:
    """Groups runs that can be compared.

    Returns:
        One list per test set, the one with the most models first. It contains one list per model: the runs that differ
        only in the seed and in the fold, sorted by seed and fold. Runs without folds and runs of other numbers of folds
        are other models. The model with the best mean validation accuracy comes first.
    """
    by_test_set: dict[tuple[str, int], dict[str, list[Run]]] = {}
    for run in runs:
        key = json.dumps([run.name, run.settings, folds_of(run)], sort_keys=True, default=str)
        by_test_set.setdefault(run.test_set, {}).setdefault(key, []).append(run)
    test_sets = [
        sorted(
            (sorted(group, key=lambda run: (run.seeds or (math.inf,), run.fold or ())) for group in groups.values()),
            key=lambda group: -_validation(group),
        )
        for groups in by_test_set.values()
    ]
    return sorted(test_sets, key=lambda groups: -len(groups))


def folds_of(run: Run) -> int:
    """Returns the number K of folds; 0 for a run without folds."""
    return run.fold[1] if run.fold else 0


def best_by_validation(group: Sequence[Run]) -> Run:
    """Returns the run with the best validation accuracy."""
    return max(group, key=lambda run: _validation([run]))


def _validation(group: Sequence[Run]) -> float:
    """Mean validation accuracy; -1 if it is unknown."""
    return float(np.nan_to_num(mean_of(group, "val", "accuracy"), nan=-1.0))


def mean_of(group: Sequence[Run], split: str, metric: str) -> float:
    """Returns a metric's mean over the seeds; NaN if a run does not have it."""
    return float(np.mean([run.summary.get(split, {}).get(metric, np.nan) for run in group]))


def names_of(groups: Sequence[Sequence[Run]]) -> list[str]:
    """Names models for a table. Models of one experiment get the settings in which they differ: `lenet, lr 0.01`.

    A cross-validation always says so: `lenet, 5 folds`.

    Args:
        groups: Runs of each model, as in `group_by_test_set`.

    Returns:
        One name per model.
    """
    names = []
    for run, *_ in groups:
        differences = _differences(run, [first for first, *_ in groups if first.name == run.name])
        folds = [f"{folds_of(run)} folds"] if run.fold else []
        names.append(", ".join([run.name, *differences, *folds]))
    return names


def _differences(run: Run, neighbours: Sequence[Run]) -> list[str]:
    """Settings of a run that differ among runs of the same experiment, as `lr 0.01`."""
    # As JSON, as in `group_by_test_set`: there 1 and 1.0 differ, and NaN equals itself.
    settings = [
        {key: json.dumps(value, sort_keys=True, default=str) for key, value in neighbour.settings.items()}
        for neighbour in neighbours
    ]
    keys = dict.fromkeys(key for each in settings for key in each)
    differing = [key for key in keys if len({each.get(key) for each in settings}) > 1]
    # Models of other classes have other arguments; the name of the class tells enough.
    shared = [key for key in differing if all(key in each for each in settings)]
    told_apart = {tuple(each[key] for key in shared) for each in settings}
    distinct = {tuple(sorted(each.items())) for each in settings}  # with and without folds, settings may be equal
    shown = shared if len(told_apart) == len(distinct) else [key for key in differing if key in run.settings]
    last_parts = [key.split(".")[-1] for key in shown]
    words = []
    for key, last in zip(shown, last_parts, strict=True):
        text = json.dumps(run.settings[key], default=str).strip('"')
        name = last if last_parts.count(last) == 1 else key
        if key in ("model", "data"):  # classes, which may have the same name in two modules
            texts = {each[key].strip('"') for each in settings if key in each}
            short = len({each.split(".")[-1] for each in texts}) == len(texts)
            words.append(text.split(".")[-1] if short else text)
        else:
            words.append(f"{name} {text}")
    return words

"""Finished trainings, read back from their folders."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import yaml
from numpy.typing import NDArray

from mnist_lightning.errors import InputError
from mnist_lightning.evaluation.predictions import load_predictions

# What can differ between two runs without changing what was trained: where files lie, what is shown.
_INCIDENTAL = {
    "trainer": {"accelerator", "logger", "callbacks", "default_root_dir", "log_every_n_steps", "profiler", "barebones"}
    | {"enable_checkpointing", "enable_progress_bar", "enable_model_summary", "enable_autolog_hparams"},
    "data": {"root", "fallback", "num_workers", "seed"},
}


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        folder: Where it lies; None for an ensemble, which has been computed.
        summary: What `summary.json` says: metrics of the three splits, parameters, seconds, versions…
        logits: float [N, 10], of the test images.
        labels: int64 [N].
        settings: What was trained, and how, without the seed.
    """

    folder: Path | None
    summary: dict[str, Any]
    logits: NDArray[np.float32]
    labels: NDArray[np.int64]
    settings: str

    @property
    def name(self) -> str:
        """The experiment's name."""
        return str(self.summary["experiment"])

    @cached_property
    def correct(self) -> NDArray[np.bool_]:
        """Which test images the model has right: bool [N]."""
        right: NDArray[np.bool_] = self.logits.argmax(axis=1) == self.labels
        return right

    @cached_property
    def test_set(self) -> tuple[str, int]:
        """What can be compared: the source's name and a checksum of the test labels."""
        return str(self.summary["source"]), crc32(self.labels.tobytes())


def read_run(folder: Path) -> Run:
    """Reads a run's folder.

    Raises:
        InputError: If the run has not ended, or a file is absent, damaged, or of another run.
    """
    path = folder / "summary.json"
    try:
        summary = json.loads(path.read_text())
        test_accuracy = float(summary["test"]["accuracy"])
        missing = {"experiment", "source", "seed"} - set(summary)
    except FileNotFoundError:
        raise InputError(f"{folder} is not a finished run: there is no summary.json") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is damaged: {type(error).__name__}: {error}") from error
    if missing:
        raise InputError(f"{path} is damaged: it does not say {', '.join(sorted(missing))}")
    predictions = folder / "test_predictions.npz"
    logits, labels = (values.numpy() for values in load_predictions(predictions))
    if logits.shape != (len(labels), 10) or abs(np.mean(logits.argmax(axis=1) == labels) - test_accuracy) > 1e-6:
        raise InputError(f"{predictions} is not what {path} was computed from")
    return Run(folder, summary, logits, labels, _settings(folder, summary))


def _settings(folder: Path, summary: dict[str, Any]) -> str:
    """The config without what is incidental; for runs of the library, which have none, what the summary knows."""
    try:
        config = yaml.safe_load((folder / "config.yaml").read_text())
        kept = {"model": config["model"]}
        for part, incidental in _INCIDENTAL.items():
            values = config[part].get("init_args", config[part])
            kept[part] = {name: value for name, value in values.items() if name not in incidental}
    except FileNotFoundError:
        kept = {name: summary.get(name) for name in ("model", "hyper_parameters", "epochs", "batch_size", "precision")}
    except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{folder / 'config.yaml'} is damaged: {type(error).__name__}") from error
    return json.dumps([summary["experiment"], kept], sort_keys=True, default=str)


def read_runs(paths: Iterable[Path]) -> tuple[list[Run], list[str]]:
    """Reads all runs in some folders.

    Args:
        paths: Runs, or folders with runs in them, at any depth.

    Returns:
        The runs, and for each folder that cannot be read a line that says why.

    Raises:
        InputError: If a path is no folder.
    """
    runs: dict[Path, Run] = {}
    problems = []
    for path in paths:
        if not path.is_dir():
            raise InputError(f"there is no folder {path}")
        marks = (mark for name in ("config.yaml", "summary.json") for mark in path.rglob(name))
        for folder in sorted({mark.parent for mark in marks}):
            try:
                runs[folder.resolve()] = read_run(folder)
            except InputError as error:
                problems.append(str(error))
    return list(runs.values()), problems


def grouped(runs: Iterable[Run]) -> list[list[Run]]:
    """Puts runs together that differ in nothing but the seed; the best validation accuracy comes first.

    Two runs of one seed are one and the same training done twice: the later one counts.
    """
    groups: dict[tuple[Any, ...], dict[int, Run]] = {}
    for run in runs:
        groups.setdefault((run.test_set, run.settings), {})[int(run.summary["seed"])] = run
    by_seed = [[group[seed] for seed in sorted(group)] for group in groups.values()]
    return sorted(by_seed, key=lambda group: -np.nan_to_num(mean_of(group, "val", "accuracy"), nan=-1.0))


def chosen_of(group: Sequence[Run]) -> Run:
    """The run that validation prefers."""
    return max(group, key=lambda run: mean_of([run], "val", "accuracy"))


def mean_of(group: Sequence[Run], split: str, metric: str) -> float:
    """A metric's mean over the seeds; NaN where a run does not know it."""
    return float(np.mean([run.summary.get(split, {}).get(metric, np.nan) for run in group]))

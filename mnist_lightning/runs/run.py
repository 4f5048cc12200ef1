"""A training run: the layout of its folder, and how runs are found, read, grouped, chosen and named.

No other module knows the names of the files in a run folder.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal
from zlib import crc32

import numpy as np
import yaml
from numpy.typing import NDArray

from mnist_lightning.errors import InputError
from mnist_lightning.runs.predictions import load_predictions

LOGS = "lightning_logs"  # default folder of runs
CHECKPOINTS = "checkpoints"

# Settings that do not change the trained weights.
INCIDENTAL = {
    "trainer": {"accelerator", "logger", "callbacks", "default_root_dir", "log_every_n_steps", "profiler", "barebones"}
    | {"enable_checkpointing", "enable_progress_bar", "enable_model_summary", "enable_autolog_hparams"},
    "data": {"root", "fallback", "num_workers", "seed"},
}


class Run:
    """One training run. Its files are read when they are first needed.

    Args:
        folder: The run's folder, `lightning_logs/EXPERIMENT/version_N`.

    Attributes:
        folder: The run's folder; None for an ensemble, which is computed and has no files.
        config_file: The config that repeats the run.
        summary_file: Metrics and facts. It is written last, so only finished runs have it.
        predictions_file: Logits and labels of the test images.
        checkpoints: Folder of the checkpoints.
        best: Checkpoint of the epoch with the best validation accuracy.
        last: Checkpoint of the last epoch.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder: Path | None = Path(folder)
        self.config_file = self.folder / "config.yaml"
        self.summary_file = self.folder / "summary.json"
        self.predictions_file = self.folder / "test_predictions.npz"
        self.checkpoints = self.folder / CHECKPOINTS
        self.best = self.checkpoints / "best.ckpt"
        self.last = self.checkpoints / "last.ckpt"

    @classmethod
    def of(cls, path: str | Path) -> "Run | None":
        """Returns the run of a path: a run folder, or a checkpoint inside one. None for any other checkpoint."""
        path = Path(path)
        if path.suffix != ".ckpt":
            return cls(path)
        parent = path.absolute().parent
        return cls(parent.parent) if parent.name == CHECKPOINTS else None

    @classmethod
    def computed(cls, summary: dict[str, Any], logits: NDArray[np.float32], labels: NDArray[np.int64]) -> "Run":
        """Makes a run without a folder, such as an ensemble.

        Args:
            summary: As in `summary.json`; at least `experiment`, `source` and `seed`.
            logits: float [N, 10], of the test images.
            labels: int64 [N].
        """
        run = cls.__new__(cls)
        run.folder, run.summary, run.predictions, run.settings = None, summary, (logits, labels), {}
        return run

    @property
    def experiment(self) -> str:
        """Name of the experiment's folder, also of a run that is not finished."""
        folder = self.checkpoints.absolute().parent
        return folder.parent.name if folder.name.startswith("version_") else folder.name

    @property
    def is_finished(self) -> bool:
        """Whether the run was tested."""
        return self.summary_file.is_file()

    def checkpoint(self, name: Literal["best", "last"] = "best") -> Path | None:
        """Returns an existing checkpoint file: the one asked for, or else the other."""
        # A run that was killed during its first epoch may have no last checkpoint, one without validation no best.
        first, second = (self.best, self.last) if name == "best" else (self.last, self.best)
        return next((path for path in (first, second) if path.is_file()), None)

    @cached_property
    def summary(self) -> dict[str, Any]:
        """Content of `summary.json`: metrics of the three splits, parameters, seconds, versions.

        Raises:
            InputError: If the run is not finished, or the file is damaged.
        """
        path = self.summary_file
        try:
            summary: dict[str, Any] = json.loads(path.read_text())
            missing = {"experiment", "source", "seed"} - set(summary)
            float(summary["test"]["accuracy"])
        except FileNotFoundError:
            raise InputError(f"{self.folder} is not a finished run: there is no {path.name}") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path} is damaged: {type(error).__name__}: {error}") from error
        if missing:
            raise InputError(f"{path} is damaged: it lacks {', '.join(sorted(missing))}")
        return summary

    @cached_property
    def predictions(self) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Logits [N, 10] and labels [N] of the test images.

        Raises:
            InputError: If the file is missing or damaged, or does not belong to the run's summary.
        """
        logits, labels = load_predictions(self.predictions_file)
        accuracy = np.mean(logits.argmax(axis=1) == labels) if logits.shape == (len(labels), 10) else np.nan
        if not abs(accuracy - self.summary["test"]["accuracy"]) <= 1e-6:
            raise InputError(f"{self.predictions_file} does not match {self.summary_file}, or is damaged")
        return logits, labels

    @cached_property
    def config(self) -> dict[str, tuple[str, dict[str, Any]]]:
        """Class path and arguments of the config's `model`, `data` and `trainer`. The trainer has no class path.

        A run of the library has no config; it is empty.

        Raises:
            InputError: If the config is damaged.
        """
        try:
            config = yaml.safe_load(self.config_file.read_text())
            parts = {}
            for part in ("model", "data", "trainer"):
                path = str(config[part].get("class_path", ""))
                parts[part] = path, dict(config[part].get("init_args", {}) if path else config[part])
        except FileNotFoundError:
            return {}
        except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"{self.config_file} is damaged: {type(error).__name__}") from error
        return parts

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What was trained and how, without the seed: `{"model": "mnist_lightning.LeNet5", "model.lr": 0.01}`.

        Without a config, the settings are those of the summary.

        Raises:
            InputError: If the config is damaged.
        """
        if not self.config:
            # Early stopping may end the seeds of one model after different epochs.
            facts = ("data", "trainer") if "trainer" in self.summary else ("epochs", "batch_size")
            names = ("model", "hyper_parameters", *facts, "precision", "devices")
            facts_by_name = flat("", {name: self.summary.get(name) for name in names})
            return {name: value for name, value in facts_by_name.items() if name != "data.seed"}
        settings: dict[str, Any] = {}
        for part, (path, arguments) in self.config.items():
            settings |= {part: path} if path else {}
            incidental = INCIDENTAL.get(part, set())
            settings |= flat(f"{part}.", {name: value for name, value in arguments.items() if name not in incidental})
        return settings

    @property
    def logits(self) -> NDArray[np.float32]:
        """Logits of the test images, float [N, 10]."""
        return self.predictions[0]

    @property
    def labels(self) -> NDArray[np.int64]:
        """Labels of the test images, int64 [N]."""
        return self.predictions[1]

    @property
    def name(self) -> str:
        """Name of the experiment."""
        return str(self.summary["experiment"])

    @property
    def source(self) -> str:
        """Name of the data source."""
        return str(self.summary["source"])

    @cached_property
    def correct(self) -> NDArray[np.bool_]:
        """Boolean mask [N] of correctly classified test images."""
        mask: NDArray[np.bool_] = self.logits.argmax(axis=1) == self.labels
        return mask

    @cached_property
    def test_set(self) -> tuple[str, int]:
        """Identity of the test set: the source's name and a checksum of the labels."""
        return self.source, crc32(self.labels.tobytes())


def flat(prefix: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Flattens nested mappings: {"augment": {"rotate": 12}} becomes {"augment.rotate": 12}."""
    result: dict[str, Any] = {}
    for name, value in values.items():
        result |= flat(f"{prefix}{name}.", value) if isinstance(value, Mapping) else {prefix + name: value}
    return result


def finished_runs(paths: Sequence[str]) -> tuple[list[Run], list[str]]:
    """Reads all finished runs in some folders.

    Args:
        paths: Runs, or folders that contain runs at any depth. Default: `lightning_logs`.

    Returns:
        The runs, and one line for each run folder that cannot be read.

    Raises:
        InputError: If a path is not a folder, or there is no finished run.
    """
    paths = paths or [LOGS]
    runs: dict[Path, Run] = {}
    problems = []
    for path in map(Path, paths):
        if not path.is_dir():
            raise InputError(f"there is no folder {path}")
        marks = (Run("").config_file.name, Run("").summary_file.name)
        for folder in sorted({file.parent for name in marks for file in path.rglob(name)}):
            run = Run(folder)
            try:
                run.summary, run.predictions, run.settings  # noqa: B018 - reads the files, which raises
                runs[folder.resolve()] = run
            except InputError as error:
                problems.append(str(error))
    if not runs:
        raise InputError("; ".join([f"there is no finished run in {', '.join(paths)}", *problems[:1]]))
    return list(runs.values()), problems


def group_by_test_set(runs: Iterable[Run]) -> list[list[list[Run]]]:
    """Groups runs that can be compared.

    Returns:
        One list per test set, the one with the most models first. It contains one list per model: the runs that differ
        only in the seed, sorted by seed. The model with the best mean validation accuracy comes first. Of two runs
        with the same settings and seed, the later one counts.
    """
    by_test_set: dict[tuple[str, int], dict[str, dict[int, Run]]] = {}
    for run in runs:
        key = json.dumps([run.name, run.settings], sort_keys=True, default=str)
        by_test_set.setdefault(run.test_set, {}).setdefault(key, {})[int(run.summary["seed"])] = run
    test_sets = [
        sorted(
            ([group[seed] for seed in sorted(group)] for group in groups.values()),
            key=lambda group: -np.nan_to_num(mean_of(group, "val", "accuracy"), nan=-1.0),
        )
        for groups in by_test_set.values()
    ]
    return sorted(test_sets, key=lambda groups: -len(groups))


def best_by_validation(group: Sequence[Run]) -> Run:
    """Returns the run with the best validation accuracy."""
    return max(group, key=lambda run: mean_of([run], "val", "accuracy"))


def mean_of(group: Sequence[Run], split: str, metric: str) -> float:
    """Returns a metric's mean over the seeds; NaN if a run does not have it."""
    return float(np.mean([run.summary.get(split, {}).get(metric, np.nan) for run in group]))


def names_of(groups: Sequence[Sequence[Run]]) -> list[str]:
    """Names models for a table. Models of one experiment get the settings in which they differ: `lenet, lr 0.01`.

    Args:
        groups: Runs of each model, as in `group_by_test_set`.

    Returns:
        One name per model.
    """
    return [
        ", ".join([group[0].name, *_differences(group[0], [g[0] for g in groups if g[0].name == group[0].name])])
        for group in groups
    ]


def _differences(run: Run, neighbours: Sequence[Run]) -> list[str]:
    """Settings of a run that differ among runs of the same experiment, as `lr 0.01`."""
    missing = object()
    keys = dict.fromkeys(key for neighbour in neighbours for key in neighbour.settings)
    values = {key: [neighbour.settings.get(key, missing) for neighbour in neighbours] for key in keys}
    differing = [key for key in keys if any(value != values[key][0] for value in values[key])]
    # Models of other classes have other arguments; the name of the class tells enough.
    shared = [key for key in differing if missing not in values[key]]
    told_apart = {json.dumps([n.settings[key] for key in shared], default=str) for n in neighbours}
    shown = shared if len(told_apart) == len(neighbours) else [key for key in differing if key in run.settings]
    last_parts = [key.split(".")[-1] for key in shown]
    words = []
    for key, last in zip(shown, last_parts, strict=True):
        text = json.dumps(run.settings[key], default=str).strip('"')
        name = last if last_parts.count(last) == 1 else key
        words.append(text.split(".")[-1] if key in ("model", "data") else f"{name} {text}")
    return words

"""A training run: the layout of its folder, and its content.

No other module knows the names of the files in a run folder.
"""

import json
from collections.abc import Mapping
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any, Literal
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from mnist_lightning.checks import fold_of
from mnist_lightning.errors import InputError
from mnist_lightning.runs.predictions import load_predictions
from mnist_lightning.runs.records import CONFIG_PARTS, read_config, read_summary

LOGS = "lightning_logs"  # default folder of runs
CHECKPOINTS = "checkpoints"

ORIGINS = ("init_from", "distill_from")  # options of `fit` that name other runs
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
        last: Checkpoint of the last epoch.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder: Path | None = Path(folder)
        self.config_file = self.folder / "config.yaml"
        self.summary_file = self.folder / "summary.json"
        self.predictions_file = self.folder / "test_predictions.npz"
        self.checkpoints = self.folder / CHECKPOINTS
        self.last = self.checkpoints / "last.ckpt"

    @classmethod
    def of(cls, path: str | Path) -> "Run | None":
        """Returns the run of a path.

        Args:
            path: A run folder, its folder of checkpoints, a checkpoint in that folder, or a link to one.

        Returns:
            The run; None for a file that is not in a folder of checkpoints. Of a folder, whether `exists` or not.
        """
        path = Path(path)
        with suppress(RuntimeError):  # ~name of an unknown user
            path = path.expanduser()
        if path.is_file() or path.suffix == ".ckpt":
            folders = [path.absolute().parent, path.resolve().parent]  # a link stands for its target
            return next((cls(folder.parent) for folder in folders if folder.name == CHECKPOINTS), None)
        if path.name in ("", ".."):  # the current folder, or one above
            path = path.resolve()
        return cls(path.parent if path.name == CHECKPOINTS else path)

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
        run.seeds, run.fold = (summary["seed"], summary["seed"]), None
        return run

    @classmethod
    def planned(cls, config: dict[str, Any]) -> "Run":
        """Makes a run that is not trained yet. Its folder is that of the experiment, which may not exist.

        Args:
            config: As in `config.yaml`.
        """
        run = cls(Path(config["trainer"]["default_root_dir"] or ".", LOGS, config["experiment"]))
        run.full_config = config
        return run

    @property
    def experiment(self) -> str:
        """Name of the experiment's folder, also of a run that is not finished."""
        folder = self.checkpoints.resolve().parent
        return folder.parent.name if folder.name.startswith("version_") else folder.name

    @property
    def exists(self) -> bool:
        """Whether the folder is that of a run: it has a summary or a checkpoint, or began with a config."""
        if self.summary_file.is_file() or self.checkpoint("last") is not None:
            return True
        return self.config_file.is_file() and self.config_file.resolve().parent.name.startswith("version_")

    @property
    def is_finished(self) -> bool:
        """Whether the run was tested."""
        return self.summary_file.is_file()

    @property
    def skips_test(self) -> bool:
        """Whether the run is not to be tested, as those of a search: its `trainer.limit_test_batches` is 0."""
        with suppress(InputError):  # a damaged config
            return bool(self.full_config) and self.full_config["trainer"].get("limit_test_batches") == 0
        return False

    def curve(self, tag: str) -> list[float]:
        """Returns a metric's values by epoch, from TensorBoard's files. A repeated epoch may occur twice.

        Args:
            tag: Name of the metric, such as `val/acc`. Without values, the curve is empty.
        """
        from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

        files = sorted(Path(str(self.folder)).glob("events.out.tfevents*"))
        values = (
            value for file in files for event in EventFileLoader(str(file)).Load() for value in event.summary.value
        )
        return [value.tensor.float_val[0] for value in values if value.tag == tag]

    def checkpoint(self, name: Literal["tested", "last"] = "tested") -> Path | None:
        """Returns an existing checkpoint file.

        Args:
            name: The checkpoint that was or will be tested, or that of the last epoch. They differ in runs of earlier
                versions, which tested the epoch with the best validation accuracy.
        """
        paths = [self.last]
        with suppress(InputError):  # a damaged summary
            if self.is_finished and "best_epoch" in self.summary:
                paths.append(self.checkpoints / "best.ckpt")
        if name == "tested":
            paths.reverse()
        return next((path for path in paths if path.is_file()), None)

    @cached_property
    def summary(self) -> dict[str, Any]:
        """Content of `summary.json`: metrics of the three splits, parameters, seconds, versions.

        Facts that are unknown are missing; an unknown seed is None.

        Raises:
            InputError: If the run is not finished, or the file is damaged.
        """
        try:
            return read_summary(self.summary_file)
        except FileNotFoundError:
            way = f"there is no {self.summary_file.name}"
            if self.skips_test:
                way = "it was not tested, because its trainer.limit_test_batches is 0"
            elif self.config_file.is_file():
                resumable = self.checkpoint("last") is not None
                how = f"--ckpt_path {self.folder}" if resumable else f"--config {self.config_file}"
                way = f"{'resume' if resumable else 'train again'} with mnist-lightning fit {how}"
            raise InputError(f"{self.folder} is not a finished run: {way}") from None

    @cached_property
    def predictions(self) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Logits [N, 10] and labels [N] of the test images.

        Raises:
            InputError: If the file is missing or damaged, or does not belong to the run's summary.
        """
        logits, labels = load_predictions(self.predictions_file)
        accuracy = np.mean(logits.argmax(axis=1) == labels)
        if not abs(accuracy - self.summary["test"]["accuracy"]) <= 1e-6:
            raise InputError(f"{self.predictions_file} does not match {self.summary_file}, or is damaged")
        return logits, labels

    @cached_property
    def full_config(self) -> dict[str, Any]:
        """Content of `config.yaml`; empty for a run of the library.

        Raises:
            InputError: If the file is damaged.
        """
        return read_config(self.config_file)

    @cached_property
    def config(self) -> dict[str, tuple[str, dict[str, Any]]]:
        """Class path and arguments of the config's `model`, `data` and `trainer`. The trainer has no class path.

        A run of the library has no config; it is empty.

        Raises:
            InputError: If the config is damaged.
        """
        parts = {}
        for part in CONFIG_PARTS if self.full_config else ():
            arguments = self.full_config[part]
            path = arguments.get("class_path", "")
            parts[part] = path, dict((arguments.get("init_args") or {}) if path else arguments)
        return parts

    @cached_property
    def seeds(self) -> tuple[int, int] | None:
        """Seeds of the training and of its data; None if the training was not seeded, so that nothing repeats it.

        Raises:
            InputError: If the summary or the config is damaged.
        """
        seed = self.summary["seed"]
        if seed is None or self.full_config.get("seed_everything") is False:
            return None
        of_data = self._data.get("seed")
        return seed, seed if of_data is None else of_data

    @cached_property
    def fold(self) -> tuple[int, int] | None:
        """Fold k of K that the run was validated on, as (k, K); None for a run without folds.

        Raises:
            InputError: If the summary or the config is damaged.
        """
        fold = self._data.get("fold")
        with suppress(InputError):  # an argument of another package's data, which may mean anything
            return fold_of(fold) if isinstance(fold, str) else None
        return None

    @property
    def _data(self) -> Mapping[str, Any]:
        """Arguments of the data module."""
        return self.config["data"][1] if self.config else self.summary.get("data", {})

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What was trained and how, without seed and fold: `{"model": "mnist_lightning.LeNet5", "model.lr": 0.01}`.

        Without a config, the settings are those of the summary.

        Raises:
            InputError: If the config is damaged.
        """
        if not self.config:
            # Early stopping may end the seeds of one model after different epochs.
            facts = ("data", "trainer") if "trainer" in self.summary else ("epochs", "batch_size")
            names = ("model", "hyper_parameters", *facts, "precision", "devices")
            facts_by_name = flat("", {name: self.summary.get(name) for name in names})
            return self._without_fold({name: value for name, value in facts_by_name.items() if name != "data.seed"})
        origins = {name: self.full_config.get(name) for name in ORIGINS}
        settings: dict[str, Any] = {name: origin for name, origin in origins.items() if origin is not None}
        for part, (path, arguments) in self.config.items():
            settings |= {part: path} if path else {}
            incidental = INCIDENTAL.get(part, set())
            settings |= flat(f"{part}.", {name: value for name, value in arguments.items() if name not in incidental})
        return self._without_fold(settings)

    def _without_fold(self, settings: dict[str, Any]) -> dict[str, Any]:
        """Removes the fold, and its null, which runs of earlier versions lack."""
        is_fold = self.fold is not None or settings.get("data.fold") is None
        return {name: value for name, value in settings.items() if name != "data.fold" or not is_fold}

    @cached_property
    def identity(self) -> str | None:
        """Identity of the training, equal for runs with the same settings, fold and seed, finished or not.

        None for a run without a config, whose settings are not known exactly, and for one without a seed.

        Raises:
            InputError: If the config is damaged.
        """
        seed = self.full_config.get("seed_everything")
        if type(seed) is not int:
            return None
        # Whether a number of batches is parsed as 2 or as 2.0 depends on the order of imports. 1.0 is all batches.
        settings = {
            name: int(value) if isinstance(value, float) and value.is_integer() and value != 1 else value
            for name, value in self.settings.items()
        }
        return json.dumps([settings, self.fold, seed, self._data.get("seed")], sort_keys=True, default=str)

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

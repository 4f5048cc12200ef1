"""Random values in every field of a config: the training starts, or is refused in one line."""

import functools
import inspect
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from lightning.pytorch import Trainer

from mnist_lightning import CNN, GNN, Augmentation, Classifier, MNISTDataModule, PositionAugmentation
from mnist_lightning.cli import main

NETWORKS = {
    "cnn": {"class_path": "CNN", "init_args": {"channels": [2], "widths": []}},
    "gnn": {"class_path": "GNN", "init_args": {"width": 4, "depth": 1}},
}
DATA = {
    "cnn": {"class_path": "MNISTDataModule", "init_args": {"source": "digits"}},
    "gnn": {"class_path": "MNISTSuperpixelsDataModule", "init_args": {"source": "digits"}},
}
TRAINER = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False, "logger": False}
# Values that start many processes are parsed, but not run.
NOT_RUN = {"trainer.devices", "trainer.num_nodes", "trainer.strategy", "trainer.accelerator", "data.num_workers"}
COMMON = [
    *("accelerator", "strategy", "devices", "num_nodes", "precision", "fast_dev_run", "max_epochs", "min_epochs"),
    *("max_steps", "min_steps", "max_time", "limit_train_batches", "limit_val_batches", "limit_test_batches"),
    *("overfit_batches", "val_check_interval", "check_val_every_n_epoch", "num_sanity_val_steps"),
    *("log_every_n_steps", "accumulate_grad_batches", "gradient_clip_val", "gradient_clip_algorithm"),
    *("deterministic", "benchmark", "detect_anomaly", "reload_dataloaders_every_n_epochs", "default_root_dir"),
    *("enable_checkpointing", "logger", "callbacks", "profiler", "plugins"),
]


def arguments(*classes: type) -> list[str]:
    names = [name for cls in classes for name in inspect.signature(cls).parameters]
    return sorted({name for name in names if name not in ("training", "data", "network", "compile")})


FIELDS = {
    "cnn": [
        *(f"model.{name}" for name in arguments(CNN, Classifier)),
        *(f"data.{name}" for name in arguments(MNISTDataModule)),
        *(f"data.augment.{name}" for name in arguments(Augmentation)),
        *(f"trainer.{name}" for name in COMMON),
        *("seed_everything", "experiment", "ckpt_path", "model", "data", "trainer", "model.class_path"),
    ],
    "gnn": [
        *(f"model.{name}" for name in arguments(GNN)),
        *(f"data.augment.{name}" for name in arguments(PositionAugmentation)),
    ],
}
EDGES = [
    *(None, True, False, 0, 1, -1, 2, 7, 10**6, 10**30, -(10**30), 0.5, 1.0, -0.5, 1e-320, 1e308),
    *(float("nan"), float("inf"), float("-inf"), "", "nan", "1", "-1", "1e3", "inf", "null", "relu", "digits", "mnits"),
    *("../..", "~", "a b", "\x00", "é", "a\nb", "${HOME}", "{}", "[", "x" * 300, "torch.nn.Linear", "os.system"),
    *([], [0], [1], [-1], [2, 2], [None], ["a"], [[1]], [0.5], [1e30], [10**30], {}, {"a": 1}, {"class_path": "CNN"}),
    {"class_path": "os.system", "init_args": {"command": "touch executed"}},
]
PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
VALUES = st.sampled_from(EDGES) | st.recursive(
    PLAIN, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=2)
)


def unmodified(network: str) -> dict[str, Any]:
    """The config of a small training."""
    whole = {"model": NETWORKS[network], "data": DATA[network], "trainer": {**TRAINER, "fast_dev_run": 1}}
    copy: dict[str, Any] = json.loads(json.dumps(whole))
    return copy


def config(network: str, field: str, value: Any) -> dict[str, Any]:
    """The config of a small training with one field replaced."""
    whole = unmodified(network)
    part, _, name = field.partition(".")
    if part not in ("model", "data") or not name or name == "class_path":
        target, key = (whole[part], name) if name else (whole, part)
    else:
        target, key = whole[part]["init_args"], name
        if name.startswith("augment."):
            target, key = target.setdefault("augment", {}), name.removeprefix("augment.")
    target[key] = value
    return whole


def outcome(content: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> str:
    """Runs a training, and returns the line that refuses it, or an empty string."""
    before = set(Path.cwd().rglob("*"))
    Path("fuzzed.json").write_text(json.dumps(content))
    capsys.readouterr()
    status: Any = None
    try:
        main(["fit", "--config", "fuzzed.json"])
    except SystemExit as exit_:
        status = exit_.code
    finally:
        os.environ["PL_GLOBAL_SEED"] = "0"
    assert not Path("executed").exists()
    assert not [path for path in set(Path.cwd().rglob(".*")) - before if path.is_file()]  # nothing half-written
    if status is None:
        return ""
    lines = [line for line in capsys.readouterr().err.splitlines() if "warning:" not in line]
    assert (status, len(lines)) == (2, 1), lines
    return lines[0]


@pytest.fixture
def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parses, checks and builds everything, but does not train."""
    monkeypatch.setattr(Trainer, "fit", functools.wraps(Trainer.fit)(lambda *args, **kwargs: None))
    monkeypatch.setattr("mnist_lightning.training.command.CLI.after_fit", lambda cli: None)


@pytest.mark.parametrize("network", NETWORKS)
def test_the_unmodified_config_trains(network: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert outcome(unmodified(network), capsys) == ""


# Bugs found with more examples than a test has time for.
FOUND = [
    ("seed_everything", -(10**30), "seed_everything: -1000000000000000000000000000000 is not in bounds"),
    ("data.seed", "-1", "seed must be 0 or more, got -1"),
    ("data.source", None, "data.source must not be null"),
    ("data.stratify", None, "data.stratify must not be null"),
    ("data.augment.elastic", None, "data.augment.elastic must not be null"),
    ("data.num_workers", 10**6, "num_workers must be from 0 to 1024, got 1000000"),
    ("model.lr", None, "model.lr must not be null"),
    ("model.lr", -1, "error: lr must be positive and finite, got -1"),
    ("model.pool", 0, "pool must be 1 or more, got"),
    ("model.channels", [-1], "channels must be 1 or more, got"),
    ("model.class_path", {}, "model must name a class; use CNN, DenseNet"),
    ("data", [7], "data must name a class; use MNISTDataModule"),
    ("data.root", 0.5, "data.root must be a string or null"),
    ("experiment", 7, "experiment must be a string or null"),
    ("trainer", 7, "trainer must be a mapping of options, got 7"),
    ("trainer", "\x00", "embedded null byte"),
    ("trainer.accumulate_grad_batches", 0, "trainer.accumulate_grad_batches must be 1 or more, got 0"),
    ("trainer.detect_anomaly", None, "trainer.detect_anomaly must not be null"),
    ("trainer.devices", 10**6, "trainer.devices must be at most 1024, got 1000000"),
    ("trainer.devices", 10**30, "trainer.devices must be at most 1024, got 1000000000000000000000000000000"),
]


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize(("field", "value", "says"), FOUND)
def test_values_that_once_failed(field: str, value: Any, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert says in outcome(config("cnn", field, value), capsys)


def fuzzed(examples: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Calls a test with many fields and values, always the same."""

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        fields = st.sampled_from([(network, field) for network, names in FIELDS.items() for field in names])
        same = settings(
            max_examples=examples,
            derandomize=True,
            deadline=None,
            database=None,
            phases=[Phase.generate],  # shrinking would run hundreds of trainings
            suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
        )
        return same(given(fields, VALUES)(test))

    return decorate


@pytest.mark.usefixtures("no_training")
@fuzzed(8)
def test_any_value_is_accepted_or_refused_in_one_line(
    capsys: pytest.CaptureFixture[str], field: tuple[str, str], value: Any
) -> None:
    outcome(config(*field, value), capsys)


@pytest.mark.slow
@fuzzed(40)
def test_any_value_trains_or_is_refused_in_one_line(
    capsys: pytest.CaptureFixture[str], field: tuple[str, str], value: Any
) -> None:
    assume(field[1] not in NOT_RUN)
    outcome(config(*field, value), capsys)

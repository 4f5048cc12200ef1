"""Every field of a config, filled with anything: the training starts, or one line says why it does not."""

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
    "gnn": {"class_path": "GNN", "init_args": {"width": 4, "rounds": 1}},
}
DATA = {
    "cnn": {"class_path": "MNISTDataModule", "init_args": {"source": "digits"}},
    "gnn": {"class_path": "MNISTSuperpixelsDataModule", "init_args": {"source": "digits"}},
}
TRAINER = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False, "logger": False}
# Where processes would be started in numbers, or files be looked for elsewhere: refused or taken, but not tried out.
UNTRIED = {"trainer.devices", "trainer.num_nodes", "trainer.strategy", "trainer.accelerator", "data.num_workers"}
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
ANYTHING = st.sampled_from(EDGES) | st.recursive(
    PLAIN, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=2)
)


def config(network: str, field: str, value: Any) -> dict[str, Any]:
    """A small training's config with one field replaced."""
    whole = {"model": NETWORKS[network], "data": DATA[network], "trainer": {**TRAINER, "fast_dev_run": 1}}
    whole = json.loads(json.dumps(whole))
    part, _, name = field.partition(".")
    if part not in ("model", "data") or not name or name == "class_path":
        target, key = (whole[part], name) if name else (whole, part)
    else:
        target, key = whole[part]["init_args"], name
        if name.startswith("augment."):
            target, key = target.setdefault("augment", {}), name.removeprefix("augment.")
    target[key] = value
    return whole


def outcome(network: str, field: str, value: Any, capsys: pytest.CaptureFixture[str]) -> str:
    """Runs a training in a new folder; returns the line that refuses it, or nothing."""
    before = set(Path.cwd().rglob("*"))
    Path("fuzzed.json").write_text(json.dumps(config(network, field, value)))
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
def unstarted(monkeypatch: pytest.MonkeyPatch) -> None:
    """All but the training: parsed, checked, built."""
    monkeypatch.setattr(Trainer, "fit", functools.wraps(Trainer.fit)(lambda *args, **kwargs: None))
    monkeypatch.setattr("mnist_lightning.cli.CLI.after_fit", lambda cli: None)


# Found by more examples than there is time for in a test, and mended.
FOUND = [
    ("seed_everything", -(10**30), "seed_everything: -1000000000000000000000000000000 is not in bounds"),
    ("data.seed", "-1", "seed is -1; it must be 0 or more"),
    ("data.source", None, "data.source is null, which it cannot be"),
    ("data.stratify", None, "data.stratify is null, which it cannot be"),
    ("data.augment.elastic", None, "data.augment.elastic is null, which it cannot be"),
    ("data.num_workers", 10**6, "num_workers is 1000000; it must be at least 0 and at most 1024"),
    ("model.lr", None, "model.lr is null, which it cannot be"),
    ("model.lr", -1, "error: lr is -1"),
    ("model.pool", 0, "channels, kernel_size and pool are numbers of 1 or more"),
    ("model.channels", [-1], "channels, kernel_size and pool are numbers of 1 or more"),
    ("model.class_path", {}, "model names no class that fits; there are CNN, DenseNet"),
    ("data", [7], "data names no class that fits; there are MNISTDataModule"),
    ("data.root", 0.5, "data.root must be str"),
    ("experiment", 7, "experiment must be str"),
    ("trainer", 7, "trainer is 7; it must be a mapping of options"),
    ("trainer", "\x00", "embedded null byte"),
    ("trainer.accumulate_grad_batches", 0, "trainer.accumulate_grad_batches is 0; 1 is the least"),
    ("trainer.detect_anomaly", None, "trainer.detect_anomaly is null, which it cannot be"),
    ("trainer.devices", 10**6, "trainer.devices is 1000000; it can be 1024 at the most"),
    ("trainer.devices", 10**30, "trainer.devices is 1000000000000000000000000000000; it can be 1024 at the most"),
]


@pytest.mark.usefixtures("unstarted")
@pytest.mark.parametrize(("field", "value", "says"), FOUND)
def test_what_fuzzing_has_found(field: str, value: Any, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert says in outcome("cnn", field, value, capsys)


def fuzzed(examples: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a test that many fields and values, always the same."""

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
        return same(given(fields, ANYTHING)(test))

    return decorate


@pytest.mark.usefixtures("unstarted")
@fuzzed(8)
def test_anything_is_taken_or_refused_in_one_line(
    capsys: pytest.CaptureFixture[str], field: tuple[str, str], value: Any
) -> None:
    outcome(*field, value, capsys)


@pytest.mark.slow
@fuzzed(40)
def test_anything_trains_or_is_refused_in_one_line(
    capsys: pytest.CaptureFixture[str], field: tuple[str, str], value: Any
) -> None:
    assume(field[1] not in UNTRIED)
    outcome(*field, value, capsys)

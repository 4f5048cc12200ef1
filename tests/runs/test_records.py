"""Damaged files of a run: the run is left out with a line, and what is read can be compared."""

import json
import os
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard.summary.writer.record_writer import RecordWriter

from mnist_lightning.errors import InputError
from mnist_lightning.evaluation.compare.comparison import compare, ensembles, raw_table, results_table
from mnist_lightning.evaluation.compare.figures import curves
from mnist_lightning.evaluation.compare.runs import runs_table
from mnist_lightning.runs.finding import finished_runs, names_of
from mnist_lightning.runs.run import Run
from mnist_lightning.runs.writing import write_results

LABELS = np.arange(20) % 10
LOGITS = np.eye(10, dtype=np.float32)[LABELS]
SPLIT = {"accuracy": 1.0, "loss": 0.1, **dict.fromkeys(("precision", "recall", "f1"), [1.0] * 10), "support": [2] * 10}
SUMMARY = {
    "experiment": "mlp",
    "model": "MLP",
    "source": "digits",
    "seed": 0,
    "train": SPLIT,
    "val": SPLIT,
    "test": SPLIT,
    "parameters": 9,
    "size_kib": 1.5,
    "layers": 2,
    "best_epoch": 0,
    "epochs": 1,
    "steps": 3,
    "train_seconds": 0.5,
    "batch_size": 128,
    "data": {"class": "MNISTDataModule", "seed": None},
    "hyper_parameters": {"lr": 0.01, "widths": [8], "loss": None},
    "precision": "32-true",
    "devices": 1,
    "device": "a CPU",
    "cpu_threads": 2,
    "versions": {"torch": "2.11"},
}
CONFIG = """\
seed_everything: 0
model:
  class_path: mnist_lightning.MLP
  init_args:
    widths: [8]
    lr: 0.01
data:
  class_path: mnist_lightning.MNISTDataModule
  init_args:
    augment:
      rotate: 3
    seed: null
trainer:
  max_epochs: 1
"""
ANOTHER = Run.computed({**SUMMARY, "experiment": "another"}, LOGITS, LABELS)
VALUES = ["null", '"text"', "[]", "[3]", "{}", '{"a": [null]}', "NaN", "1e400", "-1", "-0.5", str(10**400), "true"]


def write(folder: Path, summary: str | None = None, config: str | bytes | None = CONFIG) -> Run:
    folder.mkdir(parents=True, exist_ok=True)
    run = Run(folder)
    write_results(run, SUMMARY, LOGITS, LABELS)
    if summary is not None:
        run.summary_file.write_text(summary)
    if config is not None:
        run.config_file.write_bytes(config if isinstance(config, bytes) else config.encode())
    return run


def outcome(run: Run) -> str:
    """Reads and compares a run, and returns why it is left out. Any other exception than `InputError` is a fault."""
    try:
        (read,), _ = finished_runs([str(run.folder)])
    except InputError as error:
        return str(error).removeprefix(f"there is no finished run in {run.folder}; ")
    (comparison,) = compare([read])
    results_table(comparison).csv()
    raw_table([comparison]).csv()
    runs_table(comparison).csv()
    ensembles([read, ANOTHER])
    return ""


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of all values in nested mappings and lists; of a list, only the last entry."""
    if path:
        yield path
    keys = list(value) if isinstance(value, dict) else [len(value) - 1] if isinstance(value, list) else []
    for key in keys:
        yield from leaves(value[key], (*path, key))


def changed(path: tuple[Any, ...], text: str | None) -> str:
    """The summary as JSON, with another text in place of one value; without the value if `text` is None."""
    summary = json.loads(json.dumps(SUMMARY))
    owner = summary
    for key in path[:-1]:
        owner = owner[key]
    if text is None:
        del owner[path[-1]]
        return json.dumps(summary)
    owner[path[-1]] = "CHANGED"
    return json.dumps(summary).replace('"CHANGED"', text)


def test_an_undamaged_run_is_compared_and_a_damaged_one_beside_it_left_out() -> None:
    assert outcome(write(Path("runs/intact"))) == outcome(write(Path("runs/without"), config=None)) == ""
    write(Path("runs/damaged"), summary="{")
    read, problems = finished_runs(["runs"])
    assert [run.folder for run in read] == [Path("runs/intact"), Path("runs/without")]
    assert len(problems) == 1
    assert set(names_of([[run] for run in read])) == {"mlp, mnist_lightning.MLP", "mlp, MLP"}


def test_any_value_in_a_summary_is_left_out_in_a_line_or_compared() -> None:
    paths = list(leaves(SUMMARY))
    assert len(paths) > 50
    run = write(Path("runs/damaged"), config=None)
    refused = 0
    for number, path in enumerate(paths):
        for offset, text in enumerate([None, *VALUES]):
            if (number + offset) % 3:  # a third of the values of each place, and each value at a third of the places
                continue
            run.summary_file.write_text(changed(path, text))
            refused += outcome(run).startswith(f"{run.summary_file} is damaged: ")
    assert refused > 100


@pytest.mark.parametrize(
    "content", ["", "null", "3", "[]", "[" * 5000, '{"a":' * 300, '{"experiment": "\\ud800"}', " " * 2**21, "\0"]
)
def test_another_content_of_a_summary_is_left_out(content: str) -> None:
    assert "is damaged: " in outcome(write(Path("runs/damaged"), content))


@pytest.mark.parametrize(
    ("name", "value"),
    [("seed", 1.5), ("source", None), ("hyper_parameters", [1]), ("epochs", -1), ("parameters", True), ("model", {})],
)
def test_the_line_names_the_entry_and_its_value(name: str, value: Any) -> None:
    problem = outcome(write(Path("runs/damaged"), changed((name,), json.dumps(value))))
    assert problem.startswith("runs/damaged/summary.json is damaged: ")
    assert name in problem


ENTRIES = ["[", "{3: 4}", "!!python/name:os.system", "null", "[1, {a: 2}]", "{b: {}}", "-7.5", ".nan", "2026-11-25"]
ENTRIES += ['"\\ud800"', "!!set {a, b}", "!!binary aGk=", "? [a]", "0x" + "f" * 9000, "*nothing", "&a [*a]"]


def mutations(config: str) -> Iterator[str]:
    """Damages of each line: deleted, doubled, cut, indented, and with other characters and values in it."""
    lines = config.splitlines(keepends=True)
    for number, line in enumerate(lines):
        key, _, _ = line.rstrip().partition(":")
        changes = ["", line * 2, line[: len(line) // 2] + "\n", "\t" + line, " " + line, line.replace(":", "")]
        changes += [line.replace("e", "\0", 1), *(f"{key}: {entry}\n" for entry in ENTRIES)]
        for change in changes:
            yield "".join([*lines[:number], change, *lines[number + 1 :]])


BOMB = "a: &a0 [x, x]\n" + "".join(f"b{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 30))
BOMBS = {
    "aliases": BOMB + CONFIG,
    "aliases in the model": CONFIG.replace("widths: [8]", "widths: *a29") + BOMB,
    "depth": CONFIG.replace("[8]", "[" * 2000 + "]" * 2000),
    "depth of mappings": CONFIG.replace("[8]", "{a: " * 200 + "1" + "}" * 200),
    "circle": CONFIG.replace("[8]", "&a [*a]"),
    "circle of mappings": CONFIG.replace("init_args:\n    widths", "init_args: &a\n    more: *a\n    widths"),
    "size": "# " + "x" * 2**20 + "\n" + CONFIG,
}


def test_any_damage_of_a_config_is_left_out_in_a_line_or_compared() -> None:
    run = write(Path("runs/damaged"))
    texts = list(mutations(CONFIG))[::2]
    assert len(texts) > 100
    refused = 0
    for text in texts:
        run.config_file.write_text(text)
        refused += outcome(run).startswith(f"{run.config_file} is ")
    assert refused > 70


@pytest.mark.parametrize("name", BOMBS)
def test_a_config_that_would_not_end_is_left_out(name: str) -> None:
    assert outcome(write(Path("runs/damaged"), config=BOMBS[name])).startswith("runs/damaged/config.yaml is not valid")


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[1]", b"model: {}", CONFIG.encode("utf-16")])
def test_another_content_of_a_config_is_left_out(content: bytes) -> None:
    assert outcome(write(Path("runs/damaged"), config=content)).startswith("runs/damaged/config.yaml ")


def rewritten(logits: Any, labels: Any) -> Callable[[Path], None]:
    return lambda path: np.savez(path, logits=logits, labels=labels)


@pytest.mark.parametrize(
    "damage",
    [
        rewritten(np.array([{"a": 1}]), LABELS),  # a pickle
        rewritten(LOGITS[:, :9], LABELS),
        rewritten(LOGITS[:5], LABELS),
        rewritten(LOGITS, LABELS + 1),
        rewritten(LOGITS, -LABELS),
        rewritten(LOGITS, LABELS.astype(float)),
        rewritten(LOGITS, LABELS[:, None]),
        rewritten(LOGITS.astype(complex), LABELS),
        rewritten(LOGITS.astype("U5"), LABELS),
        rewritten(LOGITS * np.float64(1e300), LABELS),  # infinite in 32 bits
        rewritten(np.full_like(LOGITS, np.nan), LABELS),
        rewritten(LOGITS[:0], LABELS[:0]),
        rewritten(3.0, 4),
        lambda path: np.save(path.with_suffix(".npy"), LOGITS) or path.with_suffix(".npy").replace(path),
        lambda path: path.write_bytes(b"PK\5\6" + bytes(18)),
        lambda path: path.write_bytes(b"\x80\x04."),
    ],
)
def test_damaged_predictions_are_left_out(damage: Callable[[Path], object]) -> None:
    run = write(Path("runs/damaged"))
    damage(run.predictions_file)
    assert f"{run.predictions_file} is damaged: " in outcome(run)


def test_predictions_that_unpack_to_gigabytes_are_left_out() -> None:
    run = write(Path("runs/damaged"))
    with zipfile.ZipFile(run.predictions_file, "a") as archive:
        archive.infolist()[0].file_size = 2**28
        archive.comment = b"changed"  # so that the directory is written again
    assert "it holds more than 256 MiB" in outcome(run)


def test_predictions_of_other_types_are_read_as_ours() -> None:
    run = write(Path("runs/other"))
    rewritten(LOGITS.astype(">f8"), LABELS.astype(np.uint8))(run.predictions_file)
    assert run.test_set == write(Path("runs/intact")).test_set
    assert (run.logits.dtype, run.labels.dtype) == (np.float32, np.int64)


@pytest.mark.parametrize("name", ["summary.json", "config.yaml", "test_predictions.npz"])
@pytest.mark.parametrize("kind", ["pipe", "folder", "device"])
def test_what_is_no_regular_file_is_not_opened(name: str, kind: str) -> None:
    path = Path("runs/damaged") / name
    run = write(path.parent)
    path.unlink()
    {"pipe": os.mkfifo, "folder": Path.mkdir, "device": lambda path: path.symlink_to("/dev/zero")}[kind](path)
    assert str(run.folder) in outcome(run)


def as_record(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        RecordWriter(file).write(content)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (Path.unlink, None),
        (lambda path: path.write_bytes(path.read_bytes()[:-7]), None),  # what is before is drawn
        (lambda path: path.write_bytes(bytes(range(256)) * 40), None),
        (lambda path: as_record(path, b"\xff" * 20), "the curves of .*version_0 cannot be read"),
        (lambda path: (path.unlink(), os.mkfifo(path)), "the curves of .*: its events are not regular files"),
    ],
)
def test_damaged_events_leave_out_the_curves_only(
    logs: Path, damage: Callable[[Path], object], says: str | None, recwarn: pytest.WarningsRecorder
) -> None:
    run = Run(logs / "mlp" / "version_0")
    for path in logs.glob("mlp/version_0/events*"):
        damage(path)
    (comparison,) = compare([run])
    curves(comparison)
    assert [bool(re.match(says or "", str(warning.message))) for warning in recwarn] == [True] * (says is not None)

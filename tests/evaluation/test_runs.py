import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mnist_lightning.errors import InputError
from mnist_lightning.evaluation.predictions import load_predictions, save_predictions
from mnist_lightning.evaluation.runs import grouped, mean_of, read_run, read_runs


def test_a_run_is_what_training_left(logs: Path) -> None:
    run = read_run(logs / "lenet5" / "version_1")
    assert (run.name, run.summary["seed"], run.logits.shape) == ("lenet5", 1, (360, 10))
    assert run.correct.mean() == pytest.approx(run.summary["test"]["accuracy"])


def test_runs_that_differ_in_the_seed_only_are_grouped(logs: Path) -> None:
    runs, problems = read_runs([logs])
    assert problems == []
    seeds = sorted([run.summary["seed"] for run in group] for group in grouped(runs))
    assert seeds == [[0], [0], [0, 1]]


def test_the_best_by_validation_comes_first(logs: Path) -> None:
    means = [mean_of(group, "val", "accuracy") for group in grouped(read_runs([logs])[0])]
    assert means == sorted(means, reverse=True)


def test_where_the_files_lay_makes_no_difference(logs: Path) -> None:
    config = logs / "lenet5" / "version_1" / "config.yaml"
    config.write_text(config.read_text().replace("root: null", "root: /elsewhere").replace("workers: 0", "workers: 3"))
    assert len(grouped(read_runs([logs])[0])) == 3
    config.write_text(config.read_text().replace("batch_size: 128", "batch_size: 64"))
    assert len(grouped(read_runs([logs])[0])) == 4


def test_a_training_repeated_counts_once(logs: Path) -> None:
    shutil.copytree(logs / "mlp" / "version_0", logs / "mlp" / "version_1")
    assert sorted(len(group) for group in grouped(read_runs([logs])[0])) == [1, 1, 2]


def test_a_run_named_twice_is_read_once(logs: Path) -> None:
    assert len(read_runs([logs, logs / "mlp", logs / "mlp" / "version_0"])[0]) == 4


def test_other_test_images_are_another_group(logs: Path) -> None:
    folder = logs / "lenet5" / "version_1"
    logits, labels = load_predictions(folder / "test_predictions.npz")
    save_predictions(folder / "test_predictions.npz", logits.flip(0), labels.flip(0))
    assert len(grouped(read_runs([logs])[0])) == 4


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def with_others(path: Path) -> None:
    logits, labels = load_predictions(path)
    save_predictions(path, -logits, labels)


def without_test(path: Path) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), "test": None}))


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        ("summary.json", Path.unlink, "version_0 is not a finished run: there is no summary.json"),
        ("summary.json", truncated, "summary.json is damaged: JSONDecodeError"),
        ("summary.json", without_test, "summary.json is damaged: TypeError"),
        ("test_predictions.npz", Path.unlink, "there are no predictions at"),
        ("test_predictions.npz", truncated, "test_predictions.npz is damaged"),
        ("test_predictions.npz", with_others, "is not what"),
        ("config.yaml", lambda path: path.write_text("model: ["), "config.yaml is damaged"),
    ],
)
def test_a_damaged_run_is_named_and_the_others_are_read(
    logs: Path, file: str, damage: Callable[[Path], object], message: str
) -> None:
    damage(logs / "mlp" / "version_0" / file)
    runs, problems = read_runs([logs])
    assert len(runs) == 3
    assert len(problems) == 1
    assert message in problems[0]
    assert str(logs / "mlp" / "version_0") in problems[0]


def test_a_run_of_the_library_has_no_config(logs: Path) -> None:
    for version in range(3):
        (logs / "lenet5" / f"version_{version}" / "config.yaml").unlink()
    assert sorted(len(group) for group in grouped(read_runs([logs])[0])) == [1, 1, 2]


def test_no_folder() -> None:
    with pytest.raises(InputError, match="there is no folder nowhere"):
        read_runs([Path("nowhere")])


def test_a_run_without_an_evaluation_of_training(logs: Path) -> None:
    run = read_run(logs / "mlp" / "version_0")
    del run.summary["train"]
    assert np.isnan(mean_of([run], "train", "loss"))

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mnist_lightning.errors import InputError
from mnist_lightning.runs.predictions import save_predictions
from mnist_lightning.runs.run import Run, best_by_validation, finished_runs, group_by_test_set, mean_of, names_of


def groups_in(*paths: Path) -> list[list[list[Run]]]:
    runs, problems = finished_runs([str(path) for path in paths])
    assert problems == []
    return group_by_test_set(runs)


def test_a_run_of_fit(logs: Path) -> None:
    run = Run(logs / "lenet5" / "version_1")
    assert run.is_finished
    assert (run.name, run.source, run.summary["seed"], run.logits.shape) == ("lenet5", "digits", 1, (360, 10))
    assert run.correct.mean() == pytest.approx(run.summary["test"]["accuracy"])
    assert run.settings["model"] == "mnist_lightning.LeNet5"
    assert run.settings["model.lr"] == 0.001
    assert run.settings["trainer.max_epochs"] == 1
    assert not {"seed_everything", "data.seed", "data.root"} & run.settings.keys()
    class_path, arguments = run.config["data"]
    assert (class_path.split(".")[-1], arguments["source"]) == ("MNISTDataModule", "digits")


def test_files_are_read_when_they_are_needed(tmp_path: Path) -> None:
    run = Run(tmp_path)
    assert not run.is_finished
    assert run.checkpoint("best") is None
    with pytest.raises(InputError, match="is not a finished run"):
        run.summary  # noqa: B018


def test_the_best_checkpoint_replaces_a_missing_last_one(logs: Path) -> None:
    run = Run(logs / "mlp" / "version_0")
    assert (run.checkpoint("best"), run.checkpoint("last")) == (run.best, run.last)
    run.last.unlink()
    assert run.checkpoint("last") == run.best


def test_run_of_a_path(logs: Path, tmp_path: Path) -> None:
    run = Run(logs / "mlp" / "version_0")
    for path in (run.folder, run.best, str(run.last)):
        assert path is not None
        same = Run.of(path)
        assert same is not None
        assert same.folder == run.folder
    assert Run.of(tmp_path / "elsewhere" / "model.ckpt") is None


def test_runs_that_differ_only_in_the_seed_form_a_group(logs: Path) -> None:
    (groups,) = groups_in(logs)
    seeds = sorted([run.summary["seed"] for run in group] for group in groups)
    assert seeds == [[0], [0], [0, 1]]


def test_groups_are_sorted_by_validation_accuracy(logs: Path) -> None:
    (groups,) = groups_in(logs)
    means = [mean_of(group, "val", "accuracy") for group in groups]
    assert means == sorted(means, reverse=True)
    for group in groups:
        best = best_by_validation(group)
        assert best.summary["val"]["accuracy"] == max(run.summary["val"]["accuracy"] for run in group)


def test_incidental_settings_do_not_split_a_group(logs: Path) -> None:
    config = Run(logs / "lenet5" / "version_1").config_file
    config.write_text(config.read_text().replace("root: null", "root: /elsewhere").replace("workers: 0", "workers: 3"))
    assert len(groups_in(logs)[0]) == 3
    config.write_text(config.read_text().replace("batch_size: 128", "batch_size: 64"))
    assert len(groups_in(logs)[0]) == 4


def test_a_repeated_run_counts_once(logs: Path) -> None:
    shutil.copytree(logs / "mlp" / "version_0", logs / "mlp" / "version_1")
    (groups,) = groups_in(logs)
    assert sorted(map(len, groups)) == [1, 1, 2]


def test_a_run_in_two_given_folders_is_read_once(logs: Path) -> None:
    paths = (logs, logs / "mlp", logs / "mlp" / "version_0")
    assert len(finished_runs(list(map(str, paths)))[0]) == 4


def test_other_labels_are_another_test_set(logs: Path) -> None:
    run = Run(logs / "lenet5" / "version_1")
    save_predictions(run.predictions_file, run.logits[::-1], run.labels[::-1])
    assert [len(groups) for groups in groups_in(logs)] == [3, 1]


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def negate_logits(path: Path) -> None:
    run = Run(path.parent)
    save_predictions(path, -run.logits, run.labels)


def remove_test_metrics(path: Path) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), "test": None}))


def remove_experiment(path: Path) -> None:
    summary = json.loads(path.read_text())
    del summary["experiment"]
    path.write_text(json.dumps(summary))


def leave_unchanged(path: Path) -> None:
    pass


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        ("summary_file", leave_unchanged, None),
        ("summary_file", Path.unlink, "version_0 is not a finished run: there is no "),
        ("summary_file", truncate, "is damaged: JSONDecodeError"),
        ("summary_file", remove_test_metrics, "is damaged: TypeError"),
        ("summary_file", remove_experiment, "is damaged: it lacks experiment"),
        ("predictions_file", Path.unlink, "there are no predictions at"),
        ("predictions_file", truncate, "is damaged"),
        ("predictions_file", negate_logits, "does not match"),
        ("config_file", lambda path: path.write_text("model: ["), "is damaged: ParserError"),
        ("config_file", lambda path: path.write_text("model: {}"), "is damaged: KeyError"),
        ("config_file", lambda path: path.write_text("model: 1\ndata: 2\ntrainer: 3"), "is damaged: AttributeError"),
    ],
)
def test_a_damaged_run_is_reported_and_the_others_are_read(
    logs: Path, file: str, damage: Callable[[Path], object], message: str | None
) -> None:
    path = getattr(Run(logs / "mlp" / "version_0"), file)
    damage(path)
    runs, problems = finished_runs([str(logs)])
    if message is None:
        assert (len(runs), problems) == (4, [])
    else:
        assert (len(runs), len(problems)) == (3, 1)
        assert message in problems[0]
        assert str(logs / "mlp" / "version_0") in problems[0]


def test_runs_without_a_config(logs: Path) -> None:
    for version in range(3):
        Run(logs / "lenet5" / f"version_{version}").config_file.unlink()
    (groups,) = groups_in(logs)
    assert sorted(map(len, groups)) == [1, 1, 2]
    run = Run(logs / "lenet5" / "version_0")
    assert run.config == {}
    expected = {"model": "LeNet5", "trainer.max_epochs": 1, "hyper_parameters.lr": 0.001, "data.batch_size": 128}
    assert expected.items() <= run.settings.items()
    assert "data.seed" not in run.settings
    lenets = [group for group in groups if group[0].name == "lenet5"]
    assert sorted(names_of(lenets)) == ["lenet5, max_epochs 1", "lenet5, max_epochs 2"]


def test_no_runs(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no folder nowhere"):
        finished_runs(["nowhere"])
    with pytest.raises(InputError, match="there is no folder lightning_logs"):
        finished_runs([])
    with pytest.raises(InputError, match=f"there is no finished run in {tmp_path}"):
        finished_runs([str(tmp_path)])


def test_the_mean_of_a_missing_metric_is_nan(logs: Path) -> None:
    run = Run(logs / "mlp" / "version_0")
    del run.summary["train"]
    assert np.isnan(mean_of([run], "train", "loss"))
    assert mean_of([run], "val", "loss") == run.summary["val"]["loss"]


def computed(name: str, source: str = "digits", **settings: Any) -> Run:
    """Makes a run with these settings. Double underscores in names of settings stand for dots."""
    summary = {"experiment": name, "source": source, "seed": 0}
    run = Run.computed(summary, np.zeros((2, 10), np.float32), np.zeros(2, np.int64))
    run.settings = {key.replace("__", "."): value for key, value in settings.items()}
    return run


def names(*runs: Run) -> list[str]:
    return names_of([[run] for run in runs])


def test_computed_run() -> None:
    run = computed("ensemble")
    assert (run.folder, run.name, run.source) == (None, "ensemble", "digits")
    assert run.correct.tolist() == [True, True]


def test_a_single_model_has_the_name_of_its_experiment() -> None:
    assert names(computed("lenet5", model__lr=0.01), computed("mlp", model__lr=0.1)) == ["lenet5", "mlp"]


def test_models_of_one_experiment_are_named_by_a_different_setting() -> None:
    runs = [computed("lenet5", model="LeNet5", model__lr=lr, data__batch_size=128) for lr in (0.01, 0.001)]
    assert names(*runs, computed("mlp", model="MLP")) == ["lenet5, lr 0.01", "lenet5, lr 0.001", "mlp"]


def test_models_of_one_experiment_are_named_by_three_different_settings() -> None:
    runs = [
        computed("lenet5", model__lr=0.01, trainer__max_epochs=5, data__stratify=False),
        computed("lenet5", model__lr=0.001, trainer__max_epochs=5, data__stratify=True),
        computed("lenet5", model__lr=0.001, trainer__max_epochs=20, data__stratify=False),
    ]
    assert names(*runs) == [
        "lenet5, lr 0.01, max_epochs 5, stratify false",
        "lenet5, lr 0.001, max_epochs 5, stratify true",
        "lenet5, lr 0.001, max_epochs 20, stratify false",
    ]


def test_models_of_one_experiment_are_named_by_their_classes() -> None:
    runs = [
        computed("mine", model="MLP", model__widths=[16, 8], model__lr=0.01),
        computed("mine", model="LeNet5", model__activation="tanh", model__lr=0.01),
    ]
    assert names(*runs) == ["mine, MLP", "mine, LeNet5"]


def test_settings_with_equal_last_names_are_named_in_full() -> None:
    runs = [
        computed("a", model__augment__rotate=1.0, data__augment__rotate=None),
        computed("a", model__augment__rotate=2.5, data__augment__rotate=[1, 0.5]),
    ]
    assert names(*runs) == [
        "a, model.augment.rotate 1.0, data.augment.rotate null",
        "a, model.augment.rotate 2.5, data.augment.rotate [1, 0.5]",
    ]


def test_settings_that_only_one_model_has() -> None:
    runs = [computed("a", data="Images", data__augment=None), computed("a", data="Images", data__augment__rotate=12)]
    assert names(*runs) == ["a, augment null", "a, rotate 12"]


def test_numbers_are_shown_with_all_digits() -> None:
    assert names(computed("a", model__lr=0.12345678), computed("a", model__lr=0.12345679)) == [
        "a, lr 0.12345678",
        "a, lr 0.12345679",
    ]
    assert names(computed("a", model__lr=1e-5), computed("a", model__lr=1.0)) == ["a, lr 1e-05", "a, lr 1.0"]


def test_equal_names_on_different_test_sets_stay_unchanged() -> None:
    runs = [computed("lenet5", model__lr=0.01), computed("lenet5", source="mnist", model__lr=0.001)]
    assert [names_of(groups) for groups in group_by_test_set(runs)] == [["lenet5"], ["lenet5"]]

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mnist_lightning.errors import InputError
from mnist_lightning.runs.checkpoint import find_checkpoint
from mnist_lightning.runs.finding import (
    best_by_validation,
    find_run,
    finished_runs,
    group_by_test_set,
    mean_of,
    names_of,
)
from mnist_lightning.runs.predictions import save_predictions
from mnist_lightning.runs.run import Run
from mnist_lightning.runs.writing import write_results


def groups_in(*paths: Path) -> list[list[list[Run]]]:
    runs, problems = finished_runs([str(path) for path in paths])
    assert problems == []
    return group_by_test_set(runs)


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


def write_run(folder: Path, seed: int | None = 0, accuracy: float = 1.0, **config: Any) -> Run:
    """Writes a finished run of the experiment that the folder above names."""
    run = Run(folder)
    summary = {"experiment": folder.parent.name, "source": "digits", "seed": seed, "test": {"accuracy": 1}}
    summary |= {"val": {"accuracy": accuracy}}
    folder.mkdir(parents=True)
    labels = np.arange(20) % 10
    write_results(run, summary, np.eye(10, dtype=np.float32)[labels], labels)
    arguments = {"seed": config.pop("data_seed", None), **config.pop("data", {})}
    data = {"class_path": "mnist_lightning.MNISTDataModule", "init_args": arguments}
    parts = {"model": {"class_path": "mnist_lightning.MLP"}, "data": data, "trainer": {}}
    run.config_file.write_text(json.dumps({"seed_everything": seed, **config, **parts}))
    return run


def test_runs_that_repeat_others_are_left_out_with_a_line() -> None:
    logs = Path("logs/mlp")
    for version in (2, 10):  # as text, 10 is before 2
        write_run(logs / f"version_{version}")
    (run,), problems = finished_runs(sorted(map(str, logs.iterdir())))
    assert run.folder == logs / "version_10"
    line = "logs/mlp/version_2 repeats logs/mlp/version_10 (same settings and seed); the later one counts"
    assert problems == [line]


def test_other_seeds_of_the_data_are_no_repetitions() -> None:
    for seed in (1, 2, 3):
        write_run(Path(f"logs/mlp/version_{seed}"), data_seed=seed)
    ((group,),) = groups_in(Path("logs"))
    assert [run.seeds for run in group] == [(0, 1), (0, 2), (0, 3)]
    write_run(Path("logs/mlp/version_9"), seed=2, data_seed=2)
    write_run(Path("logs/mlp/version_10"), seed=2)  # the seed of its data is 2, too
    assert len(finished_runs(["logs"])[1]) == 1


def test_runs_that_differ_only_in_fold_and_seed_form_a_group() -> None:
    for version, (seed, fold) in enumerate([(1, "1/2"), (0, "2/2"), (0, "1/2"), (0, "1/3"), (0, None), (1, None)]):
        write_run(Path(f"logs/mlp/version_{version}"), seed, data={"fold": fold})
    write_run(Path("logs/mlp/version_6"), 2)  # from before folds
    (groups,) = groups_in(Path("logs"))
    names = dict(zip(names_of(groups), ([(run.seeds, run.fold) for run in group] for group in groups), strict=True))
    assert names == {
        "mlp, 2 folds": [((0, 0), (1, 2)), ((0, 0), (2, 2)), ((1, 1), (1, 2))],
        "mlp, 3 folds": [((0, 0), (1, 3))],
        "mlp": [((0, 0), None), ((1, 1), None), ((2, 2), None)],
    }
    write_run(Path("logs/mlp/version_7"), 0, data={"fold": "2/2"})
    line = "logs/mlp/version_1 repeats logs/mlp/version_7 (same settings and seed); the later one counts"
    assert finished_runs(["logs"])[1] == [line]


def test_folds_of_runs_without_a_config() -> None:
    for version, data in enumerate([{}, {"fold": None}, {"fold": "1/5"}, {"fold": "3/5"}]):
        run = write_run(Path(f"logs/mlp/version_{version}"), version)
        run.config_file.unlink()
        run.summary_file.write_text(json.dumps({**run.summary, "data": {"class": "MNISTDataModule", **data}}))
    (groups,) = groups_in(Path("logs"))
    assert dict(zip(names_of(groups), map(len, groups), strict=True)) == {"mlp": 2, "mlp, 5 folds": 2}


def test_the_fold_of_another_package_may_mean_anything() -> None:
    run = write_run(Path("logs/mlp/version_0"), data={"fold": 3})
    other = write_run(Path("logs/mlp/version_1"), data={"fold": "left"})
    assert (run.fold, other.fold) == (None, None)
    assert sorted(names_of([[run], [other]])) == ["mlp, fold 3", "mlp, fold left"]


def test_models_with_and_without_folds_are_named_by_a_different_setting() -> None:
    runs = [computed("mlp", model__lr=lr, model=model) for lr in (0.1, 0.2) for model in ("MLP", "MLP")]
    runs[1].fold, runs[3].fold = (1, 5), (2, 5)
    assert names(*runs) == ["mlp, lr 0.1", "mlp, lr 0.1, 5 folds", "mlp, lr 0.2", "mlp, lr 0.2, 5 folds"]


def test_runs_of_unknown_seeds_are_no_repetitions() -> None:
    write_run(Path("logs/mlp/version_0"), seed=None)
    write_run(Path("logs/mlp/version_1"), seed=None)
    write_run(Path("logs/mlp/version_2"), seed_everything=False)  # by an older version, which wrote seed 0
    write_run(Path("logs/mlp/version_3"))
    ((group,),) = groups_in(Path("logs"))
    assert [run.seeds for run in group] == [(0, 0), None, None, None]


def test_an_unfinished_run_is_left_out_with_the_way_to_resume_it(logs: Path) -> None:
    run, other = Run(logs / "mlp" / "version_0"), Run(logs / "lenet5" / "version_2")
    for unfinished in (run, other):
        unfinished.summary_file.unlink()
    shutil.rmtree(other.checkpoints)
    _, problems = finished_runs([str(logs)])
    again = f"train again with mnist-lightning fit --config {other.config_file}"
    assert problems == [
        f"{other.folder} is not a finished run: {again}",
        f"{run.folder} is not a finished run: resume with mnist-lightning fit --ckpt_path {run.folder}",
    ]


def test_runs_that_are_not_to_be_tested_share_a_line(logs: Path) -> None:
    for name in ("version_0", "version_1"):
        run = Run(logs / "lenet5" / name)
        run.summary_file.unlink()
        config = run.config_file.read_text()
        run.config_file.write_text(config.replace("limit_test_batches: null", "limit_test_batches: 0"))
    shutil.copytree(logs / "lenet5" / "version_0", logs / "other" / "version_0")
    (logs / "lenet5" / "journal.log").write_text("of a search")
    runs, problems = finished_runs([str(logs)])
    assert [run.folder for run in runs] == [logs / "lenet5" / "version_2", logs / "mlp" / "version_0"]
    assert problems == [
        f"2 runs in {logs / 'lenet5'} were not tested (--trainer.limit_test_batches 0)",
        f"1 run in {logs / 'other'} was not tested (--trainer.limit_test_batches 0)",
    ]


def test_every_form_of_a_path_names_the_same_run(logs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(logs / "mlp" / "version_0")
    assert run.folder is not None
    Path("deep/er").mkdir(parents=True)
    Path("deep/er/link").symlink_to(run.folder)
    Path("link.ckpt").symlink_to(run.last)
    monkeypatch.setenv("HOME", str(logs))
    forms = [run.folder, f"{run.folder}//", run.checkpoints, run.last, logs / "mlp", "lightning_logs/mlp"]
    for path in (*forms, "deep", "link.ckpt", "~/mlp"):
        assert find_run(path).last.samefile(run.last), path
        ((again,), problems) = finished_runs([str(path)])
        assert again.last.samefile(run.last)
        assert problems == []
        assert find_checkpoint(path).samefile(run.last)
    assert find_checkpoint(logs / "mlp", "last") == run.last


def test_of_one_experiment_the_best_run_is_named_and_used() -> None:
    for version, accuracy in enumerate((0.5, 0.75, 0.25)):
        write_run(Path(f"logs/cnn/version_{version}"), version, accuracy)
    Path("logs/cnn/version_3").mkdir()
    Path("logs/cnn/version_3/config.yaml").write_text("unfinished")
    says = "of the 3 finished runs in logs, logs/cnn/version_1 is used: its validation accuracy is the best, 75.00 %"
    with pytest.warns(UserWarning, match=says):
        assert find_run("logs").folder == Path("logs/cnn/version_1")


def test_of_several_experiments_one_must_be_named(logs: Path) -> None:
    with pytest.raises(InputError) as refused:
        find_run(logs)
    assert str(refused.value) == (
        f"{logs} contains 4 runs; give one of them, such as {logs}/lenet5/version_0 or {logs}/mlp/version_0"
    )
    run = write_run(logs / "mlp" / "version_1")
    run.summary_file.write_text(run.summary_file.read_text().replace("digits", "mnist"))
    with pytest.raises(InputError, match=r"contains 2 runs; give one of them, such as .*version_0 or .*version_1"):
        find_run(logs / "mlp")  # accuracies on two sources cannot be compared
    for path in (logs / "lenet5").rglob("summary.json"):
        path.unlink()
    with pytest.raises(InputError, match=r"contains 3 runs; give one of them, such as .* or .*version_2"):
        find_run(logs / "lenet5")


def test_links_in_a_circle_end(logs: Path) -> None:
    (logs / "circle").symlink_to(logs)
    (logs / "mlp" / "itself").symlink_to("itself")
    (logs / "mlp" / "again").symlink_to(logs / "mlp")
    assert len(groups_in(logs)[0]) == 3


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
        ("summary_file", Path.unlink, "version_0 is not a finished run: resume with "),
        ("summary_file", truncate, "is damaged: Unterminated string"),
        ("summary_file", remove_test_metrics, "is damaged: it lacks test.accuracy"),
        ("summary_file", remove_experiment, "is damaged: it lacks experiment"),
        ("predictions_file", Path.unlink, "there are no predictions at"),
        ("predictions_file", truncate, "is damaged"),
        ("predictions_file", negate_logits, "does not match"),
        ("config_file", lambda path: path.write_text("model: ["), "is not valid YAML"),
        ("config_file", lambda path: path.write_text("model: {}"), "is damaged: data must be a mapping, got None"),
        (
            "config_file",
            lambda path: path.write_text("model: 1\ndata: 2\ntrainer: 3"),
            "is damaged: model must be",
        ),
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
    for path, says in (
        ("other.txt", "other.txt belongs to no run"),
        ("other.ckpt", "other.ckpt belongs to no run"),
        ("none.ckpt", "there is no checkpoint none.ckpt"),
        ("~no-such-user/x", "there is no folder ~no-such-user/x"),
    ):
        if path.startswith("other"):
            Path(path).touch()
        for find in (find_run, lambda one: finished_runs([one])):
            with pytest.raises(InputError, match=says):
                find(path)


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

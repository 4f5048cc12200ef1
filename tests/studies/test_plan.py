import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mnist_lightning import InputError
from mnist_lightning.cli import main
from mnist_lightning.runs.run import Run
from mnist_lightning.studies.plan import config_names, prepare_data, trainings

SHORT = ("--data.source=digits", "--trainer.limit_train_batches=5", "--trainer.max_epochs=1")


@pytest.fixture
def config(logs: Path) -> str:
    """A config with which the runs of `logs` could have been trained."""
    Path("lenet5.yaml").write_text(
        "model: LeNet5\ndata: {class_path: MNISTDataModule, init_args: {source: digits}}\n"
        "trainer: {limit_train_batches: 5, max_epochs: 1}\n"
    )
    return "lenet5.yaml"


def test_a_study_is_configs_times_settings_times_seeds() -> None:
    planned = trainings(["lenet+mse", "mlp"], 2, settings=["model.lr=0.01,1e-3", "trainer.max_epochs=5"], options=SHORT)
    assert [training.label for training in planned] == [
        f"{config}, lr {lr}, max_epochs 5, seed {seed}"
        for seed in (0, 1)
        for config in ("lenet+mse", "mlp")
        for lr in ("0.01", "1e-3")
    ]
    model = planned[1].config["model"]["init_args"]
    assert (model["lr"], model["loss"]) == (0.001, "mse")
    assert planned[1].config["trainer"]["max_epochs"] == 5  # values of --set win over options
    assert "max_epochs: 5" in planned[1].shortened
    assert "deterministic" not in planned[1].shortened


def test_values_may_be_lists_and_the_same_training_counts_once() -> None:
    planned = trainings(["mlp", "mlp"], 1, settings=["model.widths=[8],[16,8],[8]"])
    assert [training.config["model"]["init_args"]["widths"] for training in planned] == [[8], [16, 8]]


def test_folds_are_trained_with_every_seed_and_found_by_their_fold(config: str, logs: Path) -> None:
    planned = trainings([config], 2, folds=3)
    assert [training.label for training in planned][:4] == [
        "lenet5, fold 1/3, seed 0",
        "lenet5, fold 2/3, seed 0",
        "lenet5, fold 3/3, seed 0",
        "lenet5, fold 1/3, seed 1",
    ]
    assert planned[1].fit[-4:] == ("--data.fold", "2/3", "--seed_everything", "0")
    assert not any(training.finished() for training in planned)  # the runs in `logs` have no folds
    run = Run(logs / "lenet5/version_1")
    run.config_file.write_text(run.config_file.read_text().replace("fold: null", "fold: 2/3"))
    assert [training.label for training in planned if training.finished()] == ["lenet5, fold 2/3, seed 1"]


def test_all_stands_for_the_configs_that_name_a_model() -> None:
    assert {"cnn", "gnn", "speedrun", "softmax", "wide_nn"} < set(config_names(["all"]))
    assert "mse" not in config_names(["all"])
    assert config_names(["mlp", "all"])[0] == "mlp"
    assert config_names(["lenet+mse"]) == ["lenet+mse"]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"seeds": 0}, "seeds must be 1 or more, got 0"),
        ({"folds": 1}, "folds must be 2 or more, got 1"),
        ({"configs": []}, "a study needs a config: cnn, densenet"),
        ({"configs": ["lenett"]}, "there is no config lenett; did you mean lenet?"),
        ({"configs": ["lenet+mce"]}, "there is no config mce; did you mean mse?"),
        ({"configs": ["mse"]}, "mse names no model, because it changes another config, as in lenet+mse"),
        ({"settings": ["model.lr"]}, "such as model.lr=0.003,0.01; got 'model.lr'"),
        ({"settings": ["model.lr="]}, "got 'model.lr='"),
        ({"settings": ["=3"]}, "got '=3'"),
        ({"settings": ["lr=3"]}, "got 'lr=3'"),
        ({"settings": ["model.lr=0.1,,0.2"]}, "got 'model.lr=0.1,,0.2'"),
        ({"settings": ["model.lr=[0.1"]}, "got 'model.lr=[0.1'"),
        ({"settings": ["model.lrr=0.1"]}, "unknown option model.lrr; did you mean lr?"),
        ({"settings": ["model.lr=0.1,-1"]}, "lr must be positive and finite, got -1"),
        ({"options": ["--seed_everything", "3"]}, "--seed_everything cannot be an option of a study: use --seeds"),
        ({"options": ["--ckpt_path=x"]}, "--ckpt_path cannot be an option of a study"),
        ({"options": ["--trainer.fast_dev_run=true"]}, "it leaves no run"),
        ({"options": ["--trainer.max_epocs=3"]}, "unknown option trainer.max_epocs; did you mean trainer.max_epochs?"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_trained(arguments: dict[str, object], error: str) -> None:
    with pytest.raises(InputError) as refusal:
        trainings(**{"configs": ["lenet"], "seeds": 1, "options": SHORT, **arguments})  # type: ignore[arg-type]
    assert error in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert not list(Path().iterdir())


def test_finds_finished_runs_of_the_same_settings_and_seed(config: str, logs: Path) -> None:
    folders = [str(run.folder) if (run := training.finished()) else None for training in trainings([config], 3)]
    assert folders == ["lightning_logs/lenet5/version_0", "lightning_logs/lenet5/version_1", None]
    assert trainings([config], 1, settings=["trainer.max_epochs=2"])[0].finished() is not None
    for setting in ("model.lr=0.01", "trainer.max_epochs=3", "data.batch_size=64", "data.stratify=true"):
        assert trainings([config], 1, settings=[setting])[0].finished() is None, setting


def test_settings_that_do_not_change_the_weights_find_the_same_run(config: str) -> None:
    (training,) = trainings([config], 1, options=["--data.num_workers=2", "--trainer.log_every_n_steps=7"])
    assert training.finished() is not None


def test_an_unfinished_run_belongs_to_its_training_but_is_not_finished(config: str, logs: Path) -> None:
    Run(logs / "lenet5/version_0").summary_file.unlink()
    (training,) = trainings([config], 1)
    assert training.finished() is None
    assert [run.folder for run in training.runs()] == [Path("lightning_logs/lenet5/version_0")]


def test_a_damaged_run_is_not_taken_for_a_finished_one(config: str, logs: Path) -> None:
    Run(logs / "lenet5/version_0").summary_file.write_text("{")
    Run(logs / "lenet5/version_1").config_file.write_text("{")
    assert [training.finished() for training in trainings([config], 2)] == [None, None]


def test_a_run_on_the_fallback_source_does_not_count_once_the_source_is_there(
    config: str, logs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(logs / "lenet5/version_0")
    run.config_file.write_text(run.config_file.read_text().replace("source: digits", "source: mnist"))
    fallback = ["--data.source=mnist", "--data.fallback=digits"]
    (training,) = trainings([config], 1, options=fallback)
    assert training.finished() is None
    monkeypatch.setattr("mnist_lightning.data.sources.download", lambda *_: ["no network"])
    monkeypatch.setenv("MNIST_LIGHTNING_DATA", "empty")
    prepare_data([training])
    assert training.source == "digits"
    assert training.finished() is not None


@pytest.mark.slow
def test_fit_recognises_the_arguments_of_a_training(fails: Callable[..., str]) -> None:
    (training,) = trainings(["mlp"], 1, settings=["model.widths=[8]"], options=SHORT)
    main(list(training.fit))
    first = training.finished()
    assert first is not None
    assert first.settings == training.planned.settings
    shutil.rmtree(str(first.folder))
    assert training.finished() is None

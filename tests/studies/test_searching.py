import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Lock, current_thread, main_thread
from typing import Any

import pytest
import yaml
from lightning.pytorch.loggers import TensorBoardLogger
from optuna.storages.journal import JournalFileBackend

from mnist_lightning.cli import main
from mnist_lightning.errors import InputError
from mnist_lightning.runs.finding import finished_runs
from mnist_lightning.runs.run import Run
from mnist_lightning.runs.writing import write_config
from mnist_lightning.studies import search, search_report, searching, variants
from mnist_lightning.studies.plan import Training
from mnist_lightning.studies.process import Ending, Listener
from mnist_lightning.studies.search_report import draw, search_settings, trials_table
from mnist_lightning.studies.searching import SearchResult, trial_label
from mnist_lightning.studies.trials import COMPLETED, FAILED, PRUNED

EPOCHS = 3
SPACE = ["model.lr=log:1e-3:1.0"]


def quality(settings: Mapping[str, Any]) -> float:
    """Best at a learning rate of 0.1, where it is 1."""
    return 1 - 10 * abs(settings["lr"] - 0.1)


class Fake:
    """Trains nothing: writes the curves that a training would have, epoch by epoch, so that it can be resumed."""

    def __init__(self, jobs: int = 1, curve: Callable[[Mapping[str, Any], int], float] | None = None) -> None:
        self.jobs = jobs
        self.epochs: Counter[tuple[float, int, int]] = Counter()  # by learning rate, seed and epoch
        self._accuracy = curve or (lambda settings, seed: quality(settings))
        self._lock = Lock()

    def train(self, training: Training, listener: Listener) -> Ending:
        assert training.config["trainer"]["limit_test_batches"] == 0
        settings = training.config["model"]["init_args"]
        try:
            final = self._accuracy(settings, training.seed)
        except RuntimeError as error:
            return Ending(str(error), "Traceback (most recent call last)")
        with self._lock:
            runs = training.runs()
            run = (
                runs[-1] if runs else Run(training.experiment / f"version_{len(list(training.experiment.glob('v*')))}")
            )
            if not runs:
                write_config(run, yaml.safe_dump(training.planned.full_config))
        done = len(run.curve("val/acc"))
        board = TensorBoardLogger(run.folder, name="", version="")
        for epoch in range(done + 1, EPOCHS + 1):
            with self._lock:
                self.epochs[settings["lr"], training.seed, epoch] += 1
            metrics = {"val/acc": final * epoch / EPOCHS, "val/loss": 1 - final * epoch / EPOCHS}
            board.log_metrics(metrics, epoch)
            board.save()
            if not listener({"epoch": epoch, "epochs": EPOCHS, **metrics}):
                return Ending("stopped", is_stopped=True)
        return Ending()

    def stop(self) -> None:
        pass


def parsed(value: Any) -> Any:
    try:
        return float(value)
    except ValueError:
        return value


def plan(config: str, values: Mapping[str, Any], options: Sequence[str], fold: str | None = None) -> Training:
    """Makes a training like `model_of`, which takes a quarter of a second and changes the working directory."""
    assert current_thread() is main_thread()
    given = dict(zip(options[::2], options[1::2], strict=True)) | {f"--{name}": value for name, value in values.items()}
    arguments = {"lr": 0.03} | {n.partition(".")[2]: parsed(v) for n, v in given.items() if n.startswith("--model.")}
    if arguments["lr"] <= 0:
        raise InputError("lr must be positive")
    trainer = {"max_epochs": EPOCHS, "limit_test_batches": int(given.get("--trainer.limit_test_batches", 1))}
    settings = {
        "experiment": given.get("--experiment", config),
        "model": {"class_path": "LeNet5", "init_args": arguments},
        "data": {"class_path": "MNISTDataModule", "init_args": {"source": "digits"}},
        "trainer": {"default_root_dir": None, **trainer},
    }
    return Training(config, 0, (), settings, yaml.safe_dump({"model": settings["model"]}))


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Fake:
    fake = Fake()

    @contextmanager
    def machine(*_: Any) -> Iterator[Fake]:
        yield fake

    monkeypatch.setattr(searching, "machine", machine)
    monkeypatch.setattr(searching, "model_of", plan)
    monkeypatch.setattr(variants, "model_of", plan)
    monkeypatch.setattr(searching, "prepare_data", lambda _: None)
    return fake


def states(result: SearchResult) -> Counter[str]:
    return Counter(trial.state for trial in result.trials)


@pytest.mark.slow
def test_the_best_settings_are_found_and_never_worse_than_those_of_the_config(backend: Fake) -> None:
    result = search("lenet", SPACE, trials=20)
    assert [trial.number for trial in result.trials] == list(range(20))
    assert result.trials[0].settings == {"model.lr": 0.03}
    assert result.trials[0].state == COMPLETED
    assert result.value == pytest.approx(quality({"lr": result.settings["model.lr"]}))
    assert result.value > 0.8
    assert result.importance == {"model.lr": 1.0}
    assert yaml.safe_load(result.config_file.read_text())["model"]["init_args"]["lr"] == result.settings["model.lr"]


def test_bad_trials_are_stopped_early_and_the_config_itself_never_is(backend: Fake) -> None:
    result = search("lenet", ["model.lr=0.03,0.1,0.09,0.2,0.25"], trials=5)
    pruned = [float(trial.settings["model.lr"]) for trial in result.trials if trial.state == PRUNED]
    assert pruned
    for lr in pruned:
        assert backend.epochs[lr, 0, 1] == 1
        assert backend.epochs[lr, 0, EPOCHS] == 0
    assert backend.epochs[0.03, 0, EPOCHS] == 1


@pytest.mark.slow
def test_the_lowest_loss_is_the_value_of_a_trial(backend: Fake) -> None:
    result = search("lenet", SPACE, trials=5, metric="val/loss")
    assert result.value == min(trial.value for trial in result.trials if trial.state == COMPLETED)
    assert result.value == pytest.approx(1 - quality({"lr": result.settings["model.lr"]}))


def test_the_value_of_a_trial_is_the_mean_over_the_seeds(backend: Fake) -> None:
    backend._accuracy = lambda settings, seed: 0.5 + 0.1 * seed
    result = search("lenet", SPACE, trials=2, seeds=3)
    assert result.trials[0].value == pytest.approx(0.6)
    assert all(backend.epochs[0.03, seed, EPOCHS] == 1 for seed in range(3))


def test_a_failed_trial_leaves_the_others_alone_and_does_not_count(backend: Fake) -> None:
    def accuracy(settings: Mapping[str, Any], seed: int) -> float:
        if settings["lr"] > 0.2:
            raise RuntimeError("the loss is infinite")
        return quality(settings)

    backend._accuracy = accuracy
    result = search("lenet", SPACE, trials=8)
    assert len(result.trials) == 8
    assert states(result)[FAILED] > 0
    assert {trial.error for trial in result.trials if trial.state == FAILED} == {"the loss is infinite"}
    assert "Traceback" in result.log
    backend._accuracy = lambda settings, seed: quality(settings)
    more = search("lenet", SPACE, trials=8)
    assert states(more)[COMPLETED] + states(more)[PRUNED] == 8


def test_without_any_completed_trial_there_is_no_result(backend: Fake) -> None:
    def accuracy(settings: Mapping[str, Any], seed: int) -> float:
        raise RuntimeError("no data")

    backend._accuracy = accuracy
    report = search_settings(["lenet"], SPACE, 2, 1, "val/acc", (), None, None)
    assert report.problems == ["no trial was completed", "failed: trial 0 and 1 more: no data"]
    assert report.result.config_file is None


def test_the_same_call_trains_nothing_and_more_trials_are_added(backend: Fake) -> None:
    first = search("lenet", SPACE, trials=4)
    before = backend.epochs.copy()
    assert search("lenet", SPACE, trials=4) == first
    assert backend.epochs == before
    assert search("lenet", SPACE, trials=6).trials[:4] == first.trials
    assert search("lenet", SPACE, trials=2).config_file == first.config_file


@pytest.mark.slow
def test_another_space_is_another_search_in_the_same_folder(backend: Fake) -> None:
    search("lenet", SPACE, trials=3)
    other = search("lenet", ["model.lr=0.01:0.05"], trials=3)
    assert len(other.trials) == 3
    assert all(0.01 <= trial.settings["model.lr"] <= 0.05 for trial in other.trials)
    assert max(backend.epochs.values()) == 1  # the config's own run is used by both


def test_a_stopped_trial_is_continued(backend: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(backend, "train", lambda *_: Ending("stopped by SIGTERM", is_stopped=True))
        assert search("lenet", SPACE, trials=1).trials == []
    (trial,) = search("lenet", SPACE, trials=1).trials
    assert (trial.number, trial.state) == (0, COMPLETED)


class Killed(BaseException):
    pass


def test_a_search_that_is_killed_again_and_again_continues_and_trains_nothing_twice(
    backend: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = JournalFileBackend.append_logs
    kills, left = 0, 1

    def die(self: JournalFileBackend, logs: list[dict[str, Any]]) -> None:
        nonlocal left
        write(self, logs)
        left -= 1
        if left <= 0:
            raise Killed

    monkeypatch.setattr(JournalFileBackend, "append_logs", die)
    while True:
        try:
            result = search("lenet", SPACE, trials=4, seeds=2)
            break
        except Killed:
            kills, left = kills + 1, 2  # opening the journal adds a line
    assert kills > 15
    assert [trial.number for trial in result.trials] == list(range(4))
    assert states(result)[COMPLETED] + states(result)[PRUNED] == 4
    assert max(backend.epochs.values()) == 1
    for trial in result.ranking:
        assert trial.value == pytest.approx(quality({"lr": trial.settings["model.lr"]}))


def test_what_a_killed_search_leaves_in_the_journal_is_repaired(backend: Fake) -> None:
    result = search("lenet", SPACE, trials=2)
    journal = result.folder / "journal.log"
    journal.write_bytes(journal.read_bytes() + b'{"op_code":')
    (result.folder / "journal.log.lock").symlink_to(journal)
    assert search("lenet", SPACE, trials=3).trials[:2] == result.trials


def test_two_processes_do_not_search_in_one_folder(backend: Fake) -> None:
    search("lenet", SPACE, trials=1)
    with searching._locked(Path("lightning_logs/search-lenet")), pytest.raises(InputError, match="another process"):
        search("lenet", SPACE, trials=2)
    assert len(search("lenet", SPACE, trials=2).trials) == 2


def test_many_threads_share_the_trials(backend: Fake) -> None:
    backend.jobs = 4

    def accuracy(settings: Mapping[str, Any], seed: int) -> float:
        time.sleep(0.001)
        return quality(settings)

    backend._accuracy = accuracy
    result = search("lenet", SPACE, trials=12)
    assert [trial.number for trial in result.trials] == list(range(12))
    assert max(backend.epochs.values()) == 1


def test_simultaneous_trials_with_the_same_settings_train_once(backend: Fake) -> None:
    backend.jobs = 4
    result = search("lenet", ["model.lr=0.03,0.1"], trials=8)
    assert len(result.trials) == 8
    assert max(backend.epochs.values()) == 1
    assert len(result.ranking) <= 2
    assert sum(trial.repeats is not None for trial in result.trials) == 6


@pytest.mark.slow
def test_the_report_fits_a_terminal_and_the_picture_has_a_panel_for_each_setting(
    backend: Fake, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mnist_lightning.evaluation.page import print_result

    monkeypatch.setenv("COLUMNS", "80")
    space = [*SPACE, "model.activation=relu,tanh", "model.width=1:9"]
    with pytest.warns(UserWarning, match=r"own model.activation and model.width is not in the space"):
        report = search_settings(["lenet"], space, 12, 1, "val/acc", ("--model.x", "1"), None, None)
    capsys.readouterr()
    print_result(report)
    lines = capsys.readouterr().out.splitlines()
    text = "\n".join(lines)
    assert [line for line in lines if len(line) > 80 and "lightning_logs" not in line] == []
    assert report.problems == []
    assert "The best" in text
    assert "importance: " in text
    assert "mnist-lightning study lightning_logs/search-lenet/best.yaml lenet --seeds 5 -- --model.x 1" in text
    assert report.picture.read_bytes().startswith(b"\x89PNG")
    figure = draw(report.result)
    assert [axes.get_xlabel() for axes in figure.axes if axes.get_visible()] == ["trial", "lr", "activation", "width"]
    assert trials_table(report.result).header == ["trial", "validation accuracy", "lr", "activation", "width"]


def test_labels_are_short() -> None:
    assert trial_label(3, {"model.lr": 0.0123456, "model.activation": "relu"}) == "trial 3: lr 0.012, act… relu"
    settings: dict[str, Any] = {"model.lr": 0.0123456, "model.activation": "sigmoid"}
    assert trial_label(12, settings) == "trial 12: 0.012, sigmoid"
    assert len(trial_label(12, {f"model.setting_{i}": i for i in range(9)})) == 28


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trials": 0}, "trials must be 1 or more, got 0"),
        ({"seeds": 0}, "seeds must be 1 or more, got 0"),
        ({"config": "all"}, "a search takes one config, got all"),
        ({"space": ["model.lr=-0.1:1.0"]}, "lr must be positive"),
        ({"space": ["model.lr=0.1:1.0", "trainer.limit_test_batches=0,1"]}, "trials are not tested"),
        ({"space": ["data.num_workers=0:1"]}, "data.num_workers does not change the training"),
        ({"fit": ("--model.lr", "0.1")}, "--model.lr cannot be an option of a search of model.lr"),
    ],
)
def test_what_cannot_be_searched_is_refused_before_anything_is_written(
    backend: Fake, changes: dict[str, Any], message: str
) -> None:
    arguments = {"config": "lenet", "space": SPACE, "trials": 1}
    with pytest.raises(InputError, match=message):
        search(**arguments | changes)
    assert not Path("lightning_logs").exists()
    assert len(search(**arguments).trials) == 1


def test_a_search_takes_one_config_and_no_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = SearchResult([], "val/acc", [], {}, 1, Path(), None)
    monkeypatch.setattr(search_report, "search", lambda *_: nothing)
    with pytest.raises(InputError, match=r"takes one config, which may be a\+b; got lenet, mlp"):
        search_settings(["lenet", "mlp"], SPACE, 1, 1, "val/acc", (), None, None)
    with pytest.raises(InputError, match="--set cannot be combined with --search"):
        search_settings(["lenet"], SPACE, 1, 1, "val/acc", (), None, None, set_=["model.lr=1,2"])
    with pytest.raises(InputError, match="--folds cannot be combined with --search"):
        search_settings(["lenet"], SPACE, 1, 1, "val/acc", (), None, None, folds=3)
    assert search_settings(["lenet"], SPACE, 1, 1, "val/acc", (), None, None).result is nothing


def test_without_optuna_one_line_names_the_extra(backend: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(search("lenet", SPACE, trials=1).trials) == 1
    monkeypatch.setattr("mnist_lightning.studies.trials.find_spec", lambda _: None)
    with pytest.raises(InputError, match=r"--search needs Optuna: pip install 'mnist-lightning\[search\]'"):
        search("lenet", SPACE, trials=1)


def test_trials_are_left_out_of_reports_by_one_line(backend: Fake) -> None:
    search("lenet", SPACE, trials=3)
    with pytest.raises(InputError, match="3 runs in lightning_logs/search-lenet were not tested"):
        finished_runs([])


@pytest.mark.slow
def test_a_real_search_ends_with_a_config_that_trains(
    run: Callable[..., str], fails: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--", "--data.source=digits", "--trainer.max_epochs=2", "--trainer.limit_train_batches=3")
    command = ("study", "mlp", "--search", "model.lr=log:1e-3:1e-2")
    refused = "--trainer.logger cannot be an option of a study"
    assert refused in fails(*command, "--search", "trainer.logger=true,false", *options)
    assert "lr must be positive" in fails("study", "mlp", "--search", "model.lr=-0.1:0.1", *options)
    output = run(*command, "--trials", "3", *options, COLUMNS="80")
    assert "trial 2" in output
    folder = tmp_path / "lightning_logs" / "search-mlp"
    assert len(list(folder.glob("version_*"))) == 3
    assert not any(Run(each).is_finished for each in folder.glob("version_*"))
    assert (folder / "search.png").is_file()
    again = run(*command, "--trials", "3", *options)
    assert "trial 2" in again
    assert "started" not in again
    main(["fit", "--config", str(folder / "best.yaml")])
    assert "test accuracy" in capsys.readouterr().out
    main(["compare", "lightning_logs"])
    text = capsys.readouterr().out
    assert "3 runs in lightning_logs/search-mlp were not tested (--trainer.limit_test_batches 0)" in text

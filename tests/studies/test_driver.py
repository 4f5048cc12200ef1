import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mnist_lightning.cli import main
from mnist_lightning.runs.run import Run
from mnist_lightning.studies import study
from mnist_lightning.studies.driver import run_all
from mnist_lightning.studies.plan import Training
from mnist_lightning.studies.process import Ending, Listener

CONFIG = """
model: LeNet5
data: {class_path: MNISTDataModule, init_args: {source: digits}}
trainer: {limit_train_batches: 5, max_epochs: 1}
"""


class Fake:
    """Trains by bringing back a run that was moved away."""

    def __init__(self, jobs: int, stored: Path) -> None:
        self.jobs, self.stored = jobs, stored
        self.trained: list[str] = []
        self.at_once: list[int] = []
        self.stops = 0
        self._running = 0
        self._lock = threading.Lock()

    def train(self, training: Training, listener: Listener) -> Ending:
        with self._lock:
            self._running += 1
            self.at_once.append(self._running)
            self.trained.append(training.label)
        listener({"epoch": 0, "epochs": 1})
        time.sleep(0.05)
        if training.seed == 1:
            ending = Ending("the disk is full")
        else:
            listener({"epoch": 1, "epochs": 1, "val/acc": 0.5})
            shutil.copytree(self.stored / f"version_{training.seed}", training.experiment / f"version_{training.seed}")
            ending = Ending()
        with self._lock:
            self._running -= 1
        return ending

    def stop(self) -> None:
        self.stops += 1


@pytest.fixture
def fake(logs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    """A backend that can train seeds 0 and 1 of lenet5.yaml, and fails for seed 1."""
    Path("lenet5.yaml").write_text(CONFIG)
    fake = Fake(2, Path(shutil.move(logs / "lenet5", tmp_path / "stored")))
    (logs / "lenet5").mkdir()

    @contextmanager
    def machine(*_: object) -> Iterator[Fake]:
        yield fake

    monkeypatch.setattr("mnist_lightning.studies.driver.machine", machine)
    return fake


def test_returns_the_finished_runs_and_names_the_failed_ones(fake: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.warns(UserWarning, match="lenet5, seed 1 failed: the disk is full"):
        runs = study("lenet5.yaml", seeds=2)
    assert [run.folder for run in runs] == [Path("lightning_logs/lenet5/version_0")]
    assert fake.trained == ["lenet5, seed 0", "lenet5, seed 1"]
    assert max(fake.at_once) == 2
    lines = capsys.readouterr().out.splitlines()
    assert "lenet5, seed 1: failed, the disk is full" in lines
    assert any(line.startswith("lenet5, seed 0: finished, validation accuracy 50.00 %") for line in lines)


def test_what_is_finished_is_not_trained_again(fake: Fake) -> None:
    shutil.copytree(fake.stored / "version_0", "lightning_logs/lenet5/version_0")
    assert len(study("lenet5.yaml", seeds=1)) == 1
    assert fake.trained == []


def test_a_process_that_ends_without_a_tested_run_is_a_failure(fake: Fake) -> None:
    for name in ("version_0", "version_1"):
        Run(fake.stored / name).summary_file.unlink()
    with pytest.warns(UserWarning, match="seed 0 failed: fit ended without the results of a test"):
        assert study("lenet5.yaml", seeds=1) == []


def test_what_a_killed_start_left_is_removed(fake: Fake) -> None:
    for name, file in (("version_7", "events.out.tfevents.1"), ("version_8", "notes.txt")):
        folder = Path("lightning_logs/lenet5", name)
        folder.mkdir()
        (folder / file).touch()
    study("lenet5.yaml", seeds=1)
    assert [path.name for path in sorted(Path("lightning_logs/lenet5").iterdir())] == ["version_0", "version_8"]


def test_an_error_of_a_task_stops_the_others_and_is_raised(fake: Fake) -> None:
    def task(number: int) -> int:
        return 1 // number

    with pytest.raises(ZeroDivisionError):
        run_all(fake, task, [1, 0, 1])
    assert fake.stops == 1
    assert run_all(fake, task, [1, -1]) == [1, -1]


def test_the_verb_reports_and_exits_with_1_if_a_training_failed(
    fake: Fake, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("mnist_lightning.evaluation.compare.figures.draw_all", lambda *_: ())
    with pytest.raises(SystemExit) as exit_:
        main(["study", "lenet5.yaml", "--seeds", "2"])
    assert exit_.value.code == 1
    printed = capsys.readouterr()
    assert "report/index.html" in printed.out
    assert printed.err == "mnist-lightning: error: lenet5, seed 1: the disk is full\n"
    main(["study", "lenet5.yaml", "--seeds", "1"])
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_the_trainings(
    number: signal.Signals, code: int, fake: Fake, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stopped = threading.Event()

    def train(training: Training, listener: Listener) -> Ending:
        time.sleep(0.1)
        os.kill(os.getpid(), number)
        stopped.wait(20)
        return Ending("stopped by SIGTERM", is_stopped=True)

    monkeypatch.setattr(fake, "train", train)
    monkeypatch.setattr(fake, "stop", stopped.set)
    handlers = {name: signal.getsignal(name) for name in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        with pytest.raises(SystemExit) as exit_:
            main(["study", "lenet5.yaml", "--seeds", "1"])
    finally:
        for name, handler in handlers.items():
            signal.signal(name, handler)
    assert exit_.value.code == code
    printed = capsys.readouterr()
    assert f"stopped by {number.name}; the same command continues the study" in printed.err
    assert "lenet5, seed 0: stopped" in printed.out


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["lenet5.yaml", "--seeds", "0"], "seeds must be 1 or more, got 0"),
        (["lenet5.yaml", "--set"], "--set needs a value"),
        (["lenet5.yaml", "--seeds", "x"], "seeds must be an int or null, got 'x'"),
        (["lenet5.yaml", "--trials", "5"], "--trials needs --search"),
        (["lenet5.yaml", "--output", "lenet5.yaml"], "output must be a folder, got the file lenet5.yaml"),
        (["lenet5.yaml", "--", "--model.lr"], "--model.OPTION, needs a value"),
    ],
)
def test_wrong_input_is_one_line(arguments: list[str], error: str, fake: Fake, fails: Callable[..., str]) -> None:
    assert error in fails("study", *arguments)
    assert fake.trained == []

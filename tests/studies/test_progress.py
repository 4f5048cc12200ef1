from io import StringIO

import pytest
from rich.console import Console

from mnist_lightning.studies.plan import Training
from mnist_lightning.studies.process import Ending
from mnist_lightning.studies.progress import Progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that a test may set."""
    seconds = [100.0]
    monkeypatch.setattr("mnist_lightning.studies.progress.time.monotonic", lambda: seconds[0])
    return seconds


def several(count: int) -> list[Training]:
    return [Training("lenet", seed, (), {}, "") for seed in range(count)]


def screen(progress: Progress, height: int = 24) -> list[str]:
    console = Console(file=StringIO(), width=80, height=height)
    progress._console = console
    with console.capture() as capture:
        console.print(progress._table())
    return [line.rstrip() for line in capture.get().splitlines()]


def test_the_table_shows_what_each_training_does(clock: list[float]) -> None:
    trainings = several(5)
    progress = Progress(trainings)
    progress.found(trainings[0])
    for training in trainings[1:4]:
        progress.started(training)
    progress.update(trainings[1], {"epoch": 0, "epochs": 10})
    clock[0] += 8
    progress.update(trainings[1], {"epoch": 2, "epochs": 10, "val/acc": 0.9876})
    progress.ended(trainings[2], Ending("lr is too high"))
    clock[0] += 1
    lines = screen(progress)
    assert max(map(len, lines)) <= 80
    assert lines[2].split() == ["lenet", "0", "was", "finished"]
    assert lines[3].split() == ["lenet", "1", "running", "2/10", "98.76", "%", "31", "s"]  # 4 s an epoch, 1 s ago
    assert "failed" in lines[4]
    assert "waiting" in lines[6]
    # A training takes 40 s: 31 s are left of one, as many of another that has not reported yet, and one waits.
    assert lines[7] == "1 of 5 finished, 1 failed, 2 running, 1 waiting, about 1 min 42 s left"


def test_a_resumed_training_is_timed_from_its_checkpoint(clock: list[float]) -> None:
    (training,) = several(1)
    progress = Progress([training])
    progress.started(training)
    progress.update(training, {"epoch": 8, "epochs": 10})
    clock[0] += 5
    progress.update(training, {"epoch": 9, "epochs": 10, "val/acc": 1.0})
    assert screen(progress)[2].split()[-2:] == ["5", "s"]


def test_a_low_terminal_shows_running_and_failed_trainings_first(clock: list[float]) -> None:
    trainings = several(100)
    progress = Progress(trainings)
    for training in trainings[:60]:
        progress.started(training)
        progress.ended(training, Ending("a failure") if training.seed == 7 else Ending())
    progress.started(trainings[60])
    lines = screen(progress, height=15)
    assert len(lines) <= 13
    states = {tuple(line.split()[1:3]) for line in lines}
    assert {("7", "failed"), ("60", "running")} <= states
    assert lines[-1].startswith("59 of 100 finished, 1 failed, 1 running, 39 waiting")


def test_without_a_terminal_each_change_is_a_line(clock: list[float]) -> None:
    text = StringIO()
    first, second = several(2)
    with Progress([first, second], Console(file=text, width=80)) as progress:
        for training in (first, second):
            progress.started(training)
            progress.update(training, {"epoch": 1, "epochs": None, "val/acc": 0.5})
        clock[0] += 90
        progress.ended(first, Ending(warnings=("digits replace mnist",)))
        progress.ended(second, Ending("lr is \x1b[31m too high", warnings=("digits replace mnist",)))
    assert text.getvalue().splitlines() == [
        "lenet, seed 0: started",
        "lenet, seed 1: started",
        "warning: lenet, seed 0: digits replace mnist",
        "lenet, seed 0: finished, validation accuracy 50.00 %, 1 min 30 s",
        "lenet, seed 1: failed, validation accuracy 50.00 %, lr is \\x1b[31m too high",
    ]

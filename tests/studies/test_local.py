import os
from pathlib import Path
from threading import Event, Thread

import pytest
import torch

from mnist_lightning import InputError
from mnist_lightning.runs.run import Run
from mnist_lightning.runs.writing import lock
from mnist_lightning.studies.local import LocalMachine, to_do
from mnist_lightning.studies.plan import Training, trainings


@pytest.fixture
def training(logs: Path) -> Training:
    """The training of the first run in `logs`."""
    Path("lenet5.yaml").write_text(
        "model: LeNet5\ndata: {class_path: MNISTDataModule, init_args: {source: digits}}\n"
        "trainer: {limit_train_batches: 5, max_epochs: 1}\n"
    )
    return trainings(["lenet5.yaml"], 1)[0]


@pytest.fixture
def run(training: Training) -> Run:
    """The run of `training`, unfinished."""
    run = training.finished()
    assert run is not None
    run.summary_file.unlink()
    return run


def test_nothing_is_to_do_for_a_finished_run(training: Training) -> None:
    assert to_do(training, Event()) == ()


def test_a_run_with_a_checkpoint_is_resumed(training: Training, run: Run) -> None:
    assert to_do(training, Event()) == ("fit", "--ckpt_path", str(run.folder))


def test_a_run_without_a_checkpoint_is_trained_again_in_its_place(training: Training, run: Run) -> None:
    run.last.unlink()
    assert to_do(training, Event()) == training.fit
    assert run.folder is not None
    assert not run.folder.exists()


def test_waits_for_another_process_that_trains_the_run(training: Training, run: Run) -> None:
    assert run.folder is not None
    descriptor = lock(run.folder)
    assert descriptor is not None
    found: list[object] = []
    thread = Thread(target=lambda: found.append(to_do(training, Event())))
    thread.start()
    thread.join(0.3)
    assert found == []
    os.close(descriptor)
    thread.join(10)
    assert found == [("fit", "--ckpt_path", str(run.folder))]


def test_a_stopped_machine_trains_nothing(training: Training, run: Run) -> None:
    machine = LocalMachine(1)
    machine.stop()
    assert machine.train(training, lambda _: True).is_stopped


@pytest.mark.parametrize(
    ("cores", "gpus", "trainings", "jobs", "expected", "threads"),
    [
        (8, 0, 20, None, 8, 1),
        (8, 0, 3, None, 3, 2),
        (8, 0, 20, 2, 2, 4),
        (2, 0, 20, 4, 4, 1),
        (16, 4, 20, None, 4, 4),
        (16, 4, 20, 2, 2, 8),
    ],
)
def test_cores_are_divided_among_jobs(
    cores: int,
    gpus: int,
    trainings: int,
    jobs: int | None,
    expected: int,
    threads: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("mnist_lightning.studies.local._cores", lambda: cores)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr("mnist_lightning.studies.local._jobs_in_memory", lambda: 100)
    machine = LocalMachine(trainings, jobs)
    assert (machine.jobs, machine.threads) == (expected, threads)


@pytest.mark.parametrize(
    ("visible", "jobs", "shares"),
    [
        (None, 4, [["0"], ["1"], ["2"], ["3"]]),
        (None, 2, [["0", "1"], ["2", "3"]]),
        ("5,7", 2, [["5"], ["7"]]),
        ("5,7", 3, [["5"], ["5"], ["7"]]),
    ],
)
def test_gpus_are_divided_among_jobs(
    visible: str | None, jobs: int, shares: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(visible.split(",")) if visible else 4)
    machine = LocalMachine(20, jobs)
    assert [machine._shares.get() for _ in range(jobs)] == shares


def test_threads_of_the_user_win(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert LocalMachine(4, 2).threads == 3


@pytest.mark.parametrize("jobs", [0, -1])
def test_refuses_less_than_one_job(jobs: int) -> None:
    with pytest.raises(InputError, match=f"jobs must be 1 or more, got {jobs}"):
        LocalMachine(4, jobs)

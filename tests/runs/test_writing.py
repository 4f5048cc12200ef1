import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mnist_lightning.runs import writing
from mnist_lightning.runs.finding import runs_at
from mnist_lightning.runs.run import Run
from mnist_lightning.runs.writing import pack, remove_unstarted, unpack


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_packed_run_becomes_the_next_version(logs: Path) -> None:
    run = logs / "lenet5" / "version_0"
    before = len(list(run.parent.iterdir()))
    folder = unpack(pack(Run(run)), run.parent)
    assert folder == run.parent / f"version_{before}"
    assert files(folder) == files(run)
    assert len(list(run.parent.iterdir())) == before + 1


def test_an_experiment_may_be_new(logs: Path, tmp_path: Path) -> None:
    folder = unpack(pack(Run(logs / "mlp" / "version_0")), tmp_path / "new" / "mlp")
    assert folder == tmp_path / "new" / "mlp" / "version_0"
    assert Run(folder).is_finished


def test_runs_that_arrive_together_have_folders_of_their_own(logs: Path, tmp_path: Path) -> None:
    content = pack(Run(logs / "mlp" / "version_0"))
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda _: unpack(content, tmp_path / "mlp"), range(16)))
    assert {folder.name for folder in folders} == {f"version_{number}" for number in range(16)}
    assert {len(files(folder)) for folder in folders} == {len(files(logs / "mlp" / "version_0"))}


def test_nobody_finds_a_run_before_it_is_complete(logs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = pack(Run(logs / "mlp" / "version_0"))
    found = []

    def synchronize(_: int) -> None:  # called while the files are written
        found.extend(runs_at(tmp_path / "mlp", []))
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writing.os, "fsync", synchronize)
    with pytest.raises(OSError, match="No space left"):
        unpack(content, tmp_path / "mlp")
    assert found == []
    assert list((tmp_path / "mlp").iterdir()) == []
    monkeypatch.undo()
    unpack(content, tmp_path / "mlp")
    assert len(runs_at(tmp_path / "mlp", [])) == 1


def test_hidden_folders_hold_no_runs(logs: Path) -> None:
    shutil.copytree(logs / "mlp", logs / ".mlp")
    assert not [run for run in runs_at(logs, []) if ".mlp" in str(run.folder)]
    assert len(runs_at(logs / ".mlp", [])) == 1


def test_what_killed_trainings_left_before_their_first_step_is_removed(logs: Path) -> None:
    experiment = logs / "lenet5"
    finished = sorted(path.name for path in experiment.iterdir())
    for name in ("version_7", "version_8", "version_9"):
        (experiment / name).mkdir()
    for name in ("events.out.tfevents.1", "hparams.yaml"):
        (experiment / "version_7" / name).touch()
    (experiment / "version_8" / "notes.txt").touch()
    remove_unstarted(experiment)
    assert sorted(path.name for path in experiment.iterdir()) == [*finished, "version_8"]

"""Faults: kills, full disks, damaged files, simultaneous trainings, a clock that goes backwards."""

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import Trainer
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

from mnist_lightning import MLP, InputError, MNISTSuperpixelsDataModule, load
from mnist_lightning.cli import main
from mnist_lightning.data.sources import read, read_picture
from mnist_lightning.data.superpixels import stored_graphs
from mnist_lightning.divergence import NonFiniteLossError
from mnist_lightning.files import is_intact, replacing, save_tensors, write_whole
from mnist_lightning.runs.checkpoint import read_checkpoint
from mnist_lightning.runs.run import Run
from mnist_lightning.training.checkpoints import AtomicCheckpointIO
from mnist_lightning.training.tensorboard import RunLogger, TensorBoardFigures

DIGITS = ["--data.source=digits", "--trainer.enable_progress_bar=false"]
FIT = ["fit", "--model=MLP", "--model.widths=[8]", "--model.dropout=0.3", "--model.lr=0.003", *DIGITS]
RUN = Path("lightning_logs/mlp/version_0")
LAST = RUN / "checkpoints" / "last.ckpt"


@pytest.fixture(autouse=True)
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorBoard's figures take longer than these trainings."""
    monkeypatch.setattr(TensorBoardFigures, "on_test_end", lambda *_: None)


def trained(folder: Path, epochs: int) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("PL_GLOBAL_SEED", "0")
        patch.setattr(TensorBoardFigures, "on_test_end", lambda *_: None)
        main([*FIT, f"--trainer.max_epochs={epochs}"])
    return folder / RUN


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run of two epochs."""
    return trained(tmp_path_factory.mktemp("whole"), 2)


@pytest.fixture(scope="module")
def one_epoch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("one"), 1)


@pytest.fixture
def begun(one_epoch: Path) -> None:
    """A run of one epoch in the test's folder."""
    shutil.copytree(one_epoch, RUN)


def checkpoint(path: Path) -> Path:
    """A small model's checkpoint."""
    model = MLP(widths=[4])
    content: dict[str, Any] = {"state_dict": model.state_dict(), "hyper_parameters": dict(model.hparams), "epoch": 0}
    model.on_save_checkpoint(content)
    AtomicCheckpointIO().save_checkpoint(content, path)
    return path


def temporary_files() -> list[Path]:
    return [path for path in Path.cwd().rglob(".*") if path.is_file()]


def weights(path: Path) -> list[torch.Tensor]:
    return list(read_checkpoint(path)["state_dict"].values())


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(map(torch.equal, one, other))


# Damaged files.


def damages(content: bytes) -> Iterator[bytes]:
    """200 damaged copies: truncated, with a flipped bit, with 64 inverted bytes."""
    generator = random.Random(0)
    for number in range(200):
        place = generator.randrange(len(content))
        if number % 3 == 0:
            yield content[:place]
        elif number % 3 == 1:
            yield content[:place] + bytes([content[place] ^ 1 << generator.randrange(8)]) + content[place + 1 :]
        else:
            end = min(place + 64, len(content))
            yield content[:place] + bytes(byte ^ 0xFF for byte in content[place:end]) + content[end:]


def test_200_damaged_checkpoints_are_refused_in_one_line_or_load_the_same_tensors(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "small.ckpt")
    assert isinstance(load(path), MLP)
    expected = read_checkpoint(path)
    refused = unchanged = 0
    for damaged in damages(path.read_bytes()):
        path.write_bytes(damaged)
        try:
            content = read_checkpoint(path)
        except InputError as error:
            refused += "small.ckpt is not a checkpoint" in str(error) and "\n" not in str(error)
        else:  # the damage is in bytes that no reader uses, such as padding
            assert same(list(content["state_dict"].values()), list(expected["state_dict"].values()))
            assert {**content, "state_dict": None} == {**expected, "state_dict": None}
            unchanged += 1
    assert refused + unchanged == 200
    assert refused > 150


def test_torch_alone_reads_a_flipped_bit_without_an_error(tmp_path: Path) -> None:
    # The reason for is_intact. If this test fails, torch.load verifies checksums.
    path, name = checkpoint(tmp_path / "small.ckpt"), "dense.0.weight"
    content = bytearray(path.read_bytes())
    first = torch.load(path, weights_only=True)["state_dict"][name].numpy().tobytes()
    content[content.index(first) + 3] ^= 1
    path.write_bytes(content)
    assert torch.load(path, weights_only=True)["state_dict"][name].numpy().tobytes() != first


def test_damage_is_found_in_any_file_of_torch(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(1000.0)}
    ours, plain = tmp_path / "ours.pt", tmp_path / "plain.pt"
    save_tensors(tensors, ours)
    torch.save(tensors, plain)
    for path in (ours, plain):
        assert is_intact(path)
        for options in ({}, {"mmap": True}):
            assert torch.equal(torch.load(path, weights_only=True, **options)["a"], tensors["a"])
        content = bytearray(path.read_bytes())
        content[content.index(tensors["a"].numpy().tobytes()) + 7] ^= 16
        path.write_bytes(content)
        assert not is_intact(path)


@pytest.mark.parametrize("content", [b"", b"PK\5\6", b"PK\5\6" + bytes(18)])
def test_other_files_are_no_checkpoints(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "other"
    path.write_bytes(content)
    with pytest.raises(InputError, match="other is "):
        read_checkpoint(path)


def test_a_damaged_checkpoint_names_the_alternatives(begun: None, fails: Callable[..., str]) -> None:
    copy = LAST.with_name("copy.ckpt")
    copy.write_bytes(LAST.read_bytes())
    LAST.write_bytes(LAST.read_bytes()[:-1])
    line = fails("fit", "--ckpt_path", str(RUN), "--trainer.max_epochs=2")
    assert f"{LAST} is not a checkpoint, or it is damaged" in line
    assert line.endswith(f"; use {copy}, or train again with --config {(RUN / 'config.yaml').absolute()}")
    main(["fit", "--ckpt_path", str(copy), "--trainer.max_epochs=2"])
    assert read_checkpoint(LAST)["epoch"] == 1


def test_a_run_killed_before_its_test_is_tested(begun: None, one_epoch: Path) -> None:
    (RUN / "summary.json").unlink()
    main(["fit", "--ckpt_path", str(RUN)])
    first, again = (json.loads((run / "summary.json").read_text()) for run in (one_epoch, RUN))
    assert again["test"] == first["test"]
    assert again["epochs"] == first["epochs"] == 1
    assert Run(RUN).correct.mean() == first["test"]["accuracy"]


def test_the_command_line_verifies_checkpoints(begun: None) -> None:
    content = LAST.read_bytes()
    assert AtomicCheckpointIO().load_checkpoint(LAST, weights_only=True)["epoch"] == 0
    LAST.write_bytes(content[:5000] + bytes(500) + content[5500:])
    with pytest.raises(InputError, match="damaged"):  # where Lightning reads it, as for --ckpt_path
        AtomicCheckpointIO().load_checkpoint(LAST, weights_only=True)


def test_a_checkpoint_plugin_of_the_user_is_kept() -> None:
    plugin = "lightning.pytorch.plugins.io.AsyncCheckpointIO"
    main([*FIT, "--trainer.max_epochs=1", f"--trainer.plugins={plugin}"])
    assert isinstance(load(RUN), MLP)


# Kills.


def test_two_writers_of_one_file_leave_one_complete_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with replacing(path) as slow:
        slow.write_bytes(b"slow")
        write_whole(path, b"fast")
        assert path.read_bytes() == b"fast"
    assert path.read_bytes() == b"slow"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_failed_writer_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_whole(path, b"old")
    with pytest.raises(TypeError), replacing(path) as temporary:
        temporary.write_bytes(b"half") and temporary.write_bytes("text")  # type: ignore[arg-type]
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def kill_at_file(process: "subprocess.Popen[str]", name: str) -> None:
    """Kills a training and its children with SIGKILL as soon as a file of this name exists."""
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        if next(Path.cwd().rglob(name), None) is not None:
            break
        time.sleep(0.0005)
    assert process.poll() is None, process.communicate()[0]
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


@pytest.mark.slow
def test_killed_while_writing_a_checkpoint(whole: Path, spawn: Callable[..., "subprocess.Popen[str]"]) -> None:
    fit = [*FIT, "--trainer.max_epochs=2"]
    kill_at_file(spawn(*fit, OMP_NUM_THREADS=str(torch.get_num_threads())), ".last.ckpt.*")
    kept = list(RUN.glob("checkpoints/*.ckpt"))
    assert all(map(is_intact, kept))
    main(["fit", f"--ckpt_path={RUN}"] if kept else fit)
    run = RUN if kept else RUN.with_name("version_1")
    assert same(weights(run / "checkpoints/last.ckpt"), weights(whole / "checkpoints/last.ckpt"))


@pytest.mark.slow
def test_killed_while_building_graphs(
    tmp_path: Path, spawn: Callable[..., "subprocess.Popen[str]"], monkeypatch: pytest.MonkeyPatch
) -> None:
    fit = ["fit", "--config=gnn", *DIGITS, "--data.root=graphs"]
    kill_at_file(spawn(*fit), "superpixels")
    assert not list(Path("graphs/superpixels").glob("[!.]*"))
    data = MNISTSuperpixelsDataModule(source="digits", root="graphs")
    data.prepare_data()
    assert [is_intact(path) for path in Path("graphs/superpixels").glob("[!.]*")] == [True]


# Disks.


@contextmanager
def no_file_over(size: int) -> Iterator[None]:
    """Limits the size of the process's files: writing more fails as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_the_old_file_and_names_it(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_whole(path, b"old")
    for write in (
        lambda: write_whole(path, bytes(20_000)),
        lambda: save_tensors(torch.zeros(20_000), path),
        lambda: save_tensors([torch.zeros(1000) for _ in range(20)], path),
    ):
        with no_file_over(10_000), pytest.raises(OSError, match="File too large") as caught:
            write()
        assert caught.value.filename == str(path)
        assert [p.name for p in tmp_path.iterdir()] == ["file"]
        assert path.read_bytes() == b"old"


def test_a_disk_that_fills_during_training(begun: None, whole: Path, fails: Callable[..., str]) -> None:
    before = LAST.read_bytes()
    resume = ["fit", "--ckpt_path", str(RUN), "--trainer.max_epochs=2"]
    here = Path.cwd() / RUN
    for size, what in ((60_000, here / "checkpoints" / "last.ckpt"), (2_000, here)):  # the other is TensorBoard's file
        with no_file_over(size):
            line = fails(*resume)
        assert f"cannot write {what}: File too large. Free some space; last.ckpt of epoch 1 is saved" in line
        assert f"resume with mnist-lightning fit --ckpt_path {here}" in line
        assert LAST.read_bytes() == before
        assert not temporary_files()
    main(resume)
    assert same(weights(LAST), weights(whole / "checkpoints" / "last.ckpt"))


def test_a_signal_while_a_checkpoint_is_written_stops_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:  # as torch does
        try:
            raise KeyboardInterrupt
        finally:
            raise RuntimeError("unexpected pos 1760512 vs 1760400")

    path = tmp_path / "x.pt"
    save_tensors(torch.zeros(3), path)
    monkeypatch.setattr(torch, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_tensors(torch.ones(3), path)
    assert torch.equal(torch.load(path), torch.zeros(3))
    assert [file.name for file in tmp_path.iterdir()] == ["x.pt"]


def test_a_disk_that_is_full_from_the_start(fails: Callable[..., str]) -> None:
    with no_file_over(60_000):
        line = fails(*FIT, "--trainer.max_epochs=1")
    assert "no checkpoint was saved yet; start again with the same command" in line
    assert not list(RUN.glob("checkpoints/*"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("only root can mount")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_file_system(small_disk: Path, fails: Callable[..., str]) -> None:
    path = small_disk / "store.pt"
    save_tensors(torch.zeros(5000), path)
    with pytest.raises(OSError, match="No space left") as caught:
        save_tensors(torch.ones(50_000), path)
    assert caught.value.filename == str(path)
    assert is_intact(path)
    assert [p.name for p in small_disk.iterdir()] == ["store.pt"]
    images = read("digits", train=False)[0][:60]
    with pytest.raises(OSError, match="No space left") as caught:
        stored_graphs("digits", images, [small_disk])
    assert Path(caught.value.filename).parent == small_disk
    assert [p.name for p in small_disk.iterdir()] == ["store.pt"]


def test_a_read_only_file_system(small_disk: Path, tmp_path: Path) -> None:
    images = read("digits", train=False)[0][:5]
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    assert stored_graphs("digits", images, [small_disk / "superpixels", tmp_path]).parent == tmp_path
    with pytest.raises(InputError, match=f"cannot write to {small_disk}: permission denied"):
        stored_graphs("digits", images, [small_disk])
    with pytest.raises(OSError, match="Read-only") as caught:
        write_whole(small_disk / "file", b"")
    assert caught.value.filename == str(small_disk / "file")


def test_a_full_disk_under_other_verbs(begun: None, fails: Callable[..., str]) -> None:
    with no_file_over(1000):
        assert "predictions.csv: File too large" in fails("predict", "--ckpt_path", str(RUN))
    assert sorted(path.name for path in LAST.parent.iterdir()) == ["last.ckpt"]


# Simultaneous trainings.


def test_simultaneous_trainings_get_a_folder_each() -> None:
    Path("logs/run/version_3").mkdir(parents=True)
    start = Barrier(8)

    def folder(_: int) -> str:
        logger = RunLogger(logs="logs", experiment="run")
        start.wait()
        return logger.log_dir

    with ThreadPoolExecutor(8) as threads:
        folders = sorted(threads.map(folder, range(8)))
    assert folders == sorted(f"logs/run/version_{number}" for number in range(4, 12))
    assert all(Path(folder).is_dir() for folder in folders)


@pytest.mark.slow
def test_two_trainings_in_the_same_second(spawn: Callable[..., "subprocess.Popen[str]"]) -> None:
    rates = [0.001, 0.002]
    processes = [spawn(*FIT, f"--model.lr={rate}", "--trainer.max_epochs=1") for rate in rates]
    outputs = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    runs = [Run(RUN.with_name(f"version_{number}")) for number in range(2)]
    assert sorted(run.summary["hyper_parameters"]["lr"] for run in runs) == rates
    for run in runs:
        lr = run.summary["hyper_parameters"]["lr"]
        assert run.folder is not None
        assert yaml.safe_load((run.folder / "config.yaml").read_text())["model"]["init_args"]["lr"] == lr
        assert load(run.folder).hparams["lr"] == lr
        assert len(list(run.folder.glob("events*"))) == 2  # training and test


# Data and time.


def train_on(images: torch.Tensor) -> None:
    loader = DataLoader(TensorDataset(images, torch.arange(len(images)) % 10), batch_size=8)
    plain = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    Trainer(max_epochs=1, accelerator="cpu", enable_model_summary=False, **plain).fit(MLP(widths=[4]), loader)


def test_pixels_that_are_not_finite_are_named_as_the_cause() -> None:
    images = torch.rand(80, 1, 28, 28)
    train_on(images)
    for value in (torch.nan, torch.inf):
        images[[17, 41], 0, 5, 5] = value
        with pytest.raises(NonFiniteLossError, match=r"nan at step 2 .* 2 training batches contain") as caught:
            train_on(images)
        assert "learning rate" not in str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_picture_with_infinite_pixels_is_named(value: float, begun: None, fails: Callable[..., str]) -> None:
    picture = torch.zeros(40, 40)
    picture[10:30, 18:22] = 200
    picture[0, 0] = value
    Image.fromarray(picture.numpy()).save("one.tif")
    assert "one.tif holds pixels that are not finite numbers" in fails("classify", str(RUN), "one.tif")
    with pytest.raises(InputError, match=r"one\.tif .* its pixels are not all finite numbers"):
        read_picture(Path("one.tif"))


@pytest.mark.slow
def test_a_clock_that_goes_backwards(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = count(86_400 * 366, -60)  # from 1971, a year that zip archives cannot store
    monkeypatch.setattr(time, "time", lambda: float(next(seconds)))
    main([*FIT, "--trainer.max_epochs=1"])
    main(["fit", "--ckpt_path", str(RUN), "--trainer.max_epochs=2"])
    assert Run(RUN).summary["train_seconds"] > 0
    assert all(map(is_intact, RUN.glob("checkpoints/*.ckpt")))
    main(["compare", "lightning_logs"])

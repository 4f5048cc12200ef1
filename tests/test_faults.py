"""Harm done for real: kills, full disks, damaged files, two trainings at once, a clock that goes backwards."""

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
from mnist_lightning.callbacks import TensorBoardFigures
from mnist_lightning.checkpoint import read_checkpoint
from mnist_lightning.classifier import NonFiniteLossError
from mnist_lightning.cli import main
from mnist_lightning.data.sources import read, read_picture
from mnist_lightning.data.superpixels import stored_graphs
from mnist_lightning.evaluation.runs import read_run
from mnist_lightning.files import replacing, write_whole
from mnist_lightning.run_folder import RunLogger, WholeCheckpoints
from mnist_lightning.sealed import is_whole, save_sealed

DIGITS = ["--data.source=digits", "--trainer.enable_progress_bar=false"]
FIT = ["fit", "--model=MLP", "--model.widths=[8]", "--model.dropout=0.3", "--model.lr=0.003", *DIGITS]
RUN = Path("lightning_logs/mlp/version_0")
LAST = RUN / "checkpoints" / "last.ckpt"


@pytest.fixture(autouse=True)
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
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
    """A run of two epochs that nobody has disturbed."""
    return trained(tmp_path_factory.mktemp("whole"), 2)


@pytest.fixture(scope="module")
def one_epoch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("one"), 1)


@pytest.fixture
def begun(one_epoch: Path) -> None:
    """A run of one epoch in the folder of the test."""
    shutil.copytree(one_epoch, RUN)


def checkpoint(path: Path) -> Path:
    """A small model's checkpoint."""
    model = MLP(widths=[4])
    content: dict[str, Any] = {"state_dict": model.state_dict(), "hyper_parameters": dict(model.hparams), "epoch": 0}
    model.on_save_checkpoint(content)
    WholeCheckpoints().save_checkpoint(content, path)
    return path


def temporary_files() -> list[Path]:
    return [path for path in Path.cwd().rglob(".*") if path.is_file()]


def weights(path: Path) -> list[torch.Tensor]:
    return list(read_checkpoint(path)["state_dict"].values())


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(map(torch.equal, one, other))


# Damaged files.


def harms(content: bytes) -> Iterator[bytes]:
    """200 of them."""
    chance = random.Random(0)
    for number in range(200):
        place = chance.randrange(len(content))
        if number % 3 == 0:
            yield content[:place]
        elif number % 3 == 1:
            yield content[:place] + bytes([content[place] ^ 1 << chance.randrange(8)]) + content[place + 1 :]
        else:
            end = min(place + 64, len(content))
            yield content[:place] + bytes(byte ^ 0xFF for byte in content[place:end]) + content[end:]


def test_of_200_damaged_checkpoints_200_are_refused_in_one_line(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "small.ckpt")
    assert isinstance(load(path), MLP)
    refused = 0
    for harmed in harms(path.read_bytes()):
        path.write_bytes(harmed)
        with pytest.raises(InputError, match=r"small\.ckpt is not a checkpoint, or it is damaged") as caught:
            load(path)
        refused += "\n" not in str(caught.value)
    assert refused == 200


def test_torch_alone_reads_a_flipped_bit_without_a_word(tmp_path: Path) -> None:
    # Why there is a seal. If this fails, torch looks at checksums by now.
    path, name = checkpoint(tmp_path / "small.ckpt"), "dense.0.weight"
    content = bytearray(path.read_bytes())
    first = torch.load(path, weights_only=True)["state_dict"][name].numpy().tobytes()
    content[content.index(first) + 3] ^= 1
    path.write_bytes(content)
    assert torch.load(path, weights_only=True)["state_dict"][name].numpy().tobytes() != first


def test_a_sealed_file_is_one_of_torch_and_one_of_torch_is_checked_too(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(1000.0)}
    sealed, plain = tmp_path / "sealed.pt", tmp_path / "plain.pt"
    save_sealed(tensors, sealed)
    torch.save(tensors, plain)
    for path in (sealed, plain):
        assert is_whole(path)
        for options in ({}, {"mmap": True}):
            assert torch.equal(torch.load(path, weights_only=True, **options)["a"], tensors["a"])
        content = bytearray(path.read_bytes())
        content[content.index(tensors["a"].numpy().tobytes()) + 7] ^= 16
        path.write_bytes(content)
        assert not is_whole(path)


@pytest.mark.parametrize("remains", [b"", b"sha256:" + b"0" * 64, b"PK\5\6" + bytes(18)])
def test_what_never_was_one_is_not_whole(tmp_path: Path, remains: bytes) -> None:
    path = tmp_path / "remains"
    path.write_bytes(remains)
    with pytest.raises(InputError, match="remains is "):
        read_checkpoint(path)


def test_a_checkpoint_that_cannot_be_gone_on_with_names_the_ways_that_are_left(
    begun: None, fails: Callable[..., str]
) -> None:
    LAST.write_bytes(LAST.read_bytes()[:-1])
    line = fails("fit", "--ckpt_path", str(RUN), "--trainer.max_epochs=2")
    assert f"{LAST} is not a checkpoint, or it is damaged" in line
    assert f"; take {LAST.with_name('best.ckpt')}, or train anew with --config {RUN / 'config.yaml'}" in line
    main(["fit", "--ckpt_path", str(LAST.with_name("best.ckpt")), "--trainer.max_epochs=2"])
    assert read_checkpoint(LAST)["epoch"] == 1


def test_a_run_without_its_last_checkpoint_goes_on_from_its_best(begun: None, whole: Path) -> None:
    LAST.unlink()
    main(["fit", "--ckpt_path", str(RUN), "--trainer.max_epochs=2"])
    assert same(weights(LAST), weights(whole / "checkpoints" / "last.ckpt"))


def test_a_run_that_ended_before_its_test_is_tested(begun: None, one_epoch: Path) -> None:
    (RUN / "summary.json").unlink()
    main(["fit", "--ckpt_path", str(RUN)])
    first, again = (json.loads((run / "summary.json").read_text()) for run in (one_epoch, RUN))
    assert again["test"] == first["test"]
    assert again["epochs"] == first["epochs"] == 1
    read_run(RUN)


def test_the_command_lines_trainer_seals_and_verifies(begun: None) -> None:
    sealed = LAST.read_bytes()
    assert sealed[-71:-64] == b"sha256:"
    LAST.write_bytes(sealed[:100] + b"x" + sealed[101:])
    with pytest.raises(InputError, match="damaged"):  # where Lightning reads it, as for --ckpt_path
        WholeCheckpoints().load_checkpoint(LAST, weights_only=True)


def test_another_way_to_write_checkpoints_is_left_to_who_asks_for_it() -> None:
    main([*FIT, "--trainer.max_epochs=1", "--trainer.plugins=lightning.pytorch.plugins.io.AsyncCheckpointIO"])
    assert b"sha256:" not in LAST.read_bytes()[-71:]
    assert isinstance(load(RUN), MLP)


# Kills.


def test_what_a_dead_writer_left_is_removed_by_the_next(tmp_path: Path) -> None:
    path, dead = tmp_path / "file", tmp_path / f".file.{'0' * 32}"
    others = [tmp_path / f".other.{'0' * 32}", tmp_path / ".file.swp", tmp_path / ".file"]
    for left in (dead, *others):
        left.touch()
    write_whole(path, b"new")
    assert not dead.exists()
    assert all(other.exists() for other in others)


def test_a_writer_that_lives_keeps_its_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with replacing(path) as slow:
        slow.write_bytes(b"slow")
        write_whole(path, b"fast")
        assert path.read_bytes() == b"fast"
    assert path.read_bytes() == b"slow"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def kill_when_seen(process: "subprocess.Popen[str]", name: str) -> None:
    """Ends a training and its children with SIGKILL as soon as there is a file of this name."""
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        if next(Path.cwd().rglob(name), None) is not None:
            break
        time.sleep(0.0005)
    assert process.poll() is None, process.communicate()[0]
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


@pytest.mark.slow
def test_killed_while_it_writes_a_checkpoint(whole: Path, spawn: Callable[..., "subprocess.Popen[str]"]) -> None:
    fit = [*FIT, "--trainer.max_epochs=2"]
    kill_when_seen(spawn(*fit, OMP_NUM_THREADS=str(torch.get_num_threads())), ".last.ckpt.*")
    kept = list(RUN.glob("checkpoints/*.ckpt"))
    assert all(map(is_whole, kept))
    main(["fit", f"--ckpt_path={RUN}"] if kept else fit)
    run = RUN if kept else RUN.with_name("version_1")
    for each in ("best.ckpt", "last.ckpt"):
        assert same(weights(run / "checkpoints" / each), weights(whole / "checkpoints" / each))
    assert not kept or not temporary_files()


@pytest.mark.slow
def test_killed_while_it_makes_graphs(
    tmp_path: Path, spawn: Callable[..., "subprocess.Popen[str]"], monkeypatch: pytest.MonkeyPatch
) -> None:
    fit = ["fit", "--config=gnn", *DIGITS, "--data.root=graphs"]
    kill_when_seen(spawn(*fit), "superpixels")
    assert not list(Path("graphs/superpixels").iterdir())
    data = MNISTSuperpixelsDataModule(source="digits", root="graphs")
    data.prepare_data()
    assert [is_whole(path) for path in Path("graphs/superpixels").iterdir()] == [True]


# Disks.


@contextmanager
def no_file_over(size: int) -> Iterator[None]:
    """Writing beyond this size fails, as on a full disk, for the whole process."""
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
        lambda: save_sealed(torch.zeros(20_000), path),
        lambda: save_sealed([torch.zeros(1000) for _ in range(20)], path),
    ):
        with no_file_over(10_000), pytest.raises(OSError, match="File too large") as caught:
            write()
        assert caught.value.filename == str(path)
        assert [p.name for p in tmp_path.iterdir()] == ["file"]
        assert path.read_bytes() == b"old"


def test_a_disk_that_fills_while_training(begun: None, whole: Path, fails: Callable[..., str]) -> None:
    before = LAST.read_bytes()
    go_on = ["fit", "--ckpt_path", str(RUN), "--trainer.max_epochs=2"]
    here = Path.cwd() / RUN
    for size, what in ((60_000, here / "checkpoints" / "best.ckpt"), (2_000, here)):  # the other is TensorBoard's file
        with no_file_over(size):
            line = fails(*go_on)
        assert f"{what} cannot be written: File too large. Make room; last.ckpt of epoch 0 is kept" in line
        assert f"so go on with mnist-lightning fit --ckpt_path {here}" in line
        assert LAST.read_bytes() == before
        assert not temporary_files()
    main(go_on)
    assert same(weights(LAST), weights(whole / "checkpoints" / "last.ckpt"))


def test_a_disk_that_is_full_from_the_beginning(fails: Callable[..., str]) -> None:
    with no_file_over(60_000):
        line = fails(*FIT, "--trainer.max_epochs=1")
    assert "no checkpoint was written yet, so begin anew with the same command" in line
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
    save_sealed(torch.zeros(5000), path)
    with pytest.raises(OSError, match="No space left") as caught:
        save_sealed(torch.ones(50_000), path)
    assert caught.value.filename == str(path)
    assert is_whole(path)
    assert [p.name for p in small_disk.iterdir()] == ["store.pt"]
    images = read("digits", train=False)[0][:60]
    with pytest.raises(OSError, match="No space left") as caught:
        stored_graphs("digits", images, [small_disk])
    assert Path(caught.value.filename).parent == small_disk
    assert [p.name for p in small_disk.iterdir()] == ["store.pt"]


def test_a_file_system_for_reading_only(small_disk: Path, tmp_path: Path) -> None:
    images = read("digits", train=False)[0][:5]
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    assert stored_graphs("digits", images, [small_disk / "superpixels", tmp_path]).parent == tmp_path
    with pytest.raises(InputError, match=f"nothing can be written to {small_disk}: no permission"):
        stored_graphs("digits", images, [small_disk])
    with pytest.raises(OSError, match="Read-only") as caught:
        write_whole(small_disk / "file", b"")
    assert caught.value.filename == str(small_disk / "file")


def test_a_full_disk_under_other_verbs(begun: None, fails: Callable[..., str]) -> None:
    with no_file_over(1000):
        assert "predictions.csv: File too large" in fails("predict", "--ckpt_path", str(RUN))
    assert [path.suffix for path in LAST.parent.iterdir() if path.suffix != ".json"] == [".ckpt", ".ckpt"]


# Company.


def test_trainings_that_start_at_once_have_a_folder_each() -> None:
    Path("logs/run/version_3").mkdir(parents=True)
    start = Barrier(8)

    def folder(_: int) -> str:
        logger = RunLogger("logs", name="run")
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
    runs = [read_run(RUN.with_name(f"version_{number}")) for number in range(2)]
    assert sorted(run.summary["hyper_parameters"]["lr"] for run in runs) == rates
    for run in runs:
        lr = run.summary["hyper_parameters"]["lr"]
        assert yaml.safe_load((run.folder / "config.yaml").read_text())["model"]["init_args"]["lr"] == lr
        assert load(run.folder).hparams["lr"] == lr
        assert len(list(run.folder.glob("events*"))) == 2  # training and test


# Data and time.


def trained_on(images: torch.Tensor) -> None:
    loader = DataLoader(TensorDataset(images, torch.arange(len(images)) % 10), batch_size=8)
    plain = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    Trainer(max_epochs=1, accelerator="cpu", enable_model_summary=False, **plain).fit(MLP(widths=[4]), loader)


def test_pixels_that_are_no_numbers_are_found_to_be_at_fault() -> None:
    images = torch.rand(80, 1, 28, 28)
    trained_on(images)
    for value in (torch.nan, torch.inf):
        images[[17, 41], 0, 5, 5] = value
        with pytest.raises(NonFiniteLossError, match=r"nan at step 2 .* data: 2 of the training batches") as caught:
            trained_on(images)
        assert "learning rate" not in str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_picture_whose_pixels_are_no_numbers_is_named(value: float, begun: None, fails: Callable[..., str]) -> None:
    picture = torch.zeros(40, 40)
    picture[10:30, 18:22] = 200
    picture[0, 0] = value
    Image.fromarray(picture.numpy()).save("one.tif")
    assert "one.tif holds pixels that are not finite numbers" in fails("classify", str(RUN), "one.tif")
    with pytest.raises(InputError, match=r"one\.tif .* its pixels are not all finite numbers"):
        read_picture(Path("one.tif"))


@pytest.mark.slow
def test_a_clock_that_goes_backwards(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = count(86_400 * 366, -60)  # from 1971, which no zip archive can name
    monkeypatch.setattr(time, "time", lambda: float(next(seconds)))
    main([*FIT, "--trainer.max_epochs=1"])
    main(["fit", "--ckpt_path", str(RUN), "--trainer.max_epochs=2"])
    assert read_run(RUN).summary["train_seconds"] > 0
    assert all(map(is_whole, RUN.glob("checkpoints/*.ckpt")))
    main(["compare", "lightning_logs"])

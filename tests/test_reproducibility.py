"""One seed, one result: repeated, killed and resumed, on one process and on several."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mnist_lightning.cli import main

pytestmark = pytest.mark.slow

# Dropout and augmentation use all sources of randomness. Small batches make epochs long enough for a kill.
DIGITS = ["--data.source=digits", "--data.batch_size=32", "--trainer.enable_progress_bar=false"]
FIT = [
    "fit",
    "--model=CNN",
    "--model.channels=[4,8]",
    "--model.dropout=0.3",
    "--model.lr=0.003",
    "--model.schedule=onecycle",
    "--data.augment={elastic: 0.5}",
    "--trainer.max_epochs=4",
    *DIGITS,
]
GNN = ["fit", "--config=gnn", "--model.width=8", "--trainer.max_epochs=4", *DIGITS]
DDP = ["--trainer.strategy=ddp", "--trainer.accelerator=cpu", "--trainer.devices=2"]
Run = Callable[..., str]
Spawn = Callable[..., "subprocess.Popen[str]"]


def trained(tmp_path_factory: pytest.TempPathFactory, *args: str) -> Path:
    """The run of an uninterrupted training in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("whole"))
        patch.setenv("PL_GLOBAL_SEED", "0")
        main([*args, "--experiment=whole"])
        return Path("lightning_logs/whole/version_0").absolute()


@pytest.fixture(scope="module")
def cnn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory, *FIT)


@pytest.fixture(scope="module")
def gnn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MNIST_LIGHTNING_DATA", str(tmp_path_factory.mktemp("superpixels")))
        return trained(tmp_path_factory, *GNN)


@pytest.fixture(scope="module")
def cnn_by_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two processes."""
    folder = tmp_path_factory.mktemp("two")
    command = [sys.executable, "-m", "mnist_lightning", *FIT, *DDP, "--experiment=two"]
    subprocess.run(command, cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True, capture_output=True)
    assert [path.name for path in (folder / "lightning_logs/two").iterdir()] == ["version_0"]
    return folder / "lightning_logs/two/version_0"


def run_folder(experiment: str) -> Path:
    return Path("lightning_logs", experiment, "version_0")


def same_weights(first: Path, second: Path) -> bool:
    one, two = (
        torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"] for run in (first, second)
    )
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


def summary(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run / "summary.json").read_text())
    return content


def kill_in_epoch(spawn: Spawn, epoch: int, *args: str, **environment: str) -> None:
    """Starts a training, and kills it and its children in the middle of an epoch."""
    process = spawn(*args, **environment)
    last = run_folder("killed") / "checkpoints" / "last.ckpt"
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError, RuntimeError, EOFError):
            if torch.load(last, weights_only=True)["epoch"] >= epoch - 1:
                break
        time.sleep(0.02)  # leaves the cores to the training
    time.sleep(0.05)
    assert process.poll() is None, process.communicate()[0]
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def test_the_same_command_twice_gives_the_same_weights(cnn: Path, run: Run) -> None:
    run(*FIT, "--experiment=again", OMP_NUM_THREADS=str(torch.get_num_threads()))
    assert same_weights(cnn, run_folder("again"))
    main([*FIT, "--experiment=other", "--seed_everything=1"])
    assert not same_weights(cnn, run_folder("other"))


@pytest.mark.parametrize(("whole", "args"), [("cnn_by_two", [*FIT, *DDP]), ("gnn", GNN)])
def test_killed_and_resumed_gives_the_same_weights(
    whole: str, args: list[str], request: pytest.FixtureRequest, run: Run, spawn: Spawn
) -> None:
    expected: Path = request.getfixturevalue(whole)
    args, killed = [*args, "--experiment=killed"], run_folder("killed")
    threads = "1" if whole == "cnn_by_two" else str(torch.get_num_threads())
    kill_in_epoch(spawn, 2, *args, OMP_NUM_THREADS=threads)
    assert not (killed / "summary.json").exists()
    resume = [*args, f"--ckpt_path={killed}/checkpoints/last.ckpt"]
    if whole == "cnn_by_two":
        run(*resume)
    else:
        main(resume)
    assert same_weights(expected, killed)
    for key in ("train", "val", "test", "epochs", "steps"):
        assert summary(expected)[key] == summary(killed)[key]


def test_two_processes_measure_the_same_as_one(gnn: Path, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = f"--ckpt_path={gnn}"
    capsys.readouterr()
    main(["test", checkpoint])
    table = re.compile(r"^(?:\d|accuracy|loss) .*\d", re.MULTILINE)
    one, two = capsys.readouterr().out, run("test", checkpoint, *DDP)
    assert len(table.findall(one)) == 12
    assert table.findall(one) == table.findall(two)
    assert "360" in one


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def test_two_nodes_and_two_processes_give_the_same_weights(cnn_by_two: Path, spawn: Spawn) -> None:
    port = str(free_port())
    nodes = [
        spawn(
            *FIT,
            "--trainer.strategy=ddp",
            "--trainer.accelerator=cpu",
            "--trainer.devices=1",
            "--trainer.num_nodes=2",
            "--experiment=two_nodes",
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=port,
            NODE_RANK=str(rank),
        )
        for rank in range(2)
    ]
    outputs = [node.communicate()[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], outputs
    assert [path.name for path in Path("lightning_logs/two_nodes").iterdir()] == ["version_0"]
    assert same_weights(cnn_by_two, run_folder("two_nodes"))
    assert summary(cnn_by_two)["test"] == summary(run_folder("two_nodes"))["test"]
    assert sum(summary(cnn_by_two)["test"]["support"]) == 360


def test_torchrun(cnn_by_two: Path, tmp_path: Path) -> None:
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={free_port()}"]
    subprocess.run([*launch, "-m", "mnist_lightning", *FIT, *DDP, "--experiment=torchrun"], check=True, cwd=tmp_path)
    assert same_weights(cnn_by_two, run_folder("torchrun"))

"""One seed, one result: repeated, killed and resumed, on one process and on several."""

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

import pytest
import torch

pytestmark = pytest.mark.slow

# Dropout and augmentation, so that all sources of randomness take part.
FIT = [
    "fit",
    "--model=CNN",
    "--model.channels=[4,8]",
    "--model.dropout=0.3",
    "--model.lr=0.003",
    "--model.schedule=onecycle",
    "--data.source=digits",
    "--data.augment={elastic: 0.5}",
    "--trainer.max_epochs=6",
    "--trainer.enable_progress_bar=false",
]
GNN = ["fit", "--config=gnn", "--model.width=8", "--data.source=digits", "--trainer.max_epochs=4", FIT[-1]]
DDP = ["--trainer.strategy=ddp", "--trainer.accelerator=cpu", "--trainer.devices=2"]
Run = Callable[..., str]
Spawn = Callable[..., "subprocess.Popen[str]"]


def weights(experiment: str, name: str = "last") -> dict[str, torch.Tensor]:
    path = Path("lightning_logs", experiment, "version_0", "checkpoints", f"{name}.ckpt")
    state: dict[str, torch.Tensor] = torch.load(path, weights_only=True)["state_dict"]
    return state


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def summary(experiment: str) -> dict[str, object]:
    content: dict[str, object] = json.loads(Path("lightning_logs", experiment, "version_0", "summary.json").read_text())
    return content


def kill_in_epoch(spawn: Spawn, epoch: int, *args: str) -> None:
    """Starts a training and ends it and all its children with SIGKILL in the middle of an epoch."""
    process = spawn(*args)
    last = Path("lightning_logs", "killed", "version_0", "checkpoints", "last.ckpt")
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        try:
            if torch.load(last, weights_only=True)["epoch"] >= epoch - 1:
                break
        except (OSError, RuntimeError, EOFError):
            time.sleep(0.01)
    time.sleep(0.05)
    assert process.poll() is None, process.communicate()[0]
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def test_the_same_command_twice_gives_the_same_weights(run: Run) -> None:
    for experiment in ("first", "second"):
        run(*FIT, f"--experiment={experiment}")
    assert same(weights("first"), weights("second"))
    run(*FIT, "--experiment=other", "--seed_everything=1")
    assert not same(weights("first"), weights("other"))


@pytest.mark.parametrize(
    # Long epochs, so that the kill meets the middle of one.
    "args",
    [[*FIT, "--data.batch_size=4"], [*FIT, *DDP, "--data.batch_size=4"], [*GNN, "--data.batch_size=16"]],
    ids=["one process", "two processes", "GNN"],
)
def test_killed_and_resumed_gives_the_same_weights(args: list[str], run: Run, spawn: Spawn) -> None:
    run(*args, "--experiment=whole")
    kill_in_epoch(spawn, 3, *args, "--experiment=killed")
    assert not Path("lightning_logs/killed/version_0/summary.json").exists()
    run(*args, "--experiment=killed", "--ckpt_path=lightning_logs/killed/version_0/checkpoints/last.ckpt")
    for name in ("last", "best"):
        assert same(weights("whole", name), weights("killed", name))
    whole, resumed = summary("whole"), summary("killed")
    for key in ("train", "val", "test", "best_epoch", "epochs", "steps"):
        assert whole[key] == resumed[key]


@pytest.mark.parametrize("fit", [FIT, GNN], ids=["CNN", "GNN"])
def test_two_processes_test_as_one_does_and_leave_one_folder(fit: list[str], run: Run) -> None:
    run(*fit, *DDP, "--experiment=two")
    assert [path.name for path in Path("lightning_logs/two").iterdir()] == ["version_0"]
    two = run("test", "--ckpt_path=lightning_logs/two/version_0", *DDP)
    one = run("test", "--ckpt_path=lightning_logs/two/version_0", "--trainer.devices=1", "--trainer.strategy=auto")
    table = re.compile(r"│ .*│")
    assert table.findall(two) == table.findall(one)
    assert "360" in one
    assert sum(summary("two")["test"]["support"]) == 360  # type: ignore[index]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def test_two_nodes_train_as_one_node_of_two_processes_does(run: Run, spawn: Spawn) -> None:
    run(*FIT, *DDP, "--experiment=one_node")
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
    assert same(weights("one_node"), weights("two_nodes"))
    assert summary("one_node")["test"] == summary("two_nodes")["test"]


def test_torchrun(run: Run, tmp_path: Path) -> None:
    run(*FIT, *DDP, "--experiment=lightning")
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={free_port()}"]
    subprocess.run([*launch, "-m", "mnist_lightning", *FIT, *DDP, "--experiment=torchrun"], check=True, cwd=tmp_path)
    assert same(weights("lightning"), weights("torchrun"))

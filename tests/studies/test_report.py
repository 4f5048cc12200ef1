import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mnist_lightning.cli import main
from mnist_lightning.runs.checkpoint import read_checkpoint
from mnist_lightning.runs.run import Run

CONFIG = """
model: {class_path: MLP, init_args: {widths: [8], dropout: 0.3}}
data: {class_path: MNISTDataModule, init_args: {source: digits, batch_size: 16}}
trainer: {max_epochs: 8}
"""


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(") ")[1][0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.slow
def test_a_killed_study_continues_to_the_same_bits(
    spawn: Callable[..., subprocess.Popen[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("small.yaml").write_text(CONFIG)
    command = ["study", "small.yaml", "--seeds", "2", "--jobs", "2"]
    study = spawn(*command)
    last = Path("lightning_logs/small/version_0/checkpoints/last.ckpt")
    while not last.is_file() and study.poll() is None:
        time.sleep(0.01)
    children = [
        int(pid) for file in Path(f"/proc/{study.pid}/task").glob("*/children") for pid in file.read_text().split()
    ]
    os.kill(study.pid, signal.SIGKILL)
    study.communicate()
    assert len(children) == 2
    deadline = time.monotonic() + 30
    while any(map(alive, children)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(alive, children))
    assert not all(run.is_finished for run in map(Run, Path("lightning_logs/small").glob("version_*")))

    output, _ = (study := spawn(*command)).communicate()
    assert study.returncode == 0, output
    assert "small, seed 0: finished" in output
    assert "360 test images of digits" in output
    assert Path("report/index.html").is_file()
    runs = {run.summary["seed"]: run for run in map(Run, Path("lightning_logs/small").glob("version_*"))}
    assert sorted(runs) == [0, 1]

    Path("undisturbed").mkdir()
    monkeypatch.chdir("undisturbed")
    monkeypatch.delenv("PL_GLOBAL_SEED")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    main(["fit", "--config", "../small.yaml", "--seed_everything", "1"])
    torch.set_num_threads(threads)
    whole = Run("lightning_logs/small/version_0")
    resumed = Run(tmp_path / str(runs[1].folder))
    weights = [read_checkpoint(run.last)["state_dict"] for run in (whole, resumed)]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    assert whole.summary["test"] == resumed.summary["test"]

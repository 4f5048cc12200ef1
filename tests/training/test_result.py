"""What a training shows on a screen: lines or a bar, and the result."""

import fcntl
import json
import os
import pty
import re
import shlex
import struct
import sys
import termios
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from mnist_lightning.cli import main
from mnist_lightning.evaluation.metrics import Metrics
from mnist_lightning.training.result import Result

EPOCH = r"epoch (\d)/(\d)  train loss [\d.]+ acc [\d.]+ %  val loss [\d.]+ acc [\d.]+ %  [\d.]+ s"
FACTS = {"experiment": "gnn", "model": "GNN", "source": "digits", "parameters": 85_488, "train_seconds": 1740.26}


def result(correct: int, folder: Path | None, explain: str = "gradcam", **facts: Any) -> list[str]:
    f1 = [0.99, 0.5, 0.98, 0.0, 0.97, 0.96, 0.3, 0.95, 0.94, 0.0]  # there is no 9
    metrics = Metrics(correct / 360, 0.0123, f1, f1, f1, [40] * 9 + [0])
    console = Console(width=80, color_system=None)
    with console.capture() as captured:
        console.print(Result({"test": metrics, "val": metrics}, FACTS | facts, folder, explain), crop=False)
    return captured.get().splitlines()


def test_a_training_shows_its_epochs_and_its_result(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    options = ["--data.source", "digits", "--experiment", "my run", "--trainer.enable_progress_bar", "false"]
    main(["fit", "--model", "MLP", "--model.widths", "[16]", "--trainer.max_epochs", "2", *options])
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert re.findall(EPOCH, out) == [("1", "2"), ("2", "2")]
    run = Path("lightning_logs/my run/version_0")
    summary = json.loads((run / "summary.json").read_text())
    shown = out[out.index("my run: MLP on digits, 360 test images") :]
    assert f"\ntest accuracy {100 * summary['test']['accuracy']:.2f} %   95 % interval " in shown
    for split in ("test", "val", "train"):
        assert f"{100 * summary[split]['accuracy']:.2f} %" in shown
        assert f"{summary[split]['loss']:.4f}" in shown
    assert f"\nrun           {run}\n" in shown
    commands = [shlex.split(line) for line in shown.splitlines() if line.startswith("  mnist-lightning ")]
    assert [command[1:3] for command in commands] == [[verb, str(run)] for verb in ("compare", "gradcam", "classify")]


@pytest.mark.slow
def test_a_resumed_training_continues_the_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--model", "MLP", "--data.source", "digits", "--trainer.enable_progress_bar", "false"]
    main(["fit", *options, "--trainer.max_epochs", "1"])
    main(["fit", *options, "--trainer.max_epochs", "3", "--ckpt_path", "lightning_logs/mlp/version_0"])
    assert re.findall(EPOCH, capsys.readouterr().out) == [("1", "1"), ("2", "3"), ("3", "3")]


def test_result() -> None:
    lines = result(351, Path.cwd() / "logs" / "version_0", explain="connectivity")
    assert len(lines) <= 20
    assert max(map(len, lines)) <= 80
    assert "test accuracy 97.50 %   95 % interval 95.32 to 98.68 % (Wilson)" in lines
    assert "accuracy           97.50 %      97.50 %" in lines
    assert "lowest F1     digit 3: 0.00 %, digit 6: 30.00 %, digit 1: 50.00 %" in lines
    assert "parameters    85,488" in lines
    assert "training      1,740.3 s" in lines
    assert "  mnist-lightning connectivity logs/version_0" in lines


def test_a_perfect_result_without_a_folder() -> None:
    lines = result(360, None)
    assert "test accuracy 100.00 %   95 % interval 98.94 to 100.00 % (Wilson)" in lines
    assert not any("mnist-lightning" in line for line in lines)


def test_long_paths_and_names_are_not_broken(tmp_path: Path) -> None:
    far = Path("/", *["a folder"] * 30, "version_0")
    lines = result(351, far, experiment=" ".join(["name"] * 50))
    assert len(lines) <= 20
    assert f"run           {far}" in lines
    assert f"  mnist-lightning classify '{far}' my_digit.png" in lines


@pytest.mark.slow
def test_bar_on_a_terminal(tmp_path: Path) -> None:
    command = ["fit", "--model", "MLP", "--data.source", "digits", "--trainer.max_epochs", "2"]
    child, terminal = pty.fork()
    if child == 0:
        os.execv(sys.executable, [sys.executable, "-m", "mnist_lightning", *command])
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 80, 0, 0))
    output = b""
    while data := read(terminal):
        output += data
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    text = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", output.decode())
    assert "Epoch 1/2 " in text
    assert re.search(r"Epoch 2/2 ━+ 11/11 [\d:]+ .*train: loss [\d.]+ acc [\d.]+ %", text)
    assert re.search(r"  val: loss [\d.]+ acc [\d.]+ %", text)
    assert "v_num" not in text
    assert " 0.00it/s" not in text
    assert "\x1b[1mtest accuracy " in output.decode()
    assert max(map(len, re.split(r"[\r\n]+", text))) <= 80
    assert not re.search(EPOCH, text)


def read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # Linux's end of a terminal
        return b""

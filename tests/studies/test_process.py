import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mnist_lightning.studies.process import Ending, FitProcess
from mnist_lightning.training.supervision import STUDY

SLEEP = "import time; from mnist_lightning.training.supervision import end_with_study; end_with_study(); time.sleep(60)"


@pytest.mark.slow
def test_an_error_is_one_line() -> None:
    assert FitProcess(["fit"]).run(lambda _: True).error.startswith("fit needs --config")


def test_a_process_without_an_error() -> None:
    assert FitProcess(["--version"]).run(lambda _: True) == Ending()


def test_messages_are_read_from_other_lines(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    code = """
        import os, sys, warnings
        print("a line")
        print("{not JSON")
        print('{"name": "of a callback"}')
        print('{"epoch": 1, "epochs": 2, "val/acc": 0.5}')
        print("mnist-lightning: warning: it is late", file=sys.stderr)
        print(os.environ["OMP_NUM_THREADS"], os.environ["CUDA_VISIBLE_DEVICES"], file=sys.stderr)
        raise ZeroDivisionError("a bug")
    """
    package = tmp_path / "mnist_lightning"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text("\n".join(line.strip() for line in code.splitlines()))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    messages: list[object] = []
    ending = FitProcess(["fit"], threads=3, gpus=["1", "2"]).run(lambda message: messages.append(message) is None)
    assert messages == [{"epoch": 1, "epochs": 2, "val/acc": 0.5}]
    assert ending.error == "ZeroDivisionError: a bug"
    assert ending.is_bug
    assert "3 1,2" in ending.log
    assert ending.warnings == ("it is late",)


def test_a_process_that_is_stopped_before_it_starts_does_not_start() -> None:
    process = FitProcess(["fit"])
    process.stop()
    assert process.run(lambda _: True).is_stopped


def test_a_process_ends_with_its_study() -> None:
    child = subprocess.Popen([sys.executable, "-c", SLEEP], stdin=subprocess.PIPE)
    assert child.stdin is not None
    child.stdin.close()  # as when the study is killed
    assert child.wait(20) == -signal.SIGTERM


@pytest.mark.parametrize(("value", "ends"), [("1", True), ("", False)])
def test_only_a_command_of_a_study_ends_with_it(value: str, ends: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(STUDY, value)
    code = "import time; from mnist_lightning import cli; cli._overview = lambda: time.sleep(1); cli.main(['--help'])"
    done = subprocess.run([sys.executable, "-c", code], stdin=subprocess.DEVNULL)  # the study is gone
    assert done.returncode == (-signal.SIGTERM if ends else 0)

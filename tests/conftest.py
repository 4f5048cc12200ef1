import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mnist_lightning import MNISTDataModule, MNISTSuperpixelsDataModule
from mnist_lightning.cli import main

CONFIGS = Path(__file__).parents[1] / "configs"
# Relative to where pytest was started, and the tests run elsewhere.
MNIST = Path(os.environ.get("MNIST_LIGHTNING_DATA", "data")).resolve()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if (MNIST / "MNIST" / "raw").is_dir():
        return
    skip = pytest.mark.skip(reason="real MNIST is not on disk: set MNIST_LIGHTNING_DATA")
    for item in items:
        if "mnist" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(scope="session")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with the real MNIST, where it is on disk; superpixels land in it, and not beside the real data."""
    root = tmp_path_factory.mktemp("data")
    if (MNIST / "MNIST").is_dir():
        (root / "MNIST").symlink_to(MNIST / "MNIST")
    return root


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, data_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test has a folder of its own, finds no data in it, and leaves no seed behind."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MNIST_LIGHTNING_DATA", str(data_root))
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    torch.manual_seed(0)


@pytest.fixture
def digits() -> MNISTDataModule:
    data = MNISTDataModule(source="digits", batch_size=64)
    data.setup("fit")
    return data


@pytest.fixture
def graphs() -> MNISTSuperpixelsDataModule:
    data = MNISTSuperpixelsDataModule(source="digits", batch_size=64)
    data.prepare_data()
    data.setup("fit")
    return data


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs the command line, expects a failure, and gives back its one line."""

    def run(*args: str) -> str:
        with pytest.raises(SystemExit) as exit_:
            main(list(args))
        assert exit_.value.code not in (0, None)
        lines = [line for line in capsys.readouterr().err.splitlines() if "warning:" not in line]
        assert len(lines) == 1, lines
        return lines[0]

    return run


@pytest.fixture
def spawn(tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Starts the command line as a user does: in a process of its own."""

    def start(*args: str, **environment: str) -> subprocess.Popen[str]:
        # One thread a process: several processes of two threads each would wait for each other.
        env = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
        env.pop("PL_GLOBAL_SEED")
        return subprocess.Popen(
            [sys.executable, "-m", "mnist_lightning", *args],
            cwd=tmp_path,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    return start


@pytest.fixture
def run(spawn: Callable[..., subprocess.Popen[str]]) -> Callable[..., str]:
    """Runs the command line in a process of its own and gives back what it printed."""

    def wait(*args: str, **environment: str) -> str:
        process = spawn(*args, **environment)
        output, _ = process.communicate()
        assert process.returncode == 0, output
        return output

    return wait


@pytest.fixture
def visit(tmp_path: Path) -> Callable[[str, str], Any]:
    """Opens a page in a real browser, with a script that leaves JSON in its body, and gives back what that says.

    Nothing may be left on the console: neither errors, nor requests that failed because there is no network.
    """
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("there is no Chromium")

    def open_(page: str, script: str) -> Any:
        path = tmp_path / "visited.html"
        path.write_text(page.replace("<head>", f"<head><script>{script}</script>", 1))
        options = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--enable-logging=stderr",
            "--virtual-time-budget=20000",
            "--dump-dom",
        ]
        done = subprocess.run(
            [browser, *options, path.as_uri()], capture_output=True, text=True, timeout=120, check=True
        )
        assert "CONSOLE" not in done.stderr, done.stderr
        return json.loads(re.findall(r"<body>(.*?)</body>", done.stdout, re.S)[0].replace("&nbsp;", " "))

    return open_

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

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # several processes with several threads each wait for each other
    os.environ.pop("COLUMNS", None)  # xdist sets it: a pipe has no width

import torch

from mnist_lightning import MNISTDataModule, MNISTSuperpixelsDataModule
from mnist_lightning.cli import main

CONFIGS = Path(__file__).parents[1] / "configs"
# Absolute, because tests change the working directory.
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
    """A data root with a link to the real MNIST, if it is on disk. Superpixels are cached here, not beside the data."""
    root = tmp_path_factory.mktemp("data")
    if (MNIST / "MNIST").is_dir():
        (root / "MNIST").symlink_to(MNIST / "MNIST")
    return root


@pytest.fixture(autouse=True)
def isolated(tmp_path: Path, data_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs every test in an empty folder, with the same data root and seed."""
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


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Logs of four short trainings: two that differ only in the seed, one with two epochs, and another model."""
    root = tmp_path_factory.mktemp("runs")
    short = ["--data.source=digits", "--trainer.limit_train_batches=5", "--trainer.enable_progress_bar=false"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("PL_GLOBAL_SEED", "0")
        for model, seed, epochs in (("LeNet5", 0, 1), ("LeNet5", 1, 1), ("LeNet5", 0, 2), ("MLP", 0, 1)):
            main(["fit", f"--model={model}", f"--seed_everything={seed}", f"--trainer.max_epochs={epochs}", *short])
    return root / "lightning_logs"


@pytest.fixture
def logs(trained: Path, tmp_path: Path) -> Path:
    """A copy of the logs that a test may damage, in the default folder."""
    return Path(shutil.copytree(trained, tmp_path / "lightning_logs"))


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs the command line, expects a failure, and returns its one line."""

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
    """Starts the command line in a new process."""

    def start(*args: str, **environment: str) -> subprocess.Popen[str]:
        # One thread per process: several processes with two threads each would wait for each other.
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
    """Runs the command line in a new process and returns its output."""

    def wait(*args: str, **environment: str) -> str:
        process = spawn(*args, **environment)
        output, _ = process.communicate()
        assert process.returncode == 0, output
        return output

    return wait


@pytest.fixture
def visit(tmp_path: Path) -> Callable[[str, str], Any]:
    """Opens a page in a real browser with a script that writes JSON to its body, and returns the JSON.

    The console must stay empty: no errors, no failed requests.
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

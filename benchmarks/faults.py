"""Fault injection: kills trainings at random moments, damages checkpoints, and fills disks.

- kills: sends SIGKILL to the process group of a training of a small CNN or GNN on scikit-learn's digits: at a random
  moment of training and test, while a checkpoint is written, while the superpixel graphs are built, and during the
  test. Every file must then be complete. The run is resumed with `fit --ckpt_path RUN`, or restarted if it has no
  checkpoint yet. It must end with the same weights, to the bit, and the same metrics as an uninterrupted run. A killed
  process may leave temporary files (`.NAME.*`), which are counted.
- damage: truncates the best checkpoint of a trained run, flips one bit of it, or zeroes one block, at random.
  `read_checkpoint` must refuse the file with one line, or load exactly the content of the undamaged file: a checksum
  does not cover unused bytes. Also counts the damaged files that plain `torch.load` reads.
- full disk: runs the same training on a small tmpfs, which only root can mount, then enlarges it and resumes.
- cost: milliseconds to write and to read the checkpoint, alternating with Lightning's checkpoint plugin.

    python benchmarks/faults.py lightning_logs/cnn/version_0       # writes results/faults.json, about 10 minutes
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from throughput import machine

from mnist_lightning import InputError
from mnist_lightning.data.store import mapped
from mnist_lightning.runs.checkpoint import find_checkpoint, read_checkpoint
from mnist_lightning.runs.predictions import load_predictions
from mnist_lightning.runs.run import Run
from mnist_lightning.training.checkpoints import AtomicCheckpointIO

RESULTS = Path(__file__).parent / "results" / "faults.json"
DIGITS = ["--data.source=digits", "--data.batch_size=16", "--trainer.enable_progress_bar=false"]
CNN = ["fit", "--model=CNN", "--model.channels=[4,8]", "--model.dropout=0.3", "--model.lr=0.003"]
CNN += ["--model.schedule=onecycle", "--data.augment={elastic: 0.5}", "--trainer.max_epochs=8", *DIGITS]
GNN = ["fit", "--config=gnn", "--model.width=8", "--trainer.max_epochs=1", *DIGITS]
COMMANDS = {"training": CNN, "checkpoint": CNN, "graphs": GNN, "test": CNN}
TIMEOUT = 180.0  # seconds after which a training counts as hung


class Training:
    """A training by the command line, in its own folder and process group."""

    def __init__(self, folder: Path, command: list[str]) -> None:
        self.folder = folder
        self.command = [*command, "--experiment=run"]

    def start(self, *more: str) -> "subprocess.Popen[str]":
        """Starts the training, or another command in its folder."""
        env = {**os.environ, "OMP_NUM_THREADS": "1", "MNIST_LIGHTNING_DATA": str(self.folder)}
        return subprocess.Popen(
            [sys.executable, "-m", "mnist_lightning", *(more or self.command)],
            cwd=self.folder,
            env=env,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def finish(self, *more: str) -> str:
        """Runs the training, or another command, to its end. Returns an error message, empty for success."""
        process = self.start(*more)
        try:
            _, errors = process.communicate(timeout=TIMEOUT)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            return "hung"
        return "" if process.returncode == 0 else f"failed: {errors.strip()[-300:]}"

    def resume(self) -> str:
        """Resumes the training if it has a checkpoint, else starts it again. Returns an error message as `finish`."""
        return self.finish(*(["fit", f"--ckpt_path={self.runs()[-1].folder}"] if self.checkpoint() else []))

    def runs(self) -> list[Run]:
        """Returns its runs, the newest last."""
        return [Run(folder) for folder in sorted(self.folder.glob("lightning_logs/run/version_*"))]

    def checkpoint(self) -> Path | None:
        """Returns the last checkpoint of the newest run, if there is one."""
        return next((run.checkpoint("last") for run in self.runs()[-1:]), None)


def kill(training: Training, awaited: list[tuple[str, float]]) -> bool:
    """Kills a training.

    Args:
        training: The training.
        awaited: Names of files to wait for, in order, and seconds to wait after each of them.

    Returns:
        Whether the training was still running.
    """
    process = training.start()
    deadline = time.monotonic() + TIMEOUT
    for name, pause in awaited:
        while process.poll() is None and time.monotonic() < deadline:
            if next(training.folder.rglob(name), None) is not None:
                break
            time.sleep(0.0005)
        time.sleep(pause)
    alive = process.poll() is None
    if alive:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    return alive


def broken_files(training: Training, whole: Run) -> list[str]:
    """Finds the files that cannot be read, or a config that differs from the uninterrupted run's."""

    def compare(path: Path) -> None:
        if path.read_bytes() != whole.config_file.read_bytes():
            raise ValueError("differs from the uninterrupted run")

    readers: dict[str, Callable[[Path], Any]] = {
        "*.ckpt": read_checkpoint,
        whole.config_file.name: compare,
        whole.summary_file.name: lambda path: json.loads(path.read_text()),
        whole.predictions_file.name: load_predictions,
        "superpixels/*.pt": mapped,
    }
    broken = []
    for pattern, reader in readers.items():
        for path in training.folder.rglob(pattern):
            try:
                reader(path)
            except Exception as error:
                broken.append(f"{path.name}: {error}")
    return broken


def last_epoch_is_done(training: Training) -> bool:
    """Whether only the test is left."""
    path = training.checkpoint()
    return path is not None and read_checkpoint(path)["epoch"] == 7


def temporary_files(folder: Path) -> int:
    """Counts temporary files, `.NAME.*`."""
    return sum(1 for path in folder.rglob(".*") if path.is_file())


def same(first: Any, second: Any) -> bool:
    """Whether the contents of two checkpoints are equal, tensors to the bit."""
    if type(first) is not type(second):
        return False
    if isinstance(first, torch.Tensor):
        # As bytes, because a flipped sign bit of a zero is a difference, too.
        one, two = (tensor.reshape(-1).contiguous().view(torch.uint8) for tensor in (first, second))
        return (first.dtype, first.shape) == (second.dtype, second.shape) and torch.equal(one, two)
    if isinstance(first, dict):
        return list(first) == list(second) and all(same(value, second[key]) for key, value in first.items())
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(same, first, second))
    return bool(first == second)


def identical(run: Run, whole: Run) -> bool:
    """Whether two runs have the same weights, to the bit, and the same metrics."""
    if not same(*(read_checkpoint(each.last)["state_dict"] for each in (run, whole))):
        return False
    keys = ("train", "val", "test", "epochs", "steps")
    return all(run.summary[key] == whole.summary[key] for key in keys)


def kills(count: dict[str, int], seed: int) -> dict[str, Any]:
    """Kills and resumes trainings; `count` is the number of kills of each kind."""
    chance = random.Random(seed)
    results: dict[str, Any] = {"seed": seed, "epochs": {"cnn": 8, "gnn": 1}}
    with tempfile.TemporaryDirectory() as folder:
        whole: dict[str, Run] = {}
        for kind in ("training", "graphs"):
            training = Training(Path(folder, f"whole-{kind}"), COMMANDS[kind])
            training.folder.mkdir()
            if trouble := training.finish():
                raise SystemExit(trouble)
            (whole[kind],) = training.runs()
        whole["checkpoint"] = whole["test"] = whole["training"]
        first, last = whole["training"].config_file, whole["training"].summary_file
        results["seconds_of_training_and_test"] = span = round(last.stat().st_mtime - first.stat().st_mtime, 2)
        # Files to wait for, and the longest random pause after each of them.
        awaited = {
            "training": [(first.name, span)],
            "checkpoint": [(first.name, span / 4), (".*.ckpt.*", 0.01)],
            "graphs": [("superpixels", 2.0)],
            "test": [("*.tfevents.*.1", 0.5)],  # TensorBoard's file of the test
        }
        for kind, times in count.items():
            tally: Counter[str] = Counter()
            for number in range(times):
                training = Training(Path(folder, f"{kind}-{number}"), COMMANDS[kind])
                training.folder.mkdir()
                tally["killed"] += kill(training, [(name, chance.uniform(0, most)) for name, most in awaited[kind]])
                tally["while writing a file"] += temporary_files(training.folder) > 0
                tally["after the last epoch"] += last_epoch_is_done(training)
                broken = broken_files(training, whole[kind])
                tally["files half-written"] += len(broken)
                tally["had a checkpoint"] += training.checkpoint() is not None
                trouble = training.resume()
                recovered = not trouble and identical(training.runs()[-1], whole[kind])
                tally["hung"] += trouble == "hung"
                tally["resumed or restarted"] += not trouble
                tally["identical"] += recovered
                tally["lost"] += not recovered
                tally["temporary files left"] += temporary_files(training.folder)
                print(kind, number, dict(tally), trouble, broken, flush=True)
                shutil.rmtree(training.folder)
            results[kind] = dict(tally)
    return results


def damaged(content: bytes, harm: str, chance: random.Random) -> bytes:
    """Damages the bytes of a checkpoint once."""
    offset = chance.randrange(len(content))
    if harm == "truncated":
        return content[:offset]
    if harm == "flipped bit":
        return content[:offset] + bytes([content[offset] ^ 1 << chance.randrange(8)]) + content[offset + 1 :]
    size = chance.choice([512, 4096])  # a disk's sector, a page
    start = offset // size * size
    return content[:start] + bytes(len(content[start : start + size])) + content[start + size :]


def damage(run: Path, each: int, seed: int) -> dict[str, Any]:
    """Damages a checkpoint and reads it; half as many zeroed blocks as truncations and flipped bits (`each`)."""
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "damaged.ckpt")
        undamaged = read_checkpoint(find_checkpoint(run))
        AtomicCheckpointIO().save_checkpoint(undamaged, path)
        content = path.read_bytes()
        results: dict[str, Any] = {"seed": seed, "bytes": len(content)}
        for harm, times in (("truncated", each), ("flipped bit", each), ("zeroed block", each // 2)):
            tally = Counter({"damaged": 0, "refused in one line": 0, "loaded undamaged": 0, "loaded something else": 0})
            while tally["damaged"] < times:
                harmed = damaged(content, harm, chance)
                if harmed == content:  # a block of zeros
                    continue
                path.write_bytes(harmed)
                tally["damaged"] += 1
                try:
                    equal = same(read_checkpoint(path), undamaged)
                    tally["loaded undamaged" if equal else "loaded something else"] += 1
                except InputError as error:
                    tally["refused in one line"] += "\n" not in str(error)
                try:
                    torch.load(path, map_location="cpu", weights_only=True)
                    tally["read by plain torch.load"] += 1
                except Exception:
                    pass
            results[harm] = dict(tally)
    return results


def full_disk(kibibytes: list[int]) -> dict[str, Any]:
    """Trains on disks that are too small, then enlarges them and resumes."""
    tally: Counter[str] = Counter()
    lines = {}
    with tempfile.TemporaryDirectory() as folder:
        whole = Training(Path(folder, "whole"), CNN)
        whole.folder.mkdir()
        whole.finish()
        for size in kibibytes:
            training = Training(Path(folder, "disk"), CNN)
            training.folder.mkdir(exist_ok=True)
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", training.folder], check=True)
            try:
                process = training.start()
                _, errors = process.communicate(timeout=TIMEOUT)
                tally["filled"] += process.returncode != 0
                tally["explained in one line"] += errors.count("\n") == 1 and "cannot write" in errors
                tally["files half-written"] += len(broken_files(training, whole.runs()[-1]))
                lines[f"{size} KiB"] = errors.strip().replace(str(training.folder), "DISK")
                subprocess.run(["mount", "-o", "remount,size=100m", training.folder], check=True)
                tally["had a checkpoint"] += training.checkpoint() is not None
                trouble = training.resume()
                recovered = not trouble and identical(training.runs()[-1], whole.runs()[-1])
                tally["identical after resuming"] += recovered
                print("full disk", size, dict(tally), trouble, flush=True)
            finally:
                subprocess.run(["umount", training.folder], check=True)
    return {**tally, "lines": lines}


def cost(run: Path, rounds: int = 30) -> dict[str, Any]:
    """Measures the milliseconds of writing and reading, as medians of alternating rounds."""
    content = read_checkpoint(find_checkpoint(run))
    times: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(rounds):
            for name, way in (("ours", AtomicCheckpointIO()), ("Lightning's", TorchCheckpointIO())):
                path = Path(folder, f"{type(way).__name__}.ckpt")
                for action, call in (
                    ("write", lambda: way.save_checkpoint(content, path)),  # noqa: B023 - called in this iteration
                    ("read", lambda: way.load_checkpoint(path, weights_only=True)),  # noqa: B023
                ):
                    began = time.perf_counter()
                    call()
                    times.setdefault(f"{action}, {name}", []).append(1000 * (time.perf_counter() - began))
    return {"rounds": rounds, **{name: round(median(values), 2) for name, values in sorted(times.items())}}


def main() -> None:
    """Measures and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run folder of a trained model, for damage and cost")
    parser.add_argument("--parts", nargs="+", default=["damage", "cost", "full_disk", "kills"], help="parts to run")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    results |= machine()
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "damage": lambda: damage(arguments.run, 80, arguments.seed),
        "cost": lambda: cost(arguments.run),
        "full_disk": lambda: full_disk([8, 900, 1900]),
        "kills": lambda: kills({"training": 8, "checkpoint": 6, "graphs": 4, "test": 2}, arguments.seed),
    }
    for part in arguments.parts:
        results[part] = parts[part]()
        print(part, json.dumps(results[part], indent=2), flush=True)
        RESULTS.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()

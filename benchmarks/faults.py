"""Harm done for real: trainings killed at random moments, checkpoints damaged, disks filled.

- kills: SIGKILL of a training's whole process group, of a small CNN and a small GNN on scikit-learn's digits: at a
  random moment between its first file and its last (training and test), within the writing of a checkpoint, while the
  superpixel graphs are made, and in the test. Then every file that is there must be whole, and the run, resumed by
  `fit --ckpt_path RUN`, or begun anew where it had no checkpoint, must end with the same bits in its weights and the
  same measurements as a run that nobody has disturbed. No temporary file may be left in a folder that is still in
  use; that of a run that was begun anew is not.
- damage: a trained run's checkpoint, cut short at random, with flipped bits, with zeroed blocks, one harm each; what
  `load` makes of it, and what plain torch.load does.
- a full disk: the same training on a small tmpfs (only root can mount one); then room is made and it goes on.
- cost: milliseconds to write and to read that checkpoint, alternating with Lightning's own way.

    python benchmarks/faults.py lightning_logs/cnn/version_0       # writes results/faults.json, some 10 minutes
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
from mnist_lightning.checkpoint import read_checkpoint
from mnist_lightning.data.store import mapped
from mnist_lightning.evaluation.predictions import load_predictions
from mnist_lightning.run_folder import WholeCheckpoints

RESULTS = Path(__file__).parent / "results" / "faults.json"
DIGITS = ["--data.source=digits", "--data.batch_size=16", "--trainer.enable_progress_bar=false"]
CNN = ["fit", "--model=CNN", "--model.channels=[4,8]", "--model.dropout=0.3", "--model.lr=0.003"]
CNN += ["--model.schedule=onecycle", "--data.augment={elastic: 0.5}", "--trainer.max_epochs=8", *DIGITS]
GNN = ["fit", "--config=gnn", "--model.width=8", "--trainer.max_epochs=1", *DIGITS]
COMMANDS = {"training": CNN, "checkpoint": CNN, "graphs": GNN, "test": CNN}
HUNG = 180.0  # seconds


class Training:
    """A training in a folder of its own, by the command line, in a process group of its own."""

    def __init__(self, folder: Path, command: list[str]) -> None:
        self.folder = folder
        self.command = [*command, "--experiment=run"]

    def start(self, *more: str) -> "subprocess.Popen[str]":
        """Begins it, or something else in its folder."""
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
        """Runs it to its end; returns what is wrong with that, if anything is."""
        process = self.start(*more)
        try:
            _, said = process.communicate(timeout=HUNG)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            return "hung"
        return "" if process.returncode == 0 else f"failed: {said.strip()[-300:]}"

    def runs(self) -> list[Path]:
        """Its run folders, the newest last."""
        return sorted(self.folder.glob("lightning_logs/run/version_*"))

    def checkpoints(self) -> list[Path]:
        """All that have their final names."""
        return sorted(self.folder.glob("lightning_logs/run/*/checkpoints/*.ckpt"))


def kill(training: Training, awaited: list[tuple[str, float]]) -> bool:
    """Kills a training after files of some names were seen, and a pause after each; whether it was still at work."""
    process = training.start()
    deadline = time.monotonic() + HUNG
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


def broken_files(training: Training, whole: Path) -> list[str]:
    """The files with final names that cannot be read, or are not as in the whole run."""

    def compare(path: Path) -> None:
        if path.read_bytes() != (whole / path.name).read_bytes():
            raise ValueError("not as in the whole run")

    readers: dict[str, Callable[[Path], Any]] = {
        "*.ckpt": read_checkpoint,
        "*.yaml": compare,
        "*.json": lambda path: json.loads(path.read_text()),
        "test_predictions.npz": load_predictions,
        "superpixels/*.pt": mapped,
    }
    broken = []
    for pattern, reader in readers.items():
        for path in training.folder.rglob(pattern):
            try:
                if not path.name.startswith("."):
                    reader(path)
            except Exception as error:
                broken.append(f"{path.name}: {error}")
    return broken


def last_epoch_is_done(training: Training) -> bool:
    """Whether there was only the test left to do."""
    last = next(training.folder.rglob("last.ckpt"), None)
    return last is not None and read_checkpoint(last)["epoch"] == 7 and training.command[: len(CNN)] == CNN


def left_over(folder: Path) -> int:
    """Temporary files."""
    return sum(1 for path in folder.rglob(".*") if path.is_file())


def identical(run: Path, whole: Path) -> bool:
    """Whether two runs have the same weights, to the bit, in both checkpoints, and measured the same."""
    for name in ("last", "best"):
        one, two = (read_checkpoint(r / "checkpoints" / f"{name}.ckpt")["state_dict"] for r in (run, whole))
        if one.keys() != two.keys() or not all(torch.equal(one[key], two[key]) for key in one):
            return False
    first, second = (json.loads((r / "summary.json").read_text()) for r in (run, whole))
    return all(first[key] == second[key] for key in ("train", "val", "test", "best_epoch", "epochs", "steps"))


def kills(count: dict[str, int], seed: int) -> dict[str, Any]:
    """Kills and resumes trainings."""
    chance = random.Random(seed)
    found: dict[str, Any] = {"seed": seed, "epochs": {"cnn": 8, "gnn": 1}}
    with tempfile.TemporaryDirectory() as folder:
        whole: dict[str, Path] = {}
        for kind in ("training", "graphs"):
            training = Training(Path(folder, f"whole-{kind}"), COMMANDS[kind])
            training.folder.mkdir()
            if trouble := training.finish():
                raise SystemExit(trouble)
            (whole[kind],) = training.runs()
        whole["checkpoint"] = whole["test"] = whole["training"]
        times_of = [(whole["training"] / name).stat().st_mtime for name in ("config.yaml", "summary.json")]
        found["seconds_of_training_and_test"] = span = round(times_of[1] - times_of[0], 2)
        # What is awaited, and how long the random pause after it can be.
        awaited = {
            "training": [("config.yaml", span)],
            "checkpoint": [("config.yaml", span / 4), (".*.ckpt.*", 0.01)],
            "graphs": [("superpixels", 2.0)],
            "test": [("*.tfevents.*.1", 0.5)],  # TensorBoard's file of the test
        }
        for kind, times in count.items():
            tally: Counter[str] = Counter()
            for number in range(times):
                training = Training(Path(folder, f"{kind}-{number}"), COMMANDS[kind])
                training.folder.mkdir()
                tally["killed"] += kill(training, [(name, chance.uniform(0, most)) for name, most in awaited[kind]])
                tally["within the writing of a file"] += left_over(training.folder) > 0
                tally["after the last epoch"] += last_epoch_is_done(training)
                broken = broken_files(training, whole[kind])
                tally["files half-written"] += len(broken)
                kept = training.checkpoints()
                tally["had a checkpoint"] += bool(kept)
                trouble = training.finish(*(["fit", f"--ckpt_path={kept[0].parents[1]}"] if kept else []))
                tally["hung"] += trouble == "hung"
                tally["resumed or begun anew"] += not trouble
                tally["identical"] += not trouble and identical(training.runs()[-1], whole[kind])
                tally["lost"] += bool(trouble) or not identical(training.runs()[-1], whole[kind])
                tally["temporary files left beside what was kept"] += sum(
                    map(left_over, (training.runs()[-1], training.folder / "superpixels"))
                )
                print(kind, number, dict(tally), trouble, broken, flush=True)
                shutil.rmtree(training.folder)
            found[kind] = dict(tally)
    return found


def damaged(content: bytes, harm: str, chance: random.Random) -> bytes:
    """A checkpoint's bytes after one harm."""
    place = chance.randrange(len(content))
    if harm == "truncated":
        return content[:place]
    if harm == "flipped bit":
        return content[:place] + bytes([content[place] ^ 1 << chance.randrange(8)]) + content[place + 1 :]
    size = chance.choice([512, 4096])  # a disk's sector, a page
    start = place // size * size
    return content[:start] + bytes(len(content[start : start + size])) + content[start + size :]


def damage(run: Path, each: int, seed: int) -> dict[str, Any]:
    """Damages a checkpoint and reads it."""
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "best.ckpt")
        WholeCheckpoints().save_checkpoint(read_checkpoint(run / "checkpoints" / "best.ckpt"), path)
        content = path.read_bytes()
        found: dict[str, Any] = {"seed": seed, "bytes": len(content)}
        for harm, times in (("truncated", each), ("flipped bit", each), ("zeroed block", each // 2)):
            tally: Counter[str] = Counter({"damaged": 0, "refused in one line": 0, "read all the same": 0})
            while tally["damaged"] < times:
                harmed = damaged(content, harm, chance)
                if harmed == content:  # a block of zeros
                    continue
                path.write_bytes(harmed)
                tally["damaged"] += 1
                try:
                    read_checkpoint(path)
                    tally["read all the same"] += 1
                except InputError as error:
                    tally["refused in one line"] += "\n" not in str(error)
                try:
                    torch.load(path, map_location="cpu", weights_only=True)
                    tally["read by plain torch.load"] += 1
                except Exception:
                    pass
            found[harm] = dict(tally)
    return found


def full_disk(kibibytes: list[int]) -> dict[str, Any]:
    """Trains on disks that are too small, then makes room and goes on."""
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
                _, said = process.communicate(timeout=HUNG)
                tally["filled"] += process.returncode != 0
                tally["said in one line"] += said.count("\n") == 1 and "cannot be written" in said
                tally["files half-written"] += len(broken_files(training, whole.runs()[-1]))
                lines[f"{size} KiB"] = said.strip().replace(str(training.folder), "DISK")
                subprocess.run(["mount", "-o", "remount,size=100m", training.folder], check=True)
                kept = training.checkpoints()
                tally["had a checkpoint"] += bool(kept)
                trouble = training.finish(*(["fit", f"--ckpt_path={kept[0].parents[1]}"] if kept else []))
                tally["identical after room was made"] += not trouble and identical(
                    training.runs()[-1], whole.runs()[-1]
                )
                print("full disk", size, dict(tally), trouble, flush=True)
            finally:
                subprocess.run(["umount", training.folder], check=True)
    return {**tally, "lines": lines}


def cost(run: Path, rounds: int = 30) -> dict[str, Any]:
    """Milliseconds of writing and reading, medians of alternating rounds."""
    content = read_checkpoint(run / "checkpoints" / "best.ckpt")
    taken: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(rounds):
            for name, way in (("ours", WholeCheckpoints()), ("Lightning's", TorchCheckpointIO())):
                path = Path(folder, f"{type(way).__name__}.ckpt")
                for act, call in (
                    ("write", lambda: way.save_checkpoint(content, path)),  # noqa: B023 - called at once
                    ("read", lambda: way.load_checkpoint(path, weights_only=True)),  # noqa: B023
                ):
                    began = time.perf_counter()
                    call()
                    taken.setdefault(f"{act}, {name}", []).append(1000 * (time.perf_counter() - began))
    return {"rounds": rounds, **{name: round(median(values), 2) for name, values in sorted(taken.items())}}


def main() -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--parts", nargs="+", default=["damage", "cost", "full_disk", "kills"])
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

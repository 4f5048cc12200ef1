"""Studies: kills, simultaneous trainings, and the cost of the driver.

- kills: runs `study mlp lenet speedrun --seeds 3` on real MNIST undisturbed, and once more with ten SIGKILLs at random
  moments, to the study itself or to one of its trainings. After each, the same command is given again. The runs must
  end with the same weights, to the bit, and the same metrics, and no epoch with a checkpoint may be trained twice.
- jobs: `study lenet --seeds 4`, three epochs each, with `--jobs 1` and with `--jobs 2`, in alternation.
- overhead: a study of 20 trainings of a few steps, which ends with a report, against 20 calls of `fit` by a shell with
  as many at once, and against these and a call of `compare`, in alternation.

    python benchmarks/studies.py kills jobs overhead      # writes results/studies.json, about an hour on two cores
"""

import argparse
import json
import os
import random
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
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from throughput import machine

from mnist_lightning.runs.checkpoint import read_checkpoint
from mnist_lightning.runs.run import Run

RESULTS = Path(__file__).parent / "results" / "studies.json"
COMMAND = [sys.executable, "-m", "mnist_lightning"]
STUDY = ["study", "mlp", "lenet", "speedrun", "--seeds", "3"]
SHORT = ["--data.source", "digits", "--trainer.max_epochs", "1", "--trainer.limit_train_batches", "5"]
KILLS = 10
ENVIRONMENT = {
    **os.environ,
    "MNIST_LIGHTNING_DATA": str(Path(os.environ.get("MNIST_LIGHTNING_DATA", "data")).resolve()),
}


def start(folder: Path, *arguments: str) -> "subprocess.Popen[bytes]":
    """Starts a command in a folder."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen([*COMMAND, *arguments], cwd=folder, env=ENVIRONMENT, **quiet)


def timed(command: Callable[[], Any]) -> float:
    """Returns the seconds that a function takes."""
    began = time.perf_counter()
    command()
    return time.perf_counter() - began


def kills(rng: random.Random) -> dict[str, Any]:
    """Kills a study and its trainings at random moments."""
    with tempfile.TemporaryDirectory() as name:
        whole, killed = Path(name, "whole"), Path(name, "killed")
        whole.mkdir()
        killed.mkdir()
        seconds = timed(lambda: start(whole, *STUDY).wait())
        print(f"undisturbed: {seconds:.0f} s", flush=True)
        victims: Counter[str] = Counter()
        calls = 1
        study = start(killed, *STUDY)
        while study.poll() is None or sum(victims.values()) < KILLS:
            if study.poll() is not None:  # a killed training fails its study at the end
                study, calls = start(killed, *STUDY), calls + 1
            if sum(victims.values()) == KILLS:
                study.wait()
                continue
            time.sleep(rng.uniform(2, 1.2 * seconds / KILLS))
            victim = rng.choice(["study", "training"])
            processes = [study.pid] if victim == "study" else trainings_of(study.pid)
            if study.poll() is None and processes:
                os.kill(rng.choice(processes), signal.SIGKILL)
                victims[victim] += 1
                print(f"killed a {victim}", flush=True)
            if victim == "study":
                study.wait()
        while study.returncode != 0:
            study, calls = start(killed, *STUDY), calls + 1
            study.wait()
        return {
            **compared(whole, killed),
            "kills": dict(victims),
            "calls": calls,
            "undisturbed_seconds": round(seconds),
        }


def trainings_of(study: int) -> list[int]:
    """Returns the process IDs of a study's trainings."""
    children = Path(f"/proc/{study}/task").glob("*/children")
    return [int(pid) for file in children for pid in file.read_text().split()]


def compared(whole: Path, killed: Path) -> dict[str, Any]:
    """Compares the runs of two studies."""
    runs = [Run(folder) for folder in sorted(whole.glob("lightning_logs/*/version_*"))]
    others = [Run(folder) for folder in sorted(killed.glob("lightning_logs/*/version_*"))]
    by_identity = {(run.name, run.identity): run for run in others if run.is_finished}
    pairs = [(run, by_identity.get((run.name, run.identity))) for run in runs]
    found = {
        "runs": len(runs),
        "runs_after_kills": len(others),
        "equal": sum(other is not None and equal(run, other) for run, other in pairs),
        "repeated_epochs": sum(epochs(other).total() - len(epochs(other)) for other in others),
    }
    print(found, flush=True)
    return found


def equal(run: Run, other: Run) -> bool:
    """Whether two runs have the same weights and metrics, to the bit."""
    first, second = (read_checkpoint(each.last)["state_dict"] for each in (run, other))
    if not all(torch.equal(first[key], second[key]) for key in first.keys() | second.keys()):
        return False
    return all(run.summary[key] == other.summary[key] for key in ("train", "val", "test", "epochs"))


def epochs(run: Run) -> "Counter[int]":
    """Counts the validations of each epoch, by step, in TensorBoard's files."""
    steps: Counter[int] = Counter()
    for file in Path(str(run.folder)).glob("events.out.tfevents*"):
        events = EventAccumulator(str(file)).Reload()
        if "val/acc" in events.Tags()["scalars"]:
            steps.update({event.step for event in events.Scalars("val/acc")})
    return steps


def jobs(rounds: int) -> dict[str, Any]:
    """Trains with one job and with two, in alternation."""
    seconds: dict[str, list[float]] = {"1": [], "2": []}
    for _ in range(rounds):
        for number, durations in seconds.items():
            with tempfile.TemporaryDirectory() as folder:
                command = ["study", "lenet", "--seeds", "4", "--jobs", number, "--", "--trainer.max_epochs", "3"]
                durations.append(timed(lambda: start(Path(folder), *command).wait()))  # noqa: B023
            print(number, round(durations[-1], 1), flush=True)
    ratios = [one / two for one, two in zip(seconds["1"], seconds["2"], strict=True)]
    return {"threads": {"1": 2, "2": 1}, "seconds": seconds, "ratio": round(median(ratios), 2)}


def overhead(rounds: int) -> dict[str, Any]:
    """Runs 20 short trainings as a study and by a shell, in alternation."""
    seconds: dict[str, list[float]] = {"study": [], "fits": [], "compare": []}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            command = ["study", "lenet", "--seeds", "20", "--jobs", "2", "--", *SHORT]
            seconds["study"].append(timed(lambda: start(folder, *command).wait()))  # noqa: B023
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            seconds["fits"].append(timed(lambda: fits(folder)))  # noqa: B023
            seconds["compare"].append(timed(lambda: start(folder, "compare").wait()))  # noqa: B023
        print({name: round(values[-1], 1) for name, values in seconds.items()}, flush=True)
    studies, by_shell, _ = seconds.values()
    return {
        "seconds": seconds,
        "over_fits": round(median(s / f for s, f in zip(studies, by_shell, strict=True)), 3),
        "over_fits_and_compare": round(median(s / (f + c) for s, f, c in zip(*seconds.values(), strict=True)), 3),
    }


def fits(folder: Path) -> None:
    """Trains by a shell, two at once."""
    fit = " ".join([*COMMAND, "fit", "--config", "lenet", *SHORT, "--seed_everything", "{}"])
    script = f"seq 0 19 | OMP_NUM_THREADS=1 xargs -P 2 -I{{}} {fit}"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run(["bash", "-c", script], cwd=folder, env=ENVIRONMENT, check=True, **quiet)


def main() -> None:
    """Measures, and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="+", choices=["kills", "jobs", "overhead"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    measure = {
        "kills": lambda: kills(random.Random(arguments.seed)),
        "jobs": lambda: jobs(arguments.rounds),
        "overhead": lambda: overhead(arguments.rounds),
    }
    results = json.loads(arguments.output.read_text()) if arguments.output.exists() else {}
    for part in arguments.parts:
        results[part] = {**measure[part](), "machine": machine()}
        arguments.output.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()

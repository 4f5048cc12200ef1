"""Errors under the 15 corruptions of MNIST-C, and how long `mnist-lightning robustness` takes to find them.

    python benchmarks/robustness.py RUN...          # runs, or folders with runs in them; writes results/robustness.json

The corrupted digits are the test digits: nothing is chosen by what comes out. Mean and sample standard deviation over
the seeds. Seconds are of one pass, beside whatever else the machine does.
"""

import argparse
import json
import time
from collections import Counter
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from throughput import machine
from torch import Tensor

from mnist_lightning.cli import _keep_freed_memory
from mnist_lightning.data.corruptions import CORRUPTIONS, corrupt
from mnist_lightning.evaluation.robustness import CLEAN, PUBLISHED_CONDITIONS, Condition, Robustness, measure
from mnist_lightning.evaluation.robustness_page import write_page
from mnist_lightning.evaluation.robustness_report import test_sets
from mnist_lightning.evaluation.robustness_tables import mean_detections
from mnist_lightning.evaluation.runs import read_runs
from mnist_lightning.evaluation.unknowns import unknown_sets
from mnist_lightning.files import write_whole

RESULTS = Path(__file__).parent / "results" / "robustness.json"
PICTURES = {"errors": "robustness.png", "corrupted-digits": "corruptions.png"}  # of the page: kept for the README


def percent(shares: NDArray[np.floating]) -> dict[str, float]:
    """Mean and sample standard deviation of shares [n]."""
    spread = {"sd": round(100 * float(shares.std(ddof=1)), 3)} if len(shares) > 1 else {}
    return {"mean": round(100 * float(shares.mean()), 3), **spread}


def both(errors: NDArray[np.floating]) -> dict[str, Any] | None:
    """Calibration errors [n, K], clean and mean over the corruptions; None where a run has no temperature."""
    if np.isnan(errors).any():
        return None
    return {"clean": percent(errors[:, 0]), "corrupted": percent(errors[:, 1:].mean(axis=1))}


def results(found: Robustness, index: int) -> dict[str, Any]:
    """All that is known of one model, in percent."""
    errors = found.errors[index]
    return {
        "n": len(errors),
        "seeds": [run.summary["seed"] for run in found.models[index].runs],
        "error": {condition.corruption: percent(errors[:, k]) for k, condition in enumerate(found.conditions)},
        "mean_error_of_the_corrupted": percent(errors[:, 1:].mean(axis=1)),
        "calibration_error": both(found.calibration_errors[index]),
        "calibration_error_at_its_temperature": both(found.scaled_errors[index]),
        "unknown_auroc_and_fpr95": {
            f"{row.set}, {row.score}": [round(100 * row.auroc, 2), round(100 * row.fpr95, 2)]
            for row in mean_detections(found.detections[index])
        },
    }


def main() -> None:
    """Measures and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--corruptions", nargs="+", default=CORRUPTIONS, help="some of them, to try it")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    _keep_freed_memory()
    began = time.perf_counter()
    seconds: dict[str, Counter[str]] = {"corrupting": Counter(), "classifying": Counter()}
    problems: list[str] = []
    runs, _ = read_runs(arguments.runs)
    (test_set,) = test_sets(runs, problems)
    unknown = unknown_sets(test_set.images, test_set.labels)
    loading = last = time.perf_counter()

    def lap(part: str, name: str) -> None:
        nonlocal last
        now = time.perf_counter()
        seconds[part][name] += now - last
        last = now

    def corrupted(condition: Condition) -> Tensor:
        digits = test_set.images if condition == CLEAN else corrupt(test_set.images, *condition)
        lap("corrupting", condition.corruption)
        return digits

    def seen(condition: Condition, model: str) -> None:
        lap("classifying", model)
        print(f"{last - began:6.0f} s  {condition.name}, {model}", flush=True)

    conditions = [condition for condition in PUBLISHED_CONDITIONS if condition.corruption in arguments.corruptions]
    found = measure(test_set.source, test_set.models, test_set.labels, conditions, corrupted, unknown, seen)
    if len(conditions) == len(PUBLISHED_CONDITIONS):
        with TemporaryDirectory() as folder:
            write_page([found], problems, False, Path(folder))
            for name, picture in PICTURES.items():
                small = BytesIO()
                Image.open(Path(folder, f"{name}.png")).convert("RGB").quantize(64).save(small, "png", optimize=True)
                write_whole(RESULTS.with_name(picture), small.getvalue())
    ended = time.perf_counter()
    content = {
        **machine(),
        "source": test_set.source,
        "images": len(found.labels),
        "models": len(found.models),
        "runs": sum(len(model.runs) for model in found.models),
        "corruptions": len(conditions),
        "seconds": {
            "whole": round(ended - began, 1),
            "loading": round(loading - began, 1),
            "drawing and writing": round(ended - last, 1),
            **{part: {name: round(value, 2) for name, value in of.items()} for part, of in seconds.items()},
        },
        "left_out": problems,
        "percent": {model.name: results(found, index) for index, model in enumerate(found.models)},
    }
    write_whole(arguments.output, (json.dumps(content, indent=2) + "\n").encode())


if __name__ == "__main__":
    main()

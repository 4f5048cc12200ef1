"""Errors under the 15 corruptions of MNIST-C, and the seconds that `mnist-lightning robustness` needs for each part.

    python benchmarks/robustness.py RUN...          # writes results/robustness.json

The corrupted digits are test digits, and no model or setting is chosen by these results. They are means and sample
standard deviations over the seeds. The seconds are those of a single pass.
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
from mnist_lightning.evaluation.robustness.measure import (
    PUBLISHED_CONDITIONS,
    Condition,
    Robustness,
    measure,
    test_sets,
)
from mnist_lightning.evaluation.robustness.report import write_page
from mnist_lightning.evaluation.robustness.unknowns import unknown_sets
from mnist_lightning.files import write_whole
from mnist_lightning.runs.finding import finished_runs

RESULTS = Path(__file__).parent / "results" / "robustness.json"
PICTURES = {
    "errors": "robustness.png",
    "corrupted-digits": "corruptions.png",
}  # figures in the README


def percent(shares: NDArray[np.floating]) -> dict[str, float]:
    """Computes mean and sample standard deviation of shares [n], in percent."""
    spread = {"sd": round(100 * float(shares.std(ddof=1)), 3)} if len(shares) > 1 else {}
    return {"mean": round(100 * float(shares.mean()), 3), **spread}


def both(errors: NDArray[np.floating]) -> dict[str, Any] | None:
    """Summarises calibration errors [n, K]: clean, and mean over the corruptions. None if a run has no temperature."""
    if np.isnan(errors).any():
        return None
    return {"clean": percent(errors[:, 0]), "corrupted": percent(errors[:, 1:].mean(axis=1))}


def summary(results: Robustness, index: int) -> dict[str, Any]:
    """Summarises the results of one model, in percent."""
    errors = results.errors[index]
    return {
        "n": len(errors),
        "seeds": [run.summary["seed"] for run in results.models[index].runs],
        "error": {condition.corruption: percent(errors[:, k]) for k, condition in enumerate(results.conditions)},
        "mean_error_of_the_corrupted": percent(errors[:, 1:].mean(axis=1)),
        "calibration_error": both(results.calibration_errors[index]),
        "calibration_error_at_its_temperature": both(results.scaled_errors[index]),
        "unknown_auroc_and_fpr95": {
            f"{row.set}, {row.score}": [round(100 * row.auroc, 2), round(100 * row.fpr95, 2)]
            for row in results.mean_detections[index]
        },
    }


def main() -> None:
    """Measures and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", help="run folders, or folders that contain runs")
    parser.add_argument("--corruptions", nargs="+", default=CORRUPTIONS, help="measure only these")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    _keep_freed_memory()
    began = time.perf_counter()
    seconds: dict[str, Counter[str]] = {"corrupting": Counter(), "classifying": Counter()}
    problems: list[str] = []
    runs, _ = finished_runs(arguments.runs)
    (test_set,) = test_sets(runs, problems, None)
    unknown = unknown_sets(test_set.images, test_set.labels)
    loading = last = time.perf_counter()

    def lap(part: str, name: str) -> None:
        nonlocal last
        now = time.perf_counter()
        seconds[part][name] += now - last
        last = now

    def corrupted(condition: Condition) -> Tensor:
        digits = corrupt(test_set.images, *condition)
        lap("corrupting", condition.corruption)
        return digits

    def progress(condition: Condition, model: str) -> None:
        lap("classifying", model)
        print(f"{last - began:6.0f} s  {condition.name}, {model}", flush=True)

    conditions = [condition for condition in PUBLISHED_CONDITIONS if condition.corruption in arguments.corruptions]
    results = measure(test_set, conditions, corrupted, unknown, progress)
    if len(conditions) == len(PUBLISHED_CONDITIONS):
        with TemporaryDirectory() as folder:
            write_page([results], problems, Path(folder), mnist_c=False)
            for name, picture in PICTURES.items():
                small = BytesIO()
                Image.open(Path(folder, f"{name}.png")).convert("RGB").quantize(64).save(small, "png", optimize=True)
                write_whole(RESULTS.with_name(picture), small.getvalue())
    ended = time.perf_counter()
    content = {
        **machine(),
        "source": test_set.source,
        "images": len(results.test_set.labels),
        "models": len(results.models),
        "runs": sum(len(model.runs) for model in results.models),
        "corruptions": len(conditions),
        "seconds": {
            "whole": round(ended - began, 1),
            "loading": round(loading - began, 1),
            "drawing and writing": round(ended - last, 1),
            **{part: {name: round(value, 2) for name, value in of.items()} for part, of in seconds.items()},
        },
        "left_out": problems,
        "percent": {model.name: summary(results, index) for index, model in enumerate(results.models)},
    }
    write_whole(arguments.output, (json.dumps(content, indent=2) + "\n").encode())


if __name__ == "__main__":
    main()

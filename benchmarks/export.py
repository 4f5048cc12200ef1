"""Exported models against PyTorch: differences of the logits, and latency of one digit.

- differences: the largest absolute difference between a logit of the exported file and of PyTorch, over 1,000 test
  digits in batches of 1, 7 and 256, for the ONNX file in onnxruntime and for the torch.export program;
- latency: milliseconds for one digit in onnxruntime and in PyTorch (evaluation and inference mode), one thread each.
  The calls alternate, and the ratio is the median of the pairs' ratios.

    python benchmarks/export.py lightning_logs/{mlp,lenet,cnn,resnet,densenet,efficientnet}/version_0

It writes results/export.json.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import onnxruntime
import torch
from throughput import machine

from mnist_lightning import load
from mnist_lightning.data.sources import read
from mnist_lightning.deploy.export import Export, export_model

RESULTS = Path(__file__).parent / "results" / "export.json"
WARM_UP = 50


def milliseconds(call: Callable[[Any], Any], argument: Any) -> float:
    """Measures the milliseconds of one call."""
    began = time.perf_counter()
    call(argument)
    return 1000 * (time.perf_counter() - began)


@torch.inference_mode()
def latency(run: str, file: Path, source: str, calls: int) -> dict[str, float]:
    """Measures the latency of one digit, a different one in each call."""
    model = load(run)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    digits, _ = read(source, train=False)
    images = torch.split(digits[: calls + WARM_UP].unsqueeze(1).float() / 255, 1)
    pairs = [
        (milliseconds(model, image), milliseconds(lambda array: session.run(None, {"images": array}), image.numpy()))
        for image in images
    ][WARM_UP:]
    return {
        "pytorch_ms": round(median(torch_ms for torch_ms, _ in pairs), 4),
        "onnxruntime_ms": round(median(onnx_ms for _, onnx_ms in pairs), 4),
        "pytorch_over_onnxruntime": round(median(torch_ms / onnx_ms for torch_ms, onnx_ms in pairs), 2),
    }


def facts(exported: Export) -> dict[str, Any]:
    """Size of an exported file, and its largest differences."""
    return {
        "kib": round(exported.path.stat().st_size / 1024),
        "largest_logit_difference": {
            f"batch {size}": float(f"{value:.2e}") for size, value in exported.differences.items()
        },
    }


def main() -> None:
    """Measures and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--source", default="mnist")
    parser.add_argument("--calls", type=int, default=1000)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    here = machine()
    for package in ("onnx", "onnxscript", "onnxruntime"):
        here["versions"][package] = version(package)
    results: dict[str, Any] = {**here, "source": arguments.source, "calls": arguments.calls}
    for run in arguments.runs:
        with tempfile.TemporaryDirectory() as folder:
            onnx = export_model(run, f"{folder}/model.onnx", arguments.source)
            pt2 = export_model(run, f"{folder}/model.pt2", arguments.source)
            name = type(load(run)).__name__
            results[name] = {
                "digits": onnx.digits,
                "onnx": facts(onnx),
                "pt2": facts(pt2),
                "latency_of_one_digit": latency(run, onnx.path, arguments.source, arguments.calls),
            }
        print(name, json.dumps(results[name]), flush=True)
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()

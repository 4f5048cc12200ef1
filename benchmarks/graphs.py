"""Superpixel graphs against PyG's equivalents: building, loading and training steps, alternating in one run.

- building: a graph with features and edges, against PyG's `ToSLIC`, which computes features but no edges, on one core.
  Also the data module's first start, which builds the graphs of all of MNIST on all cores, and a later start;
- loading: a batch of 128 graphs from the data module, against `torch_geometric.loader.DataLoader`, on one core;
- step: a training step of the GNN with its fast kernel convolution, with general message passing, and with PyG's
  convolutions.

    python benchmarks/graphs.py                # writes results/graphs.json, about 6 minutes on two cores
"""

import argparse
import json
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch_geometric
from torch.nn import functional as F
from torch_geometric.loader import DataLoader
from torch_geometric.transforms import ToSLIC

from mnist_lightning import GNN, MNISTSuperpixelsDataModule
from mnist_lightning.cli import _keep_freed_memory
from mnist_lightning.data.graphs import batch_of
from mnist_lightning.data.sources import data_root, read
from mnist_lightning.data.superpixels import superpixel_graphs
from mnist_lightning.training.recording import device_name

RESULTS = Path(__file__).parent / "results" / "graphs.json"
BATCH = 128


def alternating(ways: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Measures the median milliseconds of each way."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            began = time.perf_counter()
            way()
            times[name].append(1000 * (time.perf_counter() - began))
    return {name: round(median(values), 3) for name, values in times.items()}


def building(images: torch.Tensor, rounds: int) -> dict[str, float]:
    """Measures the milliseconds per graph."""
    to_slic = ToSLIC(n_segments=75, compactness=0.6, max_num_iter=5, channel_axis=2)
    count = 100

    def theirs() -> None:
        for image in images[:count]:
            to_slic(image.unsqueeze(0) / 255)

    times = alternating({"ours": lambda: superpixel_graphs(images[:count]), "ToSLIC, no edges": theirs}, rounds)
    return {name: round(milliseconds / count, 3) for name, milliseconds in times.items()}


def end_to_end() -> dict[str, Any]:
    """Measures the data module's first and later start with all 70,000 graphs, and the size of its file."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "MNIST").symlink_to((data_root(None) / "MNIST").resolve())
        seconds = []
        for _ in range(2):
            began = time.perf_counter()
            data = MNISTSuperpixelsDataModule(root=folder)
            data.prepare_data()
            data.setup("fit")
            next(iter(data.train_dataloader()))
            seconds.append(round(time.perf_counter() - began, 2))
        (file,) = Path(folder, "superpixels").iterdir()
        counts = data.graphs.node_ptr.diff()
        return {
            "graphs": len(data.graphs),
            "first_start_seconds": seconds[0],
            "later_start_seconds": seconds[1],
            "file_megabytes": round(file.stat().st_size / 1e6, 1),
            "nodes": {
                "least": int(counts.min()),
                "mean": round(float(counts.float().mean()), 2),
                "most": int(counts.max()),
            },
        }


def loading(data: MNISTSuperpixelsDataModule, rounds: int) -> dict[str, float]:
    """Measures the milliseconds per batch of 128 graphs."""
    epoch = batch_of(data.graphs, torch.arange(2000), torch.zeros(2000, dtype=torch.long)).to_data_list()
    ours, theirs = iter(data.train_dataloader()), iter(DataLoader(epoch * 100, batch_size=BATCH, shuffle=True))
    return alternating({"ours": lambda: next(ours), "PyG's DataLoader": lambda: next(theirs)}, rounds)


def steps(data: MNISTSuperpixelsDataModule, rounds: int) -> dict[str, float]:
    """Measures the milliseconds per training step of 128 graphs in bfloat16."""
    batch = batch_of(data.graphs, torch.arange(BATCH), data.images_and_labels("train")[1][:BATCH])

    def step(edge_index: torch.Tensor, **arguments: Any) -> Callable[[], None]:
        model = GNN(**arguments)
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)

        def run() -> None:
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(batch.x, edge_index, batch.pos, batch.batch)
            F.cross_entropy(logits.float(), batch.y).backward()
            optimizer.step()
            optimizer.zero_grad()

        return run

    ways = {
        "kernel": step(batch.edge_index),
        "kernel, general message passing": step(batch.edge_index.flip(1)),  # unsorted edges disable the fast kernel
        **{conv: step(batch.edge_index, conv=conv) for conv in ("gcn", "gat", "gin", "gatedgcn")},
    }
    return alternating(ways, rounds)


def main() -> None:
    """Measures and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    rounds = parser.parse_args().rounds
    warnings.filterwarnings("ignore")
    _keep_freed_memory()
    images = read("mnist", train=True)[0]
    data = MNISTSuperpixelsDataModule(batch_size=BATCH)
    data.prepare_data()
    data.setup("fit")
    results: dict[str, Any] = {
        "device": device_name(torch.device("cpu")),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "torch_geometric": torch_geometric.__version__,
        "rounds": rounds,
        "mnist": end_to_end(),
    }
    results["step_ms"] = steps(data, rounds)
    torch.set_num_threads(1)
    results["build_ms_a_graph"] = building(images, rounds)
    results["load_ms_a_batch"] = loading(data, 10 * rounds)
    print(json.dumps(results, indent=2))
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()

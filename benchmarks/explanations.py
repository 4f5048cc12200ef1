"""Whether a trained GNN's explanations are true: three figures over test digits.

- sum: the nodes' evidence adds up to the logits (largest difference);
- ink: node importance against "this superpixel has ink" (area under the ROC curve, in percent, mean over the digits);
- deletion: by how much the predicted logit falls when the most important tenth of the edges is taken away, against a
  random tenth (means over the digits, and their ratio).

    python benchmarks/explanations.py lightning_logs/gnn/version_0     # writes results/explanations.json
"""

import argparse
import json
import warnings
from pathlib import Path
from typing import Any

import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from mnist_lightning import GNN, load
from mnist_lightning.data.sources import read
from mnist_lightning.explain.connectivity import Connectivity, connectivity, edge_importance

RESULTS = Path(__file__).parent / "results" / "explanations.json"


def ink_auc(found: Connectivity, importance: Tensor) -> float:
    """In percent; ink is any pixel that is not black."""
    return 100 * float(roc_auc_score(found.x[:, 0] > 0, importance))


def fall(model: GNN, found: Connectivity, removed: Tensor) -> float:
    """How far the predicted logit falls without some edges."""
    kept = torch.ones(len(found.edge_importance), dtype=torch.bool)
    kept[removed] = False
    with torch.no_grad():
        without = model(found.x, found.edge_index[:, kept], found.pos)[0, found.predicted]
    return float(found.logits[found.predicted] - without)


def main() -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--source", default="mnist")
    parser.add_argument("--digits", type=int, default=1000)
    parser.add_argument("--deletions", type=int, default=500)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    model = load(arguments.checkpoint)
    assert isinstance(model, GNN)
    images, labels = read(arguments.source, train=False)
    generator = torch.Generator().manual_seed(0)
    differences, falls, random_falls = [], {"gradient": [], "occlusion": []}, []
    aucs: dict[str, list[float]] = {"evidence for the predicted class": [], "change of evidence over the classes": []}
    for index in range(arguments.digits):
        found = connectivity(model, images[index], int(labels[index]))
        differences.append(float((found.node_evidence.sum(0) - found.logits).abs().max()))
        aucs["evidence for the predicted class"].append(ink_auc(found, found.node_evidence[:, found.predicted].abs()))
        aucs["change of evidence over the classes"].append(ink_auc(found, found.node_evidence.std(dim=1)))
        if index < arguments.deletions:
            count = round(0.1 * len(found.edge_importance))
            falls["gradient"].append(fall(model, found, found.edge_importance.topk(count).indices))
            occluded = edge_importance(model, found.x, found.edge_index, found.pos, found.predicted, "occlusion")
            falls["occlusion"].append(fall(model, found, occluded.topk(count).indices))
            chance = torch.randperm(len(found.edge_importance), generator=generator)[:count]
            random_falls.append(fall(model, found, chance))
    random = sum(random_falls) / len(random_falls)
    results: dict[str, Any] = {
        "digits": arguments.digits,
        "largest_difference_of_evidence_and_logits": max(differences),
        "ink_auc_percent": {name: round(sum(values) / len(values), 2) for name, values in aucs.items()},
        "deletion": {
            "digits": arguments.deletions,
            "fall_at_random": round(random, 3),
            **{
                name: {"fall": round(sum(v) / len(v), 3), "over_random": round(sum(v) / len(v) / random, 2)}
                for name, v in falls.items()
            },
        },
    }
    print(json.dumps(results, indent=2))
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()

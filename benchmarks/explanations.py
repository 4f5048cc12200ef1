"""Faithfulness of a trained GNN's explanations: three tests on test digits.

- sum: the largest difference between the sum of the nodes' evidence and the logits;
- ink: how well node importance finds the superpixels with ink (area under the ROC curve in percent, mean over the
  digits);
- deletion: the decrease of the predicted logit without the most important tenth of the edges, against a random tenth
  (means over the digits, and their ratio).

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


def ink_auc(explanation: Connectivity, importance: Tensor) -> float:
    """Computes the AUC in percent of node importance for superpixels that are not black."""
    return 100 * float(roc_auc_score(explanation.x[:, 0] > 0, importance))


def fall(model: GNN, explanation: Connectivity, removed: Tensor) -> float:
    """Computes the decrease of the predicted logit without some edges."""
    kept = torch.ones(len(explanation.edge_importance), dtype=torch.bool)
    kept[removed] = False
    predicted = explanation.predicted
    with torch.no_grad():
        without = model(explanation.x, explanation.edge_index[:, kept], explanation.pos)[0, predicted]
    return float(explanation.logits[predicted] - without)


def main() -> None:
    """Measures and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="checkpoint or run folder of a GNN")
    parser.add_argument("--source", default="mnist")
    parser.add_argument("--digits", type=int, default=1000, help="number of test digits")
    parser.add_argument("--deletions", type=int, default=500, help="number of test digits of the deletion test")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    model = load(arguments.checkpoint)
    assert isinstance(model, GNN)
    images, labels = read(arguments.source, train=False)
    generator = torch.Generator().manual_seed(0)
    differences, falls, random_falls = [], {"gradient": [], "occlusion": []}, []
    aucs: dict[str, list[float]] = {"evidence for the predicted class": [], "change of evidence over the classes": []}
    for index in range(arguments.digits):
        one = connectivity(model, images[index], int(labels[index]))
        differences.append(float((one.node_evidence.sum(0) - one.logits).abs().max()))
        aucs["evidence for the predicted class"].append(ink_auc(one, one.node_evidence[:, one.predicted].abs()))
        aucs["change of evidence over the classes"].append(ink_auc(one, one.node_evidence.std(dim=1)))
        if index < arguments.deletions:
            count = round(0.1 * len(one.edge_importance))
            falls["gradient"].append(fall(model, one, one.edge_importance.topk(count).indices))
            occluded = edge_importance(model, one.x, one.edge_index, one.pos, one.predicted, "occlusion")
            falls["occlusion"].append(fall(model, one, occluded.topk(count).indices))
            chance = torch.randperm(len(one.edge_importance), generator=generator)[:count]
            random_falls.append(fall(model, one, chance))
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

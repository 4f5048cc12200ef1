"""Whether saliency maps are true: the deletion test over test digits.

For each run, the mean fall of the predicted probability when 10 % of a digit's ink is deleted, the highest-ranked by
each method, and as many pixels of ink at random (mean of 10 draws); and how many times as much that is. Beside it
another reading of "10 % of the pixels": 78 of all 784, which is half of a digit's ink. Errors are standard errors over
the digits.

Grad-CAM's layer and the place of its units are chosen on validation digits, which are measured in the same way: all
layers that it could look at, and the last one stretched over the whole picture, as is usual.

    python benchmarks/gradcam.py lightning_logs/{cnn,lenet,resnet,densenet,mlp}/version_0

It writes results/gradcam.json, in 5 minutes on one core.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import captum
import torch
from captum.attr import LayerAttribution, LayerGradCam
from throughput import machine
from torch import Tensor

from mnist_lightning import MNISTDataModule, load
from mnist_lightning.classifier import Classifier
from mnist_lightning.cli import _keep_freed_memory
from mnist_lightning.explain.gradcam import (
    _maps,
    deletion,
    deletion_curve,
    grad_cam,
    input_gradients,
    occlusion,
    random_orders,
    without_highest,
)
from mnist_lightning.explain.receptive_fields import spatial_layers
from mnist_lightning.files import write_whole

RESULTS = Path(__file__).parent / "results" / "gradcam.json"
METHODS: dict[str, Callable[[Classifier, Tensor], Tensor]] = {
    "grad_cam": grad_cam,
    "input_gradients": input_gradients,
    "occlusion": occlusion,
}
PIXELS = 78  # a tenth of 28 x 28


def summary(drop: Tensor, random: Tensor) -> dict[str, float]:
    """Mean fall, and how many times the random one it is; the ratio's error by the delta method."""
    ratio = drop.mean() / random.mean()
    error = (drop - ratio * random).std() / len(drop) ** 0.5 / random.mean()
    values = {"drop": drop.mean(), "drop_error": drop.std() / len(drop) ** 0.5, "ratio": ratio, "ratio_error": error}
    return {name: round(float(value), 4) for name, value in values.items()}


def by_ink(model: Classifier, digits: Tensor, maps: dict[str, Tensor]) -> dict[str, Any]:
    """A tenth of the ink deleted, in the order of each map and at random."""
    random = deletion(model, digits, next(iter(maps.values()))).random_drop  # the same for every map
    curves = {name: deletion_curve(model, digits, ranking, (0.0, 0.1)) for name, ranking in maps.items()}
    drops = {name: curve[:, 0] - curve[:, 1] for name, curve in curves.items()}
    return {
        "random_drop": round(float(random.mean()), 4),
        **{name: summary(drop, random) for name, drop in drops.items()},
    }


def by_pixels(model: Classifier, digits: Tensor, maps: dict[str, Tensor]) -> dict[str, Any]:
    """78 pixels deleted, half of a digit's ink: the highest of all pixels and of the ink, and of the ink at random."""
    probabilities = model.classify(digits).softmax(dim=1)
    classes = probabilities.argmax(dim=1, keepdim=True)

    def drop(ranking: Tensor) -> Tensor:
        left = model.classify(without_highest(digits, ranking, torch.full((len(digits),), PIXELS)))
        return (probabilities - left.softmax(dim=1)).gather(1, classes)[:, 0]

    def among_ink(ranking: Tensor) -> Tensor:
        return ranking.masked_fill(digits == 0, -torch.inf)

    random = torch.stack([drop(among_ink(order)) for order in random_orders(digits, 10)]).mean(dim=0)
    return {
        "random_drop": round(float(random.mean()), 4),
        "highest_of_all_pixels": {name: summary(drop(ranking), random) for name, ranking in maps.items()},
        "highest_of_the_ink": {name: summary(drop(among_ink(ranking)), random) for name, ranking in maps.items()},
    }


def stretched(model: Classifier, digits: Tensor) -> Tensor:
    """Grad-CAM with the last layer's maps stretched over the whole picture."""
    method = LayerGradCam(model, list(spatial_layers(model))[-1])

    def attribute(pixels: Tensor, target: Tensor) -> Tensor:
        coarse = method.attribute(pixels, target=target, relu_attributions=True)
        return LayerAttribution.interpolate(coarse, (28, 28), "bilinear")

    return _maps(model, digits, None, attribute)


def main() -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--source", default="mnist")
    parser.add_argument("--digits", type=int, default=500)
    arguments = parser.parse_args()
    _keep_freed_memory()
    data = MNISTDataModule(source=arguments.source)
    data.setup("fit")
    chosen = {}
    for split in ("val", "test"):
        images, _ = data.images_and_labels(split)
        chosen[split] = images[
            torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[: arguments.digits]
        ]
    results: dict[str, Any] = {
        **machine(),
        "captum": captum.__version__,
        "digits": arguments.digits,
        "ink_pixels_a_digit": round(float((chosen["test"] > 0).sum(dim=(1, 2)).float().mean()), 1),
    }
    for run in arguments.runs:
        model = load(run)
        layers = spatial_layers(model)
        maps = {name: method(model, chosen["test"]) for name, method in METHODS.items() if layers or name != "grad_cam"}
        found: dict[str, Any] = {
            "deleting_10_%_of_the_ink": by_ink(model, chosen["test"], maps),
            "deleting_78_pixels": by_pixels(model, chosen["test"], maps),
        }
        if layers:
            names = {module: name for name, module in model.named_modules()}
            validation = {names[layer]: grad_cam(model, chosen["val"], layer=layer) for layer in layers}
            validation["the last, stretched"] = stretched(model, chosen["val"])
            measured = by_ink(model, chosen["val"], validation)
            found["layer"] = names[list(layers)[-1]]
            found["validation_ratios"] = {
                name: [measured[name]["ratio"], measured[name]["ratio_error"]] for name in validation
            }
        name = "/".join(Path(run).parts[-2:])
        results[name] = found
        print(name, json.dumps({key: value for key, value in found.items() if key != "validation_ratios"}, indent=2))
    write_whole(RESULTS, (json.dumps(results, indent=2) + "\n").encode())


if __name__ == "__main__":
    main()

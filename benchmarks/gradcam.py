"""Faithfulness of saliency maps: the deletion test on test digits.

For each run: the mean decrease of the predicted probability without the 10 % of a digit's ink that a method ranks
highest, its ratio to the decrease without as many random ink pixels (mean of 10 draws), and standard errors over the
digits. The second test deletes 78 pixels, 10 % of all 784, which is half of a digit's ink.

Grad-CAM's layer and the positions of its units are chosen on validation digits. There, the same test covers all
possible layers, and the last layer stretched over the whole image, which is the usual method.

    python benchmarks/gradcam.py lightning_logs/{cnn,lenet,resnet,densenet,efficientnet,mlp}/version_0

Writes results/gradcam.json, in about 5 minutes on one core.
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
from mnist_lightning.explain.deletion import deletion, deletion_curve, random_orders, without_highest
from mnist_lightning.explain.receptive_fields import spatial_layers
from mnist_lightning.explain.saliency import _maps, grad_cam, input_gradients, occlusion
from mnist_lightning.files import write_whole

RESULTS = Path(__file__).parent / "results" / "gradcam.json"
METHODS: dict[str, Callable[[Classifier, Tensor], Tensor]] = {
    "grad_cam": grad_cam,
    "input_gradients": input_gradients,
    "occlusion": occlusion,
}
PIXELS = 78  # a tenth of 28 x 28


def summary(drop: Tensor, random: Tensor) -> dict[str, float]:
    """Computes the mean decrease and its ratio to the random one, with standard errors (delta method for the ratio)."""
    ratio = drop.mean() / random.mean()
    error = (drop - ratio * random).std() / len(drop) ** 0.5 / random.mean()
    values = {"drop": drop.mean(), "drop_error": drop.std() / len(drop) ** 0.5, "ratio": ratio, "ratio_error": error}
    return {name: round(float(value), 4) for name, value in values.items()}


def by_ink(model: Classifier, digits: Tensor, maps: dict[str, Tensor]) -> dict[str, Any]:
    """Deletes a tenth of the ink, in the order of each map and at random."""
    random = deletion(model, digits, next(iter(maps.values()))).random_drop  # the same for every map
    curves = {name: deletion_curve(model, digits, ranking, (0.0, 0.1)) for name, ranking in maps.items()}
    drops = {name: curve[:, 0] - curve[:, 1] for name, curve in curves.items()}
    return {
        "random_drop": round(float(random.mean()), 4),
        **{name: summary(drop, random) for name, drop in drops.items()},
    }


def by_pixels(model: Classifier, digits: Tensor, maps: dict[str, Tensor]) -> dict[str, Any]:
    """Deletes 78 pixels, half of a digit's ink: the highest of all pixels, the highest of the ink, and random ink."""
    probabilities = model.classify(digits).softmax(dim=1)
    classes = probabilities.argmax(dim=1, keepdim=True)

    def drop(ranking: Tensor) -> Tensor:
        remaining = without_highest(digits, ranking, torch.full((len(digits),), PIXELS))
        return (probabilities - model.classify(remaining).softmax(dim=1)).gather(1, classes)[:, 0]

    def among_ink(ranking: Tensor) -> Tensor:
        return ranking.masked_fill(digits == 0, -torch.inf)

    random = torch.stack([drop(among_ink(order)) for order in random_orders(digits, 10)]).mean(dim=0)
    return {
        "random_drop": round(float(random.mean()), 4),
        "highest_of_all_pixels": {name: summary(drop(ranking), random) for name, ranking in maps.items()},
        "highest_of_the_ink": {name: summary(drop(among_ink(ranking)), random) for name, ranking in maps.items()},
    }


def stretched(model: Classifier, digits: Tensor) -> Tensor:
    """Computes Grad-CAM with the last layer's maps stretched over the whole image."""
    method = LayerGradCam(model, list(spatial_layers(model))[-1])

    def attribute(pixels: Tensor, target: Tensor) -> Tensor:
        coarse = method.attribute(pixels, target=target, relu_attributions=True)
        return LayerAttribution.interpolate(coarse, (28, 28), "bilinear")

    return _maps(model, digits, None, attribute)


def main() -> None:
    """Measures and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", help="run folders or checkpoints of image models")
    parser.add_argument("--source", default="mnist")
    parser.add_argument("--digits", type=int, default=500, help="number of digits of each split")
    arguments = parser.parse_args()
    _keep_freed_memory()
    data = MNISTDataModule(source=arguments.source)
    data.setup("fit")
    digits = {}
    for split in ("val", "test"):
        images, _ = data.images_and_labels(split)
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
        digits[split] = images[order[: arguments.digits]]
    results: dict[str, Any] = {
        **machine(),
        "captum": captum.__version__,
        "digits": arguments.digits,
        "ink_pixels_a_digit": round(float((digits["test"] > 0).sum(dim=(1, 2)).float().mean()), 1),
    }
    for run in arguments.runs:
        model = load(run)
        layers = spatial_layers(model)
        maps = {name: method(model, digits["test"]) for name, method in METHODS.items() if layers or name != "grad_cam"}
        result: dict[str, Any] = {
            "deleting_10_%_of_the_ink": by_ink(model, digits["test"], maps),
            "deleting_78_pixels": by_pixels(model, digits["test"], maps),
        }
        if layers:
            names = {module: name for name, module in model.named_modules()}
            validation = {names[layer]: grad_cam(model, digits["val"], layer=layer) for layer in layers}
            validation["the last, stretched"] = stretched(model, digits["val"])
            measured = by_ink(model, digits["val"], validation)
            result["layer"] = names[list(layers)[-1]]
            result["validation_ratios"] = {
                name: [measured[name]["ratio"], measured[name]["ratio_error"]] for name in validation
            }
        name = "/".join(Path(run).parts[-2:])
        results[name] = result
        print(name, json.dumps({key: value for key, value in result.items() if key != "validation_ratios"}, indent=2))
    write_whole(RESULTS, (json.dumps(results, indent=2) + "\n").encode())


if __name__ == "__main__":
    main()

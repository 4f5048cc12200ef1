"""Accuracy on digits anywhere on a page, prepared by `data.handwriting` and by naive resizing.

Each test digit is pasted at a random position of a 280x280 canvas, enlarged 1 to 8 times, dark on light or light on
dark, with noise, and with light that falls off to one side by up to a half. Both methods then convert the canvas back
to 28x28. The seed is fixed.

    python benchmarks/handwriting.py RUN...         # writes results/handwriting.json and .png
"""

import argparse
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from throughput import machine

from mnist_lightning import InputError, load
from mnist_lightning.data.handwriting import digit_of
from mnist_lightning.data.sources import read

RESULTS = Path(__file__).parent / "results" / "handwriting.json"
SIDE = 280


def canvas(digit: NDArray[np.uint8], random: np.random.Generator) -> Image.Image:
    """Pastes a digit at a random position of a page."""
    size = round(28 * random.uniform(1, 8))
    top, left = random.integers(0, SIDE - size + 1, 2)
    ink = np.zeros((SIDE, SIDE))
    ink[top : top + size, left : left + size] = (
        np.asarray(Image.fromarray(digit).resize((size, size), Image.Resampling.BICUBIC)) / 255
    )
    dark, light = random.uniform(0.0, 0.25), random.uniform(0.75, 1.0)
    paper, pen = (light, dark) if random.random() < 0.5 else (dark, light)
    page = paper + (pen - paper) * ink
    angle, fall = random.uniform(0, 2 * np.pi), random.uniform(0, 0.5)
    y, x = np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j]
    along = (np.sin(angle) * y + np.cos(angle) * x) / (abs(np.sin(angle)) + abs(np.cos(angle)))
    page = page * (1 - fall * (along + 1) / 2)
    page += random.normal(0, random.uniform(0, 0.05), page.shape)
    return Image.fromarray(np.uint8(255 * page.clip(0, 1)))


def naive(picture: Image.Image) -> torch.Tensor:
    """Resizes a picture to 28x28, and inverts it if it is light, as demos do."""
    small = torch.from_numpy(np.array(picture.resize((28, 28), Image.Resampling.BILINEAR)))
    return 255 - small if small.float().mean() > 127 else small


def ours(picture: Image.Image) -> torch.Tensor:
    """Prepares a picture with `digit_of`. If it finds no digit, the picture is empty and counts as a mistake."""
    try:
        return digit_of(picture)
    except InputError:
        return torch.zeros(28, 28, dtype=torch.uint8)


def recovered(digit: torch.Tensor, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pastes a digit on a page and recovers it with both methods."""
    picture = canvas(digit.numpy(), np.random.default_rng([0, seed]))
    return ours(picture), naive(picture)


def sheet(digits: torch.Tensor) -> Image.Image:
    """Draws one column per digit: the page, the naively resized digit, and the digit of `digit_of`."""
    columns = []
    for seed, digit in enumerate(digits):
        picture = canvas(digit.numpy(), np.random.default_rng([0, seed]))
        small = [Image.fromarray(way(picture).numpy()).resize((112, 112), 0) for way in (naive, ours)]
        columns.append(np.concatenate([np.asarray(part) for part in (picture.resize((112, 112)), *small)]))
    return Image.fromarray(np.concatenate(columns, axis=1))


def main() -> None:
    """Measures and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", help="run folders or checkpoints")
    parser.add_argument("--count", type=int, default=10_000, help="number of test digits")
    parser.add_argument("--validation", action="store_true", help="use the last training digits, for development")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    images, labels = read("mnist", train=arguments.validation)
    images, labels = images[-arguments.count :], labels[-arguments.count :]
    with ThreadPoolExecutor() as pool:
        pairs = list(pool.map(recovered, images, range(len(images))))
    prepared, resized = (torch.stack(part) for part in zip(*pairs, strict=True))
    not_found = int((prepared.amax((1, 2)) == 0).sum())
    results: dict[str, Any] = {**machine(), "digits": len(images), "not_found": not_found}
    for run in arguments.runs:
        model = load(run)

        def accuracy(digits: torch.Tensor, model: Any = model) -> float:
            return round(100 * float((model.classify(digits).argmax(1) == labels).float().mean()), 2)

        ways = {"clean": images, "handwriting": prepared, "naive": resized}
        results[type(model).__name__] = {way: accuracy(digits) for way, digits in ways.items()}
        print(type(model).__name__, results[type(model).__name__], flush=True)
    sheet(images[:8]).save(arguments.output.with_suffix(".png"))
    arguments.output.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()

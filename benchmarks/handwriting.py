"""Whether digits survive being written somewhere on a page: accuracy by `handwriting` and by naive resizing.

Each test digit is pasted on a canvas of 280x280 at a random place, 1 to 8 times as large, dark on light or light on
dark, under light that falls off to one side by up to a half, with noise; then it is brought back. The seed is fixed.

    python benchmarks/handwriting.py RUN...         # of image models; writes results/handwriting.json and .png
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
    """A digit somewhere on a page."""
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
    """What demonstrations do: turn it if it is light, and make it small."""
    small = torch.from_numpy(np.array(picture.resize((28, 28), Image.Resampling.BILINEAR)))
    return 255 - small if small.float().mean() > 127 else small


def ours(picture: Image.Image) -> torch.Tensor:
    """`digit_of`; a digit that is not found is an empty picture, and so a mistake."""
    try:
        return digit_of(picture)
    except InputError:
        return torch.zeros(28, 28, dtype=torch.uint8)


def brought_back(digit: torch.Tensor, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The digit from its canvas, both ways."""
    picture = canvas(digit.numpy(), np.random.default_rng([0, seed]))
    return ours(picture), naive(picture)


def sheet(digits: torch.Tensor) -> Image.Image:
    """In columns: the canvas, what naive resizing makes of it, and `handwriting`."""
    columns = []
    for seed, digit in enumerate(digits):
        picture = canvas(digit.numpy(), np.random.default_rng([0, seed]))
        small = [Image.fromarray(way(picture).numpy()).resize((112, 112), 0) for way in (naive, ours)]
        columns.append(np.concatenate([np.asarray(part) for part in (picture.resize((112, 112)), *small)]))
    return Image.fromarray(np.concatenate(columns, axis=1))


def main() -> None:
    """Measures and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", help="folders of runs, or checkpoints")
    parser.add_argument("--count", type=int, default=10_000, help="how many of the test digits")
    parser.add_argument("--validation", action="store_true", help="the last training digits instead, to develop with")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    images, labels = read("mnist", train=arguments.validation)
    images, labels = images[-arguments.count :], labels[-arguments.count :]
    with ThreadPoolExecutor() as pool:
        pairs = list(pool.map(brought_back, images, range(len(images))))
    found, resized = (torch.stack(part) for part in zip(*pairs, strict=True))
    results: dict[str, Any] = {**machine(), "digits": len(images), "not_found": int((found.amax((1, 2)) == 0).sum())}
    for run in arguments.runs:
        model = load(run)

        def accuracy(digits: torch.Tensor, model: Any = model) -> float:
            return round(100 * float((model.classify(digits).argmax(1) == labels).float().mean()), 2)

        ways = {"clean": images, "handwriting": found, "naive": resized}
        results[type(model).__name__] = {way: accuracy(digits) for way, digits in ways.items()}
        print(type(model).__name__, results[type(model).__name__], flush=True)
    sheet(images[:8]).save(arguments.output.with_suffix(".png"))
    arguments.output.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()

"""`mnist-lightning explore`: from a source to a report of its images."""

from collections.abc import Iterator
from html import escape
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from mnist_lightning.classifier import CLASSES
from mnist_lightning.data.sources import read
from mnist_lightning.evaluation.exploration import Exploration, explore, map_of_sample
from mnist_lightning.evaluation.figures import digit_sheet
from mnist_lightning.evaluation.page import page, picture
from mnist_lightning.files import write_whole

_COLOURS = [f"C{digit}" for digit in range(CLASSES)]


def write_data_report(source: str = "mnist", root: str | None = None, output: str = "data-report") -> Path:
    """Describes a data set: classes, intensities, sizes, neighbours, outliers, doubtful labels.

    Args:
        source: Which, as in --data.source.
        root: Folder of the data; by default $MNIST_LIGHTNING_DATA, else `data`.
        output: Folder to write index.html and the pictures to.

    Returns:
        The page.

    Raises:
        InputError: If the source is not on disk, or is damaged.
    """
    found = explore(source, read(source, root, train=True), read(source, root, train=False))
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    body = [*_facts(found), '<div class="pictures">']
    for name, figure, caption in _drawn(found):
        body.append(picture(figure, caption, folder / f"{name}.png"))
    body.append("</div>")
    write_whole(folder / "index.html", page(f"The data: {source}", body).encode())
    return folder / "index.html"


def _facts(found: Exploration) -> Iterator[str]:
    """Tables and sentences."""
    train, test = found.counts(train=True), found.counts(train=False)
    yield f"<header><h1>The data: {escape(found.source)}</h1>"
    yield f"<p>{sum(train):,} training images (validation included), {sum(test):,} test images, 28 x 28 pixels.</p>"
    yield "</header>"
    yield '<div class="scroll"><table><thead><tr><th></th>'
    yield "".join(f"<th>{digit}</th>" for digit in range(CLASSES)) + "<th>all</th></tr></thead>"
    for name, counts in (("training", train), ("test", test)):
        yield f"<tr><td>{name}</td>" + "".join(f"<td>{n:,}</td>" for n in (*counts, sum(counts))) + "</tr>"
    for name, values, form in (
        ("mean intensity", _by_class(found, found.ink), ".3f"),
        ("height", _by_class(found, found.boxes[:, 0].float()), ".1f"),
        ("width", _by_class(found, found.boxes[:, 1].float()), ".1f"),
        ("variability", [*found.variability.tolist(), float(found.variability.mean())], ".2f"),
    ):
        yield f"<tr><td>{name}</td>" + "".join(f"<td>{value:{form}}</td>" for value in values) + "</tr>"
    yield "</table></div>"
    duplicates = found.duplicates()
    pairs = ", ".join(f"{found.name(a)} = {found.name(b)}" for a, b in duplicates[:20])
    more = ", …" if len(duplicates) > 20 else ""
    yield f"<p>Equal images: {len(duplicates)}{': ' if duplicates else ''}{pairs}{more}.</p>"
    across = sum(a < found.train <= b for a, b in duplicates)
    yield f"<p>Test images that are in the training part, pixel by pixel: {across}.</p>"
    centre = found.centres[found.ink > 0].mean(dim=0)
    yield f"<p>Mean centre of mass: row {centre[0]:.2f}, column {centre[1]:.2f} (the middle is 14). "
    yield f"Black pixels: {100 * (found.images == 0).float().mean():.1f} %.</p>"


def _by_class(found: Exploration, values: torch.Tensor) -> list[float]:
    return [*(float(values[found.labels == c].mean()) for c in range(CLASSES)), float(values.mean())]


def _drawn(found: Exploration) -> Iterator[tuple[str, Figure, str]]:
    yield "class-balance", _balance(found), "Images of each class; the line is the mean."
    names = [str(digit) for digit in range(CLASSES)]
    yield "mean-images", digit_sheet(found.means.byte(), names, "Mean image of each class"), "Training images."
    spread = (found.deviations * 2).clamp_max(255).byte()
    yield "deviation-images", digit_sheet(spread, names, "Where a class varies"), "Standard deviation of each pixel."
    first = torch.cat([(found.labels == digit).nonzero().flatten()[:2] for digit in range(CLASSES)])
    yield (
        "samples",
        digit_sheet(found.images[first], [_caption(found, i) for i in first.tolist()], "Samples"),
        "Two a class.",
    )
    yield "intensity", _histograms(found), "Pixels that are not black, and ink by class."
    yield "sizes", _sizes(found), "Height and width of the digits, and where their centres of mass are."
    yield "pca", _map(found, *_first_two(found)), "The first two principal components."
    yield "t-sne", _map(found, *map_of_sample(found)), "t-SNE of a random sample: near is alike, far says little."
    pairs = found.closest_across(10)
    images = found.images[torch.tensor([i for a, b, _ in pairs for i in (a, b)], dtype=torch.long)]
    captions = [f"{_caption(found, i)}\ndistance {d:.2f}" for a, b, d in pairs for i in (a, b)]
    yield (
        "near-duplicates",
        digit_sheet(images, captions, "Test images most like a training image"),
        "Pairs, side by side.",
    )
    doubtful = found.suspicious()
    captions = [f"{_caption(found, i)}\n{100 * share:.0f} % of neighbours: {other}" for i, other, share in doubtful]
    images = found.images[torch.tensor([i for i, _, _ in doubtful], dtype=torch.long)]
    yield (
        "suspicious-labels",
        digit_sheet(images, captions, "Labels that the neighbours doubt"),
        "Look before you mend.",
    )
    lonely = found.outliers()
    captions = [_caption(found, i) for i in lonely]
    yield (
        "outliers",
        digit_sheet(found.images[lonely], captions, "Outliers"),
        "Of each class the two that are farthest from their neighbours.",
    )


def _caption(found: Exploration, index: int) -> str:
    return f"{found.name(index)}: {found.labels[index]}"


def _balance(found: Exploration) -> Figure:
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    for axes, train, title in zip(figure.subplots(1, 2), (True, False), ("training", "test"), strict=True):
        counts = found.counts(train)
        axes.bar(range(CLASSES), counts, color=_COLOURS)
        axes.axhline(np.mean(counts), color="#555555", linewidth=1)
        axes.set(xticks=range(CLASSES), title=title, xlabel="digit")
    return figure


def _histograms(found: Exploration) -> Figure:
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    counts = torch.bincount(found.images.flatten().int(), minlength=256)[1:]
    left.bar(range(1, 256), counts.numpy(), width=1, color="#0072B2")
    left.set(xlabel="intensity", ylabel="pixels", yscale="log")
    right.boxplot(
        [found.ink[found.labels == c].numpy() for c in range(CLASSES)], positions=range(CLASSES), showfliers=False
    )
    right.set(xlabel="digit", ylabel="mean intensity of an image")
    return figure


def _sizes(found: Exploration) -> Figure:
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    heights, widths = found.boxes.t().numpy()
    bins = np.arange(30) - 0.5
    left.hist2d(widths, heights, bins=(bins, bins), cmap="Blues", norm="log")
    left.set(xlabel="width", ylabel="height", aspect="equal")
    inked = found.centres[found.ink > 0].numpy()
    right.hist2d(inked[:, 1], inked[:, 0], bins=60, range=((11, 18), (11, 18)), cmap="Blues", norm="log")
    right.set(xlabel="column of the centre of mass", ylabel="row", aspect="equal")
    right.invert_yaxis()
    return figure


def _first_two(found: Exploration) -> tuple[np.ndarray, np.ndarray]:
    sample = np.random.default_rng(0).permutation(len(found.labels))[:5000]
    return sample, found.components[torch.from_numpy(sample), :2].numpy()


def _map(found: Exploration, sample: np.ndarray, places: np.ndarray) -> Figure:
    figure = Figure(figsize=(6.5, 6), layout="constrained")
    axes = figure.subplots()
    labels = found.labels.numpy()[sample]
    for digit in range(CLASSES):
        x, y = places[labels == digit].T
        # Digits as marks: ten colours alone are too many to tell apart.
        axes.scatter(x, y, s=22, marker=f"${digit}$", color=_COLOURS[digit], linewidths=0.3, alpha=0.7)
    axes.set(xticks=[], yticks=[])
    return figure

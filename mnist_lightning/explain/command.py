"""`mnist-lightning connectivity`: from a checkpoint and some digits to a page or a picture."""

import json
from io import BytesIO
from pathlib import Path

import torch
from torch import Tensor

from mnist_lightning.checkpoint import find_checkpoint, load
from mnist_lightning.data.handwriting import digit_of, open_picture
from mnist_lightning.data.sources import read
from mnist_lightning.errors import InputError
from mnist_lightning.explain.connectivity import Method, connectivity
from mnist_lightning.explain.drawings import connectivity_sheet
from mnist_lightning.explain.page import connectivity_page
from mnist_lightning.files import write_whole
from mnist_lightning.models.gnn import GNN


def write_connectivity(
    checkpoint: str,
    index: int | None = None,
    indices: str | None = None,
    image: str | None = None,
    output: str = "connectivity.html",
    method: Method = "gradient",
    target: int | None = None,
    source: str | None = None,
    root: str | None = None,
) -> Path:
    """Shows through which superpixels and edges a GNN recognises digits.

    Without `index`, `indices` and `image` it shows the first test digit of each class.

    Args:
        checkpoint: A checkpoint of a GNN, or a run's folder, whose best checkpoint is taken.
        index: Number of a test image.
        indices: Numbers of several, as in 0,7,42.
        image: A picture of a digit of your own, in its place.
        output: File to write: an interactive page (.html), or a picture (.png, .svg, .pdf).
        method: How the edges' importance is found: the logit's gradient, its fall without the edge (occlusion), PyG's
            GNNExplainer, or the attention of a GNN that has some.
        target: Class that the edges' importance is about; by default the predicted one.
        source: Where the test images come from; by default what the run was trained on.
        root: Folder of the data; by default $MNIST_LIGHTNING_DATA, else `data`.

    Returns:
        The file that was written.

    Raises:
        InputError: If a file or an argument cannot be used.
    """
    path = Path(output)
    if path.suffix not in (".html", ".png", ".svg", ".pdf"):
        raise InputError(f"output is {output}; it must end in .html, .png, .svg or .pdf")
    if not path.absolute().parent.is_dir():
        raise InputError(f"there is no folder {path.absolute().parent} to write {path.name} to")
    if sum(given is not None for given in (index, indices, image)) > 1:
        raise InputError("give one of index, indices and image")
    model = load(checkpoint)
    if not isinstance(model, GNN):
        raise InputError(f"{checkpoint} holds a {type(model).__name__}; connectivity explains a GNN")
    if image is not None:
        digits: list[tuple[str, Tensor, int | None]]
        digits = [(Path(image).name, digit_of(open_picture(image), image), None)]
    else:
        digits = _test_digits(source or _source(checkpoint), root, index, indices)
    found = [connectivity(model, picture, label, target, method) for _, picture, label in digits]
    if path.suffix == ".html":
        names = [name for name, _, _ in digits]
        write_whole(path, connectivity_page(found, names, str(Path(checkpoint))).encode())
    else:
        content = BytesIO()
        connectivity_sheet(found).savefig(content, format=path.suffix[1:], dpi=110)
        write_whole(path, content.getvalue())
    return path


def _source(checkpoint: str) -> str:
    """What the run was trained on, where its folder still says so."""
    summary = find_checkpoint(checkpoint).parent.with_name("summary.json")
    return str(json.loads(summary.read_text())["source"]) if summary.is_file() else "mnist"


def _test_digits(
    source: str, root: str | None, index: int | None, indices: str | None
) -> list[tuple[str, Tensor, int | None]]:
    images, labels = read(source, root, train=False)
    if index is not None:
        rows = [index]
    elif indices is not None:
        words = indices.replace(",", " ").split()
        if not words or not all(word.isdecimal() for word in words):
            raise InputError(f"indices is {indices!r}; it must be numbers with commas between them, as in 0,7,42")
        rows = [int(word) for word in words]
    else:
        rows = [int((labels == digit).nonzero()[0]) for digit in torch.unique(labels)]
    for row in rows:
        if not 0 <= row < len(images):
            raise InputError(
                f"there is no test image {row}: {source} has {len(images):,}, from 0 to {len(images) - 1:,}"
            )
    return [(f"{source}, test image {row}", images[row], int(labels[row])) for row in rows]

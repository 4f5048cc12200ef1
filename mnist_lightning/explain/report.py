"""The verbs `connectivity` and `gradcam`: explain predictions for test digits or for a picture."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from mnist_lightning.errors import InputError
from mnist_lightning.explain import Method
from mnist_lightning.files import replacing, writable, write_whole
from mnist_lightning.runs.run import Run

if TYPE_CHECKING:  # `VERB --help` answers before these are imported
    from torch import Tensor

    from mnist_lightning.classifier import Classifier
    from mnist_lightning.explain.figures import Saliency


def explain_connectivity(
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
    """Shows which superpixels and edges a GNN's predictions are based on.

    Without `index`, `indices` and `image`, it explains the first test digit of each class.

    Args:
        checkpoint: Checkpoint of a GNN, a run folder, or a folder that contains runs of one experiment.
        index: Index of a test image.
        indices: Indices of several test images, such as 0,7,42.
        image: Picture of a handwritten digit to explain instead of test images.
        output: File to write: an interactive page (.html) or a figure (.png, .svg, .pdf).
        method: Measure of edge importance: gradient of the logit, decrease of the logit without the edge (occlusion),
            PyG's GNNExplainer, or attention coefficients (conv gat only).
        target: Class that the edge importance explains. Default: the predicted class.
        source: Data source of the test images. Default: the source that the run was trained on.
        root: Folder of the data. Default: $MNIST_LIGHTNING_DATA, or `data` if that is not set.

    Returns:
        Path of the written file.

    Raises:
        InputError: If a file or an argument cannot be used.
    """
    path = writable(output, [".html", ".png", ".svg", ".pdf"], _inputs(checkpoint, image, source))
    from mnist_lightning.explain.connectivity import connectivity
    from mnist_lightning.models.gnn import GNN
    from mnist_lightning.runs.checkpoint import find_checkpoint, load

    checkpoint = str(find_checkpoint(checkpoint))
    model = load(checkpoint)
    if not isinstance(model, GNN):
        name = type(model).__name__
        raise InputError(f"connectivity needs a GNN, but {checkpoint} contains a {name}; explain it with gradcam")
    digits = choose_digits(checkpoint, index, indices, image, source, root)
    explanations = [connectivity(model, digit.image, digit.label, target, method) for digit in digits]
    if path.suffix == ".html":
        from mnist_lightning.explain.page import connectivity_page

        page = connectivity_page(explanations, [digit.name for digit in digits], str(Path(checkpoint)))
        write_whole(path, page)
    else:
        from mnist_lightning.explain.figures import connectivity_sheet

        figure = connectivity_sheet(explanations)
        with replacing(path) as temporary:
            figure.savefig(temporary, format=path.suffix[1:], dpi=110)
    return path


def explain_saliency(
    checkpoint: str,
    index: int | None = None,
    indices: str | None = None,
    image: str | None = None,
    output: str = "gradcam.png",
    target: int | None = None,
    source: str | None = None,
    root: str | None = None,
) -> Path:
    """Shows which pixels an image model's predictions are based on, and tests the saliency maps by deletion.

    The maps are Grad-CAM (for models with convolutions), input gradients and occlusion. Without `index`, `indices` and
    `image`, it explains the first test digit of each class.

    Args:
        checkpoint: Checkpoint of an image model, a run folder, or a folder that contains runs of one experiment.
        index: Index of a test image.
        indices: Indices of several test images, such as 0,7,42.
        image: Picture of a handwritten digit to explain instead of test images.
        output: Figure to write (.png, .svg, .pdf).
        target: Class to explain. Default: the predicted class.
        source: Data source of the test images. Default: the source that the run was trained on.
        root: Folder of the data. Default: $MNIST_LIGHTNING_DATA, or `data` if that is not set.

    Returns:
        Path of the written file.

    Raises:
        InputError: If a file or an argument cannot be used.
    """
    path = writable(output, [".png", ".svg", ".pdf"], _inputs(checkpoint, image, source))
    from mnist_lightning.explain.figures import saliency_sheet
    from mnist_lightning.runs.checkpoint import find_checkpoint, load

    checkpoint = str(find_checkpoint(checkpoint))
    model = load(checkpoint)
    digits = choose_digits(checkpoint, index, indices, image, source, root)
    figure = saliency_sheet(saliency_of_digits(model, digits, target))
    with replacing(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:], dpi=110)
    return path


class Digit(NamedTuple):
    """A digit to explain.

    Attributes:
        name: Name shown to the reader, such as `mnist, test image 7`.
        image: uint8 [28, 28].
        label: Class, None if unknown.
    """

    name: str
    image: "Tensor"
    label: int | None


def choose_digits(
    checkpoint: str, index: int | None, indices: str | None, image: str | None, source: str | None, root: str | None
) -> list[Digit]:
    """Reads the digits that the arguments of a verb name: test images or one picture.

    Args:
        checkpoint: Checkpoint. Its run names the default source.
        index: Index of a test image.
        indices: Indices of several test images, such as 0,7,42.
        image: Picture of a handwritten digit.
        source: Data source of the test images. Default: that of the run, or `mnist` if there is no finished run.
        root: Folder of the data.

    Returns:
        The digits. Without `index`, `indices` and `image`, the first test image of each class.

    Raises:
        InputError: If the arguments contradict each other, or a digit does not exist.
    """
    if sum(argument is not None for argument in (index, indices, image)) > 1:
        raise InputError("give only one of index, indices and image")
    if image is not None:
        from mnist_lightning.data.handwriting import digit_of, open_picture

        return [Digit(Path(image).name, digit_of(open_picture(image), image), None)]
    from mnist_lightning.data.sources import fetch, read

    source = source or _source_of(checkpoint)
    fetch(source, root)
    images, labels = read(source, root, train=False)
    count = len(images)
    if index is not None:
        rows = [index]
    elif indices is not None:
        words = indices.replace(",", " ").split()
        if not words or not all(word.isdecimal() for word in words):
            raise InputError(f"indices must be numbers separated by commas, such as 0,7,42, got {indices!r}")
        rows = [int(word) for word in words]
    else:
        rows = [int((labels == label).nonzero()[0]) for label in sorted(set(labels.tolist()))]
    if absent := [row for row in rows if not 0 <= row < count]:
        raise InputError(f"there is no test image {absent[0]}: {source} has {count:,} test images, 0 to {count - 1:,}")
    return [Digit(f"{source}, test image {row}", images[row], int(labels[row])) for row in rows]


def _inputs(checkpoint: str, image: str | None, source: str | None) -> Iterator[str | Path]:
    """Files that a verb reads, and the run's folder."""
    yield checkpoint
    if image is not None:
        yield image
    elif (source := source or _source_of(checkpoint)).startswith("folder:"):
        yield from Path(source[7:]).expanduser().rglob("*")


def _source_of(checkpoint: str) -> str:
    run = Run.of(checkpoint)
    try:
        return run.source if run is not None and run.is_finished else "mnist"
    except InputError as error:
        raise InputError(f"{error}; name the source of the test images with --source") from error


def saliency_of_digits(model: "Classifier", digits: Sequence[Digit], target: int | None = None) -> "Saliency":
    """Computes the saliency maps of digits and tests the maps by deletion.

    Args:
        model: Trained image model in evaluation mode.
        digits: Digits to explain.
        target: Class to explain. Default: the predicted class of each digit.

    Raises:
        InputError: If the target is invalid, or the model does not take images.
    """
    import torch

    from mnist_lightning.explain.deletion import deletion_curve, random_orders
    from mnist_lightning.explain.figures import CURVES, GRAD_CAM, SHARES, Saliency
    from mnist_lightning.explain.receptive_fields import spatial_layers
    from mnist_lightning.explain.saliency import grad_cam, input_gradients, occlusion

    images = torch.stack([digit.image for digit in digits])
    probabilities = model.classify(images).softmax(dim=1)
    targets = probabilities.argmax(dim=1) if target is None else torch.full((len(images),), target)
    methods = dict(zip(CURVES, (grad_cam, input_gradients, occlusion), strict=True))
    if not spatial_layers(model):
        del methods[GRAD_CAM]
    maps = {name: method(model, images, targets) for name, method in methods.items()}
    runners_up = probabilities.scatter(1, targets[:, None], -1).argmax(dim=1)
    runner_up_maps = grad_cam(model, images, runners_up) if GRAD_CAM in maps else None
    intact = probabilities.gather(1, targets[:, None])

    def curve(rankings: "Tensor") -> "Tensor":
        return torch.cat([intact, deletion_curve(model, images, rankings, SHARES[1:], targets)], dim=1)

    curves = {name: curve(rankings) for name, rankings in maps.items()}
    random_curves = torch.stack([curve(order) for order in random_orders(images, 10)], dim=1)
    return Saliency(digits, probabilities, targets, runners_up, maps, runner_up_maps, curves, random_curves)

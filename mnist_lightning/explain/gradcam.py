"""Which pixels an image model recognises a digit by: saliency maps, their check by deletion, and the verb `gradcam`."""

from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mnist_lightning.checkpoint import load
from mnist_lightning.classifier import CLASSES, Classifier
from mnist_lightning.errors import InputError
from mnist_lightning.explain.digits import digits_asked_for
from mnist_lightning.explain.receptive_fields import SIDE, spatial_layers
from mnist_lightning.files import writable, write_whole


class Deletion(NamedTuple):
    """How far the probability of each digit's class falls when ink is deleted.

    Attributes:
        drop: float [N], without the ink that a map ranks highest.
        random_drop: float [N], without as many pixels of ink at random; the mean of several choices.
    """

    drop: Tensor
    random_drop: Tensor


def grad_cam(
    model: Classifier, digits: Tensor, targets: Tensor | None = None, layer: nn.Module | None = None
) -> Tensor:
    """Where the maps of a convolutional network speak for a class.

    Selvaraju et al. 2017 ("Grad-CAM", section 3, equations 1 and 2), by Captum: the sum of a layer's maps, each
    weighted by the mean of the logit's gradient, where that sum is positive. It is brought to 28x28 bilinearly, with
    each unit in the middle of its receptive field; stretched over the whole picture, as is usual, it can lie three
    pixels beside what it is about.

    Args:
        model: A trained one with convolutions, in evaluation mode, on any device.
        digits: uint8 [N, 28, 28].
        targets: int64 [N], the classes; by default the predicted ones.
        layer: One of `spatial_layers`; by default the last.

    Returns:
        float [N, 28, 28], on the CPU, 0 or more.

    Raises:
        InputError: If the model has no convolutions or takes no pixels, or these are no digits or no classes.

    Example:
        >>> from mnist_lightning import CNN
        >>> from mnist_lightning.data.sources import read
        >>> digits, _ = read("digits", train=False)
        >>> grad_cam(CNN().eval(), digits[:2]).shape
        torch.Size([2, 28, 28])
    """
    from captum.attr import LayerGradCam

    _refuse_graphs(model)
    layers = spatial_layers(model)
    if not layers:
        raise InputError(
            f"{type(model).__name__} has no convolutional maps, of which Grad-CAM is made; input gradients and "
            "occlusion remain"
        )
    layer = layer or list(layers)[-1]
    rows, columns = (grid.weights() for grid in layers[layer])
    method = LayerGradCam(model, layer)

    def attribute(pixels: Tensor, target: Tensor) -> Tensor:
        coarse = method.attribute(pixels, target=target, relu_attributions=True).cpu()
        return torch.einsum("ri,bkij,cj->bkrc", rows, coarse, columns)

    return _maps(model, digits, targets, attribute)


def input_gradients(model: Classifier, digits: Tensor, targets: Tensor | None = None) -> Tensor:
    """What each pixel adds to a class's logit, as far as that is linear: the logit's gradient, times the pixel.

    The gradient is that of Simonyan, Vedaldi and Zisserman 2014 ("Deep inside convolutional networks", section 3), its
    product with the pixel that of Shrikumar et al. 2016 ("Not just a black box"), by Captum's `InputXGradient`. The
    product is the first-order estimate of what deleting the pixel takes from the logit; the gradient's magnitude alone
    says as much about pixels that are black.

    Args:
        model: A trained one, in evaluation mode, on any device.
        digits: uint8 [N, 28, 28].
        targets: int64 [N], the classes; by default the predicted ones.

    Returns:
        float [N, 28, 28], on the CPU; negative where a pixel speaks against the class.

    Raises:
        InputError: If the model takes no pixels, or these are no digits or no classes.

    Example:
        >>> from mnist_lightning import MLP
        >>> from mnist_lightning.data.sources import read
        >>> digits, _ = read("digits", train=False)
        >>> bool((input_gradients(MLP().eval(), digits[:2])[digits[:2] == 0] == 0).all())
        True
    """
    from captum.attr import InputXGradient

    return _maps(model, digits, targets, InputXGradient(model).attribute)


def occlusion(model: Classifier, digits: Tensor, targets: Tensor | None = None) -> Tensor:
    """How far a class's log-probability falls when 3x3 pixels are blackened; a pixel gets the mean of its nine windows.

    Zeiler and Fergus 2014 ("Visualizing and understanding convolutional networks", section 4.2), by Captum. They map
    the probability; its logarithm ranks the windows in the same way, and can still tell them apart where it is near 1.

    Args:
        model: A trained one, in evaluation mode, on any device.
        digits: uint8 [N, 28, 28].
        targets: int64 [N], the classes; by default the predicted ones.

    Returns:
        float [N, 28, 28], on the CPU; negative where the class gains from the occlusion.

    Raises:
        InputError: If the model takes no pixels, or these are no digits or no classes.
    """
    from captum.attr import Occlusion

    # In 64 bits, because in 32 the logarithm of what is nearly 1 is 0.
    method = Occlusion(lambda pixels: model(pixels).double().log_softmax(dim=1))

    def attribute(pixels: Tensor, target: Tensor) -> Tensor:
        windows_at_once = max(1, 512 // len(pixels))
        falls: Tensor = method.attribute(pixels, (1, 3, 3), target=target, perturbations_per_eval=windows_at_once)
        return falls.float()

    return _maps(model, digits, targets, attribute)


def deletion(
    model: Classifier,
    digits: Tensor,
    ranking: Tensor,
    share: float = 0.1,
    targets: Tensor | None = None,
    draws: int = 10,
) -> Deletion:
    """Whether a map is true: what the deletion of the ink that it ranks highest does, beside that of random ink.

    Both delete equally many pixels, `share` of the digit's ink, and both choose among the ink (what is not black): no
    map can win by blackening more, nor lose by pointing at background, which cannot be deleted. Pixels of equal rank
    are taken in random order. Petsiuk, Das and Saenko 2018 ("RISE", section 4.1) delete in this way, without random
    ink beside it.

    Args:
        model: A trained one, in evaluation mode, on any device.
        digits: uint8 [N, 28, 28].
        ranking: float [N, 28, 28], a map.
        share: How much of the ink is deleted.
        targets: int64 [N], the classes whose probability is looked at; by default the predicted ones.
        draws: Random choices that `random_drop` is the mean of.

    Raises:
        InputError: If these are no digits or no classes, or the map is not of their shape.
    """

    def drop(ranking: Tensor) -> Tensor:
        before, after = deletion_curve(model, digits, ranking, (0.0, share), targets).unbind(dim=1)
        return before - after

    return Deletion(drop(ranking), torch.stack([drop(order) for order in random_orders(digits, draws)]).mean(dim=0))


def deletion_curve(
    model: Classifier, digits: Tensor, ranking: Tensor, shares: Sequence[float], targets: Tensor | None = None
) -> Tensor:
    """A class's probability without the highest-ranked shares of the ink, [N, S]; the rest is as in `deletion`."""
    classes, ink = _classes(model, digits, targets), digits > 0
    if ranking.shape != digits.shape:
        raise InputError(f"the ranking is {list(ranking.shape)}; it must be as the digits, {list(digits.shape)}")
    among_ink = ranking.masked_fill(~ink, -torch.inf)
    left = [without_highest(digits, among_ink, (share * ink.sum(dim=(1, 2))).round()) for share in shares]
    logits = [model.classify(digits_left) for digits_left in left]
    return torch.cat([some.softmax(dim=1).gather(1, classes[:, None]) for some in logits], dim=1)


def without_highest(digits: Tensor, ranking: Tensor, counts: Tensor) -> Tensor:
    """Digits whose highest-ranked pixels are black.

    Args:
        digits: uint8 [N, 28, 28].
        ranking: float [N, 28, 28]; pixels of equal rank are taken in random order.
        counts: [N], how many pixels of each.

    Example:
        >>> digits = torch.full((1, 28, 28), 255, dtype=torch.uint8)
        >>> without_highest(digits, torch.arange(784.0).view(1, 28, 28), torch.tensor([2]))[0, -1, -4:]
        tensor([255, 255,   0,   0], dtype=torch.uint8)
    """
    (chance,) = (order.flatten(1).argsort(dim=1) for order in random_orders(digits, 1))
    order = chance.gather(1, ranking.flatten(1).gather(1, chance).argsort(dim=1, descending=True, stable=True))
    places = order.argsort(dim=1).view_as(digits)  # 0 is the highest's
    return digits.masked_fill(places < counts[:, None, None], 0)


def random_orders(digits: Tensor, draws: int) -> list[Tensor]:
    """Rankings at random, float [N, 28, 28] each, always the same."""
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(digits.shape, generator=generator) for _ in range(draws)]


def write_gradcam(
    checkpoint: str,
    index: int | None = None,
    indices: str | None = None,
    image: str | None = None,
    output: str = "gradcam.png",
    target: int | None = None,
    source: str | None = None,
    root: str | None = None,
) -> Path:
    """Shows by which pixels an image model recognises digits: Grad-CAM, input gradients, occlusion; and if it is true.

    Without `index`, `indices` and `image` it shows the first test digit of each class.

    Args:
        checkpoint: A checkpoint of an image model, or a run's folder, whose best checkpoint is taken.
        index: Number of a test image.
        indices: Numbers of several, as in 0,7,42.
        image: A picture of a digit of your own, in its place.
        output: File to write: a picture (.png, .svg, .pdf).
        target: Class that the maps are about; by default the predicted one.
        source: Where the test images come from; by default what the run was trained on.
        root: Folder of the data; by default $MNIST_LIGHTNING_DATA, else `data`.

    Returns:
        The file that was written.

    Raises:
        InputError: If a file or an argument cannot be used.
    """
    path = writable(output, [".png", ".svg", ".pdf"])
    if target is not None and not 0 <= target < CLASSES:
        raise InputError(f"target is {target}; it must be a class from 0 to {CLASSES - 1}")
    model = load(checkpoint)
    _refuse_graphs(model)
    digits = digits_asked_for(checkpoint, index, indices, image, source, root)
    from mnist_lightning.explain.saliency_sheet import saliency, saliency_sheet

    content = BytesIO()
    saliency_sheet(saliency(model, digits, target)).savefig(content, format=path.suffix[1:], dpi=110)
    write_whole(path, content.getvalue())
    return path


def _refuse_graphs(model: Classifier) -> None:
    if type(model).inputs is not Classifier.inputs:
        raise InputError(f"a {type(model).__name__} takes no pixels; `connectivity` explains a GNN")


def _maps(model: Classifier, digits: Tensor, targets: Tensor | None, attribute: Callable[..., Tensor]) -> Tensor:
    """Captum's attribution of each digit's pixels, a part of the digits at a time."""
    _refuse_graphs(model)
    classes = _classes(model, digits, targets)
    maps = [torch.empty(0, SIDE, SIDE)]
    for part, target in zip(torch.split(digits, 64), torch.split(classes, 64), strict=True):
        if len(part):
            (pixels,) = model.inputs(part)
            found = attribute(pixels.requires_grad_(), target=target.to(pixels.device))
            maps.append(found.detach().squeeze(1).cpu())
    return torch.cat(maps)


def _classes(model: Classifier, digits: Tensor, targets: Tensor | None) -> Tensor:
    """The classes that are asked about."""
    predicted = model.classify(digits).argmax(dim=1)  # refuses what are no digits
    if targets is None:
        return predicted
    if targets.shape != predicted.shape or targets.dtype != torch.int64:
        kind = str(targets.dtype).removeprefix("torch.")
        raise InputError(f"the targets are {kind} {list(targets.shape)}; they must be int64 [{len(digits)}]")
    if len(targets) and not 0 <= int(targets.min()) <= int(targets.max()) < CLASSES:
        raise InputError(f"a target is no class: they must be from 0 to {CLASSES - 1}")
    return targets

"""Saliency maps of image models: Grad-CAM, input gradients, occlusion."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from mnist_lightning.classifier import CLASSES, Classifier
from mnist_lightning.errors import InputError
from mnist_lightning.explain.private import private
from mnist_lightning.explain.receptive_fields import SIDE, spatial_layers


def grad_cam(
    model: Classifier, digits: Tensor, targets: Tensor | None = None, layer: nn.Module | None = None
) -> Tensor:
    """Computes Grad-CAM of a convolutional model, with Captum.

    Grad-CAM (Selvaraju et al. 2017, "Grad-CAM", section 3, equations 1 and 2) weights each feature map of a layer by
    the mean gradient of the logit, sums the maps, and sets negative values to 0. The result is interpolated
    bilinearly to 28x28, with each unit at the centre of its receptive field. The usual stretching over the whole image
    can displace it by three pixels.

    Args:
        model: Trained convolutional model in evaluation mode, on any device.
        digits: Digits, uint8 [N, 28, 28].
        targets: Classes to explain, int64 [N]. Default: the predicted classes.
        layer: Layer of the feature maps, one of `spatial_layers`. Default: the last.

    Returns:
        float [N, 28, 28], at least 0, on the CPU.

    Raises:
        InputError: If the model has no convolutions or does not take images, or the digits or targets are invalid.

    Example:
        >>> from mnist_lightning import CNN
        >>> from mnist_lightning.data.sources import read
        >>> digits, _ = read("digits", train=False)
        >>> grad_cam(CNN().eval(), digits[:2]).shape
        torch.Size([2, 28, 28])
    """
    from captum.attr import LayerGradCam

    own, copies = _explainable(model)
    layers = spatial_layers(own)
    if not layers:
        name = own.architecture.__name__
        raise InputError(f"Grad-CAM needs convolutions, and {name} has none; use input_gradients or occlusion")
    layer = copies[layer] if layer else list(layers)[-1]
    rows, columns = (grid.weights() for grid in layers[layer])
    method = LayerGradCam(own, layer)

    def attribute(pixels: Tensor, target: Tensor) -> Tensor:
        coarse = method.attribute(pixels, target=target, relu_attributions=True).cpu()
        return torch.einsum("ri,bkij,cj->bkrc", rows, coarse, columns)

    return _maps(own, digits, targets, attribute)


def input_gradients(model: Classifier, digits: Tensor, targets: Tensor | None = None) -> Tensor:
    """Multiplies the gradient of the logit by the pixels, with Captum's `InputXGradient`.

    The gradient is from Simonyan, Vedaldi and Zisserman 2014 ("Deep inside convolutional networks", section 3), the
    product from Shrikumar et al. 2016 ("Not just a black box"). The product is the first-order estimate of the logit's
    decrease when the pixel is deleted. The magnitude of the gradient alone does not distinguish black pixels from ink.

    Args:
        model: Trained image model in evaluation mode, on any device.
        digits: Digits, uint8 [N, 28, 28].
        targets: Classes to explain, int64 [N]. Default: the predicted classes.

    Returns:
        float [N, 28, 28], on the CPU. Pixels that lower the logit are negative.

    Raises:
        InputError: If the model does not take images, or the digits or targets are invalid.

    Example:
        >>> from mnist_lightning import MLP
        >>> from mnist_lightning.data.sources import read
        >>> digits, _ = read("digits", train=False)
        >>> bool((input_gradients(MLP().eval(), digits[:2])[digits[:2] == 0] == 0).all())
        True
    """
    from captum.attr import InputXGradient

    own, _ = _explainable(model)
    return _maps(own, digits, targets, InputXGradient(own).attribute)


def occlusion(model: Classifier, digits: Tensor, targets: Tensor | None = None) -> Tensor:
    """Computes the decrease of the log-probability when 3x3 pixels are black, averaged over the pixel's nine windows.

    Occlusion is from Zeiler and Fergus 2014 ("Visualizing and understanding convolutional networks", section 4.2),
    computed by Captum. The paper maps the probability. Its logarithm ranks windows in the same order and still
    distinguishes them if the probability is close to 1.

    Args:
        model: Trained image model in evaluation mode, on any device.
        digits: Digits, uint8 [N, 28, 28].
        targets: Classes to explain, int64 [N]. Default: the predicted classes.

    Returns:
        float [N, 28, 28], on the CPU. Pixels whose occlusion raises the probability are negative.

    Raises:
        InputError: If the model does not take images, or the digits or targets are invalid.
    """
    from captum.attr import Occlusion

    own, _ = _explainable(model)
    # float64, because in float32 the logarithm of a probability close to 1 is 0
    method = Occlusion(lambda pixels: own(pixels).double().log_softmax(dim=1))

    def attribute(pixels: Tensor, target: Tensor) -> Tensor:
        windows_at_once = max(1, 512 // len(pixels))
        decreases: Tensor = method.attribute(pixels, (1, 3, 3), target=target, perturbations_per_eval=windows_at_once)
        return decreases.float()

    return _maps(own, digits, targets, attribute)


def classes_to_explain(model: Classifier, digits: Tensor, targets: Tensor | None) -> Tensor:
    """Checks digits and targets. Predicts the classes only if there are no targets.

    Args:
        model: Model in evaluation mode.
        digits: Digits, uint8 [N, 28, 28].
        targets: Classes, int64 [N], or None for the predicted classes.

    Returns:
        Classes, int64 [N].

    Raises:
        InputError: If the digits or targets are invalid.
    """
    if targets is None:
        return model.classify(digits).argmax(dim=1)  # checks the digits, too
    if digits.dtype != torch.uint8 or digits.shape[1:] != (SIDE, SIDE):
        raise InputError(f"digits must be torch.uint8 [N, 28, 28], got {digits.dtype} {list(digits.shape)}")
    if targets.dtype != torch.int64 or targets.shape != digits.shape[:1]:
        raise InputError(f"targets must be torch.int64 [{len(digits)}], got {targets.dtype} {list(targets.shape)}")
    invalid = targets[(targets < 0) | (targets >= CLASSES)]
    if len(invalid):
        raise InputError(f"target must be a class from 0 to {CLASSES - 1}, got {int(invalid[0])}")
    return targets


def _explainable(model: Classifier) -> tuple[Classifier, dict[nn.Module, nn.Module]]:
    """Private copy of an image model in evaluation mode, and the copy of each module."""
    own, copies = private(model)
    if type(own).inputs is not Classifier.inputs:
        name = own.architecture.__name__
        raise InputError(f"saliency maps need a model of images, got a {name}; explain a GNN with `connectivity`")
    return own.eval(), copies


def _maps(model: Classifier, digits: Tensor, targets: Tensor | None, attribute: Callable[..., Tensor]) -> Tensor:
    """Captum's attributions of all digits, 64 at a time."""
    classes = classes_to_explain(model, digits, targets)
    maps = [torch.empty(0, SIDE, SIDE)]
    for part, target in zip(torch.split(digits, 64), torch.split(classes, 64), strict=True):
        if len(part):
            (pixels,) = model.inputs(part)
            attributions = attribute(pixels.requires_grad_(), target=target.to(pixels.device))
            maps.append(attributions.detach().squeeze(1).cpu())
    return torch.cat(maps)

"""PyTorch Lightning models of handwritten digits, to compare and to copy from."""

# ruff: noqa: E402 - importing is what it is about
import atexit
import gc

# Torch and Lightning bring half a million objects that all stay. Looking for garbage among them, while they are
# imported and again and again afterwards, took 2 of 6 seconds of imports on a busy machine.
_collecting = gc.isenabled()
gc.disable()

from importlib.metadata import version

from mnist_lightning.checkpoint import load
from mnist_lightning.classifier import Classifier
from mnist_lightning.data.augment import Augmentation, PositionAugmentation
from mnist_lightning.data.graphs import MNISTSuperpixelsDataModule
from mnist_lightning.data.images import MNISTDataModule
from mnist_lightning.errors import InputError
from mnist_lightning.models import CNN, GNN, MLP, DenseNet, LeNet5, ResNet

gc.freeze()
atexit.register(gc.unfreeze)
if _collecting:
    gc.enable()

__version__ = version("mnist-lightning")
__all__ = [
    "CNN",
    "GNN",
    "MLP",
    "Augmentation",
    "Classifier",
    "DenseNet",
    "InputError",
    "LeNet5",
    "MNISTDataModule",
    "MNISTSuperpixelsDataModule",
    "PositionAugmentation",
    "ResNet",
    "load",
]

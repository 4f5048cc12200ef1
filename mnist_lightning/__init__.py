"""PyTorch Lightning models of handwritten digits, to compare and to copy from."""

from importlib.metadata import version

from mnist_lightning.checkpoint import load
from mnist_lightning.classifier import Classifier
from mnist_lightning.data.augment import Augmentation
from mnist_lightning.data.images import MNISTDataModule
from mnist_lightning.errors import InputError
from mnist_lightning.models import CNN, MLP, DenseNet, LeNet5, ResNet

__version__ = version("mnist-lightning")
__all__ = [
    "CNN",
    "MLP",
    "Augmentation",
    "Classifier",
    "DenseNet",
    "InputError",
    "LeNet5",
    "MNISTDataModule",
    "ResNet",
    "load",
]

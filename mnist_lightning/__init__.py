"""PyTorch Lightning models of handwritten digits, to compare and to copy from."""

from importlib.metadata import version

from mnist_lightning.checkpoint import load
from mnist_lightning.classifier import Classifier
from mnist_lightning.data.augment import Augmentation, PositionAugmentation
from mnist_lightning.data.graphs import MNISTSuperpixelsDataModule
from mnist_lightning.data.images import MNISTDataModule
from mnist_lightning.errors import InputError
from mnist_lightning.models import CNN, GNN, MLP, DenseNet, LeNet5, ResNet

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

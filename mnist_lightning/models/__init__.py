"""Architectures, one per file."""

from mnist_lightning.models.cnn import CNN
from mnist_lightning.models.densenet import DenseNet
from mnist_lightning.models.efficientnet import EfficientNet
from mnist_lightning.models.gnn import GNN
from mnist_lightning.models.lenet import LeNet5
from mnist_lightning.models.mlp import MLP
from mnist_lightning.models.resnet import ResNet

__all__ = ["CNN", "GNN", "MLP", "DenseNet", "EfficientNet", "LeNet5", "ResNet"]

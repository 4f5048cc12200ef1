"""Statistics of a data set: classes, sizes, nearest neighbours, suspicious labels."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from mnist_lightning.data.sources import CLASSES

COMPONENTS = 50  # principal components for the neighbour search: nine tenths of MNIST's variance
NEIGHBORS = 10


@dataclass(frozen=True)
class Exploration:
    """Statistics of a source's N images: first the training images, then the test images.

    Attributes:
        source: Name of the data source.
        train: Number of training images, including the validation images.
        images: Images, uint8 [N, 28, 28].
        labels: Labels, int64 [N].
        means: Mean training image of each class, float [10, 28, 28], from 0 to 255.
        deviations: Standard deviation of each pixel in the training images of a class, float [10, 28, 28].
        intensity: Mean intensity of each image, float [N], from 0 to 1.
        boxes: Height and width in pixels of each image's bounding box of non-black pixels, int [N, 2].
        centres: Row and column in pixels of each image's centre of mass, float [N, 2]; NaN for a black image.
        variability: Root mean square distance of a class's training images from their mean, float [10].
        components: Principal components of the images, float [N, min(50, N)].
        neighbors: Indices of each image's nearest neighbours by principal components, int64 [N, min(10, N - 1)], the
            nearest by pixels first.
        distances: Euclidean distances to these neighbours by pixels from 0 to 1, float [N, min(10, N - 1)].
    """

    source: str
    train: int
    images: Tensor
    labels: Tensor
    means: Tensor
    deviations: Tensor
    intensity: Tensor
    boxes: Tensor
    centres: Tensor
    variability: Tensor
    components: Tensor
    neighbors: Tensor
    distances: Tensor

    def counts(self, train: bool) -> list[int]:
        """Returns the number of training or test images in each class."""
        labels = self.labels[: self.train] if train else self.labels[self.train :]
        return torch.bincount(labels, minlength=CLASSES).tolist()

    def name(self, index: int) -> str:
        """Names an image by its split and its index in the split, as in `test 10`."""
        return f"train {index}" if index < self.train else f"test {index - self.train}"

    def duplicates(self) -> list[tuple[int, int]]:
        """Returns pairs of identical images: the first image of a kind, and each later one."""
        pixels = self.images.flatten(1).numpy()
        _, inverse, counts = np.unique(pixels, axis=0, return_inverse=True, return_counts=True)
        members: dict[int, list[int]] = {}
        for index in np.flatnonzero(counts[inverse] > 1).tolist():
            members.setdefault(int(inverse[index]), []).append(index)
        return sorted((group[0], other) for group in members.values() for other in group[1:])

    def closest_across(self, count: int = 20) -> list[tuple[int, int, float]]:
        """Returns the test images that are most similar to a training image.

        Args:
            count: Maximum number of test images.

        Returns:
            Index of the test image, index of its nearest training image, and their distance, by ascending distance.
        """
        is_training = self.neighbors < self.train
        distances = self.distances.masked_fill(~is_training, torch.inf)[self.train :]
        nearest, column = distances.min(dim=1)
        order = nearest.argsort(stable=True)[:count]
        return [
            (self.train + i, int(self.neighbors[self.train + i, column[i]]), float(nearest[i]))
            for i in order.tolist()
            if nearest[i] < torch.inf
        ]

    def suspicious(self, count: int = 20) -> list[tuple[int, int, float]]:
        """Returns images with more neighbours of another class than of their own.

        Args:
            count: Maximum number of images.

        Returns:
            Index of the image, the most frequent other class of its neighbours, and the share of that class.
        """
        votes = torch.nn.functional.one_hot(self.labels[self.neighbors], CLASSES).float().mean(dim=1)
        same = votes.gather(1, self.labels.unsqueeze(1)).squeeze(1)
        share, other = votes.scatter(1, self.labels.unsqueeze(1), 0).max(dim=1)
        # Ties go to the image with the nearest neighbour.
        order = (share - same - 1e-3 * self.distances[:, 0]).argsort(descending=True, stable=True)[:count]
        return [(i, int(other[i]), float(share[i])) for i in order.tolist() if share[i] > same[i]]

    def outliers(self, count: int = 2) -> list[int]:
        """Returns the images of each class with the largest mean distance to their neighbours, the largest first.

        Args:
            count: Maximum number of images per class.
        """
        distances = self.distances.mean(dim=1)
        outliers = []
        for digit in range(CLASSES):
            members = (self.labels == digit).nonzero().flatten()
            outliers += members[distances[members].argsort(descending=True, stable=True)[:count]].tolist()
        return outliers


def explore(source: str, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]) -> Exploration:
    """Computes the statistics of a data source.

    Args:
        source: Name of the source.
        train: Training images, uint8 [N, 28, 28], and labels, int64 [N].
        test: Test images and labels, in the same format.
    """
    images, labels = (torch.cat(parts) for parts in zip(train, test, strict=True))
    pixels = images.flatten(1).float() / 255
    count = len(train[1])
    means, deviations, variability = [], [], []
    for digit in range(CLASSES):
        members = pixels[:count][train[1] == digit]
        members = members if len(members) else pixels.new_zeros(1, pixels.shape[1])
        deviation, mean = torch.std_mean(members, dim=0, correction=0)
        means.append(255 * mean.view(28, 28))
        deviations.append(255 * deviation.view(28, 28))
        variability.append(deviation.square().sum().sqrt())
    components = PCA(min(COMPONENTS, len(pixels)), svd_solver="covariance_eigh").fit_transform(pixels.numpy())
    search = NearestNeighbors(n_neighbors=min(NEIGHBORS, len(labels) - 1), algorithm="brute").fit(components)
    neighbors = torch.from_numpy(search.kneighbors(return_distance=False))
    distances = torch.cat(
        [
            (pixels[rows].unsqueeze(1) - pixels[neighbors[rows]]).norm(dim=2)
            for rows in torch.split(torch.arange(len(labels)), 1000)
        ]
    )
    distances, order = distances.sort(dim=1, stable=True)
    return Exploration(
        source=source,
        train=count,
        images=images,
        labels=labels,
        means=torch.stack(means),
        deviations=torch.stack(deviations),
        intensity=pixels.mean(dim=1),
        boxes=torch.stack([_extent(images.amax(dim=2) > 0), _extent(images.amax(dim=1) > 0)], dim=1),
        centres=_centres(pixels),
        variability=torch.stack(variability),
        components=torch.from_numpy(components),
        neighbors=neighbors.gather(1, order),
        distances=distances,
    )


def _extent(mask: Tensor) -> Tensor:
    """Returns the number of places from the first to the last True in each row, 0 for a row without any."""
    places = torch.arange(1, mask.shape[1] + 1) * mask
    last = places.amax(dim=1)
    first = torch.where(mask, places, mask.shape[1] + 1).amin(dim=1)
    return torch.where(last > 0, last - first + 1, 0)


def _centres(pixels: Tensor) -> Tensor:
    rows, columns = torch.arange(784) // 28 + 0.5, torch.arange(784) % 28 + 0.5
    return pixels @ torch.stack([rows, columns], dim=1) / pixels.sum(dim=1, keepdim=True)


def tsne_map(
    exploration: Exploration, count: int = 1500, seed: int = 0
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Maps a random sample of images to the plane by t-SNE (van der Maaten and Hinton 2008).

    Args:
        exploration: Statistics of any source.
        count: Maximum number of images.
        seed: Seed of the sample and of t-SNE.

    Returns:
        Indices of the M images [M], and their coordinates [M, 2].
    """
    sample = np.random.default_rng(seed).permutation(len(exploration.labels))[:count]
    components = exploration.components[torch.from_numpy(sample)].numpy()
    perplexity = min(30.0, (len(sample) - 1) / 3)
    return sample, TSNE(init="pca", perplexity=perplexity, random_state=seed).fit_transform(components)

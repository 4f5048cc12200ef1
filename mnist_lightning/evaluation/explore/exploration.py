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
_MIN_DIFFERENT = 10  # images for t-SNE: it crashes on equal images, and a map of so few says nothing


@dataclass(frozen=True)
class Exploration:
    """Statistics of a source's N images: first the training images, then the test images.

    Attributes:
        train: Number of training images, including the validation images.
        images: Images, uint8 [N, 28, 28].
        labels: Labels, int64 [N].
        means: Mean training image of each class, float [10, 28, 28], from 0 to 255.
        deviations: Standard deviation of each pixel in the training images of a class, float [10, 28, 28].
        intensity: Mean intensity of each image, float [N], from 0 to 1.
        boxes: Height and width in pixels of each image's bounding box of non-black pixels, int [N, 2].
        centres: Row and column in pixels of each image's centre of mass, float [N, 2]; NaN for a black image.
        components: Principal components of the images, float [N, min(50, N)].
        neighbors: Indices of each image's nearest neighbours by principal components, int64 [N, min(10, N - 1)], the
            nearest by pixels first.
        distances: Euclidean distances to these neighbours by pixels from 0 to 1, float [N, min(10, N - 1)].
    """

    train: int
    images: Tensor
    labels: Tensor
    means: Tensor
    deviations: Tensor
    intensity: Tensor
    boxes: Tensor
    centres: Tensor
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
        first: dict[bytes, int] = {}
        pairs = [(first.setdefault(image.tobytes(), index), index) for index, image in enumerate(self.images.numpy())]
        return sorted(pair for pair in pairs if pair[0] != pair[1])

    def closest_across(self, count: int = 20) -> list[tuple[int, int, float]]:
        """Returns the test images that are most similar to a training image.

        Args:
            count: Maximum number of test images.

        Returns:
            Index of the test image, index of its nearest training image, and their distance, by ascending distance.
        """
        neighbors, distances = self.neighbors[self.train :], self.distances[self.train :]
        nearest, column = distances.masked_fill(neighbors >= self.train, torch.inf).min(dim=1)
        order = [i for i in nearest.argsort(stable=True)[:count].tolist() if nearest[i] < torch.inf]
        return [(self.train + i, int(neighbors[i, column[i]]), float(nearest[i])) for i in order]

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


def explore(train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]) -> Exploration:
    """Computes the statistics of a data source.

    Args:
        train: Training images, uint8 [N, 28, 28], and labels, int64 [N].
        test: Test images and labels, in the same format.
    """
    images, labels = (torch.cat(parts) for parts in zip(train, test, strict=True))
    pixels = images.flatten(1).float() / 255
    means, deviations = torch.zeros(CLASSES, 28, 28), torch.zeros(CLASSES, 28, 28)
    for digit in set(train[1].tolist()):
        members = train[0][train[1] == digit].float()
        deviations[digit], means[digit] = torch.std_mean(members, dim=0, correction=0)
    with np.errstate(invalid="ignore"):  # equal images have no variance to explain
        components = PCA(min(COMPONENTS, len(pixels)), svd_solver="covariance_eigh").fit_transform(pixels.numpy())
    search = NearestNeighbors(n_neighbors=min(NEIGHBORS, len(labels) - 1), algorithm="brute").fit(components)
    neighbors = torch.from_numpy(search.kneighbors(return_distance=False))
    parts = zip(torch.split(pixels, 1000), torch.split(neighbors, 1000), strict=True)
    distances = torch.cat([(part.unsqueeze(1) - pixels[near]).norm(dim=2) for part, near in parts])
    distances, order = distances.sort(dim=1, stable=True)
    pixel_centres = torch.cartesian_prod(torch.arange(28), torch.arange(28)) + 0.5
    return Exploration(
        train=len(train[1]),
        images=images,
        labels=labels,
        means=means,
        deviations=deviations,
        intensity=pixels.mean(dim=1),
        boxes=torch.stack([_extent(images.amax(dim=2) > 0), _extent(images.amax(dim=1) > 0)], dim=1),
        centres=pixels @ pixel_centres / pixels.sum(dim=1, keepdim=True),
        components=torch.from_numpy(components),
        neighbors=neighbors.gather(1, order),
        distances=distances,
    )


def _extent(mask: Tensor) -> Tensor:
    """Returns the number of places from the first to the last True in each row, 0 for a row without any."""
    places = torch.arange(1, mask.shape[1] + 1)
    until_last, since_first = ((side * places).amax(dim=1) for side in (mask, mask.flip(1)))
    return (until_last + since_first - mask.shape[1]).clamp_min(0)


def tsne_map(components: Tensor) -> NDArray[np.float32] | None:
    """Maps images to the plane by t-SNE (van der Maaten and Hinton 2008).

    Args:
        components: Principal components of the M images, float [M, K].

    Returns:
        Coordinates of the images [M, 2]; None for fewer than ten different images.
    """
    if len(np.unique(components.numpy(), axis=0)) < _MIN_DIFFERENT:
        return None
    perplexity = min(30.0, (len(components) - 1) / 3)
    tsne = TSNE(init="pca", perplexity=perplexity, random_state=0)
    points: NDArray[np.float32] = tsne.fit_transform(components.numpy())
    return points

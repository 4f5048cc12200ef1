"""What a data set is like: classes, sizes, neighbours, doubtful labels."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mnist_lightning.classifier import CLASSES

COMPONENTS = 50  # principal components that neighbours are looked for in: nine tenths of MNIST's variance
NEIGHBORS = 10


@dataclass(frozen=True)
class Exploration:
    """A source's training and test part, laid end to end: N images, of which the first `train` are for training.

    Attributes:
        source: Its name.
        train: How many images are for training, those for validation included.
        images: uint8 [N, 28, 28].
        labels: int64 [N].
        means: float [10, 28, 28], each class's mean training image, 0 to 255.
        deviations: float [10, 28, 28], each pixel's standard deviation in the training images of a class.
        ink: float [N], mean intensity, 0 to 1.
        boxes: int [N, 2], height and width of what is not black, in pixels.
        centres: float [N, 2], row and column of the centre of mass, in pixels; NaN of black images.
        variability: float [10], root mean square distance of a class's training images from their mean.
        components: float [N, 50], the images' principal components.
        neighbors: int [N, 10], the images nearest to each, by principal components, nearest first.
        distances: float [N, 10], how far these are, by all pixels, 0 to 1 each.
    """

    source: str
    train: int
    images: Tensor
    labels: Tensor
    means: Tensor
    deviations: Tensor
    ink: Tensor
    boxes: Tensor
    centres: Tensor
    variability: Tensor
    components: Tensor
    neighbors: Tensor
    distances: Tensor

    def counts(self, train: bool) -> list[int]:
        """Images of each class in a part."""
        part = self.labels[: self.train] if train else self.labels[self.train :]
        return torch.bincount(part, minlength=CLASSES).tolist()

    def name(self, index: int) -> str:
        """How people find an image again."""
        return f"train {index}" if index < self.train else f"test {index - self.train}"

    def duplicates(self) -> list[tuple[int, int]]:
        """Pairs of images that are equal, pixel by pixel."""
        pixels = self.images.flatten(1).numpy()
        _, inverse, counts = np.unique(pixels, axis=0, return_inverse=True, return_counts=True)
        members: dict[int, list[int]] = {}
        for index in np.flatnonzero(counts[inverse] > 1).tolist():
            members.setdefault(int(inverse[index]), []).append(index)
        return sorted((group[0], other) for group in members.values() for other in group[1:])

    def closest_across(self, count: int = 20) -> list[tuple[int, int, float]]:
        """Test images and the training images that are nearest to them, the nearest pairs first."""
        is_training = self.neighbors < self.train
        distances = self.distances.masked_fill(~is_training, torch.inf)[self.train :]
        nearest, place = distances.min(dim=1)
        order = nearest.argsort(stable=True)[:count]
        return [
            (self.train + i, int(self.neighbors[self.train + i, place[i]]), float(nearest[i]))
            for i in order.tolist()
            if nearest[i] < torch.inf
        ]

    def suspicious(self, count: int = 20) -> list[tuple[int, int, float]]:
        """Images whose neighbours say another class: index, that class, the share of neighbours that say so."""
        votes = torch.nn.functional.one_hot(self.labels[self.neighbors], CLASSES).float().mean(dim=1)
        own = votes.gather(1, self.labels.unsqueeze(1)).squeeze(1)
        share, other = votes.scatter(1, self.labels.unsqueeze(1), 0).max(dim=1)
        # Of equally many votes those of nearer neighbours count more.
        order = (share - own - 1e-3 * self.distances[:, 0]).argsort(descending=True, stable=True)[:count]
        return [(i, int(other[i]), float(share[i])) for i in order.tolist() if share[i] > own[i]]

    def outliers(self, count: int = 2) -> list[int]:
        """The images of each class that are farthest from their neighbours, the farthest first."""
        far = self.distances.mean(dim=1)
        found = []
        for digit in range(CLASSES):
            members = (self.labels == digit).nonzero().flatten()
            found += members[far[members].argsort(descending=True, stable=True)[:count]].tolist()
        return found


def explore(source: str, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]) -> Exploration:
    """Looks at all images of a source.

    Args:
        source: What it is called.
        train: Images uint8 [N, 28, 28] and labels int64 [N].
        test: The same.
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
    components = principal_components(pixels)
    neighbors = nearest(components, min(NEIGHBORS, len(labels) - 1))
    distances = torch.cat(
        [
            (pixels[i].unsqueeze(1) - pixels[neighbors[i]]).norm(dim=2)
            for i in torch.split(torch.arange(len(labels)), 1000)
        ]
    )
    by_pixels, order = distances.sort(dim=1, stable=True)
    return Exploration(
        source=source,
        train=count,
        images=images,
        labels=labels,
        means=torch.stack(means),
        deviations=torch.stack(deviations),
        ink=pixels.mean(dim=1),
        boxes=torch.stack([_extent(images.amax(dim=2) > 0), _extent(images.amax(dim=1) > 0)], dim=1),
        centres=_centres(pixels),
        variability=torch.stack(variability),
        components=components,
        neighbors=neighbors.gather(1, order),
        distances=by_pixels,
    )


def principal_components(pixels: Tensor, count: int = COMPONENTS) -> Tensor:
    """The values [N, count] along the directions in which images [N, P] differ most, of most variance first."""
    centred = pixels - pixels.mean(dim=0)
    _, directions = torch.linalg.eigh((centred.T @ centred).double() / len(pixels))
    components: Tensor = centred @ directions.flip(1)[:, :count].float()
    return components


def nearest(points: Tensor, count: int) -> Tensor:
    """Each point's nearest others, nearest first.

    Args:
        points: float [N, D].
        count: How many, fewer than N.

    Returns:
        int64 [N, count].

    Example:
        >>> nearest(torch.tensor([[0.0], [1.0], [5.0], [2.5]]), 2).tolist()
        [[1, 3], [0, 3], [3, 1], [1, 2]]
    """
    squares = points.square().sum(dim=1)
    found = []
    for rows in torch.split(
        torch.arange(len(points)), 500
    ):  # a part at a time: all distances of MNIST would take 20 GB
        distances = torch.addmm(squares, points[rows], points.T, alpha=-2)
        distances[torch.arange(len(rows)), rows] = torch.inf  # equal points are neighbours, a point and itself are not
        found.append(distances.topk(count, dim=1, largest=False).indices)
    return torch.cat(found)


def _extent(inked: Tensor) -> Tensor:
    """From the first to the last True of each row, both included; 0 where there is none."""
    places = torch.arange(1, inked.shape[1] + 1) * inked
    last = places.amax(dim=1)
    first = torch.where(inked, places, inked.shape[1] + 1).amin(dim=1)
    return torch.where(last > 0, last - first + 1, 0)


def _centres(pixels: Tensor) -> Tensor:
    rows, columns = torch.arange(784) // 28 + 0.5, torch.arange(784) % 28 + 0.5
    return pixels @ torch.stack([rows, columns], dim=1) / pixels.sum(dim=1, keepdim=True)


def map_of_sample(
    found: Exploration, count: int = 1500, seed: int = 0
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """A t-SNE map (van der Maaten and Hinton 2008) of a random sample.

    Args:
        found: Of any source.
        count: How many images at the most.
        seed: Of the sample and of the map.

    Returns:
        Their indices [M], and x and y [M, 2].
    """
    from sklearn.manifold import TSNE

    sample = np.random.default_rng(seed).permutation(len(found.labels))[:count]
    points = found.components[torch.from_numpy(sample)].numpy()
    perplexity = min(30.0, (len(sample) - 1) / 3)
    return sample, TSNE(init="pca", perplexity=perplexity, random_state=seed).fit_transform(points)

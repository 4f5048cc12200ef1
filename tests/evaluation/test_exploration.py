from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from mnist_lightning.cli import main
from mnist_lightning.data.sources import read
from mnist_lightning.evaluation.exploration import Exploration, explore, nearest, principal_components

Part = tuple[Tensor, Tensor]


@pytest.fixture
def train() -> Part:
    return read("digits", train=True)


@pytest.fixture
def test() -> Part:
    return read("digits", train=False)


def test_classes_are_counted_by_part(train: Part, test: Part) -> None:
    found = explore("digits", train, test)
    assert found.counts(train=True) == torch.bincount(train[1]).tolist()
    assert found.counts(train=False) == torch.bincount(test[1]).tolist()


@pytest.mark.mnist
@pytest.mark.slow
def test_the_report_on_mnist_names_the_class_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    def next_ones(points: Tensor, count: int) -> Tensor:
        return (torch.arange(len(points))[:, None] + torch.arange(1, count + 1)) % len(points)

    # The neighbours of 70,000 images, of which this says nothing, take 20 seconds; of digits they are tested below.
    monkeypatch.setattr("mnist_lightning.evaluation.exploration.nearest", next_ones)
    main(["explore"])
    page = Path("data-report/index.html").read_text()
    for count in (5_923, 6_742, 5_958, 6_131, 5_842, 5_421, 5_918, 6_265, 5_851, 5_949, 980, 1_135, 892):
        assert f"<td>{count:,}</td>" in page


def test_means_and_deviations_are_of_the_training_images(train: Part, test: Part) -> None:
    found = explore("digits", train, test)
    threes = train[0][train[1] == 3].double()
    torch.testing.assert_close(found.means[3].double(), threes.mean(dim=0), atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(found.deviations[3].double(), threes.std(dim=0, correction=0), atol=1e-3, rtol=1e-4)


def test_size_and_centre_of_mass() -> None:
    images = torch.zeros(40, 28, 28, dtype=torch.uint8)
    images[:, 4:24, 10] = 100
    images[0] = 0
    images[1, 0, 27] = 100
    found = explore("bars", (images[:30], torch.arange(30) % 10), (images[30:], torch.arange(10)))
    assert found.boxes[:3].tolist() == [[0, 0], [24, 18], [20, 1]]
    assert found.centres[2].tolist() == pytest.approx([14, 10.5])
    assert found.centres[0].isnan().all()
    assert found.ink[2] == pytest.approx(20 * 100 / 255 / 784)


def test_principal_components_are_those_of_scikit_learn(train: Part) -> None:
    pixels = train[0].flatten(1).float() / 255
    theirs = torch.from_numpy(PCA(5, svd_solver="full").fit_transform(pixels.double().numpy()))
    torch.testing.assert_close(principal_components(pixels, 5).double().abs(), theirs.abs(), atol=1e-3, rtol=1e-3)


def test_neighbors_are_those_of_scikit_learn() -> None:
    points = torch.randn(1200, 7, generator=torch.Generator().manual_seed(0))
    theirs = NearestNeighbors(n_neighbors=4).fit(points.numpy()).kneighbors(return_distance=False)
    assert torch.equal(nearest(points, 4), torch.from_numpy(theirs))


def with_duplicates(train: Part, test: Part) -> Exploration:
    images, labels = train[0].clone(), train[1].clone()
    images[5], labels[5] = test[0][10], test[1][10]
    images[7], labels[7] = images[3], labels[3]
    return explore("digits", (images, labels), test)


def test_planted_duplicates_are_found(train: Part, test: Part) -> None:
    before, after = set(explore("digits", train, test).duplicates()), set(with_duplicates(train, test).duplicates())
    assert after - before == {(5, len(train[1]) + 10), (3, 7)}


def test_a_planted_leak_is_the_closest_pair_across_the_parts(train: Part, test: Part) -> None:
    found = with_duplicates(train, test)
    first, other, distance = found.closest_across()[0]
    assert (found.name(first), found.name(other), distance) == ("test 10", "train 5", 0)


def test_planted_wrong_labels_are_found(train: Part, test: Part) -> None:
    planted = [11, 222, 333, 444, 555]
    labels = train[1].clone()
    labels[planted] = (labels[planted] + 3) % 10
    found = explore("digits", (train[0], labels), test).suspicious()
    named = {index: other for index, other, _ in found}
    assert sum(named.get(index) == train[1][index] for index in planted) >= 4


def test_a_strange_image_is_an_outlier_of_its_class(train: Part, test: Part) -> None:
    images = train[0].clone()
    images[100] = torch.randint(0, 256, (28, 28), generator=torch.Generator().manual_seed(0)).byte()
    assert 100 in explore("digits", (images, train[1]), test).outliers()


@pytest.mark.slow
def test_the_report_needs_no_other_file() -> None:
    main(["explore", "--source", "digits", "--output", "about"])
    page = Path("about/index.html").read_text()
    assert "The data: digits" in page
    pictures = sorted(path.stem for path in Path("about").glob("*.png"))
    assert len(pictures) == page.count("data:image/png;base64,") == 11
    for picture in pictures:
        assert len(Image.open(Path("about", f"{picture}.png")).convert("L").getcolors() or []) > 20


def test_an_unknown_source(fails: Callable[..., str]) -> None:
    assert "minst" in fails("explore", "--source", "minst")

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from mnist_lightning.cli import main
from mnist_lightning.data.sources import read
from mnist_lightning.evaluation.explore.exploration import Exploration, explore, tsne_map

Part = tuple[Tensor, Tensor]


@pytest.fixture
def train() -> Part:
    return read("digits", train=True)


@pytest.fixture
def test() -> Part:
    return read("digits", train=False)


def test_counts(train: Part, test: Part) -> None:
    exploration = explore(train, test)
    assert exploration.counts(train=True) == torch.bincount(train[1]).tolist()
    assert exploration.counts(train=False) == torch.bincount(test[1]).tolist()


@pytest.mark.mnist
@pytest.mark.slow
def test_counts_on_mnist(monkeypatch: pytest.MonkeyPatch) -> None:
    class NextImages(NearestNeighbors):
        def kneighbors(self, return_distance: bool) -> np.ndarray:
            count = self.n_samples_fit_
            return (np.arange(count)[:, None] + np.arange(1, self.n_neighbors + 1)) % count

    # The neighbour search takes 15 seconds; other tests cover it.
    monkeypatch.setattr("mnist_lightning.evaluation.explore.exploration.NearestNeighbors", NextImages)
    main(["explore"])
    page = Path("data-report/index.html").read_text()
    for count in (5_923, 6_742, 5_958, 6_131, 5_842, 5_421, 5_918, 6_265, 5_851, 5_949, 980, 1_135, 892):
        assert f"<td>{count:,}</td>" in page


def test_means_and_deviations(train: Part, test: Part) -> None:
    exploration = explore(train, test)
    threes = train[0][train[1] == 3].double()
    torch.testing.assert_close(exploration.means[3].double(), threes.mean(dim=0), atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(
        exploration.deviations[3].double(), threes.std(dim=0, correction=0), atol=1e-3, rtol=1e-4
    )


def test_sizes_and_centres_of_mass() -> None:
    images = torch.zeros(40, 28, 28, dtype=torch.uint8)
    images[:, 4:24, 10] = 100
    images[0] = 0
    images[1, 0, 27] = 100
    exploration = explore((images[:30], torch.arange(30) % 10), (images[30:], torch.arange(10)))
    assert exploration.boxes[:3].tolist() == [[0, 0], [24, 18], [20, 1]]
    assert exploration.centres[2].tolist() == pytest.approx([14, 10.5])
    assert exploration.centres[0].isnan().all()
    assert exploration.intensity[2] == pytest.approx(20 * 100 / 255 / 784)


def test_neighbors_are_the_nearest_images_of_a_search_in_all_components(train: Part, test: Part) -> None:
    exploration = explore(train, test)
    pixels = torch.cat([train[0], test[0]]).flatten(1).double() / 255
    distances = torch.cdist(pixels, pixels).fill_diagonal_(torch.inf)
    expected = distances.topk(10, largest=False)
    agreement = (exploration.neighbors.unsqueeze(2) == expected.indices.unsqueeze(1)).any(dim=2).double().mean()
    assert agreement > 0.9  # the search uses 50 of 784 components
    torch.testing.assert_close(
        exploration.distances.double(), distances.gather(1, exploration.neighbors), atol=1e-3, rtol=0
    )
    assert (exploration.distances.diff(dim=1) >= 0).all()


def test_an_image_is_not_its_own_neighbor() -> None:
    images = torch.zeros(40, 28, 28, dtype=torch.uint8)
    images[:, 4:24, 10] = 100
    images[0, 0, 0] = 255
    labels = torch.arange(40) % 10
    exploration = explore((images[:30], labels[:30]), (images[30:], labels[30:]))
    assert (exploration.neighbors != torch.arange(40).unsqueeze(1)).all()
    assert (exploration.distances[1:, 0] == 0).all()
    assert exploration.distances[0] == pytest.approx(1)


def test_a_source_with_few_images(train: Part, test: Part) -> None:
    exploration = explore((train[0][:6], train[1][:6]), (test[0][:2], test[1][:2]))
    assert exploration.components.shape == (8, 8)
    assert exploration.neighbors.shape == exploration.distances.shape == (8, 7)


def with_duplicates(train: Part, test: Part) -> Exploration:
    images, labels = train[0].clone(), train[1].clone()
    images[5], labels[5] = test[0][10], test[1][10]
    images[7], labels[7] = images[3], labels[3]
    return explore((images, labels), test)


def test_duplicates(train: Part, test: Part) -> None:
    before, after = set(explore(train, test).duplicates()), set(with_duplicates(train, test).duplicates())
    assert after - before == {(5, len(train[1]) + 10), (3, 7)}


def test_a_training_image_in_the_test_set_is_the_closest_pair(train: Part, test: Part) -> None:
    exploration = with_duplicates(train, test)
    first, other, distance = exploration.closest_across()[0]
    assert (exploration.name(first), exploration.name(other), distance) == ("test 10", "train 5", 0)


def test_wrong_labels_are_suspicious(train: Part, test: Part) -> None:
    planted = [11, 222, 333, 444, 555]
    labels = train[1].clone()
    labels[planted] = (labels[planted] + 3) % 10
    suspicious = {index: other for index, other, _ in explore((train[0], labels), test).suspicious()}
    assert sum(suspicious.get(index) == train[1][index] for index in planted) >= 4


def test_a_noise_image_is_an_outlier(train: Part, test: Part) -> None:
    images = train[0].clone()
    images[100] = torch.randint(0, 256, (28, 28), generator=torch.Generator().manual_seed(0)).byte()
    assert 100 in explore((images, train[1]), test).outliers()


@pytest.mark.slow
def test_report(capsys: pytest.CaptureFixture[str]) -> None:
    main(["explore", "--source", "digits", "--output", "about"])
    assert capsys.readouterr().out.splitlines() == ["about/index.html"]
    page = Path("about/index.html").read_text()
    assert "The data: digits" in page
    pictures = sorted(path.stem for path in Path("about").glob("*.png"))
    assert len(pictures) == page.count("data:image/png;base64,") == 11
    for picture in pictures:
        assert len(Image.open(Path("about", f"{picture}.png")).convert("L").getcolors() or []) > 20


@pytest.mark.parametrize("kinds", [1, 2, 9])
def test_equal_images_have_no_map(kinds: int) -> None:
    images = torch.randint(0, 256, (kinds, 28, 28)).byte().repeat(40, 1, 1)  # one kind used to crash the process
    exploration = explore((images, torch.arange(len(images)) % 10), (images[:kinds], torch.arange(kinds)))
    assert tsne_map(exploration.components) is None
    different = torch.randint(0, 256, (11, 28, 28)).byte()
    points = tsne_map(explore((different[:9], torch.arange(9)), (different[9:], torch.arange(2))).components)
    assert points is not None
    assert points.shape == (11, 2)


@pytest.mark.slow
def test_report_on_black_pictures(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("0/1", "0/2", "1/1", "1/2"):
        Path("black", name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (28, 28)).save(f"black/{name}.png")
    main(["explore", "--source", "folder:black"])
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("data-report/index.html\n", "")
    page = Path("data-report/index.html").read_text()
    assert "All images are black." in page
    assert "<td>nan</td>" not in page
    assert page.count("data:image/png;base64,") == 10


def test_an_unknown_source(fails: Callable[..., str]) -> None:
    assert "minst" in fails("explore", "--source", "minst")

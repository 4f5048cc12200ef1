import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import label as connected_parts
from torch import Tensor

from mnist_lightning.data import superpixels
from mnist_lightning.data.sources import read
from mnist_lightning.data.superpixels import (
    NODES,
    SuperpixelGraphs,
    concatenate,
    distorted,
    nearest_neighbors,
    read_graphs,
    segment,
    stored_graphs,
    superpixel_graphs,
)
from mnist_lightning.errors import InputError


@pytest.fixture(scope="module")
def images() -> Tensor:
    return read("digits", train=False)[0][:40]


@pytest.fixture(scope="module")
def graphs(images: Tensor) -> SuperpixelGraphs:
    return superpixel_graphs(images)


def test_superpixels_are_connected_and_cover_the_image(images: Tensor) -> None:
    for image in images.numpy():
        segments = segment(image)
        assert segments.shape == (28, 28)
        numbers = np.unique(segments)
        assert numbers.tolist() == list(range(len(numbers)))
        assert 40 <= len(numbers) <= NODES
        for number in numbers:
            assert connected_parts(segments == number)[1] == 1


@pytest.mark.parametrize("nodes", [20, 75, 255])
@pytest.mark.parametrize("value", [0, 255])
def test_constant_images(nodes: int, value: int) -> None:
    assert segment(np.full((28, 28), value, np.uint8), nodes).max() < nodes


def test_maximum_number_of_superpixels(images: Tensor) -> None:
    few, many = (segment(images[0].numpy(), nodes).max() + 1 for nodes in (30, 200))
    assert few <= 30 < many <= 200


def test_node_features_match_their_pixels(images: Tensor, graphs: SuperpixelGraphs) -> None:
    for g, image in enumerate(images):
        first, last = graphs.node_ptr[g : g + 2].tolist()
        assert graphs.segments[g].max() == last - first - 1
        assert graphs.x[first:last, 1].sum() == pytest.approx(1)
        for node in range(last - first):
            rows, columns = (graphs.segments[g] == node).nonzero(as_tuple=True)
            assert graphs.x[first + node, 0] == pytest.approx(
                image[rows, columns].float().mean().item() / 255, abs=1e-6
            )
            assert graphs.x[first + node, 1] == pytest.approx(len(rows) / 784)
            centre = ((rows.float().mean() + 0.5) / 28, (columns.float().mean() + 0.5) / 28)
            torch.testing.assert_close(graphs.pos[first + node], torch.stack(centre))


def test_moments_match_their_pixels(images: Tensor, graphs: SuperpixelGraphs) -> None:
    whole = superpixel_graphs(images[:3], features="moments")
    assert torch.equal(whole.x[:, :2], graphs.x[: len(whole.x)])
    row, column = np.mgrid[:28, :28]
    for g, image in enumerate(images[:3].numpy() / 255):
        nodes = whole.x[whole.node_ptr[g] : whole.node_ptr[g + 1]].numpy()
        for node, (*_, deviation, r, c, rr, rc, cc) in enumerate(nodes):
            inside = whole.segments[g].numpy() == node
            v = image[inside]
            dr, dc = ((axis[inside] - axis[inside].mean()) / 28 for axis in (row, column))
            expected = [v.std(), *((v * moment).mean() for moment in (dr, dc, dr * dr, dr * dc, dc * dc))]
            np.testing.assert_allclose([deviation, r, c, rr, rc, cc], expected, rtol=1e-5, atol=1e-7)


@pytest.mark.slow
def test_neighbors_match_brute_force(graphs: SuperpixelGraphs) -> None:
    for g in range(len(graphs)):
        pos = graphs.pos[graphs.node_ptr[g] : graphs.node_ptr[g + 1]].double()
        edges = graphs.edges[:, graphs.edge_ptr[g] : graphs.edge_ptr[g + 1]].long()
        for node in range(len(pos)):
            distances = [((pos[node] - other) ** 2).sum().item() for other in pos]
            others = sorted(set(range(len(pos))) - {node}, key=lambda other: distances[other])
            sources = edges[0, edges[1] == node].tolist()
            assert len(set(sources)) == 8
            assert node not in sources
            # Includes the nearest node, which a widely used builder of these graphs drops.
            assert sorted(distances[i] for i in sources) == pytest.approx([distances[i] for i in others[:8]], abs=1e-7)


def test_ties_between_neighbors_go_to_the_lower_index() -> None:
    corners = torch.tensor([[[0.5, 0.5], [0.0, 0.0], [1.0, 1.0], [0.0, 1.0], [1.0, 0.0]]])
    assert nearest_neighbors(corners, torch.tensor([5]), 4)[0, 0].tolist() == [1, 2, 3, 4]


def test_too_few_superpixels_for_the_number_of_neighbors(images: Tensor) -> None:
    with pytest.raises(InputError, match=r"image 0 must have more than 8 superpixels .* got 4"):
        superpixel_graphs(images[:1], nodes=4)


def test_graphs_do_not_depend_on_the_batch(images: Tensor, graphs: SuperpixelGraphs) -> None:
    parts = concatenate([superpixel_graphs(part) for part in images.split(7)])
    for name, whole in vars(graphs).items():
        assert torch.equal(getattr(parts, name), whole), name


def test_cache_file_is_built_once(images: Tensor, graphs: SuperpixelGraphs, tmp_path: Path) -> None:
    path = stored_graphs("digits", images, [tmp_path / "superpixels"])
    for name, column in vars(read_graphs(path)).items():
        assert torch.equal(column, getattr(graphs, name)), name
    built = path.stat().st_mtime_ns
    assert stored_graphs("digits", images, [tmp_path / "superpixels"]) == path
    assert path.stat().st_mtime_ns == built
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_different_images_have_different_cache_files(images: Tensor, tmp_path: Path) -> None:
    paths = {stored_graphs("digits", part, [tmp_path]) for part in (images[:9], images[:9].flip(2))}
    assert len(paths) == 2


def test_features_and_copies_have_their_own_cache_files(images: Tensor, tmp_path: Path) -> None:
    one = stored_graphs("digits", images[:9], [tmp_path])
    moments = stored_graphs("digits", images[:9], [tmp_path], features="moments")
    copies = [stored_graphs("digits", images[:9], [tmp_path], copy=copy) for copy in (1, 2)]
    assert len({one, moments, *copies}) == 4
    assert torch.equal(read_graphs(moments).x[:, :2], read_graphs(one).x)


def test_copies_are_distorted_and_segmented_anew(images: Tensor) -> None:
    first, compactness = distorted(images, copy=1, chunk=0)
    again, same = distorted(images, copy=1, chunk=0)
    assert torch.equal(first, again)
    assert compactness == same
    for other in (distorted(images, copy=2, chunk=0), distorted(images, copy=1, chunk=1)):
        assert not torch.equal(first, other[0])
        assert compactness != other[1]
    assert all(0.3 <= each <= 0.8 for each in compactness)
    # The digit stays recognizable.
    correlation = torch.corrcoef(torch.stack([images.flatten(), first.flatten()]).float())[0, 1]
    assert 0.5 < correlation < 0.95
    coarse, fine = (superpixel_graphs(images[:1], compactness=[each]) for each in (0.1, 1.0))
    assert not torch.equal(coarse.segments, fine.segments)


@pytest.mark.parametrize("damage", ["truncated", "empty", "bit flip", "wrong format"])
def test_damaged_cache_file_is_rebuilt(damage: str, images: Tensor, tmp_path: Path) -> None:
    path = stored_graphs("digits", images[:9], [tmp_path])
    whole = path.read_bytes()
    at = len(whole) // 2
    path.write_bytes(
        {
            "truncated": whole[:at],
            "empty": b"",
            "bit flip": whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :],
            "wrong format": b"not a file of graphs",
        }[damage]
    )
    with pytest.warns(UserWarning, match="is damaged and will be rebuilt"):
        assert stored_graphs("digits", images[:9], [tmp_path]) == path
    assert torch.equal(read_graphs(path).x, superpixel_graphs(images[:9]).x)


def test_first_writable_folder_is_used(images: Tensor, tmp_path: Path) -> None:
    (tmp_path / "file").touch()  # a file cannot contain folders, not even for root
    path = stored_graphs("digits", images[:9], [tmp_path / "file" / "superpixels", tmp_path / "writable"])
    assert path.parent == tmp_path / "writable"
    with pytest.raises(InputError, match=r"cannot write to .*superpixels: permission denied"):
        stored_graphs("digits", images[:9], [tmp_path / "file" / "superpixels"])


def test_missing_cache_file_without_build(images: Tensor, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no digits-"):
        stored_graphs("digits", images[:9], [tmp_path], build=False)


STORE = """
from pathlib import Path
from mnist_lightning.data.sources import read
from mnist_lightning.data.superpixels import stored_graphs

stored_graphs("digits", read("digits", train=False)[0][:9], [Path("both")])
"""


@pytest.mark.slow
def test_two_processes_build_the_same_file(images: Tensor) -> None:
    processes = [subprocess.Popen([sys.executable, "-c", STORE]) for _ in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    (path,) = Path("both").iterdir()
    assert torch.equal(read_graphs(path).x, superpixel_graphs(images[:9]).x)


@pytest.mark.slow
def test_build_in_chunks_with_several_processes(
    images: Tensor, graphs: SuperpixelGraphs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(superpixels, "_CHUNK", 15)
    stored = read_graphs(stored_graphs("digits", images, [tmp_path]))
    assert torch.equal(stored.segments, graphs.segments)
    assert torch.equal(stored.edges, graphs.edges)
    shutil.rmtree(tmp_path)

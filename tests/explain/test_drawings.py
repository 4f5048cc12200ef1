import numpy as np
import pytest
import torch
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from torch import Tensor

from mnist_lightning import GNN, MNISTDataModule
from mnist_lightning.explain.connectivity import Connectivity, connectivity
from mnist_lightning.explain.drawings import connectivity_sheet, draw_graph, draw_superpixels


@pytest.fixture
def model() -> GNN:
    return GNN(width=8, depth=1).eval()


@pytest.fixture
def image(digits: MNISTDataModule) -> Tensor:
    return digits.images_and_labels("test")[0][7]


def drawn_nodes(found: Connectivity) -> np.ndarray:
    """Where on the screen the nodes are: x to the right, y to the top."""
    axes = Figure(figsize=(4, 4)).add_axes((0, 0, 1, 1))
    draw_graph(axes, found)
    (points,) = [c for c in axes.collections if isinstance(c, PathCollection)]
    places: np.ndarray = axes.transAxes.inverted().transform(axes.transData.transform(points.get_offsets()))
    return places


def test_nodes_lie_on_their_superpixels(model: GNN, image: Tensor) -> None:
    found = connectivity(model, image)
    for place, node in zip(drawn_nodes(found), range(len(found.x)), strict=True):
        rows, columns = (found.segments == node).nonzero(as_tuple=True)
        assert place[0] * 28 == pytest.approx(columns.float().mean().item() + 0.5, abs=1e-3)
        assert (1 - place[1]) * 28 == pytest.approx(rows.float().mean().item() + 0.5, abs=1e-3)  # the first row on top


def test_a_turned_graph_is_drawn_turned_the_same_way(model: GNN, image: Tensor) -> None:
    found = connectivity(model, image)
    before = drawn_nodes(found)
    # A quarter to the left: what was at the top is at the left, as np.rot90 turns the picture.
    row, column = found.pos.t()
    turned = Connectivity(**{**vars(found), "pos": torch.stack([1 - column, row], dim=1)})
    x, y = before.T
    np.testing.assert_allclose(drawn_nodes(turned), np.stack([1 - y, x], axis=1), atol=1e-6)
    corner = np.zeros((28, 28))
    corner[0, 27] = 1
    assert np.rot90(corner)[0, 0] == 1


def test_superpixels_are_painted_in_their_intensity(model: GNN, image: Tensor) -> None:
    found = connectivity(model, image)
    axes = Figure().subplots()
    draw_superpixels(axes, found)
    painted = axes.images[0].get_array()
    assert painted is not None
    assert painted.mean() == pytest.approx(image.float().mean().item() / 255, abs=1e-5)


def test_only_the_strongest_edges_are_drawn(model: GNN, image: Tensor) -> None:
    found = connectivity(model, image)
    axes = Figure().subplots()
    draw_graph(axes, found, share=0.1)
    lines = axes.collections[0].get_segments()  # type: ignore[attr-defined]
    assert len(lines) == round(0.1 * len(found.edge_importance))
    strongest = found.edge_importance.abs().argmax()
    ends = found.pos[found.edge_index[:, strongest]].flip(1) * 28
    np.testing.assert_allclose(lines[-1], ends, atol=1e-5)


def test_a_sheet_has_a_row_a_digit(model: GNN, digits: MNISTDataModule) -> None:
    images, labels = digits.images_and_labels("test")
    found = [connectivity(model, images[i], int(labels[i])) for i in (0, 1)]
    figure = connectivity_sheet(found)
    titles = [axes.get_title() for axes in figure.axes]
    assert sum("superpixels" in title for title in titles) == 2
    assert sum(f"label {labels[0]}" in title for title in titles) >= 1
    assert sum(f"evidence for {found[0].runner_up}" in title for title in titles) >= 1

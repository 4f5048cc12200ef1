import numpy as np
import pytest
import torch
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from torch import Tensor

from mnist_lightning import CNN, GNN, MLP, InputError, LeNet5, MNISTDataModule
from mnist_lightning.classifier import Classifier
from mnist_lightning.explain.connectivity import Connectivity, connectivity
from mnist_lightning.explain.figures import (
    Saliency,
    connectivity_sheet,
    draw_graph,
    draw_superpixels,
    saliency_sheet,
)
from mnist_lightning.explain.report import Digit, saliency_of_digits


@pytest.fixture
def images(digits: MNISTDataModule) -> Tensor:
    return digits.images_and_labels("test")[0]


@pytest.fixture
def explanation(images: Tensor) -> Connectivity:
    return connectivity(GNN(width=8, depth=1).eval(), images[7])


def node_places(explanation: Connectivity) -> np.ndarray:
    """Positions of the drawn nodes in the panel: x to the right, y to the top, in [0, 1]."""
    axes = Figure(figsize=(4, 4)).add_axes((0, 0, 1, 1))
    draw_graph(axes, explanation)
    (points,) = [c for c in axes.collections if isinstance(c, PathCollection)]
    places: np.ndarray = axes.transAxes.inverted().transform(axes.transData.transform(points.get_offsets()))
    return places


def test_nodes_are_drawn_on_their_superpixels(explanation: Connectivity) -> None:
    for place, node in zip(node_places(explanation), range(len(explanation.x)), strict=True):
        rows, columns = (explanation.segments == node).nonzero(as_tuple=True)
        assert place[0] * 28 == pytest.approx(columns.float().mean().item() + 0.5, abs=1e-3)
        assert (1 - place[1]) * 28 == pytest.approx(rows.float().mean().item() + 0.5, abs=1e-3)  # row 0 at the top


def test_rotated_positions_are_drawn_rotated(explanation: Connectivity) -> None:
    row, column = explanation.pos.t()
    # Counterclockwise, like np.rot90 below: the top right corner moves to the top left.
    rotated = Connectivity(**{**vars(explanation), "pos": torch.stack([1 - column, row], dim=1)})
    x, y = node_places(explanation).T
    np.testing.assert_allclose(node_places(rotated), np.stack([1 - y, x], axis=1), atol=1e-6)
    corner = np.zeros((28, 28))
    corner[0, 27] = 1
    assert np.rot90(corner)[0, 0] == 1


def test_superpixels_have_their_mean_intensity(explanation: Connectivity) -> None:
    axes = Figure().subplots()
    draw_superpixels(axes, explanation)
    pixels = axes.images[0].get_array()
    assert pixels is not None
    assert pixels.mean() == pytest.approx(explanation.image.float().mean().item() / 255, abs=1e-5)


def test_only_the_most_important_edges_are_drawn(explanation: Connectivity) -> None:
    axes = Figure().subplots()
    draw_graph(axes, explanation, share=0.1)
    lines = axes.collections[0].get_segments()  # type: ignore[attr-defined]
    assert len(lines) == round(0.1 * len(explanation.edge_importance))
    strongest = explanation.edge_importance.abs().argmax()
    ends = explanation.pos[explanation.edge_index[:, strongest]].flip(1) * 28
    np.testing.assert_allclose(lines[-1], ends, atol=1e-5)


def titles(figure: Figure) -> list[str]:
    return [axes.get_title() for axes in figure.axes]


def test_connectivity_sheet_has_one_row_per_digit(images: Tensor) -> None:
    model = GNN(width=8, depth=1).eval()
    explanations = [connectivity(model, images[0], label=3), connectivity(model, images[1])]
    texts = titles(connectivity_sheet(explanations))
    assert sum("superpixels" in text for text in texts) == 2
    assert sum("label 3" in text for text in texts) == 1
    assert sum(f"evidence for {explanations[0].runner_up}" in text for text in texts) >= 1


def explain(model: Classifier, images: Tensor, target: int | None = None) -> Saliency:
    return saliency_of_digits(model, [Digit("test", image, None) for image in images], target)


def test_saliency_sheet_has_one_row_per_digit(images: Tensor) -> None:
    saliency = explain(CNN(channels=[8, 16], widths=[]).eval(), images[:2])
    figure = saliency_sheet(saliency)
    assert len(figure.axes) == 12
    assert saliency.runner_up_maps is not None
    for row, (target, runner_up) in enumerate(zip(saliency.targets, saliency.runners_up, strict=True)):
        assert saliency.probabilities[row].topk(2).indices.tolist() == [target, runner_up]
        for words in ("Grad-CAM", "input gradients", "occlusion"):
            assert f"{words} for {target}" in titles(figure)
        assert f"Grad-CAM for {runner_up}" in titles(figure)
        assert not torch.equal(saliency.runner_up_maps[row], saliency.maps["Grad-CAM"][row])
    curves = {line.get_label(): line.get_ydata() for line in figure.axes[5].lines}
    assert set(curves) == {"random ink", "Grad-CAM", "input gradients", "occlusion"}
    for curve in curves.values():
        assert float(curve[0]) == pytest.approx(float(saliency.probabilities[0].max()), abs=1e-6)  # type: ignore[index,arg-type]


def test_saliency_sheet_of_a_target(images: Tensor) -> None:
    model = LeNet5().eval()
    saliency = explain(model, images[:1], target=8)
    predicted = int(saliency.probabilities.argmax())
    assert saliency.targets.tolist() == [8]
    assert saliency.runners_up.tolist() == [predicted] != [8]
    texts = titles(saliency_sheet(saliency))
    assert {f"{name} for 8" for name in saliency.maps} <= set(texts)
    assert texts[0].startswith(f"{predicted} (")
    assert float(saliency.curves["occlusion"][0, 0]) == pytest.approx(float(saliency.probabilities[0, 8]), abs=1e-6)
    with pytest.raises(InputError, match="target must be a class from 0 to 9, got 12"):
        explain(model, images[:1], target=12)


def test_saliency_sheet_without_convolutions(images: Tensor) -> None:
    figure = saliency_sheet(explain(MLP().eval(), images[:2]))
    assert len(figure.axes) == 8
    assert not any("Grad-CAM" in title for title in titles(figure))


def test_saliency_sheet_of_a_blank_digit(recwarn: pytest.WarningsRecorder) -> None:
    blank = torch.zeros(1, 28, 28, dtype=torch.uint8)
    assert len(saliency_sheet(explain(LeNet5().eval(), blank)).axes) == 6
    assert not [warning for warning in recwarn if "contour" in str(warning.message)]


def test_forward_passes_of_a_saliency_sheet(images: Tensor) -> None:
    """No forward pass only checks inputs: each of them computes numbers of the sheet."""
    model = LeNet5().eval()
    passes: list[Tensor] = []
    model.register_forward_hook(lambda module, inputs, output: passes.append(output))
    explain(model, images[:1])
    needed = {
        "probabilities": 1,
        "blank digits: does the model have feature maps, and their positions for two calls of Grad-CAM": 3,
        "Grad-CAM of the target and of the runner-up": 2,
        "input gradients": 1,
        "occlusion: the intact digit, and 26 x 26 windows, at most 512 per pass": 3,
        "deletion: 3 maps and 10 random orders, 10 shares each (share 0 is known)": 130,
    }
    assert len(passes) == sum(needed.values())

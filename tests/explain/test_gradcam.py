"""Saliency maps of models of which is known what they look at; their check; and `mnist-lightning gradcam`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor, nn

from mnist_lightning import CNN, GNN, MLP, DenseNet, LeNet5, ResNet, load
from mnist_lightning.classifier import Classifier
from mnist_lightning.cli import main
from mnist_lightning.data.sources import read
from mnist_lightning.errors import InputError
from mnist_lightning.explain.gradcam import (
    deletion,
    deletion_curve,
    grad_cam,
    input_gradients,
    occlusion,
    random_orders,
    without_highest,
    write_gradcam,
)
from mnist_lightning.explain.receptive_fields import Grid, spatial_layers
from mnist_lightning.explain.saliency_sheet import Saliency, saliency, saliency_sheet

Method = Callable[..., Tensor]
METHODS: list[Method] = [grad_cam, input_gradients, occlusion]


class Quarter(Classifier):
    """Sees nothing but the upper left quarter, and says 1 if there is ink in it."""

    def __init__(self, **training: Any) -> None:
        super().__init__(**training)
        self.conv = nn.Conv2d(1, 1, 3, padding=1, bias=False)
        nn.init.constant_(self.conv.weight, 1 / 9)
        self.pool = nn.AvgPool2d(2)

    def forward(self, images: Tensor) -> Tensor:
        seen = torch.zeros(28, 28)
        seen[:14, :14] = 1
        ink = self.pool(self.conv(images * seen)).mean(dim=(1, 2, 3))
        return nn.functional.one_hot(torch.tensor(1), 10) * (200 * ink - 4)[:, None]


@pytest.fixture(scope="module")
def images() -> Tensor:
    return read("digits", train=False)[0][:24]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, data_root: Path) -> Path:
    """A run that has trained a small CNN for a moment."""
    root = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("PL_GLOBAL_SEED", "0")
        patch.setenv("MNIST_LIGHTNING_DATA", str(data_root))
        options = ["--model.channels=[8,16]", "--model.widths=[]", "--model.lr=0.01", "--data.source=digits"]
        main(["fit", "--model=CNN", *options, "--trainer.max_epochs=2", "--trainer.enable_progress_bar=false"])
    return root / "lightning_logs" / "cnn" / "version_0"


@pytest.mark.parametrize("method", METHODS)
def test_what_a_model_does_not_see_is_not_important(method: Method, images: Tensor) -> None:
    maps = method(Quarter().eval(), images, torch.ones(len(images), dtype=torch.long))
    assert maps.shape == images.shape
    ink = images > 0
    seen = torch.zeros_like(ink)
    seen[:, :14, :14] = True
    assert (maps[ink & seen].mean() > 10 * maps[ink & ~seen].abs().mean()).item()
    far = torch.zeros_like(ink)
    far[:, 18:] = far[:, :, 18:] = True  # as far as neither a window nor interpolation reaches
    assert not maps[far].any()


@pytest.mark.parametrize("method", METHODS)
def test_deletion_shows_that_a_map_is_true(method: Method, images: Tensor) -> None:
    model = Quarter().eval()
    ones = images[model.classify(images).argmax(dim=1) == 1]
    assert len(ones) > 5
    ranking = method(model, ones)
    found = deletion(model, ones, ranking, share=0.2)
    assert found.drop.mean() > 2 * found.random_drop.mean() > 0
    wrong = deletion(model, ones, -ranking, share=0.2)
    assert wrong.drop.mean() < 0.2 * found.random_drop.mean()
    assert torch.equal(wrong.random_drop, found.random_drop)  # the same choices, each time


def test_deletion_takes_as_much_ink_from_all(images: Tensor) -> None:
    model = Quarter().eval()
    looked_at: list[Tensor] = []
    classify = model.classify

    def classified(digits: Tensor) -> Tensor:
        looked_at.append(digits)
        return classify(digits)

    model.classify = classified  # type: ignore[method-assign]
    deletion(model, images, (images == 0).float(), draws=3)  # a ranking that would rather delete background
    ink = (images > 0).sum(dim=(1, 2))
    lost = [ink - (digits > 0).sum(dim=(1, 2)) for digits in looked_at]
    assert sum(bool((some == (0.1 * ink).round()).all()) for some in lost) == 4  # the map's and three random ones
    assert all(bool((some == 0).all()) or bool((some == (0.1 * ink).round()).all()) for some in lost)


def test_the_highest_are_deleted_and_equals_at_random() -> None:
    digits = torch.full((2, 28, 28), 255, dtype=torch.uint8)
    counts = torch.tensor([100, 3])
    left = without_highest(digits, torch.arange(2 * 784.0).view(2, 28, 28), counts)
    assert not left[0].flatten()[-100:].any()
    assert (left == 0).sum(dim=(1, 2)).tolist() == [100, 3]
    left = without_highest(digits, torch.zeros(2, 28, 28), counts)
    assert (left == 0).sum(dim=(1, 2)).tolist() == [100, 3]
    assert 10 < (left[0, :14] == 0).sum() < 90  # all over the picture, and not from its beginning


def test_a_deletion_curve_goes_from_the_digit_to_nothing(images: Tensor) -> None:
    model = LeNet5().eval()
    probabilities, nothing = (model.classify(some).softmax(dim=1) for some in (images, torch.zeros_like(images)))
    targets = torch.full((len(images),), 3)
    curve = deletion_curve(model, images, random_orders(images, 1)[0], (0, 0.5, 1), targets)
    torch.testing.assert_close(curve[:, 0], probabilities[:, 3])
    torch.testing.assert_close(curve[:, 2], nothing[:, 3])
    assert not torch.equal(curve[:, 1], curve[:, 0])


def test_grad_cam_is_the_papers_formula(images: Tensor) -> None:
    model = LeNet5().eval()
    targets = torch.arange(len(images)) % 10
    (pixels,) = model.inputs(images)
    features = model.s4(model.activation(model.c3(model.s2(model.activation(model.c1(model.standardize(pixels)))))))
    units = model.activation(model.f6(model.activation(model.c5(features.flatten(1)))))
    logits = model.output(units)
    (gradient,) = torch.autograd.grad(logits.gather(1, targets[:, None]).sum(), features)
    coarse = (gradient.mean(dim=(2, 3), keepdim=True) * features).sum(dim=1).relu()
    maps = grad_cam(model, images, targets)
    # The 5x5 units look at pixels 5.5, 9.5, ... 21.5: here are the means of the four pixels nearest to each.
    middles = torch.stack([maps[:, row::4, column::4][:, :5, :5] for row in (5, 6) for column in (5, 6)]).mean(dim=0)
    shares = torch.tensor([0.0625, 0.875, 0.0625])  # of the unit and its neighbours in that mean
    blurred = nn.functional.conv2d(coarse[:, None], (shares[:, None] * shares)[None, None], padding=1)[:, 0]
    torch.testing.assert_close(middles, blurred)


@pytest.mark.parametrize(
    ("build", "grid"),
    [
        (lambda: CNN(channels=[4, 4, 4], widths=[]), Grid(3, 3.5, 8)),  # its last pooling leaves a row and a column out
        (lambda: CNN(channels=[4, 4], kernel_size=[5, 3], padding="valid", crop=2, widths=[]), Grid(4, 7.5, 4)),
        (lambda: LeNet5(), Grid(5, 5.5, 4)),
        (lambda: ResNet(channels=[4], blocks=[1]), Grid(14, 0.5, 2)),
        (lambda: ResNet(channels=[4, 4], blocks=[1, 1]), Grid(7, 0.5, 4)),
        (lambda: DenseNet(growth_rate=4, blocks=[1, 1], stem=4), Grid(7, 1.5, 4)),
    ],
)
def test_each_unit_is_in_the_middle_of_what_it_sees(build: Callable[[], Classifier], grid: Grid) -> None:
    model = build().eval()
    for parameter in model.parameters():
        nn.init.uniform_(parameter, 0.01, 0.1)  # and bright pictures: no unit is off, nothing cancels out
    layers = spatial_layers(model)
    layer = list(layers)[-1]
    assert layers[layer] == (grid, grid)
    kept: list[Tensor] = []
    hook = layer.register_forward_hook(lambda module, inputs, output: kept.append(output))
    pixels = (0.5 + 0.5 * torch.rand(64, 1, 28, 28)).requires_grad_()
    model(pixels)
    hook.remove()
    unit = grid.units // 2
    (gradient,) = torch.autograd.grad(kept[0][:, :, unit, unit - 1].sum(), pixels)
    rows, columns = (gradient.abs().sum(dim=(0, 1, axis)).nonzero()[:, 0] for axis in (3, 2))
    for seen, place in ((rows, unit), (columns, unit - 1)):
        first, last = int(seen[0]), int(seen[-1])
        if first > 0 and last < 27:  # a field that the picture's edge does not cut
            assert (first + last) / 2 == grid.first + place * grid.step
        else:
            assert first <= grid.first + place * grid.step <= last


def test_layers_are_in_order_and_none_of_two_outputs() -> None:
    model = LeNet5().eval()  # its activation is used four times
    assert list(spatial_layers(model)) == [model.c1, model.s2, model.c3, model.s4]


def test_maps_that_are_resized_by_functions_keep_their_place() -> None:
    class Functional(Quarter):
        def forward(self, images: Tensor) -> Tensor:
            maps = nn.functional.max_pool2d(self.conv(nn.functional.pad(images, (2, 2, 2, 2))), 4)
            return self.pool(maps).flatten(1)[:, :10]

    layers = spatial_layers(Functional().eval())
    assert layers == {
        layer: (grid, grid) for layer, grid in zip(layers, (Grid(32, -2, 1), Grid(4, 1.5, 8)), strict=True)
    }


def test_input_gradients_of_a_linear_model_are_what_deletion_takes(images: Tensor) -> None:
    model = MLP(widths=[]).eval()
    maps = input_gradients(model, images)
    logits = model.classify(images)
    predicted = logits.argmax(dim=1)
    for row, column in ((9, 14), (14, 14), (18, 11)):
        without = images.clone()
        without[:, row, column] = 0
        fall = (logits - model.classify(without)).gather(1, predicted[:, None])[:, 0]
        torch.testing.assert_close(maps[:, row, column], fall, atol=1e-5, rtol=1e-4)


def test_occlusion_is_the_mean_fall_of_the_windows(images: Tensor) -> None:
    model = LeNet5().eval()
    targets = torch.arange(len(images)) % 10

    def log_probability(digits: Tensor) -> Tensor:
        return model.classify(digits).log_softmax(dim=1).gather(1, targets[:, None])[:, 0]

    maps = occlusion(model, images, targets)
    for row, column, windows in ((13, 12, 9), (0, 14, 3)):
        falls = []
        for top in range(max(0, row - 2), row + 1):
            for left in range(column - 2, column + 1):
                covered = images.clone()
                covered[:, top : top + 3, left : left + 3] = 0
                falls.append(log_probability(images) - log_probability(covered))
        assert len(falls) == windows
        torch.testing.assert_close(maps[:, row, column], torch.stack(falls).mean(dim=0), atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("method", METHODS)
def test_nothing_in_nothing_out(method: Method) -> None:
    assert method(LeNet5().eval(), torch.empty(0, 28, 28, dtype=torch.uint8)).shape == (0, 28, 28)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("digits", "targets", "words"),
    [
        (torch.zeros(2, 28, 28), None, "they must be uint8"),
        (torch.zeros(2, 28, 28, dtype=torch.uint8), torch.tensor([1]), "they must be int64 [2]"),
        (torch.zeros(2, 28, 28, dtype=torch.uint8), torch.tensor([1, 10]), "from 0 to 9"),
        (torch.zeros(2, 28, 28, dtype=torch.uint8), torch.tensor([1.0, 2.0]), "they must be int64 [2]"),
    ],
)
def test_what_are_no_digits_or_no_classes(method: Method, digits: Tensor, targets: Tensor | None, words: str) -> None:
    with pytest.raises(InputError) as error:
        method(LeNet5().eval(), digits, targets)
    assert words in str(error.value)


def test_a_ranking_of_another_shape(images: Tensor) -> None:
    with pytest.raises(InputError, match="the ranking is"):
        deletion(LeNet5().eval(), images, torch.zeros(24, 14, 14))


@pytest.mark.parametrize("method", METHODS)
def test_a_gnn_takes_no_pixels(method: Method, images: Tensor) -> None:
    with pytest.raises(InputError, match="a GNN takes no pixels; `connectivity` explains"):
        method(GNN(width=8, depth=1).eval(), images)


def test_grad_cam_needs_convolutions(images: Tensor) -> None:
    with pytest.raises(InputError, match=r"MLP has no convolutional maps.*input gradients and occlusion remain"):
        grad_cam(MLP().eval(), images)


@pytest.mark.parametrize("method", METHODS)
def test_a_frozen_model_is_explained_and_left_as_it_was(
    method: Method, images: Tensor, recwarn: pytest.WarningsRecorder
) -> None:
    model = LeNet5().eval()
    maps = method(model, images[:4])
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    assert torch.equal(method(model, images[:4]), maps)
    assert not list(recwarn)
    assert not any(module._forward_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


def titles(figure: Figure) -> list[str]:
    return [axes.get_title() for axes in figure.axes]


def shown(model: Classifier, images: Tensor, target: int | None = None) -> list[Saliency]:
    return saliency(model, [("test", image, None) for image in images], target)


def test_a_sheet_has_a_row_a_digit(run: Path, images: Tensor) -> None:
    found = shown(load(run), images[:2])
    figure = saliency_sheet(found)
    assert len(figure.axes) == 12
    for one in found:
        probabilities = one.probabilities.tolist()
        assert sorted(probabilities)[-2:] == [probabilities[one.runner_up], probabilities[one.target]]
        for words in ("Grad-CAM", "input gradients", "occlusion"):
            assert f"{words} for {one.target}" in titles(figure)
        assert f"Grad-CAM for {one.runner_up}" in titles(figure)
        assert one.runner_up_map is not None
        assert not torch.equal(one.runner_up_map, one.maps["Grad-CAM"])
    curves = {line.get_label(): line.get_ydata() for line in figure.axes[5].lines}
    assert set(curves) == {"random ink", "Grad-CAM", "input gradients", "occlusion"}
    for curve in curves.values():
        assert float(curve[0]) == pytest.approx(float(found[0].probabilities.max()), abs=1e-6)  # type: ignore[index,arg-type]


def test_a_sheet_of_another_class(run: Path, images: Tensor) -> None:
    (one,) = shown(load(run), images[:1], target=8)
    assert one.target == 8
    assert one.runner_up == int(one.probabilities.argmax())
    assert {f"{name} for 8" for name in one.maps} <= set(titles(saliency_sheet([one])))
    assert float(one.curves["occlusion"][0]) == pytest.approx(float(one.probabilities[8]), abs=1e-6)


def test_a_sheet_of_a_model_without_convolutions(images: Tensor) -> None:
    figure = saliency_sheet(shown(MLP().eval(), images[:2]))
    assert len(figure.axes) == 8
    assert not any("Grad-CAM" in title for title in titles(figure))


def test_a_blank_digit_has_a_sheet_too(recwarn: pytest.WarningsRecorder) -> None:
    assert len(saliency_sheet(shown(LeNet5().eval(), torch.zeros(1, 28, 28, dtype=torch.uint8))).axes) == 6
    assert not [warning for warning in recwarn if "contour" in str(warning.message)]


@pytest.mark.slow
def test_one_of_each_class_as_a_picture(run: Path) -> None:
    assert write_gradcam(str(run)) == Path("gradcam.png")
    height, width, _ = matplotlib.image.imread("gradcam.png").shape
    assert height > 1.5 * width  # ten rows
    assert matplotlib.image.imread("gradcam.png")[..., :3].std() > 0.1


def test_a_picture_of_ones_own_dark_on_light(run: Path, images: Tensor) -> None:
    Image.fromarray(255 - images[7].numpy()).resize((280, 280), Image.Resampling.NEAREST).save("my_seven.png")
    write_gradcam(str(run), image="my_seven.png", output="mine.svg")
    assert "my_seven.png" in Path("mine.svg").read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"index": 360}, "there is no test image 360: digits has 360, from 0 to 359"),
        ({"indices": "1,x"}, "indices is '1,x'; it must be numbers"),
        ({"index": 1, "indices": "2"}, "give one of index, indices and image"),
        ({"image": "absent.png"}, "absent.png"),
        ({"output": "seven.html"}, "must end in .png, .svg or .pdf"),
        ({"output": "nowhere/seven.png"}, "there is no folder"),
        ({"target": 12, "index": 1}, "target is 12; it must be a class from 0 to 9"),
    ],
)
def test_wrong_arguments_get_one_line_and_leave_nothing(arguments: dict[str, Any], words: str, run: Path) -> None:
    with pytest.raises(InputError) as error:
        write_gradcam(str(run), **arguments)
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    assert not list(Path().iterdir())

from io import BytesIO

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from mnist_lightning.evaluation import charts

torch.manual_seed(0)
IMAGES = torch.randint(0, 256, (50, 28, 28), dtype=torch.uint8)
LABELS = torch.arange(50) % 10
LOGITS = torch.eye(10)[LABELS] * 5
LOGITS[7] = torch.eye(10)[1] * 9  # a 7 classified as 1, with high confidence
LOGITS[13] = torch.eye(10)[8] * 2  # a 3 classified as 8, with low confidence


def captions(figure: Figure) -> list[str]:
    figure.canvas.draw()
    return [text.get_text() for text in figure.axes[0].texts]


def test_confusion_matrix() -> None:
    figure = charts.confusion_matrix(LOGITS, LABELS)
    texts = {tuple(map(round, t.get_position())): t.get_text() for t in figure.axes[0].texts}
    assert texts[0, 0] == "5"
    assert texts[1, 7] == "1"  # column: predicted; row: label
    assert texts[7, 7] == "4"
    assert figure.axes[0].get_title() == "50 digits, 96.00 % correct"


def test_mistakes_are_sorted_by_confidence() -> None:
    first, second = captions(charts.confident_mistakes(IMAGES, LOGITS, LABELS))
    assert first.startswith("1 (99.9 %)\nlabel 7 (0.0 %)")
    assert second.startswith("8 (45.1 %)\nlabel 3 (6.1 %)")


def test_no_mistakes_and_many_mistakes() -> None:
    assert len(captions(charts.confident_mistakes(IMAGES, LOGITS.flip(1), LABELS))) == 20
    perfect = charts.confident_mistakes(IMAGES, torch.eye(10)[LABELS], LABELS)
    assert captions(perfect) == []
    assert "0 mistakes" in perfect.get_suptitle()


def test_right_answers() -> None:
    shown = captions(charts.right_answers(IMAGES, LOGITS, LABELS))
    assert len(shown) == 20
    assert all("94.3 %" in caption for caption in shown)


def test_samples_show_labels() -> None:
    assert captions(charts.samples(IMAGES, LABELS)) == [f"label {i % 10}" for i in range(15)]


def test_heat_map_shows_values_in_their_cells() -> None:
    figure = charts.heat_map(np.array([[1.0, 2.0], [3.0, 4.5]]), ["a", "b"], ["c", "d"], "errors", "{:.1f}")
    texts = {tuple(map(round, t.get_position())): t.get_text() for t in figure.axes[0].texts}
    assert texts == {(0, 0): "1.0", (1, 0): "2.0", (0, 1): "3.0", (1, 1): "4.5"}


def test_names_are_drawn_as_they_are(recwarn: pytest.WarningsRecorder) -> None:
    names = [r"$\frac$", "$x", "a$b$c", "_x", "\x1b\u202e\udcff", "数", 300 * "x"]
    figure = charts.heat_map(np.eye(len(names)), names, names, "errors", "{:.1f}")
    charts.legend(figure, names)
    figure.savefig(BytesIO())
    axes = figure.axes[0]
    for labels in (figure.legends[0].get_texts(), axes.get_xticklabels(), axes.get_yticklabels()):
        shown = [label.get_text().replace(r"\$", "$") for label in labels]
        assert shown[:6] == [*names[:4], r"\x1b\u202e\udcff", r"\u6570"]
        assert len(shown[6]) == 48
    assert not recwarn.list


def test_palette_has_distinct_colours() -> None:
    for count in (1, 8, 30):
        assert len({tuple(np.atleast_1d(colour)) for colour in charts.palette(count)}) == count


def test_reliability_of_a_calibrated_and_an_overconfident_model() -> None:
    random = np.random.default_rng(0)
    logits = random.normal(scale=3, size=(3000, 10))
    exponentials = np.exp(logits)
    shares = (exponentials / exponentials.sum(axis=1, keepdims=True)).cumsum(axis=1)
    labels = (shares < random.random((3000, 1))).sum(axis=1).clip(max=9)
    panels = Figure().subplots(1, 2)
    gaps = []
    for axes, scale in zip(panels, (1, 3), strict=True):
        charts.draw_reliability(axes, scale * logits, labels, "#0072B2")
        confidence, accuracy = axes.collections[0].get_offsets().T
        gaps.append(float((confidence - accuracy).mean()))
    assert abs(gaps[0]) < 0.05
    assert gaps[1] > 0.15

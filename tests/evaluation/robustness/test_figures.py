from typing import Any

import numpy as np
from scipy.special import softmax

from mnist_lightning.data.sources import read
from mnist_lightning.evaluation.robustness.figures import detection_map, reliability_before_and_after, unknown_pictures
from mnist_lightning.evaluation.robustness.unknowns import Detection, detection, unknown_sets
from mnist_lightning.evaluation.statistics import Float, expected_calibration_error


def test_pictures_without_digits() -> None:
    digits, labels = read("digits", train=False)
    sets = {"rotated": unknown_sets(digits, labels)["rotated"], "few": digits[:3]}
    axes = unknown_pictures(sets).axes[0]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["rotated\nn = 182", "few\nn = 3"]
    image = axes.images[0].get_array()
    np.testing.assert_array_equal(image[:28, :28], sets["rotated"][0])
    np.testing.assert_array_equal(image[28:, 56:84], digits[2])
    assert (image[28:, 84:] == 255).all()


def test_detection_map() -> None:
    def rows(unknown: Float) -> list[Detection]:
        return detection(9 * np.eye(10), {"noise": unknown, "blank": unknown})

    top, bottom = detection_map(["good", "bad"], [rows(np.zeros((5, 10))), rows(9 * np.eye(10))]).axes
    assert [text.get_text() for text in top.texts] == ["100.0"] * 4 + ["50.0"] * 4
    assert [text.get_text() for text in bottom.texts] == ["0.0"] * 4 + ["100.0"] * 4
    assert [text.get_text() for text in bottom.get_yticklabels()] == ["good", "bad"]


def test_reliability_before_and_after() -> None:
    random = np.random.default_rng(0)
    logits = random.normal(scale=3, size=(3000, 10))
    labels = (softmax(logits, axis=1).cumsum(axis=1) < random.random((len(logits), 1))).sum(axis=1).clip(max=9)
    figure = reliability_before_and_after(
        [("overconfident", 3 * logits, 3.0, "#0072B2"), ("underconfident", logits / 3, 1 / 3, "#D55E00")], labels
    )
    before, after = figure.axes

    def gaps(axes: Any) -> list[float]:
        return [float(np.abs(np.diff(dots.get_offsets())).mean()) for dots in axes.collections]

    assert min(gaps(before)) > 0.15
    assert max(gaps(after)) < 0.05
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts[0].startswith("overconfident, T = 3.00: ")
    assert f"→ {100 * expected_calibration_error(logits, labels):.2f} %" in texts[1]

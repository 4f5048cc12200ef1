import torch
from matplotlib.figure import Figure

from mnist_lightning.evaluation import figures

torch.manual_seed(0)
IMAGES = torch.randint(0, 256, (50, 28, 28), dtype=torch.uint8)
LABELS = torch.arange(50) % 10
LOGITS = torch.eye(10)[LABELS] * 5
LOGITS[7] = torch.eye(10)[1] * 9  # a 7 taken for a 1, very sure
LOGITS[13] = torch.eye(10)[8] * 2  # a 3 taken for an 8, less so


def captions(figure: Figure) -> list[str]:
    figure.canvas.draw()
    return [text.get_text() for text in figure.axes[0].texts]


def test_confusion_matrix_counts() -> None:
    figure = figures.confusion_matrix(LOGITS, LABELS)
    texts = {tuple(map(round, t.get_position())): t.get_text() for t in figure.axes[0].texts}
    assert texts[0, 0] == "5"
    assert texts[1, 7] == "1"  # column: predicted; row: label
    assert texts[7, 7] == "4"
    assert figure.axes[0].get_title() == "50 digits, 96.00 % right"


def test_mistakes_come_most_confident_first_with_both_labels_and_confidences() -> None:
    first, second = captions(figures.confident_mistakes(IMAGES, LOGITS, LABELS))
    assert first.startswith("1 (99.9 %)\nlabel 7 (0.0 %)")
    assert second.startswith("8 (45.1 %)\nlabel 3 (6.1 %)")


def test_at_most_twenty_mistakes_and_none_is_no_problem() -> None:
    assert len(captions(figures.confident_mistakes(IMAGES, LOGITS.flip(1), LABELS))) == 20
    perfect = figures.confident_mistakes(IMAGES, torch.eye(10)[LABELS], LABELS)
    assert captions(perfect) == []
    assert "0 mistakes" in perfect.get_suptitle()


def test_right_answers_are_right() -> None:
    found = captions(figures.right_answers(IMAGES, LOGITS, LABELS))
    assert len(found) == 20
    assert all("94.3 %" in caption for caption in found)


def test_samples_show_labels() -> None:
    assert captions(figures.samples(IMAGES, LABELS)) == [f"label {i % 10}" for i in range(15)]

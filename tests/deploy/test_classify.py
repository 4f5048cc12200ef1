"""`mnist-lightning classify`: answers, doubts, the contact sheet and error messages."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from mnist_lightning import GNN, Classifier, InputError, LeNet5
from mnist_lightning.cli import main
from mnist_lightning.data.sources import read
from mnist_lightning.deploy.classify import classify, classify_pictures, remark
from mnist_lightning.runs.run import Run

Fails = Callable[..., str]


class Nearest(Classifier):
    """Classifies by the nearest class mean."""

    def __init__(self, **training: Any) -> None:
        super().__init__(**training)
        images, labels = read("digits", train=True)
        self.layer = nn.Linear(784, 10)
        means = torch.stack([images[labels == digit].float().flatten(1).mean(0) / 255 for digit in range(10)])
        self.layer.weight.data = 2 * means
        self.layer.bias.data = -means.pow(2).sum(1)

    def forward(self, images: Tensor) -> Tensor:
        return self.layer(images.flatten(1))


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    return read("digits", train=False)


@pytest.fixture
def checkpoint(tmp_path: Path) -> str:
    return saved(Nearest(), tmp_path / "nearest")


def saved(model: Classifier, folder: Path) -> str:
    """Writes a run folder with a checkpoint of the model."""
    path = Run(folder).last
    path.parent.mkdir(parents=True)
    content = {"state_dict": model.state_dict(), "hyper_parameters": dict(model.hparams)}
    model.on_save_checkpoint(content)
    torch.save(content, path)
    return str(folder)


@pytest.fixture
def pictures(tmp_path: Path, digits: tuple[Tensor, Tensor]) -> Path:
    """A folder with a picture of each class, dark on light, as 7.png."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    images, labels = digits
    for digit in range(10):
        image = images[int((labels == digit).nonzero()[3])].numpy()
        Image.fromarray(255 - image).resize((140, 140)).save(folder / f"{digit}.png")
    return folder


def test_shifts_change_the_confidence(pictures: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    checkpoint = saved(LeNet5(), tmp_path / "random")
    plain, shifted = (classify_pictures(checkpoint, str(pictures), shifts=shifts).answers for shifts in (False, True))
    assert [answer.file for answer in plain] == [answer.file for answer in shifted]
    assert [answer.confidence for answer in plain] != [answer.confidence for answer in shifted]


def test_folder_of_pictures(checkpoint: str, pictures: Path) -> None:
    answers = classify_pictures(checkpoint, str(pictures))
    assert [Path(answer.file).name for answer in answers.answers] == [f"{digit}.png" for digit in range(10)]
    correct = [answer for answer in answers.answers if Path(answer.file).stem == str(answer.digit)]
    assert len(correct) >= 8  # class means are a weak classifier
    for answer in answers.answers:
        assert answer.digit != answer.runner_up
        assert 1 >= answer.confidence >= answer.runner_up_confidence >= 0
    assert not answers.problems


def test_files_folders_and_patterns(checkpoint: str, pictures: Path) -> None:
    one, folder = str(pictures / "7.png"), str(pictures)
    assert len(classify_pictures(checkpoint, one).answers) == 1
    assert len(classify_pictures(checkpoint, str(pictures / "[0-4].png"), one).answers) == 6
    assert len(classify_pictures(one, checkpoint, folder).answers) == 11  # the order of arguments does not matter


def test_table(checkpoint: str, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["classify", checkpoint, str(pictures / "7.png")])
    output = capsys.readouterr().out
    assert "runner-up" in output
    assert "votes" not in output
    assert "7.png" in output.replace("\n", "")


def test_table_of_long_names_and_three_models(
    checkpoint: str, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    models = [checkpoint, *(saved(Nearest(), tmp_path / name) for name in ("second", "third"))]
    (pictures / "7.png").rename(pictures / f"{116 * '7'}.png")
    (pictures / "3.png").rename(pictures / "page 3 of 12 (2024-05-01), the third digit.png")
    monkeypatch.setenv("COLUMNS", "80")
    main(["classify", *models, pictures.name])
    output = capsys.readouterr().out
    lines = output[output.index("file ") :].splitlines()
    assert max(map(len, lines)) <= 80
    assert len(re.findall(r"  \d +\d+\.\d %  .* \d \(\d+\.\d %\)  \d \d \d$", "\n".join(lines), re.MULTILINE)) == 10
    assert all(model in output for model in models)


def test_unreadable_files_are_reported_and_the_others_classified(
    checkpoint: str, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (pictures / f"{200 * 'l'}.png").write_text("not a picture")  # must not be wrapped
    (pictures / "empty.png").touch()
    Image.new("L", (200, 200), 255).save(pictures / "blank.png")
    with pytest.raises(SystemExit) as exit_:
        main(["classify", checkpoint, str(pictures), "absent.png", "--json"])
    assert exit_.value.code == 1
    printed = capsys.readouterr()
    errors = printed.err.splitlines()
    assert len(errors) == 4
    for words in ("lll.png cannot be read", "empty.png cannot be read", "blank.png is blank", "no picture absent.png"):
        assert sum(words in line for line in errors) == 1
    content = json.loads(printed.out)
    assert len(content["answers"]) == 10
    assert content["models"] == [checkpoint]
    assert len(content["problems"]) == 4
    assert set(content["answers"][0]) >= {"file", "digit", "confidence", "runner_up", "remark"}


def test_votes_of_several_models(
    checkpoint: str, pictures: Path, tmp_path: Path, digits: tuple[Tensor, Tensor]
) -> None:
    torch.manual_seed(0)
    other = saved(GNN(width=8, depth=1), tmp_path / "gnn")
    single = [classify_pictures(one, str(pictures)) for one in (checkpoint, other)]
    joint = classify_pictures(checkpoint, other, str(pictures))
    for first, second, both in zip(*(each.answers for each in single), joint.answers, strict=True):
        assert both.votes == [first.digit, second.digit]
    models = [Nearest().eval(), GNN(width=8, depth=1).eval()]
    probabilities = classify(models, digits[0][:5])
    assert probabilities.shape == (2, 5, 10)
    torch.testing.assert_close(probabilities.sum(2), torch.ones(2, 5))


def test_contact_sheet(checkpoint: str, pictures: Path) -> None:
    classify_pictures(checkpoint, str(pictures), output="sheet.png")
    sheet = np.asarray(Image.open("sheet.png"))
    assert sheet.shape == (2 * 164, 6 * 240, 3)
    first = sheet[8:120, 8:232].mean(axis=2)
    assert first[:, :112].mean() > 128 > first[:, 112:].mean()  # the picture is light, the digit is light on dark


def test_names_that_are_no_text(checkpoint: str, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = (pictures / "7.png").read_bytes()
    names = [b"[red]x.png", rb"$\frac$.png", b"\xff\xfe.png", b"\x1b[31mred.png", b"two\nlines.png", "数.png".encode()]
    for name in names:
        Path(os.fsdecode(name)).write_bytes(content)
    files = [os.fsdecode(name) for name in names]
    main(["classify", checkpoint, *files, "--output", "sheet.png"])
    printed = capsys.readouterr().out
    for name in ("[red]x.png", r"$\frac$.png", r"\udcff\udcfe.png", r"\x1b[31mred.png", r"two\nlines.png", "数.png"):
        assert name in printed
    assert "\x1b" not in printed
    main(["classify", checkpoint, *files, "--json"])
    assert [answer["file"] for answer in json.loads(capsys.readouterr().out)["answers"]] == files


def test_strangers_files_in_a_folder(checkpoint: str, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(pictures / "pipe.png")  # opening it would block
    (pictures / "link.png").symlink_to("/dev/zero")
    (pictures / "folder.png").mkdir()
    (pictures / ".hidden.png").touch()
    assert len(classify_pictures(checkpoint, str(pictures)).answers) == 10
    with pytest.raises(SystemExit) as exit_:
        main(["classify", checkpoint, str(pictures / "7.png"), str(pictures / "pipe.png"), "/dev/zero", "--json"])
    assert exit_.value.code == 1
    printed = capsys.readouterr()
    assert printed.err.count("cannot be read as a picture (not a regular file)") == 2
    assert len(json.loads(printed.out)["answers"]) == 1


def test_an_input_is_not_replaced(checkpoint: str, pictures: Path, fails: Fails) -> None:
    seven = pictures / "7.png"
    before = seven.read_bytes()
    for inputs in (str(seven), str(pictures), str(pictures / "*.png")):
        line = fails("classify", checkpoint, inputs, "--output", str(seven))
        assert f"output {seven} would replace a file that this command reads; choose another name" in line
    assert seven.read_bytes() == before


def test_remarks(digits: tuple[Tensor, Tensor]) -> None:
    digit = digits[0][0]
    probabilities = torch.full((10,), 0.01)
    probabilities[3] = 0.91
    assert remark(digit, probabilities) == ""
    probabilities[3], probabilities[5] = 0.7, 0.2
    assert remark(digit, probabilities) == "unsure: 3 or 5"
    assert remark(digit, torch.full((10,), 0.1)) == "may be no digit"
    probabilities[3] = 0.99
    assert remark(torch.full((28, 28), 255, dtype=torch.uint8), probabilities) == "may be no digit"


def test_wrong_arguments_get_one_line(checkpoint: str, pictures: Path, fails: Fails) -> None:
    seven = str(pictures / "7.png")
    assert "no checkpoint is given" in fails("classify", seven)
    assert "no picture is given" in fails("classify", checkpoint)
    assert "there is no checkpoint absent.ckpt" in fails("classify", "absent.ckpt", seven)
    assert "must end in .png, .jpg or .pdf" in fails("classify", checkpoint, seven, "--output", "sheet.html")
    assert "there is no folder" in fails("classify", checkpoint, seven, "--output", "nowhere/sheet.png")
    assert not Path("nowhere").exists()


def test_a_folder_of_runs_is_a_model_and_a_folder_of_pictures_is_not(pictures: Path, tmp_path: Path) -> None:
    saved(Nearest(), tmp_path / "runs" / "version_0")
    assert classify_pictures(str(tmp_path / "runs"), str(pictures)).models == [str(tmp_path / "runs")]
    saved(Nearest(), pictures / "runs" / "version_0")  # beside pictures
    with pytest.raises(InputError, match=r"no checkpoint is given; use classify RUN_FOLDER PICTURE"):
        classify_pictures(str(pictures))

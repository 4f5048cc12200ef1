"""`mnist-lightning classify`: classify your own pictures."""

import glob
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from io import BytesIO
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mnist_lightning.errors import InputError, printable
from mnist_lightning.evaluation.page import Table
from mnist_lightning.files import writable, write_whole
from mnist_lightning.runs.finding import runs_at
from mnist_lightning.runs.run import Run

if TYPE_CHECKING:  # `classify --help` answers before these are imported
    from PIL.Image import Image
    from rich.console import RenderableType
    from torch import Tensor

    from mnist_lightning.classifier import Classifier

SURE, LIKELY = 0.9, 0.65
# Range of the mean intensities of MNIST's 70,000 digits, from a thin 1 to a bold 0, with a margin.
_MIN_INK, _MAX_INK = 0.015, 0.42
_SIDE = 112  # pixels of a picture on the contact sheet


@dataclass(frozen=True)
class Answer:
    """The models' answer to one picture.

    Attributes:
        file: Path of the picture.
        digit: The likeliest class, by the mean of the models' probabilities.
        confidence: Mean probability of `digit`.
        runner_up: The second likeliest class.
        runner_up_confidence: Mean probability of `runner_up`.
        votes: Each model's likeliest class.
        remark: Doubt about the answer, as in `remark`.
    """

    file: str
    digit: int
    confidence: float
    runner_up: int
    runner_up_confidence: float
    votes: list[int]
    remark: str


@dataclass(frozen=True)
class Answers:
    """All answers, in the order of the pictures.

    Attributes:
        models: The checkpoints.
        answers: One answer for each readable picture.
        problems: One line for each picture that cannot be read.
        json: Whether rich prints JSON in place of a table.
    """

    models: list[str]
    answers: list[Answer]
    problems: list[str]
    json: bool = field(default=False, repr=False)

    def __rich_console__(self, *_: Any) -> "Iterator[RenderableType]":
        if self.json:
            from rich.text import Text

            content = {name: value for name, value in asdict(self).items() if name != "json"}
            yield Text(dumps(content, indent=2), no_wrap=True, overflow="ignore")  # wrapped strings are not JSON
            return
        columns = {
            "file": [answer.file for answer in self.answers],
            "digit": [answer.digit for answer in self.answers],
            "confidence": [f"{100 * answer.confidence:.1f} %" for answer in self.answers],
            "remark": [answer.remark for answer in self.answers],
            "runner-up": [f"{answer.runner_up} ({100 * answer.runner_up_confidence:.1f} %)" for answer in self.answers],
            "votes": [" ".join(map(str, answer.votes)) for answer in self.answers],
        }
        if len(self.models) == 1:
            del columns["votes"]
        yield Table(f"Answers of {', '.join(self.models)}", list(columns), list(zip(*columns.values(), strict=True)))


def classify(models: "Sequence[Classifier]", digits: "Tensor", shifts: bool = False) -> "Tensor":
    """Computes the class probabilities of each model.

    Args:
        models: Models in evaluation mode.
        digits: Digits in MNIST format, uint8 [N, 28, 28], light on dark.
        shifts: Whether to average over five positions of each digit.

    Returns:
        Probabilities, float [M, N, 10], of the M models.

    Example:
        >>> from mnist_lightning import GNN, LeNet5
        >>> from mnist_lightning.data.sources import read
        >>> digits, _ = read("digits", train=False)
        >>> classify([LeNet5().eval(), GNN().eval()], digits[:3]).mean(dim=0).shape
        torch.Size([3, 10])
    """
    import torch

    return torch.stack([model.classify(digits, shifts).softmax(dim=1) for model in models])


def remark(digit: "Tensor", probabilities: "Tensor") -> str:
    """Tells whether an answer is doubtful, by its confidence and the digit's mean intensity.

    Args:
        digit: Digit in MNIST format, uint8 [28, 28].
        probabilities: Class probabilities, float [10].

    Returns:
        "" for none, or a doubt such as "unsure: 4 or 9" or "may be no digit".

    Example:
        >>> import torch
        >>> from mnist_lightning.data.sources import read
        >>> remark(read("digits", train=False)[0][0], torch.tensor([0.7, 0.26] + 8 * [0.005]))
        'unsure: 0 or 1'
    """
    confidence, likeliest = probabilities.topk(2)
    if confidence[0] < LIKELY or not _MIN_INK < float(digit.float().mean()) / 255 < _MAX_INK:
        return "may be no digit"
    return f"unsure: {likeliest[0]} or {likeliest[1]}" if confidence[0] < SURE else ""


def classify_pictures(*paths: str, json: bool = False, output: str | None = None, shifts: bool = False) -> Answers:
    """Classifies pictures of handwritten digits.

    The probabilities of several models are averaged. If a picture cannot be read, the error is reported, the others are
    classified, and the exit code is 1.

    Args:
        paths: Checkpoints, run folders, or folders that contain runs of one experiment, at least one; and pictures,
            folders of pictures, or patterns (`*.jpg`).
        json: Print JSON in place of a table.
        output: Contact sheet to write (.png, .jpg, .pdf): each picture, its digit in 28x28 pixels, and the answer.
        shifts: Average the probabilities over five positions of each digit, one pixel apart.

    Returns:
        The answers.

    Raises:
        InputError: If there is no model or no picture, or the contact sheet cannot be written.
    """
    checkpoints = [path for path in paths if _is_checkpoint(path)]
    files = [file for path in paths if path not in checkpoints for file in _files(path)]
    if not checkpoints:
        raise InputError("no checkpoint is given; use classify RUN_FOLDER PICTURE...")
    if not files:
        raise InputError("no picture is given; use classify RUN_FOLDER with pictures, a folder of them, or a pattern")
    path = None if output is None else writable(output, [".png", ".jpg", ".pdf"], [*checkpoints, *files])
    import torch

    from mnist_lightning.runs.checkpoint import load

    models = [load(checkpoint) for checkpoint in checkpoints]
    pictures, problems = _read(files, thumbnails=path is not None)
    digits = torch.stack([digit for _, digit, _ in pictures]) if pictures else torch.empty(0, 28, 28, dtype=torch.uint8)
    probabilities = classify(models, digits, shifts)
    answers = []
    for (file, digit, _), mean, votes in zip(pictures, probabilities.mean(0), probabilities.argmax(2).t(), strict=True):
        confidence, likeliest = mean.topk(2)
        (first, second), (p, q) = likeliest.tolist(), confidence.tolist()
        answers.append(Answer(file, first, round(p, 4), second, round(q, 4), votes.tolist(), remark(digit, mean)))
    if path is not None and answers:
        sheet = contact_sheet([thumbnail for *_, thumbnail in pictures if thumbnail], digits, answers)
        content = BytesIO()
        sheet.save(content, {".jpg": "jpeg"}.get(path.suffix, path.suffix[1:]))
        write_whole(path, content.getvalue())
    return Answers(checkpoints, answers, problems, json)


def _is_checkpoint(path: str | Path) -> bool:
    """Whether a path names a model: a checkpoint, a run, or a folder of runs without files of its own."""
    path = Path(path)
    if path.suffix == ".ckpt" or not path.is_dir():
        return path.suffix == ".ckpt"
    run = Run.of(path)
    return run is None or run.exists or (not _files(str(path)) and bool(runs_at(path, [])))


def _files(path: str) -> list[str]:
    """Lists the files of a path or pattern. A missing file is listed, too: opening it gives the error message."""
    if Path(path).is_dir():
        return sorted(str(file) for file in Path(path).iterdir() if file.is_file() and file.name[0] != ".")
    if not Path(path).exists() and glob.has_magic(path):
        return sorted(glob.glob(path, recursive=True))  # noqa: PTH207 - Path.glob takes no absolute patterns
    return [path]


def _read(files: Sequence[str], thumbnails: bool) -> "tuple[list[tuple[str, Tensor, Image | None]], list[str]]":
    """Reads pictures: file, digit and thumbnail of each. Also returns one line for each that cannot be read."""
    from PIL import ImageOps

    from mnist_lightning.data.handwriting import digit_of, open_picture

    def read(file: str) -> "tuple[str, Tensor, Image | None]":
        picture = open_picture(file)
        thumbnail = ImageOps.pad(picture.convert("RGB"), (_SIDE, _SIDE), color="white") if thumbnails else None
        return file, digit_of(picture, file), thumbnail

    pictures, problems = [], []
    workers = min(8, os.cpu_count() or 1)  # a large picture takes 300 MB
    with ThreadPoolExecutor(workers) as pool:  # decoding and filters release the GIL
        for future in [pool.submit(read, file) for file in files]:
            try:
                pictures.append(future.result())
            except InputError as error:
                problems.append(str(error))
    return pictures, problems


def contact_sheet(pictures: "Sequence[Image]", digits: "Tensor", answers: Sequence[Answer]) -> "Image":
    """Draws each picture, the 28x28 digit extracted from it, and the answer.

    Args:
        pictures: N pictures of 112 x 112 pixels.
        digits: uint8 [N, 28, 28].
        answers: N answers.
    """
    from PIL import Image, ImageDraw, ImageFont

    columns = min(6, len(answers))
    width, height = 2 * _SIDE + 16, _SIDE + 52
    sheet = Image.new("RGB", (columns * width, -(-len(answers) // columns) * height), "white")
    draw = ImageDraw.Draw(sheet)
    large, small = ImageFont.load_default(18), ImageFont.load_default(12)
    for index, (picture, digit, answer) in enumerate(zip(pictures, digits, answers, strict=True)):
        x, y = index % columns * width + 8, index // columns * height + 8
        sheet.paste(picture, (x, y))
        digit_large = Image.fromarray(digit.numpy()).resize((_SIDE, _SIDE), Image.Resampling.NEAREST)
        sheet.paste(digit_large, (x + _SIDE, y))
        draw.rectangle((x - 1, y - 1, x + 2 * _SIDE, y + _SIDE), outline="#cccccc")
        draw.text((x, y + _SIDE + 2), f"{answer.digit}", "black", large)
        verdict = f"{100 * answer.confidence:.1f} %   {answer.remark}"
        draw.text((x + 18, y + _SIDE + 6), verdict, "#b35900" if answer.remark else "black", small)
        draw.text((x, y + _SIDE + 24), printable(Path(answer.file).name)[:34], "#666666", small)
    return sheet

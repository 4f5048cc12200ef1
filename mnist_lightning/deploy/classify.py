"""`mnist-lightning classify`: what trained models say of pictures of one's own."""

import glob
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from io import BytesIO
from json import dumps
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps
from rich.table import Table
from rich.text import Text
from torch import Tensor

from mnist_lightning.checkpoint import load
from mnist_lightning.classifier import Classifier
from mnist_lightning.data.handwriting import digit_of, open_picture
from mnist_lightning.errors import InputError
from mnist_lightning.files import writable, write_whole

SURE, LIKELY = 0.9, 0.65
# Mean intensities of MNIST's 70,000 digits, with some room: of a thin 1 and of a fat 0.
_LEAST_INK, _MOST_INK = 0.015, 0.42
_SIDE = 112  # pixels of a picture on the contact sheet


@dataclass(frozen=True)
class Answer:
    """What the models say of one picture.

    Attributes:
        file: Where it is.
        digit: The likeliest class, by the mean of the models' probabilities.
        confidence: Its probability.
        runner_up: The second likeliest.
        runner_up_confidence: Its probability.
        votes: What each model says alone.
        remark: Whether they are unsure, or this may be no digit; else empty.
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
        models: The checkpoints that were asked.
        answers: One for each picture that could be read.
        problems: One line for each that could not.
        json: Whether to be printed as JSON.
    """

    models: list[str]
    answers: list[Answer]
    problems: list[str]
    json: bool = field(default=False, repr=False)

    def __rich__(self) -> Table | Text:
        if self.json:
            content = {name: value for name, value in asdict(self).items() if name != "json"}
            return Text(dumps(content, indent=2))
        table = Table(*["file", "digit", "confidence", "runner-up", *(["votes"] if len(self.models) > 1 else []), ""])
        for answer in self.answers:
            table.add_row(
                Text(answer.file, overflow="fold"),
                Text(str(answer.digit), "bold"),
                f"{100 * answer.confidence:.1f} %",
                f"{answer.runner_up} ({100 * answer.runner_up_confidence:.1f} %)",
                *([" ".join(map(str, answer.votes))] if len(self.models) > 1 else []),
                Text(answer.remark, "yellow"),
            )
        return table


def classify(models: Sequence[Classifier], digits: Tensor) -> Tensor:
    """The models' probabilities, each model with the same voice.

    Args:
        models: In evaluation mode.
        digits: uint8 [N, 28, 28], light on dark, in MNIST's manner.

    Returns:
        float [M, N, 10], one a model.

    Example:
        >>> from mnist_lightning import GNN, LeNet5
        >>> from mnist_lightning.data.sources import read
        >>> digits, _ = read("digits", train=False)
        >>> classify([LeNet5().eval(), GNN().eval()], digits[:3]).mean(dim=0).shape
        torch.Size([3, 10])
    """
    return torch.stack([model.classify(digits).softmax(dim=1) for model in models])


def remark(digit: Tensor, probabilities: Tensor) -> str:
    """What there is to say against an answer.

    Args:
        digit: uint8 [28, 28].
        probabilities: float [10].

    Returns:
        One of "", "unsure: 4 or 9" and "may be no digit".

    Example:
        >>> from mnist_lightning.data.sources import read
        >>> remark(read("digits", train=False)[0][0], torch.tensor([0.7, 0.26] + 8 * [0.005]))
        'unsure: 0 or 1'
    """
    confidence, likeliest = probabilities.topk(2)
    if confidence[0] < LIKELY or not _LEAST_INK < float(digit.float().mean()) / 255 < _MOST_INK:
        return "may be no digit"
    return f"unsure: {likeliest[0]} or {likeliest[1]}" if confidence[0] < SURE else ""


def classify_pictures(*paths: str, json: bool = False, output: str | None = None) -> Answers:
    """Says which digits are on pictures.

    Several models vote: their probabilities are averaged. A picture that cannot be read is named, the others are
    classified, and the exit code is 1.

    Args:
        paths: Checkpoints or runs' folders, at least one; and pictures, folders of pictures, or patterns (`*.jpg`).
        json: Print JSON, not a table.
        output: Contact sheet to write (.png, .jpg, .pdf): each picture, the 28x28 that the models saw, and the answer.

    Returns:
        The answers.

    Raises:
        InputError: If there is no model, no picture, or the sheet cannot be written.
    """
    checkpoints = [path for path in paths if _is_checkpoint(path)]
    files = [file for path in paths if path not in checkpoints for file in _pictures(path)]
    if not checkpoints:
        raise InputError(f"no checkpoint is given: classify RUN_FOLDER PICTURE...{_hint(paths)}")
    if not files:
        raise InputError("no picture is given: classify RUN_FOLDER PICTURE..., a folder of pictures, or a pattern")
    path = None if output is None else writable(output, [".png", ".jpg", ".pdf"])
    models = [load(checkpoint) for checkpoint in checkpoints]
    seen: list[tuple[str, Tensor, Image.Image | None]] = []
    problems = []
    # Most of the work lets other threads run: decoding, filters.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for file, found in zip(files, pool.map(partial(_seen, keep=path is not None), files), strict=True):
            if isinstance(found, str):
                problems.append(found)
            else:
                seen.append((file, *found))
    digits = torch.stack([digit for _, digit, _ in seen]) if seen else torch.empty(0, 28, 28, dtype=torch.uint8)
    probabilities = classify(models, digits)
    answers = []
    for (file, digit, _), mean, votes in zip(seen, probabilities.mean(0), probabilities.argmax(2).t(), strict=True):
        confidence, likeliest = mean.topk(2)
        (first, second), (p, q) = likeliest.tolist(), confidence.tolist()
        answers.append(Answer(file, first, round(p, 4), second, round(q, 4), votes.tolist(), remark(digit, mean)))
    if path is not None and answers:
        content = BytesIO()
        sheet = contact_sheet([picture for *_, picture in seen if picture], digits, answers)
        sheet.save(content, {".jpg": "jpeg"}.get(path.suffix, path.suffix[1:]))
        write_whole(path, content.getvalue())
    return Answers(checkpoints, answers, problems, json)


def _is_checkpoint(path: str) -> bool:
    return path.endswith(".ckpt") or Path(path, "checkpoints").is_dir()


def _hint(paths: Sequence[str]) -> str:
    folder = next((path for path in paths if Path(path).is_dir() and list(Path(path).glob("version_*"))), None)
    return "" if folder is None else f"; {folder} has several runs, give one: {min(Path(folder).glob('version_*'))}"


def _pictures(path: str) -> Iterator[str]:
    """The files that an argument means; one that is not there is named when it is opened."""
    if Path(path).is_dir():
        yield from (str(file) for file in sorted(Path(path).iterdir()) if file.is_file() and file.name[0] != ".")
    elif not Path(path).exists() and glob.has_magic(path):
        yield from sorted(glob.glob(path, recursive=True))  # noqa: PTH207 - Path.glob takes no absolute patterns
    else:
        yield path


def _seen(file: str, keep: bool) -> tuple[Tensor, Image.Image | None] | str:
    """The digit on a picture and, to keep it for the sheet, the picture made small; or what is wrong with it."""
    try:
        picture = open_picture(file)
        small = ImageOps.pad(picture.convert("RGB"), (_SIDE, _SIDE), color="white") if keep else None
        return digit_of(picture, file), small
    except InputError as error:
        return str(error)


def contact_sheet(pictures: Sequence[Image.Image], digits: Tensor, answers: Sequence[Answer]) -> Image.Image:
    """Each picture, the 28x28 that the models saw, and the answer.

    Args:
        pictures: N of them, of 112 x 112.
        digits: uint8 [N, 28, 28].
        answers: N of them.
    """
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
        said = f"{100 * answer.confidence:.1f} %   {answer.remark}"
        draw.text((x + 18, y + _SIDE + 6), said, "#b35900" if answer.remark else "black", small)
        draw.text((x, y + _SIDE + 24), Path(answer.file).name[:34], "#666666", small)
    return sheet

"""The digits that an explanation is asked for."""

import json
from pathlib import Path

import torch
from torch import Tensor

from mnist_lightning.checkpoint import find_checkpoint
from mnist_lightning.data.handwriting import digit_of, open_picture
from mnist_lightning.data.sources import read
from mnist_lightning.errors import InputError


def digits_asked_for(
    checkpoint: str, index: int | None, indices: str | None, image: str | None, source: str | None, root: str | None
) -> list[tuple[str, Tensor, int | None]]:
    """Test digits by number, or one of one's own; of nothing asked for, the first test digit of each class.

    Args:
        checkpoint: Of the model, whose run's source the test digits come from if none is given.
        index: Number of a test image.
        indices: Numbers of several, as in 0,7,42.
        image: A picture, in their place.
        source: Where the test images come from.
        root: Folder of the data.

    Returns:
        For each where it comes from, itself (uint8 [28, 28]), and its class, where that is known.

    Raises:
        InputError: If more than one of them is asked for, or it is not there.
    """
    if sum(given is not None for given in (index, indices, image)) > 1:
        raise InputError("give one of index, indices and image")
    if image is not None:
        return [(Path(image).name, digit_of(open_picture(image), image), None)]
    return _test_digits(source or _source(checkpoint), root, index, indices)


def _source(checkpoint: str) -> str:
    """What the run was trained on, where its folder still says so."""
    summary = find_checkpoint(checkpoint).parent.with_name("summary.json")
    if not summary.is_file():
        return "mnist"
    try:
        return str(json.loads(summary.read_text())["source"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{summary} is damaged; say with --source where the test images come from") from error


def _test_digits(
    source: str, root: str | None, index: int | None, indices: str | None
) -> list[tuple[str, Tensor, int | None]]:
    images, labels = read(source, root, train=False)
    if index is not None:
        rows = [index]
    elif indices is not None:
        words = indices.replace(",", " ").split()
        if not words or not all(word.isdecimal() for word in words):
            raise InputError(f"indices is {indices!r}; it must be numbers with commas between them, as in 0,7,42")
        rows = [int(word) for word in words]
    else:
        rows = [int((labels == digit).nonzero()[0]) for digit in torch.unique(labels)]
    for row in rows:
        if not 0 <= row < len(images):
            raise InputError(
                f"there is no test image {row}: {source} has {len(images):,}, from 0 to {len(images) - 1:,}"
            )
    return [(f"{source}, test image {row}", images[row], int(labels[row])) for row in rows]

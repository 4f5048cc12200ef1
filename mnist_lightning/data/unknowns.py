"""Pictures that show no digit, of the size of digits and as bright, for models that should notice."""

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from mnist_lightning.data.augment import Augmentation
from mnist_lightning.data.handwriting import digit_of
from mnist_lightning.data.images import mixed_seed
from mnist_lightning.data.sources import read
from mnist_lightning.errors import InputError, SourceUnavailableError, suggestion

COUNT = 2_000  # pictures in a set; fewer where there are not so many
STORED = ("fashion_mnist", "kmnist")  # what other sources there may be on disk

# A 0 that is turned is a 0, an 8 an 8 and a 1 a stroke, which a slanted 1 is too. 6 and 9 pass for each other.
_TURNABLE = (2, 3, 4, 5, 7)
# Not those that somebody writes as digits (o l z s b g q), nor their neighbours (c d e G J L p P r t T u y Y).
_LETTERS = "AEFHKMNRVWXkmn"
_FONTS = (
    *("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSerif", "DejaVuSerif-Italic"),
    *("STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "cmr10", "cmss10", "cmtt10", "cmti10"),
)


def unknown_images(name: str, digits: Tensor, labels: Tensor, seed: int = 0, root: str | None = None) -> Tensor:
    """One set of pictures that show no digit.

    Args:
        name: `noise`: each pixel uniform. `blank`: black, with the noise of a camera's sensor, normal, between 1 and
            20 of 255 in standard deviation. `rotated`: digits turned by 90 degrees to the left, without 0, 1, 6, 8 and
            9, which would still pass for digits. `letters`: printed in 12 fonts, in MNIST's manner, slightly slanted,
            turned and stretched; none that resembles a digit. `fashion_mnist` and `kmnist`: their test images.
        digits: uint8 [N, 28, 28], that `rotated` is made of.
        labels: int64 [N], their classes.
        seed: Of the random numbers; the same seed gives the same pictures.
        root: Folder of the data.

    Returns:
        uint8 [M, 28, 28], M at most 2,000.

    Raises:
        InputError: If there is no such set, or it is not on disk, or damaged.

    Example:
        >>> digits, labels = read("digits", train=False)
        >>> unknown_images("rotated", digits, labels).shape
        torch.Size([182, 28, 28])
    """
    generator = torch.Generator().manual_seed(mixed_seed(seed))
    if name == "rotated":
        turnable = torch.isin(labels, torch.tensor(_TURNABLE))
        return _some(digits[turnable], generator).rot90(1, (1, 2)).contiguous()
    if name in STORED:
        return _some(read(name, root, train=False)[0], generator)
    if name not in _MADE:
        names = (*_MADE, "rotated", *STORED)
        known = f"there are {', '.join(names)}{suggestion(name, names)}"
        raise InputError(f"no set of unknown pictures is called {name}: {known}")
    return _MADE[name](generator)


def available_unknowns(root: str | None = None) -> list[str]:
    """The names of the sets that can be had here, without any network.

    Raises:
        InputError: If one is on disk, but damaged.
    """
    return [*_MADE, "rotated", *(name for name in STORED if _on_disk(name, root))]


def _on_disk(source: str, root: str | None) -> bool:
    try:
        read(source, root, train=False)
    except SourceUnavailableError:
        return False
    return True


def _some(images: Tensor, generator: torch.Generator) -> Tensor:
    return images[torch.randperm(len(images), generator=generator)[:COUNT].sort().values]


def _noise(generator: torch.Generator) -> Tensor:
    return torch.randint(256, (COUNT, 28, 28), dtype=torch.uint8, generator=generator)


def _blank(generator: torch.Generator) -> Tensor:
    deviation = 1 + 19 * torch.rand(COUNT, 1, 1, generator=generator)
    noise = deviation * torch.randn(COUNT, 28, 28, generator=generator)
    return noise.round().clamp(0, 255).to(torch.uint8)


def _letters(generator: torch.Generator) -> Tensor:
    printed = _printed()
    chosen = printed[torch.randint(len(printed), (COUNT,), generator=generator)]
    vary = Augmentation(rotate=8, scale=0.1, shear=0.15, shift=0.04)
    varied = vary(chosen.unsqueeze(1).float(), vary.draw(COUNT, generator))
    return varied.squeeze(1).round().clamp(0, 255).to(torch.uint8)


@cache  # it takes half a second
def _printed() -> Tensor:
    """Each letter in each font: uint8 [L, 28, 28]."""
    import matplotlib

    folder = Path(matplotlib.get_data_path(), "fonts", "ttf")
    drawn = []
    for name in _FONTS:
        font = ImageFont.truetype(folder / f"{name}.ttf", 80)
        for letter in _LETTERS:
            paper = Image.new("L", (120, 120), "white")
            ImageDraw.Draw(paper).text((60, 60), letter, "black", font, anchor="mm")
            drawn.append(digit_of(paper))
    return torch.stack(drawn)


_MADE: Mapping[str, Callable[[torch.Generator], Tensor]] = {"noise": _noise, "blank": _blank, "letters": _letters}

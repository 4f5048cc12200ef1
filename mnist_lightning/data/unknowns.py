"""Out-of-distribution images: 28x28 images without a digit, to test whether a model can tell them from digits."""

from contextlib import suppress
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

COUNT = 2_000  # maximum number of images in a set
_MADE = ("noise", "blank", "letters", "rotated")  # sets that need no files
STORED = ("fashion_mnist", "kmnist")  # sources that may be on disk

# A rotated 0 or 8 is still a digit, a rotated 1 resembles a slanted 1, and 6 and 9 resemble each other.
_ROTATABLE = (2, 3, 4, 5, 7)
# Excludes letters that resemble digits (o l z s b g q) and letters similar to them (c d e G J L p P r t T u y Y).
_LETTERS = "AEFHKMNRVWXkmn"
_FONTS = (
    *("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSerif", "DejaVuSerif-Italic"),
    *("STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "cmr10", "cmss10", "cmtt10", "cmti10"),
)


def unknown_images(name: str, digits: Tensor, labels: Tensor, seed: int = 0, root: str | None = None) -> Tensor:
    """Returns one set of images without a digit.

    The sets are:

    - `noise`: uniform noise.
    - `blank`: black with normal sensor noise. Its standard deviation varies between 1 and 20 grey levels of 255.
    - `rotated`: digits rotated by 90 degrees to the left, without 0, 1, 6, 8 and 9, which would still resemble digits.
    - `letters`: letters that do not resemble digits, in 12 fonts, converted to MNIST format and slightly slanted,
      rotated and scaled.
    - `fashion_mnist`, `kmnist`: test images of these sources.

    Args:
        name: Name of the set.
        digits: Images to rotate for `rotated`, uint8 [N, 28, 28].
        labels: Classes of `digits`, int64 [N].
        seed: Seed of all random numbers.
        root: Folder of the data; see `data_root`.

    Returns:
        Images, uint8 [M, 28, 28], M at most 2,000.

    Raises:
        InputError: If the set is unknown, is not on disk, or is damaged.

    Example:
        >>> digits, labels = read("digits", train=False)
        >>> unknown_images("rotated", digits, labels).shape
        torch.Size([182, 28, 28])
    """
    if name not in (names := (*_MADE, *STORED)):
        known = f"{', '.join(names)}{suggestion(name, names)}"
        raise InputError(f"unknown out-of-distribution set {name!r}, expected one of {known}")
    generator = torch.Generator().manual_seed(mixed_seed(seed))
    if name == "noise":
        return torch.randint(256, (COUNT, 28, 28), dtype=torch.uint8, generator=generator)
    if name == "blank":
        deviation = 1 + 19 * torch.rand(COUNT, 1, 1, generator=generator)
        noise = deviation * torch.randn(COUNT, 28, 28, generator=generator)
        return noise.round().clamp(0, 255).to(torch.uint8)
    if name == "letters":
        printed = _printed()
        letters = printed[torch.randint(len(printed), (COUNT,), generator=generator)].unsqueeze(1).float()
        augment = Augmentation(rotate=8, scale=0.1, shear=0.15, shift=0.04)
        augmented = augment(letters, augment.draw(COUNT, generator))
        return augmented.squeeze(1).round().clamp(0, 255).to(torch.uint8)
    if name == "rotated":
        rotatable = torch.isin(labels, torch.tensor(_ROTATABLE))
        images = digits[rotatable].rot90(1, (1, 2)).contiguous()
    else:
        images = read(name, root, train=False)[0]
    return images[torch.randperm(len(images), generator=generator)[:COUNT].sort().values]


def available_unknowns(root: str | None = None) -> list[str]:
    """Names of the sets that are available without network access.

    Args:
        root: Folder of the data; see `data_root`.

    Raises:
        InputError: If a set on disk is damaged.
    """
    names = list(_MADE)
    for name in STORED:
        with suppress(SourceUnavailableError):
            read(name, root, train=False)
            names.append(name)
    return names


@cache  # rendering takes half a second
def _printed() -> Tensor:
    """All letters in all fonts, uint8 [L, 28, 28]."""
    import matplotlib

    folder = Path(matplotlib.get_data_path(), "fonts", "ttf")
    letters = []
    for name in _FONTS:
        font = ImageFont.truetype(folder / f"{name}.ttf", 80)
        for letter in _LETTERS:
            paper = Image.new("L", (120, 120), "white")
            ImageDraw.Draw(paper).text((60, 60), letter, "black", font, anchor="mm")
            letters.append(digit_of(paper))
    return torch.stack(letters)

import os
import socket
import struct
import subprocess
import sys
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from scipy import ndimage
from torch import Tensor

from mnist_lightning import InputError
from mnist_lightning.data.handwriting import digit_of, open_picture
from mnist_lightning.data.sources import read

DIGITS, LABELS = read("digits", train=False)


@pytest.fixture(scope="module")
def originals() -> Tensor:
    return DIGITS[:40]


def page(
    digit: Tensor, size: int = 84, at: tuple[int, int] = (60, 90), paper: float = 0.9, pen: float = 0.1
) -> np.ndarray:
    """A page of 200x240 with one digit, in [0, 1]."""
    ink = np.zeros((200, 240))
    small = Image.fromarray(digit.numpy()).resize((size, size), Image.Resampling.BICUBIC)
    ink[at[0] : at[0] + size, at[1] : at[1] + size] = np.asarray(small) / 255
    return paper + (pen - paper) * ink


def picture(values: np.ndarray) -> Image.Image:
    return Image.fromarray(np.uint8(255 * values.clip(0, 1)))


def same_class(digit: Tensor, index: int) -> bool:
    """Whether the test digit nearest to `digit` has the class of test digit `index`."""
    nearest = int((digit.float() - DIGITS.float()).pow(2).sum((1, 2)).argmin())
    return bool(LABELS[nearest] == LABELS[index])


def strokes(size: int, width: int) -> np.ndarray:
    """A 7 of straight lines on white, in [0, 1]."""
    paper = Image.new("L", (size, size), 255)
    ImageDraw.Draw(paper).line(
        [(0.3 * size, 0.3 * size), (0.7 * size, 0.3 * size), (0.45 * size, 0.75 * size)], 0, width
    )
    return np.asarray(paper) / 255


@pytest.mark.slow
@pytest.mark.parametrize("size", [28, 60, 190])
@pytest.mark.parametrize(("paper", "pen"), [(0.9, 0.1), (0.05, 0.8), (0.6, 0.3)])
def test_digits_are_extracted_from_anywhere_on_a_page(originals: Tensor, size: int, paper: float, pen: float) -> None:
    random = np.random.default_rng(size)
    correct = 0
    for index, digit in enumerate(originals):
        at = (int(random.integers(0, 200 - size + 1)), int(random.integers(0, 240 - size + 1)))
        noisy = page(digit, size, at, paper, pen) + random.normal(0, 0.01, (200, 240))
        correct += same_class(digit_of(picture(noisy)), index)
    assert correct >= 38


def test_result_is_independent_of_place_size_and_polarity(originals: Tensor) -> None:
    first = digit_of(picture(page(originals[3])))
    for other in (page(originals[3], at=(5, 5)), page(originals[3], size=160, at=(20, 50)), 1 - page(originals[3])):
        assert (digit_of(picture(other)).float() - first).abs().mean() < 6


def test_digit_is_20_pixels_long_and_centred_by_mass(originals: Tensor) -> None:
    for digit in originals[:10]:
        extracted = digit_of(picture(page(digit))).numpy()
        assert max(np.ptp(np.flatnonzero((extracted > 0).any(axis=axis))) + 1 for axis in (0, 1)) == 20
        assert np.abs(np.array(ndimage.center_of_mass(extracted)) - 14).max() <= 0.51
        assert extracted.max() > 230


def test_digit_in_mnist_format_is_unchanged(originals: Tensor) -> None:
    for digit in originals:
        assert torch.equal(digit_of(Image.fromarray(digit.numpy())), digit)


def test_uneven_light_and_shadow_in_a_corner(originals: Tensor) -> None:
    y, x = np.mgrid[0:1:200j, 0:1:240j]
    light = 1 - 0.6 * x * y
    assert same_class(digit_of(picture(page(originals[5]) * light)), 5)
    shadow = np.where(x + y > 1.7, 0.5, 1.0)
    assert same_class(digit_of(picture(page(originals[5], at=(40, 40)) * shadow)), 5)


def test_specks_ruled_lines_and_table_edge_are_ignored(originals: Tensor) -> None:
    specks = page(originals[8], at=(50, 70))
    specks[20:23, 200:203] = specks[170:174, 20:23] = 0.1
    lines = page(originals[8], at=(50, 70))
    lines[30::32] = np.minimum(lines[30::32], 0.6)
    table = page(originals[8], at=(50, 70))
    table[:, 225:] = 0.15
    for values in (specks, lines, table):
        assert same_class(digit_of(picture(values)), 8)


@pytest.mark.parametrize("width", [10, 20, 40])
def test_digit_that_fills_the_picture(width: int) -> None:
    seven = strokes(300, width)
    rows, columns = (np.flatnonzero((seven < 0.5).any(axis=axis)) for axis in (1, 0))
    cut = seven[rows[0] - 8 : rows[-1] + 9, columns[0] - 8 : columns[-1] + 9]
    whole = digit_of(picture(seven)).float()
    for values in (cut, 1 - cut):
        assert (digit_of(picture(values)).float() - whole).abs().mean() < 1


def test_nearby_strokes_belong_to_the_digit() -> None:
    five = Image.new("L", (200, 200), 255)
    draw = ImageDraw.Draw(five)
    draw.line([(80, 60), (80, 100), (115, 105), (115, 135), (75, 140)], 0, 10)
    draw.line([(92, 52), (130, 52)], 0, 10)  # the roof, detached
    with_roof = int((digit_of(five)[:10] > 60).sum())
    draw.rectangle((85, 40, 140, 58), 255)
    assert with_roof > int((digit_of(five)[:5] > 60).sum())
    assert with_roof > 15


@pytest.mark.parametrize("width", [2, 3, 60])
def test_stroke_thickness_matches_mnist(width: int) -> None:
    mask = digit_of(picture(strokes(300, width))).numpy() > 127
    thickness = 4 * ndimage.distance_transform_edt(np.pad(mask.repeat(4, 0).repeat(4, 1), 4))
    assert 1.2 < thickness[thickness > 0].mean() / 4 < 6.5


def test_all_image_modes_give_the_same_digit(originals: Tensor) -> None:
    grey = picture(page(originals[2]))
    expected = digit_of(grey).float()
    ink = Image.fromarray(np.uint8(255 * (0.9 - page(originals[2])) / 0.8))
    black, white = Image.new("L", grey.size, 0), Image.new("L", grey.size, 255)
    transparent = [Image.merge("RGBA", (colour, colour, colour, ink)) for colour in (black, white)]
    sixteen = Image.fromarray(np.asarray(grey).astype(np.uint16) * 100)
    others = [grey.convert(mode) for mode in ("RGB", "RGBA", "P", "CMYK", "LA")]
    for other in (*others, *transparent, sixteen, Image.merge("LA", (black, ink))):
        assert (digit_of(other).float() - expected).abs().mean() < 8, other.mode


@pytest.mark.parametrize("blank", ["white", "black", "dark", "dot", "noise", "light"])
def test_blank_page_is_rejected(blank: str) -> None:
    random = np.random.default_rng(0)
    dot = np.ones((28, 28))
    dot[13:16, 14] = dot[14, 13:16] = 0
    pages = {
        "white": np.ones((50, 60)),
        "black": np.zeros((28, 28)),
        "dark": np.full((28, 28), 4 / 255),  # used to pass for MNIST format
        "dot": dot,  # so small that thinning its stroke removes it
        "noise": 0.8 + random.normal(0, 0.05, (280, 280)),
        "light": np.linspace(0.3, 0.9, 300)[None].repeat(200, 0),
    }
    height, width = pages[blank].shape
    with pytest.raises(InputError, match=r"page\.png is blank: no pixels stand out"):
        digit_of(picture(pages[blank]), "page.png")
    stroke = np.zeros((height, width))
    stroke[height // 4 : -height // 4, width // 2 - 1 : width // 2 + 2] = 0.6 if pages[blank].mean() < 0.5 else -0.6
    assert digit_of(picture(pages[blank] + stroke), "page.png").any()


def test_random_pictures_give_a_digit_or_an_input_error() -> None:
    random = np.random.default_rng(0)
    rejected = 0
    for number in range(60):
        height, width = (int(size) for size in random.integers(1, 90, 2))
        values = random.integers(0, 256, (height, width, 4), dtype=np.uint8)
        if number % 2:  # few grey levels, large patches
            values = (values[: height // 9 + 1, : width // 9 + 1] // 100 * 100).repeat(9, 0).repeat(9, 1)
        mode = ("L", "1", "RGB", "RGBA", "LA", "P", "CMYK", "F")[number % 8]
        try:
            digit = digit_of(Image.fromarray(values).convert("L" if mode == "F" else "RGBA").convert(mode))
        except InputError:
            rejected += 1
        else:
            assert digit.shape == (28, 28)
            assert digit.dtype == torch.uint8
            assert digit.any()
    assert 0 < rejected < 60


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "tiff", "webp", "gif"])
def test_file_formats(suffix: str, originals: Tensor, tmp_path: Path) -> None:
    path = tmp_path / f"digit.{suffix}"
    picture(page(originals[1])).save(path)
    assert same_class(digit_of(open_picture(path)), 1)
    assert same_class(digit_of(open_picture(path.read_bytes())), 1)


def test_exif_orientation_is_applied(originals: Tensor, tmp_path: Path) -> None:
    upright = picture(page(originals[4]))
    exif = Image.Exif()
    exif[0x0112] = 6  # display rotated by 90 degrees clockwise
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.jpg", exif=exif)
    assert same_class(digit_of(open_picture(tmp_path / "turned.jpg")), 4)


def test_unreadable_files_are_rejected_by_name(tmp_path: Path) -> None:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    bomb = chunk(b"IHDR", struct.pack(">IIBBBBB", 20_000, 20_000, 8, 0, 0, 0, 0)) + chunk(b"IDAT", zlib.compress(b""))
    whole = tmp_path / "whole.png"
    picture(np.random.default_rng(0).random((60, 60))).save(whole)
    assert open_picture(whole).size == (60, 60)
    contents = {
        "text.png": (b"not a picture", "text.png cannot be read as a picture; give PNG, JPEG"),
        "empty.png": (b"", r"empty.png cannot be read as a picture \(empty\)"),
        "bomb.png": (
            b"\x89PNG\r\n\x1a\n" + bomb,
            "bomb.png has more than 16 million pixels",
        ),
        "cut.png": (whole.read_bytes()[:1000], r"cut.png cannot be read as a picture \("),
    }
    for name, (content, words) in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=words):
            open_picture(tmp_path / name)
    with pytest.raises(InputError, match=r"there is no picture .*absent\.png"):
        open_picture(tmp_path / "absent.png")
    with pytest.raises(InputError, match="your drawing cannot be read as a picture"):
        open_picture(b"GIF89a", "your drawing")


# Prints for each picture how many megabytes it took to open it, beyond the pictures before it, and the problem with it.
MEMORY = """
import resource, sys
from mnist_lightning import InputError
from mnist_lightning.data.handwriting import digit_of, open_picture
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
for name in sys.argv[1:]:
    before = peak()
    try:
        digit_of(open_picture(name), name)
    except InputError as error:
        print(peak() - before, error)
"""


@pytest.mark.slow
def test_memory_for_large_pictures() -> None:
    pixels = b"\x2f" + struct.pack("<I", 7999 | 7999 << 14) + b"\x88\x88\x08" + bytes(6)
    chunk = b"WEBPVP8L" + struct.pack("<I", 13) + pixels
    Path("tiny.webp").write_bytes(b"RIFF" + struct.pack("<I", len(chunk)) + chunk)  # 8000 x 8000; used to take 1 GB
    assert Path("tiny.webp").stat().st_size == 34
    Image.new("1", (8000, 8000)).save("huge.png")
    Image.new("L", (65_000, 900)).save("strip.jpg")  # cannot be reduced
    Image.new("L", (8000, 8000)).save("photo.jpg")
    Image.new("RGB", (4000, 4000)).save("largest.webp", lossless=True, method=0)
    names = ["tiny.webp", "huge.png", "strip.jpg", "photo.jpg", "largest.webp"]
    done = subprocess.run([sys.executable, "-c", MEMORY, *names], capture_output=True, text=True, check=True)
    lines = [line.split(" ", 1) for line in done.stdout.splitlines()]
    assert [message.partition(" million")[0] for _, message in lines] == [
        *(f"{name} has more than 16" for name in names[:3]),
        *(f"{name} is blank: no pixels stand out from the background" for name in names[3:]),
    ]
    assert all(int(used) < (400 if name == names[-1] else 40) for name, (used, _) in zip(names, lines, strict=True))


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo("pipe.png")  # opening it would block
    Path("folder.png").mkdir()
    Path("link.png").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.png")
        for name in ("pipe.png", "folder.png", "link.png", "socket.png", "/dev/zero"):
            with pytest.raises(InputError, match=rf"{name} cannot be read as a picture \(not a regular file\)"):
                open_picture(name)
    with pytest.raises(InputError, match=r"/proc/version cannot be read as a picture \(empty\)"):
        open_picture("/proc/version")
    with pytest.raises(InputError, match=r"cannot be read as a picture \(File name too long\)"):
        open_picture(300 * "x")
    with Path("sparse.png").open("wb") as file:
        file.truncate(10**12)
    with pytest.raises(InputError, match=r"sparse\.png cannot be read as a picture \(more than 200 MB\)"):
        open_picture("sparse.png")


def test_other_formats_and_bombs_in_metadata_are_refused(originals: Tensor) -> None:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    Path("loop.eps").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n{} loop\n")  # never ends
    Path("loop.png").write_bytes(Path("loop.eps").read_bytes())
    picture(page(originals[0])).save("digit.ppm")
    picture(page(originals[0])).save("digit.png")
    whole = Path("digit.png").read_bytes()
    Path("bomb.png").write_bytes(whole[:33] + chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(10**8))) + whole[33:])
    for name in ("loop.eps", "loop.png", "digit.ppm", "bomb.png"):
        with pytest.raises(InputError, match=f"{name} cannot be read as a picture"):
            open_picture(name)
    assert same_class(digit_of(open_picture("digit.png")), 0)


def test_first_frame_of_an_animation(originals: Tensor) -> None:
    frames = [picture(page(digit)) for digit in originals[:3]]
    for name in ("moving.gif", "moving.webp", "pages.tiff"):
        frames[0].save(name, save_all=True, append_images=frames[1:])
        assert same_class(digit_of(open_picture(name)), 0)


@pytest.mark.parametrize("mode", ["LAB", "CMYK", "I", "F", "I;16B"])
def test_unusual_modes_of_tiff(mode: str, originals: Tensor) -> None:
    grey = picture(page(originals[2]))
    pixels = np.asarray(grey)
    other = Image.fromarray(pixels.astype(">u2")) if mode == "I;16B" else grey.convert("RGB").convert(mode)
    content = BytesIO()
    other.save(content, "tiff")
    assert same_class(digit_of(open_picture(content.getvalue())), 2)


def test_pixels_beyond_any_range_are_refused(recwarn: pytest.WarningsRecorder) -> None:
    values = np.zeros((40, 40), np.float32)
    values[10:30, 18:22] = 200
    for value in (np.nan, -np.inf, 3e38):
        values[0, :2] = value, -value
        with pytest.raises(InputError, match=r"wild\.tif holds pixels that are not finite numbers below 1e\+30"):
            digit_of(Image.fromarray(values), "wild.tif")
    assert not recwarn.list

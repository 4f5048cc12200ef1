"""Outputs never replace inputs."""

from pathlib import Path

import pytest

from mnist_lightning import InputError
from mnist_lightning.files import writable, write_whole


def test_an_input_is_not_replaced_under_any_name(tmp_path: Path) -> None:
    picture = tmp_path / "x.png"
    picture.write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/last.ckpt").write_text("weights")
    (tmp_path / "run/earlier.png").write_text("a figure")
    (tmp_path / "soft.png").symlink_to(picture)
    (tmp_path / "hard.png").hardlink_to(picture)
    (tmp_path / "weights.png").hardlink_to(tmp_path / "run/last.ckpt")
    inputs = ["x.png", "absent.png", "run"]
    for name in ("x.png", "./x.png", str(picture), "run/../x.png", "soft.png", "hard.png", "weights.png"):
        with pytest.raises(InputError, match=f"output {name} would replace a file that this command reads"):
            writable(name, [".png", ".pdf"], inputs)
    for name in ("y.png", "absent.png", "run/earlier.png"):
        assert writable(name, [".png", ".pdf"], inputs) == Path(name)


def test_text_that_is_not_utf_8_is_written() -> None:
    write_whole(Path("names.txt"), "é \udcff")
    assert Path("names.txt").read_text() == r"é \udcff"

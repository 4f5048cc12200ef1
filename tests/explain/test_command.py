"""`mnist-lightning connectivity`, as a user types it."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
import torch
from PIL import Image

from mnist_lightning import MNISTDataModule
from mnist_lightning.cli import main
from mnist_lightning.explain.page import principal_components

Fails = Callable[..., str]
pytestmark = pytest.mark.slow  # they share a training


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, data_root: Path) -> Path:
    """A run that has trained a GNN for a moment."""
    root = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("PL_GLOBAL_SEED", "0")
        patch.setenv("MNIST_LIGHTNING_DATA", str(data_root))
        options = ["--model.width=8", "--data.source=digits", "--trainer.max_epochs=1"]
        main(["fit", "--config=gnn", *options, "--trainer.enable_progress_bar=false"])
    return root / "lightning_logs" / "gnn" / "version_0"


def page(path: str) -> dict[str, Any]:
    """The data in a page, which must need nothing from outside."""
    text = Path(path).read_text()
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", text)
    data: dict[str, Any] = json.loads(
        re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)[0]
    )
    return data


def test_one_digit_as_a_page(folder: Path, digits: MNISTDataModule) -> None:
    main(["connectivity", str(folder), "--index", "7", "--output", "seven.html"])
    (digit,) = page("seven.html")["digits"]
    image, label = (part[7] for part in digits.images_and_labels("test"))
    assert digit["image"] == image.flatten().tolist()
    assert digit["label"] == int(label)
    assert "digits, test image 7" in digit["name"]  # the source of the run, which nobody had to repeat
    assert set(digit["segments"]) == set(range(len(digit["x"])))
    np.testing.assert_allclose(np.sum(digit["evidence"], axis=0), digit["logits"], atol=0.02)
    assert len(digit["importance"]) == len(digit["edges"])
    assert [len(layer) for layer in digit["embeddings"]] == [len(digit["x"])] * 5


def test_several_digits_and_one_of_each_class(folder: Path) -> None:
    main(["connectivity", str(folder), "--indices", "0,7,42", "--output", "some.html"])
    assert [digit["name"].split()[-1] for digit in page("some.html")["digits"]] == ["0", "7", "42"]
    main(["connectivity", str(folder)])
    assert [digit["label"] for digit in page("connectivity.html")["digits"]] == list(range(10))


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_as_a_picture(suffix: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["connectivity", str(folder), "--index", "7", "--output", f"seven{suffix}"])
    assert f"seven{suffix}" in capsys.readouterr().out
    content = Path(f"seven{suffix}").read_bytes()
    assert {".png": b"\x89PNG", ".svg": b"<svg", ".pdf": b"%PDF"}[suffix] in content[:400]
    if suffix == ".png":
        assert matplotlib.image.imread(f"seven{suffix}").std() > 0.1


def test_a_picture_of_ones_own_dark_on_light(folder: Path, digits: MNISTDataModule) -> None:
    image = digits.images_and_labels("test")[0][7]
    Image.fromarray(255 - image.numpy()).resize((280, 280), Image.Resampling.NEAREST).save("my_seven.png")
    main(["connectivity", str(folder), "--image", "my_seven.png", "--output", "mine.html"])
    (digit,) = page("mine.html")["digits"]
    assert digit["label"] is None
    assert np.abs(np.array(digit["image"]) - image.flatten().numpy()).mean() < 2


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--index", "360"], "there is no test image 360: digits has 360, from 0 to 359"),
        (["--index", "-1"], "there is no test image -1"),
        (["--indices", "1,x"], "indices is '1,x'; it must be numbers"),
        (["--index", "1", "--indices", "2"], "give one of index, indices and image"),
        (["--image", "absent.png"], "there is no picture absent.png"),
        (["--output", "seven.gif"], "must end in .html, .png, .svg or .pdf"),
        (["--output", "nowhere/seven.png"], "there is no folder"),
        (["--method", "guess"], "method"),
        (["--method", "attention"], "cannot explain this model"),
        (["--target", "12"], "target is 12"),
        (["--idnex", "7"], "did you mean index"),
    ],
)
def test_wrong_arguments_get_one_line_and_leave_nothing(
    args: list[str], words: str, folder: Path, fails: Fails
) -> None:
    assert words in fails("connectivity", str(folder), *args)
    assert not list(Path().glob("*.html"))


def test_only_a_gnn_has_connections(fails: Fails) -> None:
    main(
        ["fit", "--model=MLP", "--data.source=digits", "--trainer.max_epochs=1", "--trainer.enable_progress_bar=false"]
    )
    line = fails("connectivity", "lightning_logs/mlp/version_0")
    assert "holds a MLP; connectivity explains a GNN" in line


def test_a_damaged_summary_is_named(folder: Path, fails: Fails) -> None:
    summary = folder / "summary.json"
    whole = summary.read_text()
    summary.write_text(whole[:20])
    try:
        assert "summary.json is damaged; say with --source" in fails("connectivity", str(folder))
    finally:
        summary.write_text(whole)


def test_a_checkpoint_that_is_not_there(fails: Fails) -> None:
    assert "there is no checkpoint absent.ckpt" in fails("connectivity", "absent.ckpt")


def test_help_lists_the_verb(capsys: pytest.CaptureFixture[str]) -> None:
    for args, words in ((["--help"], "connectivity"), (["connectivity", "--help"], "--indices")):
        with pytest.raises(SystemExit) as exit_:
            main(args)
        assert exit_.value.code == 0
        assert words in capsys.readouterr().out


def test_components_are_the_directions_of_most_variance() -> None:
    torch.manual_seed(0)
    intensity = torch.rand(50)
    embeddings = torch.randn(50, 6) * 0.01 + intensity[:, None] * torch.tensor([0.0, -5, 0, 0, 0, 0])
    components = principal_components(embeddings, intensity)
    assert torch.corrcoef(torch.stack([components[:, 0], intensity]))[0, 1] > 0.99  # ink has the larger values
    assert components[:, 0].std() > 10 * components[:, 1].std()
    assert principal_components(embeddings[:, :1], intensity).shape == (50, 3)

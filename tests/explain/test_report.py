"""The verbs `connectivity` and `gradcam` on the command line."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from mnist_lightning import MNISTDataModule
from mnist_lightning.cli import main
from mnist_lightning.errors import printable
from mnist_lightning.explain.page import principal_components
from mnist_lightning.explain.report import choose_digits
from mnist_lightning.runs.run import Run

Fails = Callable[..., str]


@pytest.fixture(scope="module")
def gnn(tmp_path_factory: pytest.TempPathFactory, data_root: Path) -> Path:
    """The run of a small GNN, trained for one epoch."""
    root = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("PL_GLOBAL_SEED", "0")
        patch.setenv("MNIST_LIGHTNING_DATA", str(data_root))
        options = ["--model.width=8", "--data.source=digits", "--trainer.max_epochs=1"]
        main(["fit", "--config=gnn", *options, "--trainer.enable_progress_bar=false"])
    return root / "lightning_logs" / "gnn" / "version_0"


@pytest.fixture
def lenet(trained: Path) -> str:
    return str(trained / "lenet5" / "version_0")


def page(path: str) -> dict[str, Any]:
    """The data of a page, which must not refer to the network."""
    text = Path(path).read_text()
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", text)
    data: dict[str, Any] = json.loads(
        re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)[0]
    )
    return data


def save_picture(image: Tensor, name: str) -> None:
    """Writes a digit as a picture, dark on light and ten times as large."""
    Image.fromarray(255 - image.numpy()).resize((280, 280), Image.Resampling.NEAREST).save(name)


@pytest.mark.slow
def test_connectivity_page_of_one_digit(gnn: Path, digits: MNISTDataModule) -> None:
    main(["connectivity", str(gnn), "--index", "7", "--output", "seven.html"])
    (digit,) = page("seven.html")["digits"]
    image, label = (part[7] for part in digits.images_and_labels("test"))
    assert digit["image"] == image.flatten().tolist()
    assert digit["label"] == int(label)
    assert "digits, test image 7" in digit["name"]  # the source of the run
    assert set(digit["segments"]) == set(range(len(digit["x"])))
    np.testing.assert_allclose(np.sum(digit["evidence"], axis=0), digit["logits"], atol=0.02)
    assert len(digit["importance"]) == len(digit["edges"])
    assert [len(layer) for layer in digit["embeddings"]] == [len(digit["x"])] * 5


@pytest.mark.slow
def test_connectivity_page_of_several_digits(gnn: Path) -> None:
    main(["connectivity", str(gnn), "--indices", "0,7,42", "--output", "some.html"])
    assert [digit["name"].split()[-1] for digit in page("some.html")["digits"]] == ["0", "7", "42"]
    main(["connectivity", str(gnn)])
    assert [digit["label"] for digit in page("connectivity.html")["digits"]] == list(range(10))


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_connectivity_figure(suffix: str, gnn: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["connectivity", str(gnn), "--index", "7", "--output", f"seven{suffix}"])
    assert f"seven{suffix}" in capsys.readouterr().out
    content = Path(f"seven{suffix}").read_bytes()
    assert {".png": b"\x89PNG", ".svg": b"<svg", ".pdf": b"%PDF"}[suffix] in content[:400]
    if suffix == ".png":
        assert matplotlib.image.imread(f"seven{suffix}").std() > 0.1


@pytest.mark.slow
def test_connectivity_of_a_picture(gnn: Path, images: Tensor) -> None:
    save_picture(images[7], "<!--<script>.png")
    main(["connectivity", str(gnn), "--image", "<!--<script>.png", "--output", "mine.html"])
    assert Path("mine.html").read_text().count("<script") == 2  # the page's own data and code
    (digit,) = page("mine.html")["digits"]
    assert digit["label"] is None
    assert np.abs(np.array(digit["image"]) - images[7].flatten().numpy()).mean() < 2


@pytest.mark.slow
def test_gradcam_of_each_class(lenet: str) -> None:
    main(["gradcam", lenet])
    height, width, _ = matplotlib.image.imread("gradcam.png").shape
    assert height > 1.5 * width  # ten rows
    assert matplotlib.image.imread("gradcam.png")[..., :3].std() > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["my_seven.png", r"$\frac$ <!--.png", os.fsdecode(b"\xff.png")])
def test_gradcam_of_a_picture(name: str, lenet: str, images: Tensor, capsys: pytest.CaptureFixture[str]) -> None:
    save_picture(images[7], name)
    main(["gradcam", lenet, "--image", name, "--output", "mine.svg"])
    assert printable(name).replace("<!--", "&lt;!- -") in Path("mine.svg").read_text()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("verb", ["connectivity", "gradcam"])
def test_strangers_files(verb: str, lenet: str, images: Tensor, fails: Fails) -> None:
    save_picture(images[7], "mine.png")
    before = Path("mine.png").read_bytes()
    line = fails(verb, lenet, "--image", "mine.png", "--output", "./mine.png")
    assert "output ./mine.png would replace a file that this command reads" in line
    Path("folder/0").mkdir(parents=True)
    Path("folder/0/mine.png").write_bytes(before)
    line = fails(verb, lenet, "--source", "folder:folder", "--output", "folder/0/mine.png")
    assert "output folder/0/mine.png would replace a file that this command reads" in line
    assert Path("mine.png").read_bytes() == Path("folder/0/mine.png").read_bytes() == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--index", "360"], "there is no test image 360: digits has 360 test images, 0 to 359"),
        (["--index", "-1"], "there is no test image -1"),
        (["--indices", "1,x"], "indices must be numbers separated by commas, such as 0,7,42, got '1,x'"),
        (["--index", "1", "--indices", "2"], "give only one of index, indices and image"),
        (["--image", "absent.png"], "there is no picture absent.png"),
        (["--image", "/dev/zero"], "/dev/zero cannot be read as a picture (not a regular file)"),
        (["--output", "seven.gif"], "must end in"),
        (["--output", "nowhere/seven.png"], "there is no folder"),
        (["--target", "12"], "target must be a class from 0 to 9, got 12"),
        (["--idnex", "7"], "did you mean index"),
    ],
)
@pytest.mark.parametrize("verb", ["connectivity", "gradcam"])
def test_invalid_arguments(verb: str, args: list[str], words: str, gnn: Path, lenet: str, fails: Fails) -> None:
    assert words in fails(verb, str(gnn) if verb == "connectivity" else lenet, *args)
    assert not list(Path().iterdir())


@pytest.mark.slow
def test_invalid_method(gnn: Path, fails: Fails) -> None:
    assert "method" in fails("connectivity", str(gnn), "--method", "guess")
    assert "cannot explain this model" in fails("connectivity", str(gnn), "--method", "attention")


@pytest.mark.slow
def test_model_of_another_kind(trained: Path, gnn: Path, fails: Fails) -> None:
    line = fails("connectivity", str(trained / "mlp" / "version_0"))
    assert "connectivity needs a GNN" in line
    assert "contains a MLP; explain it with gradcam" in line
    assert "got a GNN; explain a GNN with `connectivity`" in fails("gradcam", str(gnn))


@pytest.mark.slow
def test_damaged_summary(logs: Path, fails: Fails) -> None:
    run = Run(logs / "lenet5" / "version_0")
    run.summary_file.write_text(run.summary_file.read_text()[:20])
    line = fails("gradcam", str(run.folder), "--index", "7")
    assert f"{run.summary_file.name} is damaged" in line
    assert "name the source of the test images with --source" in line
    main(["gradcam", str(run.folder), "--index", "7", "--source", "digits"])


def test_missing_checkpoint(fails: Fails) -> None:
    for verb in ("connectivity", "gradcam"):
        assert "there is no checkpoint absent.ckpt" in fails(verb, "absent.ckpt")


@pytest.mark.mnist
def test_checkpoint_without_a_run_is_explained_on_mnist() -> None:
    (digit,) = choose_digits("copy.ckpt", 7, None, None, None, None)
    assert (digit.name, digit.label) == ("mnist, test image 7", 9)


@pytest.mark.parametrize("verb", ["connectivity", "gradcam"])
def test_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    for args, words in ((["--help"], verb), ([verb, "--help"], "--indices")):
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

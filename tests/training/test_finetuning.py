"""`fit --init_from`: a new run that starts from the weights of another one."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from mnist_lightning import MLP
from mnist_lightning.cli import main
from mnist_lightning.data.sources import class_names, read
from mnist_lightning.runs.checkpoint import read_checkpoint
from mnist_lightning.runs.finding import best_by_validation
from mnist_lightning.runs.run import Run
from mnist_lightning.training.tensorboard import TensorBoardFigures

LETTERS = "abcdefghij"
# The weights stay almost as they were.
STILL = ["--model.lr=1e-12", "--trainer.max_epochs=1", "--trainer.enable_progress_bar=false"]


@pytest.fixture(autouse=True)
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorBoard's figures take longer than these trainings."""
    monkeypatch.setattr(TensorBoardFigures, "on_test_end", lambda *_: None)


@pytest.fixture
def letters() -> str:
    """A source with the images of the digits, and classes of other names."""
    for index, (image, label) in enumerate(zip(*read("digits", train=False), strict=True)):
        path = Path("letters", LETTERS[int(label)], f"{index}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.numpy()).save(path)
    return "folder:letters"


def weights(run: Path) -> dict[str, torch.Tensor]:
    content: dict[str, torch.Tensor] = read_checkpoint(run / "checkpoints/last.ckpt")["state_dict"]
    return content


def summary(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run / "summary.json").read_text())
    return content


def close(first: torch.Tensor, second: torch.Tensor) -> bool:
    return first.shape == second.shape and torch.allclose(first, second, atol=1e-6)


def test_a_new_run_starts_from_the_weights_of_another(logs: Path) -> None:
    old, new = logs / "mlp/version_0", logs / "mlp/version_1"
    before = (old / "summary.json").read_bytes(), (old / "checkpoints/last.ckpt").read_bytes()
    main(["fit", f"--init_from={old}", *STILL])
    assert before == ((old / "summary.json").read_bytes(), (old / "checkpoints/last.ckpt").read_bytes())
    best = read_checkpoint(old / "checkpoints/last.ckpt")["state_dict"]
    assert all(close(tensor, best[key]) for key, tensor in weights(new).items() if "running" not in key)
    origin = str((old / "checkpoints/last.ckpt").absolute())
    assert summary(new)["init_from"] == {"path": origin, "source": "digits", "head": "kept"}
    assert summary(old)["init_from"] is None
    assert yaml.safe_load((new / "config.yaml").read_text())["init_from"] == origin


def test_of_an_experiment_the_best_run_is_the_origin(logs: Path) -> None:
    runs = [Run(logs / "lenet5" / f"version_{number}") for number in range(3)]
    with pytest.warns(UserWarning, match="its validation accuracy is the best"):
        main(["fit", "--init_from", str(logs / "lenet5"), *STILL])
    origin = Path(summary(logs / "lenet5/version_3")["init_from"]["path"])
    assert origin == best_by_validation(runs).last.absolute()


def test_the_head_is_re_initialised_for_other_classes(logs: Path, letters: str) -> None:
    old, new = logs / "mlp/version_0", logs / "mlp/version_1"
    main(["fit", f"--init_from={old}/checkpoints/last.ckpt", f"--data.source={letters}", *STILL])
    before, after = weights(old), weights(new)
    head = list(before)[-2:]
    assert [close(before[key], after[key]) for key in head] == [False, False]
    assert all(close(before[key], after[key]) for key in before if key not in head and "running" not in key)
    assert summary(new)["init_from"]["head"] == "re-initialised"
    assert summary(new)["source"] == letters


def test_a_state_dict_alone_is_enough() -> None:
    model = MLP(widths=[8])
    torch.save(model.state_dict(), "weights.pt")
    main(["fit", "--model=MLP", "--model.widths=[8]", "--data.source=digits", "--init_from=weights.pt", *STILL])
    run = Path("lightning_logs/mlp/version_0")
    assert all(close(tensor, model.state_dict()[key]) for key, tensor in weights(run).items())
    assert summary(run)["init_from"]["source"] is None


@pytest.mark.slow
def test_a_fine_tuned_run_is_resumed_without_its_origin(logs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = logs / "mlp/version_0", logs / "mlp/version_1"
    main(["fit", f"--init_from={old}", *STILL])
    shutil.rmtree(old)
    main(["fit", f"--ckpt_path={new}", "--trainer.max_epochs=2"])
    assert summary(new)["epochs"] == 2
    assert summary(new)["init_from"]["head"] == "kept"


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--init_from=missing"], "missing"),
        (["--init_from=other.pt"], "other.pt contains no weights; give a run, a checkpoint, or a state dict"),
        (["--init_from=lenet"], "contains a LeNet5, but the model is a MLP"),
        (["--init_from=mlp", "--model.widths=[16]"], "do not fit this MLP; different are dense."),
    ],
)
def test_weights_that_do_not_fit_are_refused(args: list[str], says: str, logs: Path, fails: Callable[..., str]) -> None:
    torch.save({"epoch": 1}, "other.pt")
    for name, run in (("lenet", "lenet5/version_0"), ("mlp", "mlp/version_0")):
        Path(name).symlink_to(logs / run, target_is_directory=True)
    count = len(list((logs / "mlp").iterdir()))
    assert says in fails("fit", "--model=MLP", "--data.source=digits", *STILL, *args)
    assert len(list((logs / "mlp").iterdir())) == count


def test_class_names(letters: str) -> None:
    digits = list("0123456789")
    assert class_names("mnist") == class_names("digits") == class_names("mnist_superpixels") == digits
    assert class_names(letters) == list(LETTERS)
    for digit in "37":
        Path("numbers", digit).mkdir(parents=True)
    assert class_names("folder:numbers") == digits

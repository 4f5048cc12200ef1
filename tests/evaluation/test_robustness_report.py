import csv
import re
import shutil
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from evaluation.test_report import VISITOR
from PIL import Image

from mnist_lightning import InputError, load
from mnist_lightning.data.corruptions import CORRUPTIONS, PUBLISHED, corrupt
from mnist_lightning.data.sources import read
from mnist_lightning.evaluation.calibration import calibrate
from mnist_lightning.evaluation.robustness_report import write_robustness

PICTURES = {"errors", "corrupted-digits", "mean-errors", "calibration", "reliability", "unknowns", "unknown-pictures"}


@pytest.fixture(scope="module")
def runs(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LeNet-5 of two seeds with their temperatures, and an MLP that has none."""
    logs = tmp_path_factory.mktemp("robustness") / "logs"
    for run in ("lenet5/version_0", "lenet5/version_1", "mlp/version_0"):
        shutil.copytree(trained / run, logs / run)
    for seed in (0, 1):
        calibrate(logs / "lenet5" / f"version_{seed}")
    (logs / "mlp/version_0/checkpoints/best.temperature.json").unlink(missing_ok=True)
    return logs


@pytest.fixture(scope="module")
def written(runs: Path) -> tuple[Path, str]:
    """The folder of a report of them, and what was printed."""
    with redirect_stdout(StringIO()) as printed:
        page = write_robustness(str(runs), output=str(runs.parent / "report"))
    return page.parent, printed.getvalue()


@pytest.fixture
def report(written: tuple[Path, str]) -> Path:
    return written[0]


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures take seconds, and not every test is about them."""
    monkeypatch.setattr("mnist_lightning.evaluation.robustness_page._shown", lambda *_: ())


def rows(folder: Path, name: str = "table.csv") -> list[dict[str, str]]:
    return list(csv.DictReader((folder / name).read_text().splitlines()))


def test_every_run_under_every_corruption(report: Path, runs: Path) -> None:
    table = rows(report)
    assert len(table) == 3 * 16
    images, labels = read("digits", train=False)
    for of_run in (table[:16], table[16:32], table[32:]):
        assert [row["corruption"] for row in of_run] == ["clean", *CORRUPTIONS]
        assert [int(row["severity"]) for row in of_run] == [0, *PUBLISHED.values()]
        folder = runs / of_run[0]["model"] / f"version_{of_run[0]['seed']}"
        for row, digits in ((of_run[0], images), (of_run[10], corrupt(images, "stripe"))):
            wrong = load(folder).classify(digits).argmax(dim=1) != labels
            assert float(row["error"]) == pytest.approx(float(wrong.double().mean()))
    assert {row["ece_at_temperature"] == "" for row in table if row["model"] == "mlp"} == {True}
    assert {row["ece_at_temperature"] == "" for row in table if row["model"] == "lenet5"} == {False}
    unknown = rows(report, "unknowns.csv")
    assert {row["set"] for row in unknown} >= {"noise", "blank", "letters", "rotated"}
    assert all(0 <= float(row[value]) <= 1 for row in unknown for value in ("auroc", "fpr95"))


def test_the_page_has_all_of_it_and_needs_nothing_else(report: Path, runs: Path) -> None:
    page = (report / "index.html").read_text()
    assert {path.stem for path in report.glob("*.png")} == PICTURES
    for path in report.glob("*.png"):
        assert len(Image.open(path).convert("L").getcolors() or []) > 20  # there is something on it
    assert page.count("data:image/png;base64,") == len(PICTURES)
    assert not re.findall(r"(?:src|href)=\"(?!data:)", page)
    assert "They are the test images" in page
    assert f"Without a temperature: {runs}/mlp/version_0." in page
    table = (report / "table.md").read_text()
    assert "|  | lenet5 (n = 2) | mlp (n = 1) |" in table or "|  | mlp (n = 1) | lenet5 (n = 2) |" in table
    means = [float(row["error"]) for row in rows(report) if row["model"] == "mlp" and row["severity"] != "0"]
    assert len(means) == 15
    assert f"{100 * np.mean(means):.2f} |" in re.findall(r"\| mean of the 15 \| .*", table)[0]


@pytest.mark.slow
def test_all_severities(runs: Path) -> None:
    page = write_robustness(str(runs / "mlp"), severities="all")
    assert page == Path("robustness/index.html")
    found = rows(page.parent)
    assert len(found) == 1 + 15 * 5
    assert {path.stem for path in page.parent.glob("*.png")} == PICTURES - {"reliability"} | {
        "severities",
        "digits-by-severity",
    }
    assert "mean at severity 5" in page.read_text()
    published = [float(row["error"]) for row in found if PUBLISHED.get(row["corruption"]) == int(row["severity"])]
    assert f"| mean of the 15 | {100 * np.mean(published):.2f} |" in (page.parent / "table.md").read_text()


def test_progress_is_a_line_a_corruption_where_there_is_no_terminal(written: tuple[Path, str]) -> None:
    _, printed = written
    done = [line.split(": ")[1] for line in printed.splitlines() if re.match(r"\d+ of 40: ", line)]
    assert done == ["clean", *(corruption.replace("_", " ") for corruption in CORRUPTIONS), "no digits"]
    assert "mean of the 15" in printed
    assert "cost" in printed


def test_a_stop_half_way_leaves_no_half_report(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(images: torch.Tensor, corruption: str, severity: int) -> torch.Tensor:
        if corruption == "fog":
            raise KeyboardInterrupt
        return images

    Path("robustness").mkdir()
    Path("robustness/index.html").write_text("the last one")
    monkeypatch.setattr("mnist_lightning.evaluation.robustness_report.corrupt", stopped)
    with pytest.raises(KeyboardInterrupt):
        write_robustness(str(runs / "mlp"))
    assert [(path.name, path.read_text()) for path in Path("robustness").iterdir()] == [("index.html", "the last one")]


@pytest.mark.usefixtures("undrawn")
def test_a_run_whose_checkpoint_is_damaged_or_gone_is_left_out(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logs = Path(shutil.copytree(runs, tmp_path / "logs"))
    checkpoint = logs / "lenet5/version_0/checkpoints/best.ckpt"
    checkpoint.write_bytes(checkpoint.read_bytes()[:5000])
    (logs / "lenet5/version_1/checkpoints/best.ckpt").unlink()
    temperature = logs / "mlp/version_0/checkpoints/best.temperature.json"
    shutil.copy(logs / "lenet5/version_0/checkpoints/best.temperature.json", temperature)
    write_robustness(str(logs))
    page = Path("robustness/index.html").read_text()
    assert f"left out: {checkpoint} is not a checkpoint, or it is damaged" in capsys.readouterr().out
    assert f"Left out: {checkpoint} is not a checkpoint, or it is damaged" in page
    assert f"Left out: {logs}/lenet5/version_1 is a folder without checkpoints/best.ckpt" in page
    assert f"Left out: {temperature} is of another checkpoint" in page
    assert "<p>1 run.</p>" in page
    assert {row["model"] for row in rows(Path("robustness"))} == {"mlp"}


@pytest.mark.slow
def test_test_sets_are_kept_apart(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logs = Path(shutil.copytree(runs, tmp_path / "logs"))
    as_mnist(logs / "mlp", monkeypatch)  # whose digits everybody gets
    page = write_robustness(str(logs))
    assert {(row["source"], row["model"]) for row in rows(page.parent)} == {("digits", "lenet5"), ("mnist", "mlp")}
    assert {path.stem for path in page.parent.glob("2-*.png")} >= {"2-errors", "2-corrupted-digits"}
    assert page.read_text().count("360 test images of ") == 2


def test_wrong_words_on_the_command_line(runs: Path, fails: Callable[..., str]) -> None:
    assert "needs --severities published" in fails(
        "robustness", str(runs), "--source", "mnist_c", "--severities", "all"
    )
    assert "severities is 'most', expected one of " in fails("robustness", str(runs), "--severities", "most")
    assert "unknown option --severity; did you mean severities?" in fails("robustness", "--severity", "all")


def test_nothing_to_measure(runs: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no folder lightning_logs"):
        write_robustness()
    Path("empty").mkdir()
    with pytest.raises(InputError, match="there is no finished run in empty"):
        write_robustness("empty")
    logs = Path(shutil.copytree(runs / "mlp", tmp_path / "logs"))
    (logs / "version_0/checkpoints/best.ckpt").unlink()
    with pytest.raises(InputError, match=r"nothing can be measured: .* is a folder without checkpoints/best\.ckpt"):
        write_robustness(str(logs))
    summary = logs / "version_0/summary.json"
    summary.write_text(summary.read_text().replace('"source": "digits"', '"source": "folder:gone"'))
    with pytest.raises(InputError, match="nothing can be measured: the runs on folder:gone: gone cannot be read"):
        write_robustness(str(logs))


def test_a_test_set_that_is_another_by_now(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def other(source: str, train: bool) -> tuple[torch.Tensor, torch.Tensor]:
        images, labels = read(source, train=train)
        return images, labels.roll(1)

    monkeypatch.setattr("mnist_lightning.evaluation.robustness_report.read", other)
    with pytest.raises(InputError, match="on digits: the test labels on disk are others than those"):
        write_robustness(str(runs))


def test_public_files_that_cannot_be_used(runs: Path) -> None:
    with pytest.raises(InputError, match="--source mnist_c needs --severities published"):
        write_robustness(str(runs), source="mnist_c", severities="all")
    with pytest.raises(InputError, match="--source mnist_c is for runs on mnist; some of these are on digits"):
        write_robustness(str(runs), source="mnist_c")


def as_mnist(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Has the runs' digits pass for MNIST's."""
    digits = read("digits", train=False)
    monkeypatch.setattr("mnist_lightning.evaluation.robustness_report.read", lambda source, train: digits)
    for summary in runs.rglob("summary.json"):
        summary.write_text(summary.read_text().replace('"source": "digits"', '"source": "mnist"'))


@pytest.mark.usefixtures("undrawn")
def test_public_files(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logs = Path(shutil.copytree(runs / "mlp", tmp_path / "logs"))
    as_mnist(logs, monkeypatch)
    monkeypatch.setenv("MNIST_LIGHTNING_DATA", str(tmp_path))
    with pytest.raises(InputError, match=r"there is no .*mnist_c/shot_noise/test_images\.npy"):
        write_robustness(str(logs), source="mnist_c")
    images, labels = read("digits", train=False)
    for corruption in CORRUPTIONS:
        folder = tmp_path / "mnist_c" / corruption
        folder.mkdir(parents=True)
        np.save(folder / "test_images.npy", (images if corruption == "fog" else 255 - images)[..., None].numpy())
        np.save(folder / "test_labels.npy", labels.numpy())
    page = write_robustness(str(logs), source="mnist_c")
    errors = {row["corruption"]: float(row["error"]) for row in rows(page.parent)}
    assert errors["fog"] == errors["clean"] < 0.9
    wrong = load(logs / "version_0").classify(255 - images).argmax(dim=1) != labels
    assert errors["zigzag"] == pytest.approx(float(wrong.double().mean()))
    assert "are those of MNIST-C's files" in page.read_text()
    np.save(folder / "test_labels.npy", labels.roll(1).numpy())
    with pytest.raises(InputError, match="MNIST-C's canny_edges has other labels than the test images of mnist"):
        write_robustness(str(logs), source="mnist_c")


@pytest.mark.slow
def test_on_a_desk_and_on_a_telephone(report: Path, visit: Callable[[str, str], Any]) -> None:
    page = (report / "index.html").read_text()
    seen = {"tooWide": 0, "images": len(PICTURES), "rows": page.count("<tr"), "requests": []}
    assert visit(page, VISITOR) == {"1280": seen, "390": seen}

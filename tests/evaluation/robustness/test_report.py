import csv
import json
import re
import shutil
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from evaluation.compare.test_report import MEASURE
from PIL import Image

from mnist_lightning import InputError, load
from mnist_lightning.data.corruptions import CORRUPTIONS, PUBLISHED, corrupt
from mnist_lightning.data.sources import read
from mnist_lightning.evaluation.calibration import calibrate
from mnist_lightning.evaluation.page import Report, Table, render
from mnist_lightning.evaluation.robustness import report
from mnist_lightning.evaluation.robustness.measure import Condition
from mnist_lightning.evaluation.robustness.report import measure_robustness
from mnist_lightning.files import save_tensors
from mnist_lightning.runs.checkpoint import CALIBRATION, read_checkpoint
from mnist_lightning.runs.run import Run

pytestmark = pytest.mark.slow  # measuring takes seconds

PICTURES = {"errors", "corrupted-digits", "mean-errors", "calibration", "reliability", "unknowns", "unknown-pictures"}


@pytest.fixture(scope="module")
def runs(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LeNet-5 with two seeds and temperatures, and an MLP without a temperature."""
    logs = tmp_path_factory.mktemp("robustness") / "logs"
    for run in ("lenet5/version_0", "lenet5/version_1", "mlp/version_0"):
        shutil.copytree(trained / run, logs / run)
    for seed in (0, 1):
        calibrate(logs / "lenet5" / f"version_{seed}")
    best = Run(logs / "mlp/version_0").last
    save_tensors({key: value for key, value in read_checkpoint(best).items() if key != CALIBRATION}, best)
    return logs


@pytest.fixture(scope="module")
def measured(runs: Path) -> tuple[Report, str]:
    """A report on all runs, and the progress that was printed."""
    with redirect_stdout(StringIO()) as printed:
        report = measure_robustness(str(runs), output=str(runs.parent / "report"))
    return report, printed.getvalue()


@pytest.fixture
def folder(measured: tuple[Report, str]) -> Path:
    return measured[0].page.parent


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures take seconds, and not every test needs them."""
    monkeypatch.setattr("mnist_lightning.evaluation.robustness.report._pictures", lambda *_: ([], [], []))


def rows(folder: Path, name: str = "table.csv") -> list[dict[str, str]]:
    return list(csv.DictReader((folder / name).read_text().splitlines()))


def test_errors_of_every_run_under_every_corruption(folder: Path, runs: Path) -> None:
    table = rows(folder)
    assert len(table) == 3 * 16
    images, labels = read("digits", train=False)
    for of_run in (table[:16], table[16:32], table[32:]):
        assert [row["corruption"] for row in of_run] == ["clean", *CORRUPTIONS]
        assert [int(row["severity"]) for row in of_run] == [0, *PUBLISHED.values()]
        model = load(runs / of_run[0]["model"] / f"version_{of_run[0]['seed']}")
        for row, digits in ((of_run[0], images), (of_run[10], corrupt(images, "stripe"))):
            wrong = model.classify(digits).argmax(dim=1) != labels
            assert float(row["error"]) == pytest.approx(float(wrong.double().mean()))
    assert {row["ece_at_temperature"] == "" for row in table if row["model"] == "mlp"} == {True}
    assert {row["ece_at_temperature"] == "" for row in table if row["model"] == "lenet5"} == {False}
    unknown = rows(folder, "unknowns.csv")
    assert {row["set"] for row in unknown} >= {"noise", "blank", "letters", "rotated"}
    assert all(0 <= float(row[value]) <= 1 for row in unknown for value in ("auroc", "fpr95"))


def test_page_is_complete_and_self_contained(folder: Path, runs: Path) -> None:
    page = (folder / "index.html").read_text()
    assert {path.stem for path in folder.glob("*.png")} == PICTURES
    for path in folder.glob("*.png"):
        assert len(Image.open(path).convert("L").getcolors() or []) > 20  # the figure is not blank
    assert page.count("data:image/png;base64,") == len(PICTURES)
    assert not re.findall(r"(?:src|href)=\"(?!data:)", page)
    assert "They are made from the test images" in page
    assert f"Without a temperature: {runs}/mlp/version_0." in page
    assert "mnist_lightning.evaluation.calibration.calibrate" in page
    table = (folder / "table.md").read_text()
    assert "|  | lenet5 (n = 2) | mlp (n = 1) |" in table or "|  | mlp (n = 1) | lenet5 (n = 2) |" in table
    means = [float(row["error"]) for row in rows(folder) if row["model"] == "mlp" and row["severity"] != "0"]
    assert len(means) == 15
    assert f"{100 * np.mean(means):.2f} |" in re.findall(r"\| mean of the 15 \| .*", table)[0]


def test_report_has_tables_and_sentences(measured: tuple[Report, str]) -> None:
    report, _ = measured
    assert [table.title.split(":")[0] for table in report.tables] == [
        "360 test images of digits",
        "360 test images of digits, corrupted as in MNIST-C",
        "Expected calibration error %",
        "Pictures without digits",
    ]
    assert len(report.lines) == 3  # two models, one pair
    assert "has its highest error" in report.lines[0]
    assert report.left_out == []
    ranking, errors, *_ = report.tables
    assert [row[0] for row in ranking.rows] == sorted(errors.header[1:], key=lambda model: mean_error(errors, model))
    assert [row[1] for row in ranking.rows] == [mean_error(errors, row[0]) for row in ranking.rows]


def mean_error(errors: Table, model: str) -> Any:
    return next(row[list(errors.header).index(model)] for row in errors.rows if row[0] == "mean of the 15")


@pytest.mark.usefixtures("no_figures")
def test_markup_in_a_name_is_shown_as_text(runs: Path, tmp_path: Path) -> None:
    logs = Path(shutil.copytree(runs / "mlp", tmp_path / "logs"))
    summary = Run(logs / "version_0").summary_file
    summary.write_text(json.dumps({**json.loads(summary.read_text()), "experiment": "<script>alert(1)</script>"}))
    page = measure_robustness(str(logs)).page.read_text()
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt; (n = 1)" in page


@pytest.mark.slow
def test_all_severities(runs: Path) -> None:
    page = measure_robustness(str(runs / "mlp"), severities="all").page
    assert page == Path("robustness/index.html")
    table = rows(page.parent)
    assert len(table) == 1 + 15 * 5
    assert {path.stem for path in page.parent.glob("*.png")} == PICTURES - {"reliability"} | {
        "severities",
        "digits-by-severity",
    }
    assert "mean at severity 5" in page.read_text()
    published = [float(row["error"]) for row in table if PUBLISHED.get(row["corruption"]) == int(row["severity"])]
    assert f"| mean of the 15 | {100 * np.mean(published):.2f} |" in (page.parent / "table.md").read_text()


def test_progress_without_a_terminal_is_one_line_per_corruption(measured: tuple[Report, str]) -> None:
    _, printed = measured
    done = [line.split(": ")[1] for line in printed.splitlines() if re.match(r"\d+ of 34: ", line)]
    assert done == ["clean", *(corruption.replace("_", " ") for corruption in CORRUPTIONS), "no digits"]


def test_interruption_keeps_the_previous_report(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(images: torch.Tensor, corruption: str, severity: int) -> torch.Tensor:
        if corruption == "fog":
            raise KeyboardInterrupt
        return images

    Path("robustness").mkdir()
    previous = render("evaluation/templates/page.html", title="previous")
    Path("robustness/index.html").write_text(previous)
    monkeypatch.setattr("mnist_lightning.data.corruptions.corrupt", interrupted)
    with pytest.raises(KeyboardInterrupt):
        measure_robustness(str(runs / "mlp"))
    assert [(path.name, path.read_text()) for path in Path("robustness").iterdir()] == [("index.html", previous)]


@pytest.mark.usefixtures("no_figures")
def test_run_without_an_intact_checkpoint_is_left_out(runs: Path, tmp_path: Path) -> None:
    logs = Path(shutil.copytree(runs, tmp_path / "logs"))
    damaged, missing = (Run(logs / "lenet5" / f"version_{seed}").last for seed in (0, 1))
    damaged.write_bytes(damaged.read_bytes()[:5000])
    missing.unlink()
    report = measure_robustness(str(logs))
    page = report.page.read_text()
    assert len(report.left_out) == 2
    assert report.left_out[0].startswith(f"{damaged} is not a checkpoint, or it is damaged")
    assert report.left_out[1].startswith(f"{logs}/lenet5/version_1 has no {missing.relative_to(missing.parents[1])}")
    assert all(f"Left out: {problem}" in page for problem in report.left_out)
    assert "<p>1 run.</p>" in page
    assert {row["model"] for row in rows(Path("robustness"))} == {"mlp"}


@pytest.mark.slow
def test_test_sets_have_separate_sections(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logs = Path(shutil.copytree(runs, tmp_path / "logs"))
    as_mnist(logs / "mlp", monkeypatch)
    page = measure_robustness(str(logs)).page
    assert {(row["source"], row["model"]) for row in rows(page.parent)} == {("digits", "lenet5"), ("mnist", "mlp")}
    assert {path.stem for path in page.parent.glob("2-*.png")} >= {"2-errors", "2-corrupted-digits"}
    assert page.read_text().count("360 test images of ") == 2


def test_wrong_arguments(runs: Path, fails: Callable[..., str]) -> None:
    assert "--source mnist_c has one severity per corruption: use --severities published, not all" in fails(
        "robustness", str(runs), "--source", "mnist_c", "--severities", "all"
    )
    assert "severities must be one of published or all, got 'most'" in fails(
        "robustness", str(runs), "--severities", "most"
    )
    assert "severity; did you mean severities?" in fails("robustness", "--severity", "all")


def test_no_run_can_be_measured(runs: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no folder lightning_logs"):
        measure_robustness()
    Path("empty").mkdir()
    with pytest.raises(InputError, match="there is no finished run in empty"):
        measure_robustness("empty")
    logs = Path(shutil.copytree(runs / "mlp", tmp_path / "logs"))
    run = Run(logs / "version_0")
    run.last.unlink()
    with pytest.raises(InputError, match=rf"no run can be measured: .* has no .*{run.last.name}"):
        measure_robustness(str(logs))
    run.summary_file.write_text(run.summary_file.read_text().replace('"source": "digits"', '"source": "folder:gone"'))
    with pytest.raises(InputError, match="no run can be measured: the runs on folder:gone: "):
        measure_robustness(str(logs))


def test_test_labels_that_changed(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def rolled(source: str, root: str | None, train: bool) -> tuple[torch.Tensor, torch.Tensor]:
        images, labels = read(source, train=train)
        return images, labels.roll(1)

    monkeypatch.setattr("mnist_lightning.evaluation.robustness.measure.read", rolled)
    with pytest.raises(InputError, match="on digits: the test labels on disk differ from the labels in the runs"):
        measure_robustness(str(runs))


def test_mnist_c_needs_published_severities_and_mnist(runs: Path) -> None:
    with pytest.raises(InputError, match="use --severities published"):
        measure_robustness(str(runs), source="mnist_c", severities="all")
    with pytest.raises(InputError, match="--source mnist_c needs runs on mnist, got runs on digits"):
        measure_robustness(str(runs), source="mnist_c")


def as_mnist(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Renames the runs' source to mnist, and lets every source return scikit-learn's digits."""
    digits = read("digits", train=False)
    monkeypatch.setattr("mnist_lightning.evaluation.robustness.measure.read", lambda source, root, train: digits)
    for summary in runs.rglob(Run("").summary_file.name):
        summary.write_text(summary.read_text().replace('"source": "digits"', '"source": "mnist"'))


@pytest.mark.usefixtures("no_figures")
def test_mnist_c(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logs = Path(shutil.copytree(runs / "mlp", tmp_path / "logs"))
    as_mnist(logs, monkeypatch)
    root = str(tmp_path)
    with pytest.raises(InputError, match=r"mnist_c/shot_noise/test_images\.npy"):
        measure_robustness(str(logs), source="mnist_c", root=root)
    images, labels = read("digits", train=False)
    for corruption in CORRUPTIONS:
        folder = tmp_path / "mnist_c" / corruption
        folder.mkdir(parents=True)
        np.save(folder / "test_images.npy", (images if corruption == "fog" else 255 - images)[..., None].numpy())
        np.save(folder / "test_labels.npy", labels.numpy())
    page = measure_robustness(str(logs), source="mnist_c", root=root).page
    errors = {row["corruption"]: float(row["error"]) for row in rows(page.parent)}
    assert errors["fog"] == errors["clean"] < 0.9
    wrong = load(logs / "version_0").classify(255 - images).argmax(dim=1) != labels
    assert errors["zigzag"] == pytest.approx(float(wrong.double().mean()))
    assert "are those of MNIST-C's files" in page.read_text()
    np.save(folder / "test_labels.npy", labels.roll(1).numpy())
    with pytest.raises(InputError, match="labels of MNIST-C's canny_edges differ from the test labels of mnist"):
        measure_robustness(str(logs), source="mnist_c", root=root)


@pytest.mark.slow
def test_page_fits_a_desktop_and_a_phone(folder: Path, visit: Callable[[str, str], Any]) -> None:
    page = (folder / "index.html").read_text()
    expected = {"tooWide": 0, "images": len(PICTURES), "rows": page.count("<tr"), "requests": []}
    assert visit(page, MEASURE) == {"1280": expected, "390": expected}


def test_progress_shows_names_as_text(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # a terminal
    with report._progress(2) as advance:
        for name in ("[/]", "a[red]b\x1b]0;title\x07"):
            advance(Condition("fog", 1), name)
            time.sleep(0.15)  # the bar is drawn ten times a second
    printed = capsys.readouterr().out
    assert "[/]" in printed
    assert r"a[red]b\x1b]0;title\x07" in printed

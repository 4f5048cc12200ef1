import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mnist_lightning.cli import main
from mnist_lightning.data.sources import read
from mnist_lightning.runs.run import Run
from mnist_lightning.runs.writing import write_results

PICTURES = {"curves", "accuracies", "costs", "calibration", "f1", "agreement", "frequent-confusions", "confusions"}
MISTAKES = {"shared-mistakes", "lonely-mistakes"}


@pytest.mark.slow
def test_report_on_the_default_folder(logs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["compare"])
    printed = capsys.readouterr().out
    assert "360 test images of digits" in printed
    assert "lenet5, max_epochs 2" in printed
    assert "n = 2 and 1" in printed or "n = 1 and 2" in printed
    assert printed.splitlines()[-1] == "report/index.html"
    assert {path.stem for path in Path("report").glob("*.png")} == PICTURES | MISTAKES
    for path in Path("report").glob("*.png"):
        assert len(Image.open(path).convert("L").getcolors() or []) > 20  # not blank
    page = Path("report/index.html").read_text()
    assert page.count("data:image/png;base64,") == len(PICTURES | MISTAKES)
    assert not re.findall(r"(?:src|href)=\"(?!data:)", page)  # no other files
    assert Path("report/table.csv").read_text().count("\n") == 4
    assert "| lenet5, max_epochs 1 | 2 |" in Path("report/table.md").read_text()


# Loads the page into frames as wide as a desktop and a phone, and writes measurements into the body.
MEASURE = """
if (self === top) addEventListener("load", async () => {
  const measured = {};
  for (const width of [1280, 390]) {
    const frame = document.createElement("iframe");
    frame.style = `width: ${width}px; height: 800px; border: 0`;
    frame.srcdoc = document.documentElement.outerHTML;
    await new Promise(loaded => { frame.onload = loaded; document.body.append(frame); });
    const root = frame.contentDocument.documentElement, images = [...frame.contentDocument.images];
    measured[width] = {
      tooWide: root.scrollWidth - root.clientWidth,
      images: images.filter(image => image.naturalWidth > 300 && image.clientWidth <= width).length,
      rows: frame.contentDocument.querySelectorAll("tr").length,
      requests: frame.contentWindow.performance.getEntriesByType("resource").map(entry => entry.name)
        .filter(name => !name.startsWith("data:")),
    };
    frame.remove();
  }
  document.body.replaceChildren();
  document.body.append(JSON.stringify(measured));
});
"""


@pytest.mark.slow
def test_reports_fit_on_a_desktop_and_on_a_phone(logs: Path, visit: Callable[[str, str], Any]) -> None:
    main(["compare"])
    main(["explore", "--source", "digits", "--output", "data-report"])
    for folder in ("report", "data-report"):
        page = Path(folder, "index.html").read_text()
        expected = {"tooWide": 0, "images": page.count("<img"), "rows": page.count("<tr"), "requests": []}
        assert expected["images"] > 5
        assert visit(page, MEASURE) == {"1280": expected, "390": expected}


@pytest.mark.slow
def test_a_damaged_run_is_left_out(logs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = Run(logs / "mlp" / "version_0").summary_file
    path.write_text(path.read_text()[:-50])
    main(["compare", "--output", "other"])
    assert f"left out: lightning_logs/mlp/version_0/{path.name} is damaged" in capsys.readouterr().out
    page = Path("other/index.html").read_text()
    assert f"Left out: lightning_logs/mlp/version_0/{path.name} is damaged" in page
    assert "lenet5" in page


@pytest.mark.slow
def test_ensembles_are_compared(logs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["compare", str(logs / "lenet5"), str(logs / "mlp"), "--ensemble"])
    printed = capsys.readouterr().out
    assert "ensemble: mean probability" in printed
    assert "ensemble: majority vote" in printed


@pytest.mark.slow
def test_names_are_shown_as_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    name = "<script>alert(1)</script>"
    names = [
        name,
        r"[/] $\frac$ a|b`",
        "cnn[a]",
        "cnn[b]",
        "\x1b[31m\x9b\u202e two\nlines",
        100 * "数字",
        "$x",
        "_x",
    ]
    for kind in ("<b>dark", "<b>light"):
        (tmp_path / name / kind).mkdir(parents=True)
        for index in range(8):
            pixels = np.random.default_rng(index).integers(256, size=(28, 28), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / kind / f"{index}.png")
    source = f"folder:{name}"
    labels = read(source, train=False)[1].numpy()
    for version, experiment in enumerate(names):
        logits = np.eye(10, dtype=np.float32)[(labels + (version > 0)) % 2]
        summary = {
            "experiment": experiment,
            "source": source,
            "seed": 0,
            "model": "CNN",
            "test": {"accuracy": float(version == 0)},
        }
        (tmp_path / "runs" / str(version)).mkdir(parents=True)
        write_results(Run(tmp_path / "runs" / str(version)), summary, logits, labels)
    main(["compare", "runs"])
    main(["explore", "--source", source])
    printed = capsys.readouterr()
    assert not [str(each.message) for each in recwarn if "Glyph" in str(each) or "layout" in str(each)]
    for page in (Path(folder, "index.html").read_text() for folder in ("report", "data-report")):
        assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
        assert "<script" not in page
        assert "<b>" not in page
    page, table, markdown = (Path("report", name).read_text() for name in ("index.html", "table.csv", "table.md"))
    for text in (printed.out, page, table, markdown):
        assert not set("\x1b\x9b\u202e") & set(text)
    for text in (printed.out, table):
        assert "\\x1b[31m\\x9b\\u202e two\\nlines" in text
        assert "cnn[a]" in text
        assert "cnn[b]" in text
    rows = [line for line in markdown.splitlines() if line.startswith("| ")]
    assert len(rows) == 2 + len(names)
    assert r"| \[/\] \$\\frac\$ a\|b\` | 1 |" in markdown
    assert len({row.replace(r"\|", "").count("|") for row in rows}) == 1


def test_tables_outlive_a_figure_that_fails(logs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def draw(*_: object) -> Any:
        raise RuntimeError("no font")

    monkeypatch.setattr("mnist_lightning.evaluation.compare.figures.draw_all", draw)
    with pytest.raises(RuntimeError, match="no font"):
        main(["compare"])
    for name in ("index.html", "table.csv", "table.md", "runs.csv"):
        assert "lenet5, max_epochs 2" in Path("report", name).read_text()
    monkeypatch.setattr("mnist_lightning.evaluation.compare.figures.draw_all", lambda *_: ())
    main(["compare"])  # the unfinished report is replaced


@pytest.mark.parametrize("verb", ["compare", "robustness", "explore"])
def test_a_report_replaces_only_a_report(verb: str, logs: Path, fails: Callable[..., str]) -> None:
    run = logs / "mlp" / "version_0"
    Path("site").mkdir()
    Path("site/index.html").write_text("mine")
    Path("link").symlink_to(run)
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    what = ["--source", "digits"] if verb == "explore" else [str(run)]
    for folder in (run, run / "checkpoints", logs, "link", "site", "."):
        words = "holds other files than a report; choose a new or an empty folder"
        assert f"output {folder} {words}" in fails(verb, *what, "--output", str(folder))
    words = "output must be a folder, got the file site/index.html"
    assert words in fails(verb, *what, "--output", "site/index.html")
    assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == before


def test_many_models_on_a_narrow_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = np.arange(1000) % 10
    for model in range(10):
        summary = {
            "experiment": f"densenet, label_smoothing 0.0{model}, weight_decay 0.07",
            "source": "digits",
            "seed": 0,
        }
        logits = np.eye(10, dtype=np.float32)[np.where(np.arange(1000) < 10 + 60 * model, (labels + 1) % 10, labels)]
        accuracy = {"accuracy": 0.99 - 0.06 * model}
        (tmp_path / "runs" / str(model)).mkdir(parents=True)
        write_results(
            Run(tmp_path / "runs" / str(model)), {**summary, "test": accuracy, "val": accuracy}, logits, labels
        )
    monkeypatch.setattr("mnist_lightning.evaluation.compare.figures.draw_all", lambda *_: [])
    monkeypatch.setenv("COLUMNS", "80")
    main(["compare", "runs"])
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 80
    for model in range(10):
        assert f"label_smoothing 0.0{model}," in printed
        assert printed.count(f" {99 - 6 * model}.00 ") >= 2  # test and validation accuracy
    assert "is better than all others. All 45 pairs are on the page." in " ".join(printed.split())
    assert printed.count("better") == 1
    assert Path("report/index.html").read_text().count("<li>densenet") == 45


@pytest.mark.slow
def test_summary_of_a_single_run(
    logs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    main(["compare", str(logs / "lenet5" / "version_1")])
    narrow = capsys.readouterr().out
    assert narrow.count("precision") == 1  # the test images only
    assert max(map(len, narrow.splitlines())) <= 80
    monkeypatch.setenv("COLUMNS", "120")
    main(["compare", str(logs / "lenet5" / "version_1")])
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 120
    assert printed.count("precision") == 3
    text = Path("report/summary.txt").read_text()
    for expected in ("lenet5: LeNet5 on digits, seed 1", "parameters: 61706", "epochs: 1"):
        assert expected in text
        assert expected in printed
    assert text.count("precision") == 3


def test_nothing_to_compare(fails: Callable[..., str]) -> None:
    assert "there is no folder lightning_logs" in fails("compare")
    Path("empty").mkdir()
    assert "there is no finished run in empty" in fails("compare", "empty")

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mnist_lightning.cli import main

PICTURES = {"curves", "accuracies", "costs", "calibration", "f1", "agreement", "frequent-confusions", "confusions"}
MISTAKES = {"shared-mistakes", "lonely-mistakes"}


def test_a_report_of_what_lies_here(logs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["compare"])
    printed = capsys.readouterr().out
    assert "360 test images of digits" in printed
    assert "lenet5" in printed
    assert "n = 2 and 1" in printed or "n = 1 and 2" in printed
    assert {path.stem for path in Path("report").glob("*.png")} == PICTURES | MISTAKES
    for path in Path("report").glob("*.png"):
        assert len(Image.open(path).convert("L").getcolors() or []) > 20  # there is something on it
    page = Path("report/index.html").read_text()
    assert page.count("data:image/png;base64,") == len(PICTURES | MISTAKES)
    assert not re.findall(r"(?:src|href)=\"(?!data:)", page)  # it needs nothing else
    assert Path("report/table.csv").read_text().count("\n") == 4
    assert re.search(r"\| lenet5 \(\d\) \| 2 \|", Path("report/table.md").read_text())


# A desk and a telephone, as frames of a page of their own; what is seen lands in the body.
VISITOR = """
if (self === top) addEventListener("load", async () => {
  const seen = {};
  for (const width of [1280, 390]) {
    const frame = document.createElement("iframe");
    frame.style = `width: ${width}px; height: 800px; border: 0`;
    frame.srcdoc = document.documentElement.outerHTML;
    await new Promise(loaded => { frame.onload = loaded; document.body.append(frame); });
    const root = frame.contentDocument.documentElement, images = [...frame.contentDocument.images];
    seen[width] = {
      tooWide: root.scrollWidth - root.clientWidth,
      images: images.filter(image => image.naturalWidth > 300 && image.clientWidth <= width).length,
      rows: frame.contentDocument.querySelectorAll("tr").length,
      requests: frame.contentWindow.performance.getEntriesByType("resource").map(entry => entry.name)
        .filter(name => !name.startsWith("data:")),
    };
    frame.remove();
  }
  document.body.replaceChildren();
  document.body.append(JSON.stringify(seen));
});
"""


@pytest.mark.slow
def test_reports_on_a_desk_and_on_a_telephone(logs: Path, visit: Callable[[str, str], Any]) -> None:
    main(["compare"])
    main(["explore", "--source", "digits", "--output", "data-report"])
    for folder in ("report", "data-report"):
        page = Path(folder, "index.html").read_text()
        seen = {"tooWide": 0, "images": page.count("<img"), "rows": page.count("<tr"), "requests": []}
        assert seen["images"] > 5
        assert visit(page, VISITOR) == {"1280": seen, "390": seen}


@pytest.mark.slow
def test_a_damaged_run_is_named_and_left_out(logs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary = logs / "mlp" / "version_0" / "summary.json"
    summary.write_text(summary.read_text()[:-50])
    main(["compare", "--output", "other"])
    assert "left out: lightning_logs/mlp/version_0/summary.json is damaged" in capsys.readouterr().out
    page = Path("other/index.html").read_text()
    assert "Left out: lightning_logs/mlp/version_0/summary.json is damaged" in page
    assert "lenet5" in page


@pytest.mark.slow
def test_ensembles(logs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["compare", str(logs / "lenet5"), str(logs / "mlp"), "--ensemble"])
    printed = capsys.readouterr().out
    assert "ensemble: mean probability" in printed
    assert "ensemble: majority vote" in printed


@pytest.mark.slow
def test_names_of_experiments_are_no_markup(logs: Path) -> None:
    summary = logs / "mlp" / "version_0" / "summary.json"
    summary.write_text(summary.read_text().replace('"experiment": "mlp"', '"experiment": "<script>alert(1)</script>"'))
    main(["compare"])
    page = Path("report/index.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;" in page


def test_a_single_run_in_words(logs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["compare", str(logs / "lenet5" / "version_1")])
    text = Path("report/summary.txt").read_text()
    assert text in capsys.readouterr().out
    assert "lenet5: LeNet5 on digits, seed 1" in text
    assert text.count("precision") == 3
    assert "parameters: 61706" in text


def test_nothing_to_compare(fails: Callable[..., str], tmp_path: Path) -> None:
    assert "there is no folder lightning_logs" in fails("compare")
    Path("empty").mkdir()
    assert "there is no finished run in empty" in fails("compare", "empty")

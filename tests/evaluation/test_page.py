import csv
import re
from io import StringIO
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from rich.cells import cell_len

from mnist_lightning.evaluation.page import Report, Table, picture, print_result, render

TABLE = Table("Runs [b]", ["model", "n"], [["<i>lenet</i> [red]", 2], ["a, b", 1]])


def test_table_as_csv() -> None:
    assert list(csv.reader(StringIO(TABLE.csv()))) == [["model", "n"], ["<i>lenet</i> [red]", "2"], ["a, b", "1"]]


def test_report_on_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    page = Path("folder", "x" * 300)
    print_result(Report(page, [TABLE], ["a is better than b [1]"], ["c is damaged"]))
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == "left out: c is damaged"
    assert lines[1] == "Runs [b]"
    assert any("<i>lenet</i> [red]" in line for line in lines)
    assert lines[-2:] == ["  a is better than b [1]", str(page)]


NAME = "densenet, label_smoothing 0.05, weight_decay 0.07"
NUMBERS = ["99.20 ± 0.28", "98.80 to 99.19", "99.55 %", "235,914", "0.0312"]
WIDE = Table(
    f"Answers of {'runs/' * 30}version_0",
    ["model", "test accuracy %", "95 % interval", "validation accuracy", "parameters", "loss"],
    [[name, *NUMBERS] for name in (NAME, "a" * 40 + "/" + "b" * 79, "数字" * 30)],
)


@pytest.mark.parametrize(("width", "columns"), [(40, 2), (60, 3), (80, 5), (120, 6)])
def test_a_terminal_shows_the_columns_that_fit(
    width: int, columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    print_result(WIDE)
    title, path, *lines = capsys.readouterr().out.splitlines()
    assert [title, path.strip()] == ["Answers of", f"{'runs/' * 30}version_0"]  # to copy
    assert max(cell_len(line) for line in lines) <= width
    text = "\n".join(lines)
    for index, number in enumerate(NUMBERS, start=2):
        assert text.count(number) == (3 if index <= columns else 0)
    assert set(NAME.split()) <= set(text.split())  # wrapped between words
    assert re.search(r"aaa…b+ ", text) or width == 120


def test_a_pipe_gets_whole_lines(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    print_result(WIDE)
    lines = capsys.readouterr().out.splitlines()
    for name, *_ in WIDE.rows:
        (line,) = (line for line in lines if line.startswith(name))
        assert all(number in line for number in NUMBERS)


@pytest.mark.parametrize(
    ("narrow", "row"), [(None, "clean  10  20  30  40"), (2, "clean  10"), (0, "  page")], ids=["many", "few", "none"]
)
def test_columns_of_a_narrow_terminal(
    narrow: int | None, row: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    table = Table("Errors", ["", *"abcde"], [["clean", 10, 20, 30, 40, 50]], narrow)
    for width, expected in ((24, row), (25, "clean  10  20  30  40  50")):
        monkeypatch.setenv("COLUMNS", str(width))
        print_result(table)
        assert capsys.readouterr().out.splitlines()[-1].endswith(expected)


def test_print_a_path(capsys: pytest.CaptureFixture[str]) -> None:
    print_result(Path("x" * 300, "[b].html"))
    assert capsys.readouterr().out == f"{'x' * 300}/[b].html\n"


def test_pictures(tmp_path: Path) -> None:
    small = picture(Figure(figsize=(4, 3)), "small", tmp_path / "small.png")
    assert (tmp_path / "small.png").read_bytes() == small.png
    assert not small.wide
    assert small.url.startswith("data:image/png;base64,")
    assert picture(Figure(figsize=(11, 3)), "wide").wide


def test_values_in_templates_are_escaped() -> None:
    page = render("evaluation/templates/compare.html", runs=1, left_out=["<b>"], sections=[])
    assert "Left out: &lt;b&gt;" in page
    assert "<b>" not in page
    assert "<title>&lt;b&gt;</title>" in render("evaluation/templates/page.html", title="<b>")


def test_names_with_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    name = "\x1b[31m\u202e\udcff\n"
    table = Table(name, [name, "n"], [[name, 2]])
    print_result(Report(Path(name), [table], [name], [name]))
    print_result(Path(name))
    printed = capsys.readouterr().out
    assert printed.count("\\x1b[31m\\u202e\\udcff\\n") == 7
    assert "\x1b" not in printed
    assert "\x1b" not in table.csv()
    page = render("evaluation/templates/compare.html", runs=name, left_out=[Path(name)], sections=[])
    assert page.count("\\x1b[31m\\u202e\\udcff\\n") == 2


def test_markdown_of_names() -> None:
    assert (
        "| a\\|b \\<i\\> \\`x\\` \\\\n a_b \\_c\\_ | 1 |"
        in Table("", ["", ""], [["a|b <i> `x` \n a_b _c_", 1]]).markdown()
    )

"""Tables, pictures and pages, the same for every verb: HTML pages need no network."""

import base64
import csv
import os
import re
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from io import BytesIO, StringIO
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mnist_lightning.errors import InputError, printable
from mnist_lightning.files import write_whole

if TYPE_CHECKING:  # `VERB --help` answers before these are imported
    from jinja2 import Environment
    from matplotlib.figure import Figure
    from rich.console import ConsoleOptions, RenderableType
    from rich.text import Text

_PACKAGE = Path(__file__).parents[1]
_NAME_WIDTH = 22  # of a name in a narrow table, in which longer names are wrapped
_PIPE_WIDTH = 10_000  # scripts read whole lines and tables
_GENERATOR = b'<meta name="generator" content="mnist-lightning">'  # in templates/page.html


@dataclass(frozen=True)
class Table:
    """A table for pages, terminals, Markdown and CSV.

    Attributes:
        title: Stands above the table.
        header: Names of the C columns.
        rows: Cells [R, C]. The first column is text and left-aligned, the others are right-aligned.
        narrow: Number of columns on a terminal that is too narrow for all of them; 0 leaves the table out. None for as
            many as fit, from the left, so sort columns by importance.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[Any]]
    narrow: int | None = None

    def __post_init__(self) -> None:
        """Makes all texts printable, because names come from strangers' files."""
        object.__setattr__(self, "title", printable(self.title))
        object.__setattr__(self, "header", [printable(name) for name in self.header])
        rows = [[printable(cell) if isinstance(cell, str) else cell for cell in row] for row in self.rows]
        object.__setattr__(self, "rows", rows)

    def markdown(self) -> str:
        """The table in GitHub's Markdown.

        Example:
            >>> print(Table("Digits", ["digit", "images"], [["7", 1028]]).markdown())
            **Digits**
            <BLANKLINE>
            | digit | images |
            | --- | ---: |
            | 7 | 1028 |
            <BLANKLINE>
        """
        header, *rows = [[markdown_text(cell) for cell in row] for row in (self.header, *self.rows)]
        rule = ["---", *["---:"] * (len(header) - 1)]
        lines = (f"| {' | '.join(row)} |" for row in (header, rule, *rows))
        return "\n".join([f"**{markdown_text(self.title)}**", "", *lines, ""])

    def csv(self) -> str:
        """Header and rows as CSV."""
        text = StringIO()
        csv.writer(text).writerows([self.header, *self.rows])
        return text.getvalue()

    def __rich_console__(self, _: Any, options: "ConsoleOptions") -> "Iterator[RenderableType]":
        """Fits the table to the terminal. Names and headers are wrapped between words; numbers never are."""
        from rich.box import SIMPLE_HEAD
        from rich.table import Table as RichTable
        from rich.text import Text

        columns = [[str(cell) for cell in column] for column in zip(self.header, *self.rows, strict=True)]
        widths = self._widths(columns, options.max_width)
        if not widths:
            yield line(f"{self.title}: too wide for this terminal, see the page", options)
            return
        table = RichTable(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
        headers = [_folded(header, width) for (header, *_), width in zip(columns, widths, strict=False)]
        height = max(header.count("\n") for header in headers)
        for index, header in enumerate(headers):
            aligned = "\n" * (height - header.count("\n")) + header
            table.add_column(Text(aligned), justify="right" if index else "left", no_wrap=True)
        for name, *numbers in zip(*(cells for _, *cells in columns[: len(widths)]), strict=True):
            table.add_row(*map(Text, (_folded(name, widths[0], indent="  "), *numbers)))
        yield line(self.title, options)
        yield table

    def _widths(self, columns: Sequence[Sequence[str]], available: int) -> list[int]:
        """Returns the widths of the columns that fit, two spaces apart. The first column gets the rest of the space."""
        from rich.cells import cell_len

        names, *others = columns
        longest = max(map(cell_len, names))
        widths = [min(longest, _NAME_WIDTH)]
        for header, *cells in others:
            word = max(map(cell_len, _glued(header).split(" ")))
            widths.append(max(min(word, _NAME_WIDTH), *map(cell_len, cells), 0))
        ends = [width + 2 * index for index, width in enumerate(accumulate(widths))]
        count = sum(end <= available for end in ends)
        if count < len(widths):
            if self.narrow == 0:
                return []
            count = max(2, min(count, self.narrow or count))
        widths = widths[:count]
        widths[0] = min(longest, max(8, widths[0] + available - ends[len(widths) - 1]))
        return widths


def line(text: str, options: "ConsoleOptions", indent: str = "") -> "Text":
    """Wraps a line between words. Paths stay whole, even if they are longer than the terminal is wide."""
    return unbroken("\n".join(_wrapped(text, options.max_width, indent, f"{indent}  ")))


def unbroken(text: str) -> "Text":
    """Keeps a line whole, even if it is longer than the terminal is wide: paths and commands are copied."""
    from rich.text import Text

    return Text(text, no_wrap=True, overflow="ignore")


def _folded(text: str, width: int, indent: str = "") -> str:
    """Wraps a name between words. A longer word loses its middle, because the end of a path tells most."""
    from rich.cells import cell_len, set_cell_size

    if cell_len(text) <= width:
        return text
    return "\n".join(
        each
        if cell_len(each) <= width
        else f"{set_cell_size(each, (width - 1) // 2)}…{set_cell_size(each[::-1], width // 2)[::-1]}"
        for each in _wrapped(text, width, "", indent)
    )


def _wrapped(text: str, width: int, first: str, rest: str) -> list[str]:
    words = textwrap.TextWrapper(
        width, initial_indent=first, subsequent_indent=rest, break_long_words=False, break_on_hyphens=False
    )
    return [each.replace("\u00a0", " ") for each in words.wrap(_glued(text))]


def _glued(text: str) -> str:
    """Binds numbers to their percent and equals signs with spaces that are not wrapped."""
    return re.sub(" (?=[%=])|(?<==) ", "\u00a0", text)


def markdown_text(text: object) -> str:
    r"""Escapes what Markdown or HTML would read as markup.

    Example:
        >>> print(markdown_text("cnn|a_b <i>"))
        cnn\|a_b \<i\>
    """
    return re.sub(r"[\\`*{}\[\]<>|$~&]|(?<!\w)_|_(?!\w)", r"\\\g<0>", printable(text))


@dataclass(frozen=True)
class Report:
    """A page that was written, and its main results for the terminal, where rich prints them.

    Attributes:
        page: Path of the page.
        tables: Main tables.
        lines: Main results in words.
        left_out: One line for each input that could not be used.
    """

    page: Path
    tables: Sequence[Table]
    lines: Sequence[str]
    left_out: Sequence[str]

    def __post_init__(self) -> None:
        """Makes all texts printable, as those of a table."""
        for name in ("lines", "left_out"):
            object.__setattr__(self, name, [printable(text) for text in getattr(self, name)])

    def __rich_console__(self, _: Any, options: "ConsoleOptions") -> "Iterator[RenderableType]":
        yield from (line(f"left out: {problem}", options) for problem in self.left_out)
        for table in self.tables:
            yield table
            yield ""
        yield from (line(text, options, indent="  ") for text in self.lines)
        yield unbroken(printable(self.page))


@dataclass(frozen=True)
class Picture:
    """A figure as PNG, for a page.

    Attributes:
        png: Content of the file.
        caption: Text below the figure, and its description for screen readers.
        wide: Whether the figure takes the whole width of a page.
    """

    png: bytes
    caption: str
    wide: bool = False

    @property
    def url(self) -> str:
        """The picture as a data URL."""
        return f"data:image/png;base64,{base64.b64encode(self.png).decode()}"


def picture(figure: "Figure", caption: str, path: Path | None = None) -> Picture:
    """Renders a figure, and also writes it to a file.

    Args:
        figure: The figure.
        caption: Text below the figure.
        path: PNG file to write. None for none.
    """
    content = BytesIO()
    figure.savefig(content, format="png", dpi=100)
    if path is not None:
        write_whole(path, content.getvalue())
    return Picture(content.getvalue(), caption, wide=figure.get_figwidth() > 8)  # text would be too small at half width


def report_folder(output: str) -> Path:
    """Checks the folder of a report before the work for it begins.

    Args:
        output: Path of the folder, which need not exist.

    Returns:
        The path.

    Raises:
        InputError: If it is a file, or holds files but no report of this package, which alone may be replaced.
    """
    folder, page = Path(output), Path(output, "index.html")
    if not folder.exists():
        return folder
    if not folder.is_dir():
        raise InputError(f"output must be a folder, got the file {output}")
    is_report = page.is_file() and _GENERATOR in page.read_bytes()[:1000]
    if not is_report and any(file.name[0] != "." for file in folder.iterdir()):
        raise InputError(f"output {output} holds other files than a report; choose a new or an empty folder")
    return folder


def render(template: str, **values: Any) -> str:
    """Renders a template of the package. Values are escaped, so text from users stays text.

    Args:
        template: Path below the package, such as `evaluation/templates/page.html`.
        **values: Values of the template's variables.
    """
    return _environment().get_template(template).render(**values)


@cache
def _environment() -> "Environment":
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(_PACKAGE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: value if hasattr(value, "__html__") else printable(value),  # strangers' names
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":")}  # spaces made a page 15 % larger
    # Style sheets and scripts are trusted files of the package.
    environment.globals["inline"] = lambda file: Markup((_PACKAGE / file).read_text(encoding="utf-8"))
    return environment


def print_result(result: object) -> None:
    """Prints a verb's result.

    Args:
        result: A path, a line, or an object that rich can show.
    """
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = _PIPE_WIDTH
    is_text = not hasattr(result, "__rich__") and not hasattr(result, "__rich_console__")
    console.print(printable(result) if is_text else result, soft_wrap=is_text, markup=False, crop=False)

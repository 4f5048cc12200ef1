"""Reports as pages that need no network: the house's style, and pictures inside."""

import base64
from collections.abc import Iterable
from html import escape
from io import BytesIO
from pathlib import Path

from matplotlib.figure import Figure

from mnist_lightning.files import write_whole


def page(title: str, body: Iterable[str]) -> str:
    """A whole page.

    Args:
        title: Plain text.
        body: HTML.
    """
    template = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    return template.replace("__TITLE__", escape(title)).replace("__BODY__", "\n".join(body))


def picture(figure: Figure, caption: str, path: Path) -> str:
    """Writes a figure to a PNG file, and gives it back as HTML that does not need the file."""
    content = BytesIO()
    figure.savefig(content, format="png", dpi=100)
    write_whole(path, content.getvalue())
    data = base64.b64encode(content.getvalue()).decode()
    image = f'<img alt="{escape(caption)}" src="data:image/png;base64,{data}">'
    return f"<figure>{image}<figcaption>{escape(caption)}</figcaption></figure>"

"""`mnist-lightning app`: over HTTP, from the command line, and in a real browser."""

import importlib.util
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import zlib
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from mnist_lightning import GNN, MLP, Classifier, InputError, LeNet5
from mnist_lightning.data.handwriting import digit_of
from mnist_lightning.data.sources import read
from mnist_lightning.deploy import app as module
from mnist_lightning.deploy.app import LARGEST, serve, start
from mnist_lightning.deploy.app_page import answers_html

pytestmark = [
    pytest.mark.slow,  # Gradio alone takes three seconds to import
    pytest.mark.skipif(importlib.util.find_spec("gradio") is None, reason="Gradio is not installed"),
]
PASSWORDS = "/etc/passwd"


@pytest.fixture(scope="module")
def models() -> dict[str, Classifier]:
    """Untrained, so that they are unsure."""
    torch.manual_seed(0)
    return {"lenet": LeNet5().eval(), "<gnn>": GNN(width=8, depth=2).eval()}


@pytest.fixture(scope="module")
def app(models: dict[str, Classifier], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("app") / "kept"))
        running = start(models, free_port())
        yield running
        running.close(verbose=False)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def on_paper(digit: Tensor, side: int = 280) -> Image.Image:
    return Image.fromarray(255 - digit.numpy()).resize((side, side), Image.Resampling.BICUBIC)


def bytes_of(picture: Image.Image, kind: str = "png") -> bytes:
    content = BytesIO()
    picture.save(content, kind)
    return content.getvalue()


def url_of(content: bytes) -> str:
    return f"data:image/png;base64,{b64encode(content).decode()}"


def post(app: Any, path: str, **request: Any) -> Any:
    import httpx

    return httpx.post(f"{app.local_url}{path}", timeout=60, **request)


def ask(app: Any, value: object) -> str:
    (sheet,) = (number for number, block in app.blocks.items() if block.get_block_name() == "html")
    question = {"session_hash": "visitor", "component_id": sheet, "fn_name": "answer", "data": value}
    response = post(app, "gradio_api/component_server/", json=question)
    assert response.status_code == 200
    html: str = response.json()
    return html


def shares(html: str) -> list[list[float]]:
    """What the bars say, model by model."""
    return [
        [float(share) for share in re.findall(r"<span>([0-9.]+) %</span></div>", model)]
        for model in html.split("<section")[1:]
    ]


def expected(models: dict[str, Classifier], digit: Tensor) -> list[list[float]]:
    found = [100 * model.classify(digit[None])[0].softmax(dim=0) for model in models.values()]
    return [[round(share, 1) for share in one.tolist()] for one in found]


def test_all_models_answer(app: Any, models: dict[str, Classifier]) -> None:
    picture = on_paper(read("digits", train=False)[0][7])
    html = ask(app, url_of(bytes_of(picture)))
    np.testing.assert_allclose(shares(html), expected(models, digit_of(picture)), atol=0.11)
    assert html.index("<h2>lenet</h2>") < html.index("<h2>&lt;gnn&gt;</h2>")
    assert html.count("may be no digit") == 2
    assert len(re.findall(r"(?:answered|picture) in [0-9.]+ ms", html)) == 3
    pictures = [Image.open(BytesIO(b64decode(part))) for part in re.findall(r'base64,([^"]+)"', html)]
    assert [one.size for one in pictures] == [(300, 300), (300, 300), (28, 28)]
    assert np.array_equal(pictures[-1], digit_of(picture))
    assert len(np.unique(np.asarray(pictures[0]).reshape(-1, 4), axis=0)) > 20  # a map, and not an empty picture
    assert "Grad-CAM" in html
    assert "Connections" in html


class Columns(Classifier):
    """Takes no pixels."""

    def forward(self, columns: Tensor) -> Tensor:
        return columns[:, :10]

    def inputs(self, digits: Tensor) -> tuple[Tensor, ...]:
        return (digits.float().mean(dim=1),)


def test_other_models() -> None:
    digit = read("digits", train=False)[0][7]
    mlp, columns = module._answers({"mlp": MLP().eval(), "columns": Columns().eval()}, digit)
    assert mlp.why is not None
    assert mlp.why[1] == f"Blue speaks for {mlp.probabilities.argmax()}, orange against (input gradients)"
    assert columns.why is None
    assert "<figure>" not in answers_html(digit, 1.0, [columns])


def damaged() -> bytes:
    return bytes_of(on_paper(read("digits", train=False)[0][7]))[:-200]


def bomb() -> bytes:
    """A picture that says that it has 100 million pixels."""
    size = b"IHDR" + struct.pack(">IIBBBBB", 10_000, 10_000, 8, 0, 0, 0, 0)
    header = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + size + struct.pack(">I", zlib.crc32(size))
    return header + struct.pack(">I", 9) + b"IDAT" + zlib.compress(bytes(1))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("notes<b>.txt", "notes&lt;b&gt;.txt is no picture that can be read"),
        (url_of(b"not a picture"), "the picture is no picture that can be read"),
        (url_of(damaged()), "the picture is no picture that can be read"),
        (url_of(bomb()), "64 million pixels"),
        (url_of(bytes_of(Image.new("L", (90, 90), 255))), "blank"),
        ("data:image/png;base64,?", "what was sent is no picture"),
        (PASSWORDS, "/etc/passwd is no picture"),
        (f"file://{PASSWORDS}", "is no picture"),
        ({"path": PASSWORDS, "meta": {"_type": "gradio.FileData"}}, "what was sent is no picture"),
        ([PASSWORDS], "what was sent is no picture"),
        (None, "what was sent is no picture"),
    ],
)
def test_what_is_no_picture_gets_a_message(app: Any, value: object, message: str) -> None:
    html = ask(app, value)
    assert html.startswith('<p class="problem"')
    assert message in html
    assert "root:" not in html


def test_nothing_but_questions_gets_in(app: Any, tmp_path: Path) -> None:
    import httpx

    file = {"files": ("seven.png", b"7", "image/png")}
    assert post(app, "gradio_api/upload", files=file).status_code == 404
    path = {"data": [{"path": PASSWORDS, "meta": {"_type": "gradio.FileData"}}], "fn_index": 0, "session_hash": "v"}
    for closed in ("queue/join", "run/predict", "call/answer", "component_server"):
        assert post(app, f"gradio_api/{closed}", json=path).status_code == 404
    assert post(app, "gradio_api/component_server/", files=file).status_code == 404
    large = {"data": "7" * LARGEST}
    assert post(app, "gradio_api/component_server/", json=large).status_code == 413
    json = {"Content-Type": "application/json"}
    endless = (b"7" for _ in range(3))  # sent in chunks, of which nobody knows how many will come
    assert post(app, "gradio_api/component_server/", content=endless, headers=json).status_code == 413
    (tmp_path / "here.txt").write_text("here")  # where the app was started
    for forbidden in (PASSWORDS, "here.txt", tmp_path / "here.txt"):
        assert httpx.get(f"{app.local_url}gradio_api/file={forbidden}").status_code in (403, 404)
    for closed in ("monitoring", "monitoring/summary", "docs", "openapi.json"):
        assert httpx.get(app.local_url + closed).status_code in (403, 404)


def test_nothing_is_kept(app: Any) -> None:
    picture = bytes_of(on_paper(read("digits", train=False)[0][7]))
    assert shares(ask(app, url_of(picture)))
    assert app.server_app.uploaded_file_dir == app.GRADIO_CACHE  # the only place that Gradio writes to
    assert [path for path in Path(app.GRADIO_CACHE).rglob("*") if path.is_file()] == []
    sessions = [list(session.components) for session in app.server_app.state_holder.session_data.values()]
    assert sessions
    assert "base64" not in repr(sessions)


def test_fifty_questions_from_eight_visitors(app: Any, models: dict[str, Classifier]) -> None:
    pictures = [on_paper(digit) for digit in read("digits", train=False)[0][:50]]
    with ThreadPoolExecutor(8) as visitors:
        answers = list(visitors.map(lambda picture: ask(app, url_of(bytes_of(picture))), pictures))
    for picture, html in zip(pictures, answers, strict=True):  # everyone has their own
        np.testing.assert_allclose(shares(html), expected(models, digit_of(picture)), atol=0.11)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((), {}, "no checkpoint is given"),
        (("nowhere",), {}, "there is no checkpoint nowhere"),
        (("nowhere",), {"port": 70_000}, "port is 70000; it must be from 1 to 65535"),
        (("nowhere",), {"host": "999.1.1.1"}, "cannot listen on 999.1.1.1, port 7860"),
    ],
)
def test_what_cannot_be_served(arguments: tuple[str, ...], options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        serve(*arguments, **options)


def test_a_port_that_is_taken(app: Any) -> None:
    with pytest.raises(InputError, match=rf"port {app.server_port}: Address already in use; choose another --port"):
        serve("nowhere", port=app.server_port)


def test_without_gradio(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(InputError, match=re.escape("pip install 'mnist-lightning[app]'")):
        serve("nowhere")


def test_from_the_command_line_until_interrupted(
    models: dict[str, Classifier], tmp_path: Path, spawn: Callable[..., subprocess.Popen[str]]
) -> None:
    import httpx

    model = models["lenet"]
    checkpoint = {
        "classifier": "mnist_lightning.models.lenet.LeNet5",
        "state_dict": model.state_dict(),
        "hyper_parameters": dict(model.hparams),
    }
    (tmp_path / "lenet" / "version_0" / "checkpoints").mkdir(parents=True)
    torch.save(checkpoint, tmp_path / "lenet" / "version_0" / "checkpoints" / "best.ckpt")
    torch.save(checkpoint, tmp_path / "mine.ckpt")
    # A shell starts its background jobs deaf to Ctrl-C, and what they start is so, too.
    heard = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = spawn("app", "lenet/version_0", "mine.ckpt", "lenet/version_0", "--port", str(port := free_port()))
    signal.signal(signal.SIGINT, heard)
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line == f"http://127.0.0.1:{port}/ shows lenet (1), mine, lenet (2); Ctrl-C ends it\n"
        assert "Which digit is it?" in httpx.get(f"http://127.0.0.1:{port}").text
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=30)
    finally:
        process.kill()
    assert rest == ""
    assert process.returncode == 0


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        pytest.skip("there is no Chromium")
    playwright = pytest.importorskip("playwright.sync_api").sync_playwright().start()
    running = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
    yield running
    running.close()
    playwright.stop()


@pytest.fixture
def visit(app: Any, browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens the app; in the end nothing must have been asked of another host, and nothing be left on the console."""
    problems: list[str] = []
    contexts = []

    def open_(**device: Any) -> Any:
        contexts.append(browser.new_context(**device))
        page = contexts[-1].new_page()
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        page.on("requestfailed", lambda request: problems.append(request.url))
        page.on("request", lambda request: problems.append(request.url) if is_elsewhere(request.url) else None)
        page.goto(app.local_url)
        page.wait_for_selector("canvas")
        return page

    def is_elsewhere(url: str) -> bool:
        return not url.startswith((app.local_url, "data:", f"blob:{app.local_url}"))

    yield open_
    for context in contexts:
        context.close()
    assert problems == []


DESKTOP = {"viewport": {"width": 1280, "height": 900}}
PHONE = {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2, "is_mobile": True, "has_touch": True}


ROOF, LEG = [(0.25, 0.2), (0.75, 0.2)], [(0.75, 0.2), (0.45, 0.85)]
HINT = "The answer appears here"


def draw(page: Any, *strokes: list[tuple[float, float]]) -> None:
    """Draws lines with the mouse; places are shares of the sheet's side."""
    box = page.locator("canvas").bounding_box()
    for stroke in strokes:
        places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in stroke]
        page.mouse.move(*places[0])
        page.mouse.down()
        for place in places[1:]:
            page.mouse.move(*place, steps=5)
        page.mouse.up()


def answers(page: Any) -> str:
    """What the page says when it has been answered."""
    page.wait_for_selector(".answers[aria-busy=false]")
    html: str = page.locator(".answers").inner_html()
    return html


def seen(html: str) -> Tensor:
    """The digit that the page says that the models see."""
    content = re.findall(r'class="seen"><img src="data:image/png;base64,([^"]+)"', html)
    return torch.from_numpy(np.array(Image.open(BytesIO(b64decode(content[0])))))


def test_strokes_become_answers(visit: Callable[..., Any], models: dict[str, Classifier]) -> None:
    page = visit(**DESKTOP)
    assert HINT in page.locator(".answers").inner_html()
    draw(page, ROOF)
    roof = seen(answers(page)) > 127
    assert roof.any(dim=1).sum() < 8 < 18 <= roof.any(dim=0).sum()  # a line across
    draw(page, LEG)
    html = answers(page)
    assert (seen(html) > 127).any(dim=1).sum() >= 18
    np.testing.assert_allclose(shares(html), expected(models, seen(html)), atol=0.11)
    first, second = (page.locator(".model").nth(i).bounding_box() for i in (0, 1))
    assert first["y"] == second["y"]
    assert first["x"] + first["width"] < second["x"]  # side by side
    page.keyboard.press("Control+z")
    assert torch.equal(seen(answers(page)) > 127, roof)
    page.click("text=Undo")
    assert HINT in answers(page)
    draw(page, ROOF, LEG)
    assert "What the models see" in answers(page)
    page.click("text=Clear")
    assert HINT in answers(page)
    assert (
        page.evaluate(
            "() => new Set(document.querySelector('canvas').getContext('2d').getImageData(0, 0, 448, 448).data).size"
        )
        == 1
    )  # white all over


def photo_of(digit: Tensor) -> Image.Image:
    """A sheet of paper, lit from one side, that has been photographed upright in a large format."""
    paper = np.add.outer(np.linspace(0, -40, 2000), np.linspace(210, 170, 1500)) + np.random.default_rng(0).normal(
        0, 4, (2000, 1500)
    )
    ink = np.asarray(Image.fromarray(digit.numpy()).resize((800, 800), Image.Resampling.BICUBIC)) / 255
    paper[600:1400, 350:1150] *= 1 - 0.75 * ink
    return Image.fromarray(paper.clip(0, 255).astype(np.uint8))


def test_photos(visit: Callable[..., Any], models: dict[str, Classifier]) -> None:
    page = visit(**DESKTOP)
    zero, one = read("digits", train=False)[0][:2]
    photo = {"name": "zero.jpg", "mimeType": "image/jpeg", "buffer": bytes_of(photo_of(zero), "jpeg")}
    page.set_input_files("input[type=file]", photo)
    page.wait_for_selector(".seen")
    html = answers(page)
    assert (seen(html).float() - zero).abs().mean() < 25
    np.testing.assert_allclose(shares(html), expected(models, seen(html)), atol=0.11)
    draw(page, ROOF)  # a stroke begins a new drawing
    assert (seen(answers(page)) > 127).any(dim=1).sum() < 8
    for event, transfer in (("paste", "clipboardData"), ("drop", "dataTransfer")):
        page.click("text=Clear")
        assert HINT in answers(page)
        page.evaluate(
            """async ([event, transfer, url]) => {
                const blob = await (await fetch(url)).blob(), given = new DataTransfer();
                given.items.add(new File([blob], "one.png", { type: "image/png" }));
                const Type = event === "paste" ? ClipboardEvent : DragEvent;
                document.body.dispatchEvent(new Type(event, { [transfer]: given, bubbles: true, cancelable: true }));
            }""",
            [event, transfer, url_of(bytes_of(on_paper(one)))],
        )
        page.wait_for_selector(".seen")
        assert (seen(answers(page)).float() - one).abs().mean() < 25


def test_a_bad_file_gets_a_message(visit: Callable[..., Any]) -> None:
    page = visit(**DESKTOP)
    for name, content, message in (
        ("notes.png", b"not a picture", "notes.png is no picture that can be read"),
        ("white.png", bytes_of(Image.new("L", (90, 90), 255)), "blank"),
    ):
        page.set_input_files("input[type=file]", {"name": name, "mimeType": "image/png", "buffer": content})
        page.wait_for_selector(f".problem:has-text('{message}')")
    draw(page, ROOF)
    assert "problem" not in answers(page)


def test_the_newest_question_wins(visit: Callable[..., Any]) -> None:
    page = visit(**DESKTOP)
    questions: list[Any] = []
    page.route("**/component_server/", lambda question: questions.append(question))
    draw(page, ROOF, LEG)
    while len(questions) < 2:
        page.wait_for_timeout(10)
    questions[1].fulfill(json="second")
    assert answers(page) == "second"
    with page.expect_response("**/component_server/"):
        questions[0].fulfill(json="first")
    assert answers(page) == "second"
    page.unroute("**/component_server/")
    page.route("**/component_server/", lambda question: question.fulfill(status=204))
    page.click("text=Undo")
    assert "No answer" in answers(page)


def test_a_phone(visit: Callable[..., Any], models: dict[str, Classifier]) -> None:
    page = visit(**PHONE)
    box = page.locator("canvas").bounding_box()
    assert box["width"] > 340
    finger = page.context.new_cdp_session(page)
    for kind, x, y in (("Start", 0.3, 0.2), ("Move", 0.5, 0.5), ("Move", 0.7, 0.8), ("End", 0, 0)):
        place = {"x": box["x"] + x * box["width"], "y": box["y"] + y * box["height"]}
        points = [] if kind == "End" else [place]
        finger.send("Input.dispatchTouchEvent", {"type": f"touch{kind}", "touchPoints": points})
    html = answers(page)
    np.testing.assert_allclose(shares(html), expected(models, seen(html)), atol=0.11)
    assert (seen(html) > 127).any(dim=1).sum() >= 18
    assert page.evaluate("scrollY") == 0  # the finger has drawn, and not scrolled
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert page.locator(".models").bounding_box()["y"] > box["y"] + box["height"]
    first, second = (page.locator(".model").nth(i).bounding_box() for i in (0, 1))
    assert first["y"] == second["y"] < 844
    assert second["x"] + second["width"] <= 390

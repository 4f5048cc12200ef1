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
from mnist_lightning.deploy.app import MAX_REQUEST, answers_html, model_names, serve, start
from mnist_lightning.runs.run import Run

pytestmark = [
    pytest.mark.slow,  # importing Gradio takes three seconds
    pytest.mark.skipif(importlib.util.find_spec("gradio") is None, reason="Gradio is not installed"),
]
PASSWORDS = "/etc/passwd"


@pytest.fixture(scope="module")
def models() -> dict[str, Classifier]:
    """Untrained models, whose answers are doubtful."""
    torch.manual_seed(0)
    return {"lenet": LeNet5().eval(), "<script>alert(1)</script>": GNN(width=8, depth=2).eval()}


@pytest.fixture(scope="module")
def app(models: dict[str, Classifier], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("app") / "cache"))
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
    (component,) = (number for number, block in app.blocks.items() if block.get_block_name() == "html")
    request = {"session_hash": "visitor", "component_id": component, "fn_name": "answer", "data": value}
    response = post(app, "gradio_api/component_server/", json=request)
    assert response.status_code == 200
    html: str = response.json()
    return html


def percentages(html: str) -> list[list[float]]:
    """Numbers beside the bars, by model."""
    return [
        [float(number) for number in re.findall(r"<span>([0-9.]+) %</span></div>", model)]
        for model in html.split("<section")[1:]
    ]


def expected(models: dict[str, Classifier], digit: Tensor) -> list[list[float]]:
    probabilities = [model.classify(digit[None])[0].softmax(dim=0) for model in models.values()]
    return [[round(100 * p, 1) for p in one.tolist()] for one in probabilities]


def test_all_models_answer(app: Any, models: dict[str, Classifier]) -> None:
    picture = on_paper(read("digits", train=False)[0][7])
    html = ask(app, url_of(bytes_of(picture)))
    np.testing.assert_allclose(percentages(html), expected(models, digit_of(picture)), atol=0.11)
    assert html.index("<h2>lenet</h2>") < html.index("<h2>&lt;script&gt;alert(1)&lt;/script&gt;</h2>")
    assert "<script" not in html
    assert html.count("may be no digit") == 2
    assert len(re.findall(r"(?:classified|converted) in [0-9.]+ ms", html)) == 3
    pictures = [Image.open(BytesIO(b64decode(part))) for part in re.findall(r'base64,([^"]+)"', html)]
    assert [one.size for one in pictures] == [(300, 300), (300, 300), (28, 28)]
    assert np.array_equal(pictures[-1], digit_of(picture))
    assert len(np.unique(np.asarray(pictures[0]).reshape(-1, 4), axis=0)) > 20  # the figure is not empty
    assert "Grad-CAM" in html
    assert "Edges: blue is evidence for" in html


class Columns(Classifier):
    """Its input is not an image."""

    def forward(self, columns: Tensor) -> Tensor:
        return columns[:, :10]

    def inputs(self, digits: Tensor) -> tuple[Tensor, ...]:
        return (digits.float().mean(dim=1),)


def test_models_without_convolutions() -> None:
    digit = read("digits", train=False)[0][7]
    mlp = MLP().eval()
    predicted = mlp.classify(digit[None]).argmax()
    caption = f"<figcaption>Input gradients: blue is evidence for {predicted}, orange against it</figcaption>"
    assert caption in answers_html({"mlp": mlp}, digit, 1.0)
    assert "<figure>" not in answers_html({"columns": Columns().eval()}, digit, 1.0)


def test_names_of_models(tmp_path: Path) -> None:
    cnn = [Run(tmp_path / "cnn" / version) for version in ("version_0", "version_1")]
    gnn, other = Run(tmp_path / "gnn" / "version_0"), Run(tmp_path / "other" / "gnn" / "version_0")
    assert model_names([cnn[0].last, gnn.last, tmp_path / "mine.ckpt"]) == ["cnn", "gnn", "mine"]
    assert model_names([run.last for run in cnn]) == ["cnn, version_0", "cnn, version_1"]
    assert model_names([gnn.last, gnn.last.with_name("a.ckpt")]) == [f"gnn, {gnn.last.name}", "gnn, a.ckpt"]
    assert model_names([gnn.last, cnn[0].last, other.last]) == ["gnn", "cnn", "gnn, other"]
    assert model_names([Run(tmp_path / "my_run").last]) == ["my_run"]


def damaged() -> bytes:
    return bytes_of(on_paper(read("digits", train=False)[0][7]))[:-200]


def bomb() -> bytes:
    """A small PNG file whose header claims 100 million pixels."""
    size = b"IHDR" + struct.pack(">IIBBBBB", 10_000, 10_000, 8, 0, 0, 0, 0)
    header = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + size + struct.pack(">I", zlib.crc32(size))
    return header + struct.pack(">I", 9) + b"IDAT" + zlib.compress(bytes(1))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("notes<b>.txt", "notes&lt;b&gt;.txt cannot be read as a picture"),
        (url_of(b"not a picture"), "the picture cannot be read"),
        (url_of(damaged()), "the picture cannot be read"),
        (url_of(bomb()), "16 million pixels"),
        (url_of(bytes_of(Image.new("L", (90, 90), 255))), "blank"),
        ("data:image/png;base64,?", "the request cannot be read as a picture"),
        ("data:image/png;base64,é", "the request cannot be read as a picture"),
        (PASSWORDS, "/etc/passwd cannot be read as a picture"),
        (f"file://{PASSWORDS}", "cannot be read as a picture"),
        ({"path": PASSWORDS, "meta": {"_type": "gradio.FileData"}}, "the request cannot be read as a picture"),
        ([PASSWORDS], "the request cannot be read as a picture"),
        (None, "the request cannot be read as a picture"),
    ],
)
def test_unreadable_pictures_get_a_message(app: Any, value: object, message: str) -> None:
    html = ask(app, value)
    assert html.startswith('<p class="problem"')
    assert message in html
    assert "root:" not in html


def test_other_requests_are_blocked(app: Any, tmp_path: Path) -> None:
    import httpx

    file = {"files": ("seven.png", b"7", "image/png")}
    assert post(app, "gradio_api/upload", files=file).status_code == 404
    path = {"data": [{"path": PASSWORDS, "meta": {"_type": "gradio.FileData"}}], "fn_index": 0, "session_hash": "v"}
    for closed in ("queue/join", "run/predict", "call/answer", "component_server"):
        assert post(app, f"gradio_api/{closed}", json=path).status_code == 404
    assert post(app, "gradio_api/component_server/", files=file).status_code == 404
    large = {"data": "7" * MAX_REQUEST}
    assert post(app, "gradio_api/component_server/", json=large).status_code == 413
    json = {"Content-Type": "application/json"}
    chunks = (b"7" for _ in range(3))  # a request without a length
    assert post(app, "gradio_api/component_server/", content=chunks, headers=json).status_code == 413
    (tmp_path / "here.txt").write_text("here")  # in the working directory of the app
    for forbidden in (PASSWORDS, "here.txt", tmp_path / "here.txt"):
        assert httpx.get(f"{app.local_url}gradio_api/file={forbidden}").status_code in (403, 404)
    for closed in ("monitoring", "monitoring/summary", "docs", "openapi.json"):
        assert httpx.get(app.local_url + closed).status_code in (403, 404)


def test_pages_may_load_nothing_from_other_hosts(app: Any) -> None:
    import httpx

    for response in (httpx.get(app.local_url), httpx.get(f"{app.local_url}absent"), post(app, "blocked")):
        assert response.headers["content-security-policy"].startswith("default-src 'self' 'unsafe-inline'")


def test_pictures_are_not_stored(app: Any) -> None:
    picture = bytes_of(on_paper(read("digits", train=False)[0][7]))
    assert percentages(ask(app, url_of(picture)))
    assert app.server_app.uploaded_file_dir == app.GRADIO_CACHE  # the only folder that Gradio writes to
    assert [path for path in Path(app.GRADIO_CACHE).rglob("*") if path.is_file()] == []
    sessions = [list(session.components) for session in app.server_app.state_holder.session_data.values()]
    assert sessions
    assert "base64" not in repr(sessions)


def test_concurrent_requests(app: Any, models: dict[str, Classifier]) -> None:
    pictures = [on_paper(digit) for digit in read("digits", train=False)[0][:50]]
    with ThreadPoolExecutor(8) as visitors:
        answers = list(visitors.map(lambda picture: ask(app, url_of(bytes_of(picture))), pictures))
    for picture, html in zip(pictures, answers, strict=True):
        np.testing.assert_allclose(percentages(html), expected(models, digit_of(picture)), atol=0.11)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((), {}, "no checkpoint is given; use app RUN_FOLDER..."),
        (("nowhere",), {}, "there is no folder nowhere"),
        (("nowhere",), {"port": 70_000}, "port must be from 1 to 65535, got 70000"),
        (("nowhere",), {"host": "999.1.1.1"}, "cannot listen on 999.1.1.1, port 7860"),
    ],
)
def test_wrong_arguments(arguments: tuple[str, ...], options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        serve(*arguments, **options)


def test_port_in_use(app: Any) -> None:
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
    versions = ["lenet/version_0", "lenet/version_1"]
    for path in (*(Run(tmp_path / version).last for version in versions), tmp_path / "mine.ckpt"):
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(checkpoint, path)
    # The background jobs of a shell ignore Ctrl-C, and so do their child processes.
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = spawn("app", *versions, "mine.ckpt", "--port", str(port := free_port()))
    signal.signal(signal.SIGINT, handler)
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        names = "lenet, version_0; lenet, version_1; mine"
        assert line == f"Open http://127.0.0.1:{port}/ to use {names}. Press Ctrl-C to stop.\n"
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
        pytest.skip("Chromium is not installed")
    playwright = pytest.importorskip("playwright.sync_api").sync_playwright().start()
    running = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
    yield running
    running.close()
    playwright.stop()


@pytest.fixture
def visit(app: Any, browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens the app. Fails if the page requests anything from another host or writes an error to the console."""
    problems: list[str] = []
    contexts = []

    def open_(**device: Any) -> Any:
        contexts.append(browser.new_context(**device))
        page = contexts[-1].new_page()
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        page.on("requestfailed", lambda request: problems.append(request.url))
        page.on("request", lambda request: problems.append(request.url) if is_foreign(request.url) else None)
        page.goto(app.local_url)
        page.wait_for_selector("canvas")
        return page

    def is_foreign(url: str) -> bool:
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
    """Draws lines with the mouse. Points are (x, y) from 0 to 1 on the canvas."""
    box = page.locator("canvas").bounding_box()
    for stroke in strokes:
        points = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in stroke]
        page.mouse.move(*points[0])
        page.mouse.down()
        for point in points[1:]:
            page.mouse.move(*point, steps=5)
        page.mouse.up()


def answers(page: Any) -> str:
    """HTML of the answers, once they have arrived."""
    page.wait_for_selector(".answers[aria-busy=false]")
    html: str = page.locator(".answers").inner_html()
    return html


def digit_in(html: str) -> Tensor:
    """The 28x28 digit on the page."""
    content = re.findall(r'class="input">\s*<img src="data:image/png;base64,([^"]+)"', html)
    return torch.from_numpy(np.array(Image.open(BytesIO(b64decode(content[0])))))


def test_drawing(visit: Callable[..., Any], models: dict[str, Classifier]) -> None:
    page = visit(**DESKTOP)
    assert HINT in page.locator(".answers").inner_html()
    draw(page, ROOF)
    roof = digit_in(answers(page)) > 127
    assert roof.any(dim=1).sum() < 8 < 18 <= roof.any(dim=0).sum()  # a horizontal line
    draw(page, LEG)
    html = answers(page)
    assert (digit_in(html) > 127).any(dim=1).sum() >= 18
    np.testing.assert_allclose(percentages(html), expected(models, digit_in(html)), atol=0.11)
    first, second = (page.locator(".model").nth(i).bounding_box() for i in (0, 1))
    assert first["y"] == second["y"]
    assert first["x"] + first["width"] < second["x"]  # side by side
    page.keyboard.press("Control+z")
    assert torch.equal(digit_in(answers(page)) > 127, roof)
    page.click("text=Undo")
    assert HINT in answers(page)
    draw(page, ROOF, LEG)
    assert "Input of the models" in answers(page)
    page.click("text=Clear")
    assert HINT in answers(page)
    assert (
        page.evaluate(
            "() => new Set(document.querySelector('canvas').getContext('2d').getImageData(0, 0, 448, 448).data).size"
        )
        == 1
    )  # all white


def photo_of(digit: Tensor) -> Image.Image:
    """A large portrait photo of a digit on paper, lit from one side."""
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
    page.wait_for_selector(".input")
    html = answers(page)
    assert (digit_in(html).float() - zero).abs().mean() < 25
    np.testing.assert_allclose(percentages(html), expected(models, digit_in(html)), atol=0.11)
    draw(page, ROOF)  # a stroke replaces the photo
    assert (digit_in(answers(page)) > 127).any(dim=1).sum() < 8
    for event, transfer in (("paste", "clipboardData"), ("drop", "dataTransfer")):
        page.click("text=Clear")
        assert HINT in answers(page)
        page.evaluate(
            """async ([event, transfer, url]) => {
                const blob = await (await fetch(url)).blob(), data = new DataTransfer();
                data.items.add(new File([blob], "one.png", { type: "image/png" }));
                const Type = event === "paste" ? ClipboardEvent : DragEvent;
                document.body.dispatchEvent(new Type(event, { [transfer]: data, bubbles: true, cancelable: true }));
            }""",
            [event, transfer, url_of(bytes_of(on_paper(one)))],
        )
        page.wait_for_selector(".input")
        assert (digit_in(answers(page)).float() - one).abs().mean() < 25


def test_unreadable_files_get_a_message(visit: Callable[..., Any]) -> None:
    page = visit(**DESKTOP)
    for name, content, message in (
        ("notes.png", b"not a picture", "notes.png cannot be read as a picture"),
        ("white.png", bytes_of(Image.new("L", (90, 90), 255)), "blank"),
    ):
        page.set_input_files("input[type=file]", {"name": name, "mimeType": "image/png", "buffer": content})
        page.wait_for_selector(f".problem:has-text('{message}')")
    draw(page, ROOF)
    assert "problem" not in answers(page)


def test_only_the_answer_to_the_newest_request_is_shown(visit: Callable[..., Any]) -> None:
    page = visit(**DESKTOP)
    requests: list[Any] = []
    page.route("**/component_server/", lambda request: requests.append(request))
    draw(page, ROOF, LEG)
    while len(requests) < 2:
        page.wait_for_timeout(10)
    requests[1].fulfill(json="second")
    assert answers(page) == "second"
    with page.expect_response("**/component_server/"):
        requests[0].fulfill(json="first")
    assert answers(page) == "second"
    page.unroute("**/component_server/")
    page.route("**/component_server/", lambda request: request.fulfill(status=204))
    page.click("text=Undo")
    assert "No answer" in answers(page)


def test_phone(visit: Callable[..., Any], models: dict[str, Classifier]) -> None:
    page = visit(**PHONE)
    box = page.locator("canvas").bounding_box()
    assert box["width"] > 340
    finger = page.context.new_cdp_session(page)
    for kind, x, y in (("Start", 0.3, 0.2), ("Move", 0.5, 0.5), ("Move", 0.7, 0.8), ("End", 0, 0)):
        point = {"x": box["x"] + x * box["width"], "y": box["y"] + y * box["height"]}
        points = [] if kind == "End" else [point]
        finger.send("Input.dispatchTouchEvent", {"type": f"touch{kind}", "touchPoints": points})
    html = answers(page)
    np.testing.assert_allclose(percentages(html), expected(models, digit_in(html)), atol=0.11)
    assert (digit_in(html) > 127).any(dim=1).sum() >= 18
    assert page.evaluate("scrollY") == 0  # the finger draws and does not scroll
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert page.locator(".models").bounding_box()["y"] > box["y"] + box["height"]
    first, second = (page.locator(".model").nth(i).bounding_box() for i in (0, 1))
    assert first["y"] == second["y"] < 844
    assert second["x"] + second["width"] <= 390

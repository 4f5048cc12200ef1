"""`mnist-lightning app`: draw a digit, or show a photo of one, and see what trained models make of it."""

import binascii
import socket
import time
from base64 import b64decode
from collections.abc import Callable, Mapping
from io import BytesIO
from threading import Lock
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mnist_lightning.checkpoint import find_checkpoint, load
from mnist_lightning.classifier import Classifier
from mnist_lightning.data.handwriting import digit_of, open_picture
from mnist_lightning.deploy import app_page
from mnist_lightning.deploy.classify import remark
from mnist_lightning.errors import InputError, one_line
from mnist_lightning.evaluation.comparison import distinct
from mnist_lightning.models.gnn import GNN

if TYPE_CHECKING:
    import gradio

LARGEST = 10 * 2**20  # bytes of a question; the page makes photos smaller than that before it asks
_ASK = "/gradio_api/component_server/"
_POLICY = b"default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:"  # Gradio compiles its templates


def serve(*checkpoints: str, port: int = 7860, host: str = "127.0.0.1") -> None:
    """Opens a page to draw digits on, or to show photos of them to, and says what the models make of them and why.

    Ends with Ctrl-C. Pictures are in memory while they are looked at; nothing is kept.

    Args:
        checkpoints: Checkpoints or runs' folders, whose best checkpoints are taken; one for each model.
        port: Where to listen.
        host: Address to listen on; 0.0.0.0 lets other machines in.

    Raises:
        InputError: If a checkpoint cannot be loaded, the port is taken, or Gradio is not installed.
    """
    _check_gradio()
    if not checkpoints:
        raise InputError("no checkpoint is given: app RUN_FOLDER, or several")
    _check_address(host, port)
    names = distinct([_name(checkpoint) for checkpoint in checkpoints])
    app = start({name: load(path) for name, path in zip(names, checkpoints, strict=True)}, port, host)
    print(f"{app.local_url} shows {', '.join(names)}; Ctrl-C ends it", flush=True)
    try:
        app.server.thread.join()
    except KeyboardInterrupt:
        app.close(verbose=False)


def start(models: Mapping[str, Classifier], port: int = 7860, host: str = "127.0.0.1") -> "gradio.Blocks":
    """Serves the app in the background, open for questions and for nothing else.

    Args:
        models: By name; in evaluation mode.
        port: Where to listen.
        host: Address to listen on.

    Returns:
        The app, which `close()` ends.

    Raises:
        InputError: If the port is taken, or Gradio is not installed.
    """
    app = build(models)
    from gradio.themes import Base
    from starlette.middleware import Middleware

    try:
        app.launch(
            server_name=host,
            server_port=port,
            prevent_thread_lock=True,
            quiet=True,
            inline=False,
            share=False,
            ssr_mode=False,
            mcp_server=False,
            enable_monitoring=False,
            run_history=False,
            footer_links=[],
            state_session_capacity=100,
            theme=Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
            app_kwargs={"middleware": [Middleware(_Gate)], "docs_url": None, "redoc_url": None, "openapi_url": None},
        )
    except OSError as error:
        raise InputError(f"port {port} of {host} cannot be used: {one_line(error)}") from error
    return app


def build(models: Mapping[str, Classifier]) -> "gradio.Blocks":
    """The app, to be launched as any other of Gradio's, or to be made a part of one.

    Args:
        models: By name; in evaluation mode.

    Raises:
        InputError: If Gradio is not installed.
    """
    _check_gradio()
    import gradio as gr

    # One at a time: what explains a model hangs hooks into it, and a model has all cores to itself.
    lock = Lock()

    def answer(value: object) -> str:
        try:
            before = time.perf_counter()
            digit = digit_of(open_picture(_content(value), "the picture"), "the picture")
            milliseconds = 1000 * (time.perf_counter() - before)
            with lock:
                return app_page.answers_html(digit, milliseconds, _answers(models, digit))
        except InputError as error:
            return app_page.problem_html(str(error))

    one = torch.zeros(28, 28, dtype=torch.uint8)
    one[4:24, 12:16] = 255
    _answers(models, one)  # the first answer waits for imports, and nobody shall wait for that
    app = gr.Blocks(title="Which digit is it?", analytics_enabled=False)
    with app:
        gr.HTML(
            html_template=app_page.PAGE,
            css_template=app_page.STYLE,
            js_on_load=app_page.SCRIPT,
            apply_default_css=False,
            server_functions=[answer],
        )
    return app


def _answers(models: Mapping[str, Classifier], digit: Tensor) -> list[app_page.Answer]:
    answers = []
    for name, model in models.items():
        before = time.perf_counter()
        probabilities = model.classify(digit[None])[0].softmax(dim=0)
        milliseconds = 1000 * (time.perf_counter() - before)
        why = _why(model, digit, int(probabilities.argmax()))
        answers.append(app_page.Answer(name, probabilities, milliseconds, remark(digit, probabilities), why))
    return answers


def _why(model: Classifier, digit: Tensor, said: int) -> tuple[bytes, str] | None:
    """A picture of why a model says what it says, and what it shows; None of a model that cannot be explained."""
    if isinstance(model, GNN):
        from mnist_lightning.explain.connectivity import connectivity
        from mnist_lightning.explain.drawings import draw_graph

        found = connectivity(model, digit)
        return _png(draw_graph, found), f"Connections: blue for {said}, orange against"
    from mnist_lightning.explain.gradcam import grad_cam, input_gradients
    from mnist_lightning.explain.saliency_sheet import draw_map

    for explain, caption in (
        (grad_cam, f"Blue: what speaks for {said} (Grad-CAM)"),
        (input_gradients, f"Blue speaks for {said}, orange against (input gradients)"),  # without convolutions
    ):
        try:
            values = explain(model, digit[None])[0]
        except InputError:
            continue
        return _png(draw_map, digit, values), caption
    return None


def _png(draw: Callable[..., object], *what: object) -> bytes:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3, 3))
    axes = figure.add_axes((0, 0, 1, 1))
    draw(axes, *what)
    axes.set(title="", xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    content = BytesIO()
    figure.savefig(content, format="png", dpi=100)
    return content.getvalue()


def _content(value: object) -> bytes:
    """The bytes of a data URL; of a file in which the browser finds no picture, the page sends the name."""
    text = value if isinstance(value, str) else "what was sent"
    kind, _, content = text.partition(";base64,")
    if kind.startswith("data:image/"):
        try:
            return b64decode(content, validate=True)
        except binascii.Error:
            text = "what was sent"
    raise InputError(f"{one_line(text, 60)} is no picture that can be read; give a PNG, JPEG, WebP, GIF or BMP")


class _Gate:
    """Lets in only what the page needs: files to read, and questions of no more than `LARGEST`."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        from starlette.responses import PlainTextResponse

        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        app = self.app
        if scope["method"] not in ("GET", "HEAD"):
            # A body of unknown length has none that could be limited, and none but JSON is a question.
            length = headers.get(b"content-length", b"")
            if scope["path"] != _ASK or headers.get(b"content-type") != b"application/json":
                app = PlainTextResponse("not found", 404)
            elif not length.isdigit() or int(length) > LARGEST:
                app = PlainTextResponse(f"a question has at most {LARGEST} bytes", 413)

        async def send_with_policy(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"content-security-policy", _POLICY)]
            await send(message)

        await app(scope, receive, send_with_policy)


def _check_gradio() -> None:
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise InputError("the app needs Gradio, which is not installed: pip install 'mnist-lightning[app]'") from error


def _check_address(host: str, port: int) -> None:
    """Before models are loaded, and because Gradio would say something else."""
    if not 0 < port < 2**16:
        raise InputError(f"port is {port}; it must be from 1 to 65535")
    try:
        family, kind, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise InputError(f"cannot listen on {host}, port {port}: {error.strerror}; choose another --port") from error


def _name(path: str) -> str:
    """A run is known by its experiment, as in lightning_logs/EXPERIMENT/version_0; other files by their own name."""
    checkpoint = find_checkpoint(path).absolute()
    if checkpoint.parent.name != "checkpoints":
        return checkpoint.stem
    run = checkpoint.parents[1]
    return run.parent.name if run.name.startswith("version_") else run.name

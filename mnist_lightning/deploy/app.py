"""`mnist-lightning app`: draw a digit or show a photo of one, and see the models' answers and the evidence for them."""

import socket
import time
from base64 import b64decode
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from io import BytesIO
from itertools import takewhile
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

from mnist_lightning.deploy.classify import remark
from mnist_lightning.errors import InputError, one_line
from mnist_lightning.evaluation.page import Picture, picture, render
from mnist_lightning.runs.run import Run

if TYPE_CHECKING:  # `app --help` answers before these are imported
    import gradio
    from starlette.middleware.base import RequestResponseEndpoint
    from starlette.requests import Request
    from starlette.responses import Response
    from torch import Tensor

    from mnist_lightning.classifier import Classifier

MAX_REQUEST = 10 * 2**20  # bytes; the page shrinks photos well below that
_TEMPLATES = Path(__file__).with_name("templates")
_ANSWERS = "deploy/templates/answers.html"
_ENDPOINT = "/gradio_api/component_server/"
_POLICY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:"  # Gradio compiles its templates


def serve(*checkpoints: str, port: int = 7860, host: str = "127.0.0.1") -> None:
    """Serves a page that classifies drawn and photographed digits and shows the evidence for each answer.

    Press Ctrl-C to stop the server. Pictures stay in memory and are not stored.

    Args:
        checkpoints: Checkpoints, run folders, or folders that contain runs of one experiment.
        port: TCP port of the server, 1 to 65535.
        host: Address of the server. 0.0.0.0 accepts connections from other machines.

    Raises:
        InputError: If a checkpoint cannot be loaded, the port is in use, or Gradio is not installed.
    """
    if find_spec("gradio") is None:
        raise InputError("the app needs Gradio, which is not installed: pip install 'mnist-lightning[app]'")
    if not checkpoints:
        raise InputError("no checkpoint is given; use app RUN_FOLDER...")
    _check_address(host, port)
    from mnist_lightning.runs.checkpoint import find_checkpoint, load

    paths = [find_checkpoint(checkpoint) for checkpoint in checkpoints]
    models = {name: load(path) for name, path in zip(model_names(paths), paths, strict=True)}
    app = start(models, port, host)
    print(f"Open {app.local_url} to use {'; '.join(models)}. Press Ctrl-C to stop.", flush=True)
    try:
        app.server.thread.join()
    except KeyboardInterrupt:
        app.close(verbose=False)


def start(models: "Mapping[str, Classifier]", port: int = 7860, host: str = "127.0.0.1") -> "gradio.Blocks":
    """Serves the app in the background. The server accepts pictures to classify, and no other input.

    Args:
        models: Models by name, in evaluation mode.
        port: TCP port of the server, 1 to 65535.
        host: Address of the server.

    Returns:
        The app. Its `close()` stops the server.

    Raises:
        InputError: If the port is in use.
    """
    app = build(models)
    from gradio.themes import Base
    from starlette.middleware import Middleware
    from starlette.middleware.base import BaseHTTPMiddleware

    gate = Middleware(BaseHTTPMiddleware, dispatch=_gate)
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
            app_kwargs={"middleware": [gate], "docs_url": None, "redoc_url": None, "openapi_url": None},
        )
    except OSError as error:
        raise InputError(f"cannot listen on {host}, port {port}: {one_line(error)}") from error
    return app


def build(models: "Mapping[str, Classifier]") -> "gradio.Blocks":
    """Builds the app without starting a server, for `launch()` or for use inside another Gradio app.

    Args:
        models: Models by name, in evaluation mode.
    """
    import gradio as gr
    import torch

    from mnist_lightning.data.handwriting import digit_of, open_picture

    # One request at a time: Grad-CAM adds hooks to the model, and each model uses all cores.
    lock = Lock()

    def answer(value: object) -> str:
        try:
            began = time.perf_counter()
            digit = digit_of(open_picture(_content(value), "the picture"), "the picture")
            milliseconds = 1000 * (time.perf_counter() - began)
            with lock:
                return answers_html(models, digit, milliseconds)
        except InputError as error:
            return render(_ANSWERS, problem=str(error))

    diagonal = 255 * torch.eye(28, dtype=torch.uint8)
    answers_html(models, diagonal, 0)  # warm-up: the first request must not wait for imports
    html, css, js = ((_TEMPLATES / f"app.{kind}").read_text(encoding="utf-8") for kind in ("html", "css", "js"))
    app = gr.Blocks(title="Which digit is it?", analytics_enabled=False)
    with app:
        gr.HTML(html_template=html, css_template=css, js_on_load=js, apply_default_css=False, server_functions=[answer])
    return app


def model_names(checkpoints: Sequence[Path]) -> list[str]:
    """Names models by experiment, or by file outside of a run. Equal names get the part in which the paths differ.

    Args:
        checkpoints: Checkpoint of each model. Equal paths get equal names.

    Example:
        >>> model_names([Run("cnn/version_0").best, Run("cnn/version_1").best, Path("mine.ckpt")])
        ['cnn, version_0', 'cnn, version_1', 'mine']
    """
    names = [run.experiment if (run := Run.of(path)) else path.stem for path in checkpoints]
    parts = [path.absolute().parts for path in checkpoints]
    full_names = []
    for name, own in zip(names, parts, strict=True):
        same_name = [other for other, other_name in zip(parts, names, strict=True) if other_name == name]
        start = _common_length(same_name)
        end = len(own) - _common_length([other[start:][::-1] for other in same_name])
        full_names.append(", ".join(filter(None, [name, "/".join(own[start:end])])))
    return full_names


def _common_length(sequences: Sequence[Sequence[str]]) -> int:
    """Length of the longest common start."""
    return sum(1 for _ in takewhile(lambda items: len(set(items)) == 1, zip(*sequences, strict=False)))


def answers_html(models: "Mapping[str, Classifier]", digit: "Tensor", milliseconds: float) -> str:
    """Classifies a digit, and renders the models' answers side by side with the evidence for each.

    Args:
        models: Models by name, in evaluation mode.
        digit: Digit in MNIST format, uint8 [28, 28].
        milliseconds: Duration of the conversion to MNIST format.
    """
    from PIL import Image

    answers = []
    for name, model in models.items():
        began = time.perf_counter()
        probabilities = model.classify(digit[None])[0].softmax(dim=0)
        duration = 1000 * (time.perf_counter() - began)
        explanation = _explanation(model, digit, int(probabilities.argmax()))
        answers.append((name, probabilities.tolist(), remark(digit, probabilities), explanation, duration))
    content = BytesIO()
    Image.fromarray(digit.numpy()).save(content, "png")
    shown = Picture(content.getvalue(), "The digit in 28 x 28 pixels")
    return render(_ANSWERS, answers=answers, digit=shown, milliseconds=milliseconds)


def _explanation(model: "Classifier", digit: "Tensor", predicted: int) -> Picture | None:
    """Draws the evidence for a model's answer. None for a model that cannot be explained."""
    from mnist_lightning.explain.figures import draw_graph, draw_map
    from mnist_lightning.explain.saliency import grad_cam, input_gradients
    from mnist_lightning.models.gnn import GNN

    if isinstance(model, GNN):
        from mnist_lightning.explain.connectivity import connectivity

        caption = f"Edges: blue is evidence for {predicted}, orange against it"
        return _figure(caption, draw_graph, connectivity(model, digit))
    evidence = f"blue is evidence for {predicted}"
    # Models without convolutions have no Grad-CAM; models of other data than images have no map.
    captions = {grad_cam: f"Grad-CAM: {evidence}", input_gradients: f"Input gradients: {evidence}, orange against it"}
    for method, caption in captions.items():
        with suppress(InputError):
            return _figure(caption, draw_map, digit, method(model, digit[None])[0])
    return None


def _figure(caption: str, draw: Callable[..., object], *arguments: object) -> Picture:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3, 3))
    axes = figure.add_axes((0, 0, 1, 1))
    draw(axes, *arguments)
    axes.spines[:].set_visible(False)
    return picture(figure, caption)


def _content(value: object) -> bytes:
    """Decodes a data URL. For a file that the browser cannot decode, the page sends the file's name."""
    text = value if isinstance(value, str) else "the request"
    kind, _, content = text.partition(";base64,")
    if kind.startswith("data:image/"):
        try:
            return b64decode(content, validate=True)
        except ValueError:
            text = "the request"
    raise InputError(f"{one_line(text, 60)} cannot be read as a picture; give a PNG, JPEG, WebP, GIF or BMP")


async def _gate(request: "Request", call_next: "RequestResponseEndpoint") -> "Response":
    """Blocks all requests except the page's files and JSON to classify, of at most `MAX_REQUEST` bytes."""
    from starlette.responses import PlainTextResponse

    is_json = request.headers.get("content-type") == "application/json"
    is_question = is_json and request.scope["path"] == _ENDPOINT
    length = request.headers.get("content-length", "")  # chunked requests have none
    is_small = length.isdecimal() and int(length) <= MAX_REQUEST
    if request.method in ("GET", "HEAD") or (is_question and is_small):
        response = await call_next(request)
    elif is_question:
        response = PlainTextResponse(f"a request must state its length, at most {MAX_REQUEST} bytes", 413)
    else:
        response = PlainTextResponse("not found", 404)
    response.headers["content-security-policy"] = _POLICY
    return response


def _check_address(host: str, port: int) -> None:
    """Fails before models are loaded, and names the address, unlike Gradio."""
    if not 0 < port < 2**16:
        raise InputError(f"port must be from 1 to 65535, got {port}")
    try:
        family, kind, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise InputError(f"cannot listen on {host}, port {port}: {error.strerror}; choose another --port") from error

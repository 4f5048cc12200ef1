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
from typing import TYPE_CHECKING, Any

from mnist_lightning.deploy.classify import remark
from mnist_lightning.errors import InputError, one_line
from mnist_lightning.evaluation.page import Picture, picture, render
from mnist_lightning.runs.run import Run

if TYPE_CHECKING:  # `app --help` answers before these are imported
    import gradio
    from torch import Tensor

    from mnist_lightning.classifier import Classifier

MAX_REQUEST = 10 * 2**20  # bytes; the page shrinks photos well below that
_TEMPLATES = Path(__file__).with_name("templates")
_ANSWERS = "deploy/templates/answers.html"
_ENDPOINT = "/gradio_api/component_server/"
_FILES = r"/|/theme\.css|/manifest\.json|/favicon\.ico|/(assets|static)/[\w./-]+"


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
    _listen(host, port).close()  # fails before models are loaded
    from mnist_lightning.runs.checkpoint import find_checkpoint, load

    paths = [find_checkpoint(checkpoint) for checkpoint in checkpoints]
    models = {name: load(path) for name, path in zip(model_names(paths), paths, strict=True)}
    app = start(models, port, host)
    print(f"Open {app.local_url} to use {'; '.join(models)}. Press Ctrl-C to stop.", flush=True)
    try:
        app.server.thread.join()
    except KeyboardInterrupt:
        pass
    finally:
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
    listener = _listen(host, port)
    import gradio
    from fastapi import FastAPI

    from mnist_lightning.deploy.server import Gate, Server, names_of

    app: Any = build(models)
    site: Any = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.state_session_capacity = 10  # sessions hold nothing, but visitors choose their names, of up to 10 MiB
    gradio.mount_gradio_app(
        site,
        app,
        path="/",
        server_name=host,
        server_port=port,
        ssr_mode=False,
        mcp_server=False,
        enable_monitoring=False,
        run_history=False,
        footer_links=[],
        theme=gradio.themes.Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
    )
    # The attributes that Gradio's own `launch` sets.
    app.server = Server(Gate(site, _FILES, _ENDPOINT, MAX_REQUEST, *names_of(listener, host)), listener)
    app.server_app = app.app = site.routes[-1].app
    name = "localhost" if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host
    app.local_url, app.is_running = f"http://{name}:{port}/", True
    return app  # type: ignore[no-any-return]


def build(models: "Mapping[str, Classifier]") -> "gradio.Blocks":
    """Builds the app without starting a server, for `launch()` or for use inside another Gradio app.

    Args:
        models: Models by name, in evaluation mode.
    """
    import gradio as gr
    import torch

    from mnist_lightning.data.handwriting import digit_of, open_picture

    lock = Lock()  # one picture at a time: a decoded picture may need much memory, and each model uses all cores

    def answer(value: object) -> str:
        try:
            with lock:
                began = time.perf_counter()
                digit = digit_of(open_picture(_content(value), "the picture"), "the picture")
                milliseconds = 1000 * (time.perf_counter() - began)
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
        >>> model_names([Run("cnn/version_0").last, Run("cnn/version_1").last, Path("mine.ckpt")])
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


def _listen(host: str, port: int) -> socket.socket:
    """Binds a socket, and names the address if that fails."""
    from mnist_lightning.deploy.server import listen

    if not 0 < port < 2**16:
        raise InputError(f"port must be from 1 to 65535, got {port}")
    try:
        return listen(host, port)
    except OSError as error:
        raise InputError(f"cannot listen on {host}, port {port}: {error.strerror}; choose another --port") from error

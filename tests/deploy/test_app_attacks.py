"""Attacks on the app over HTTP. They know the server's address and how to send a picture, and nothing else of it.

Every attack is followed by a visitor, who must get an answer.
"""

import importlib.util
import re
import resource
import signal
import socket
import subprocess
import sys
import time
from base64 import b64encode
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from PIL import Image, ImageDraw

from mnist_lightning import LeNet5
from mnist_lightning.deploy.app import MAX_REQUEST

pytestmark = [
    pytest.mark.slow,  # importing Gradio takes three seconds
    pytest.mark.skipif(importlib.util.find_spec("gradio") is None, reason="Gradio is not installed"),
    pytest.mark.skipif(sys.platform != "linux", reason="memory and limits of another process are read from /proc"),
]
QUESTION = "/gradio_api/component_server/"
OPEN_FILES = 160  # limit of the server
BEGUN = ("", "GET / HT", "GET / HTTP/1.1\nHost: localhost\nX-Slow: ")  # beginnings of a request


class Site(NamedTuple):
    """A running server."""

    port: int
    pid: int

    def ask(self, picture: bytes, **headers: str) -> Any:
        """Sends a picture as the page does."""
        import httpx

        url = f"data:image/webp;base64,{b64encode(picture).decode()}"
        question = {"session_hash": "visitor", "component_id": 1, "fn_name": "answer", "data": url}
        return httpx.post(f"http://127.0.0.1:{self.port}{QUESTION}", json=question, headers=headers, timeout=30)

    def get(self, path: str, **headers: str) -> Any:
        import httpx

        return httpx.get(f"http://127.0.0.1:{self.port}{path}", headers=headers, timeout=10)

    def connect(self, request: str = "") -> socket.socket:
        """Opens a connection and sends the beginning of a request."""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=10)
        connection.sendall(request.replace("\n", "\r\n").encode())
        return connection

    def must_answer(self) -> None:
        """A visitor comes."""
        response = self.ask(seven())
        assert response.status_code == 200
        assert "Input of the models" in response.text

    def peak(self, reset: bool = False) -> int:
        """Highest memory in MiB since the last reset."""
        process = Path("/proc", str(self.pid))
        if reset:
            (process / "clear_refs").write_text("5")
        return int(re.findall(r"VmHWM:\s+(\d+)", (process / "status").read_text())[0]) // 1024


def seven() -> bytes:
    picture = Image.new("L", (280, 280), 255)
    ImageDraw.Draw(picture).line((60, 60, 220, 60, 120, 230), 0, 24)
    return webp(picture)


def webp(picture: Image.Image) -> bytes:
    content = BytesIO()
    picture.save(content, "webp", lossless=True)
    return content.getvalue()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The verb `app`, which must end at once and without a traceback though connections are open."""
    path, model = tmp_path_factory.mktemp("site") / "mine.ckpt", LeNet5()
    hyper_parameters = dict(model.hparams)
    classifier = "mnist_lightning.models.lenet.LeNet5"
    torch.save({"classifier": classifier, "state_dict": model.state_dict(), "hyper_parameters": hyper_parameters}, path)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell ignore it
    command = [sys.executable, "-m", "mnist_lightning", "app", str(path), "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    signal.signal(signal.SIGINT, handler)
    try:
        assert process.stdout is not None
        assert f"http://127.0.0.1:{port}/" in process.stdout.readline()
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (OPEN_FILES, OPEN_FILES))
        site = Site(port, process.pid)
        yield site
        unfinished = site.connect(f"POST {QUESTION} HTTP/1.1\nHost: localhost\nContent-Length: 9\n\n"), site.connect()
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=20)
        assert (output, process.returncode) == ("", 0)
        for connection in unfinished:
            connection.close()
    finally:
        process.kill()


@pytest.fixture(scope="module", autouse=True)
def slow_connections(site: Site) -> list[socket.socket]:
    """Opened before the first test, so that the last need not wait for long."""
    return [site.connect(begun) for begun in BEGUN]


@pytest.mark.parametrize("length", ["", "Content-Length: 9\n"])
def test_size_limit_holds_for_chunks(site: Site, length: str) -> None:
    site.must_answer()
    before = site.peak(reset=True)
    head = f"POST {QUESTION} HTTP/1.1\nHost: localhost\nContent-Type: application/json\nTransfer-Encoding: chunked\n"
    with site.connect(f"{head}{length}\n") as connection:
        for _ in range(6):
            connection.sendall(b"%x\r\n%b\r\n" % (MAX_REQUEST, bytes(MAX_REQUEST)))
        assert connection.recv(100).startswith(b"HTTP/1.1 413 ")
    assert site.peak() - before < 40  # MiB; 60 were sent
    site.must_answer()


def test_memory_of_large_pictures_does_not_add_up(site: Site) -> None:
    large = webp(Image.new("L", (4000, 4000), 255))
    assert len(large) < 2000
    before = site.peak(reset=True)
    assert "blank" in site.ask(large).text
    one = site.peak() - before
    before = site.peak(reset=True)
    with ThreadPoolExecutor(4) as visitors:
        assert all("blank" in answer.text for answer in visitors.map(site.ask, [large] * 4))
    assert site.peak() - before < one + 100
    site.must_answer()


@pytest.mark.parametrize(
    ("host", "origin", "status"),
    [
        ("localhost:{port}", None, 200),
        ("127.0.0.1:{port}", "http://127.0.0.1:{port}", 200),
        ("[::1]:{port}", None, 200),
        ("LOCALHOST:8080", "http://localhost:8080", 200),  # a forwarded port
        ("evil.example", None, 403),
        ("evil.example:{port}", "http://evil.example:{port}", 403),
        ("127.0.0.1.evil.example", None, 403),
        ("evil.example@localhost", None, 403),
        ("192.0.2.1:{port}", None, 403),
        ("localhost:{port}", "http://evil.example", 403),
        ("localhost:{port}", "http://localhost:1", 403),
        ("localhost:{port}", "null", 403),
    ],
)
def test_foreign_names_and_pages_are_refused(site: Site, host: str, origin: str | None, status: int) -> None:
    headers = {"host": host.format(port=site.port)}
    if origin is not None:
        headers["origin"] = origin.format(port=site.port)
    assert site.get("/", **headers).status_code == status
    assert site.ask(seven(), **headers).status_code == status


def test_every_response_limits_what_the_browser_does_with_it(site: Site) -> None:
    files = re.findall(r'(?:src|href)="\.?(/(?:assets|static)/[^"]+)"', site.get("/").text)
    assert len(files) > 1
    pages = [site.get(path) for path in ("/", files[0], files[-1], "/assets/absent.js", "/absent")]
    responses = [*pages, site.get("/", host="evil.example"), site.ask(seven()), site.ask(bytes(MAX_REQUEST))]
    assert [response.status_code for response in responses] == [200, 200, 200, 404, 404, 403, 200, 413]
    for response in responses:
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["referrer-policy"] == "same-origin"
        assert "frame-ancestors 'none'" in response.headers["content-security-policy"]
        assert "server" not in response.headers


@pytest.mark.parametrize(
    "path",
    [
        "/config",
        "/monitoring",
        "/robots.txt",
        "/docs",
        "/openapi.json",
        "/login",
        "/assets/../../../../../../etc/passwd",
        "/static/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
        "/static/..%5c..%5cetc",
        "/assets//etc/passwd",
        "/gradio_api/info",
        "/gradio_api/heartbeat/v",
        "/gradio_api/queue/data?session_hash=v",
        "/gradio_api/queue/status",
        "/gradio_api/startup-events",
        "/gradio_api/file=/etc/passwd",
        "/gradio_api/proxy=https://a.hf.space/",
        "/gradio_api/upload_progress?upload_id=1",
        "/gradio_api/app_id",
        "/gradio_api/token",
        "/gradio_api/component_server/",
        "/gradio_api/dev/reload",
    ],
)
def test_other_doors_are_closed(site: Site, path: str) -> None:
    for method in ("GET", "HEAD", "POST", "PUT", "OPTIONS"):
        if (method, path) != ("POST", QUESTION):
            with site.connect(f"{method} {path} HTTP/1.1\nHost: localhost\nContent-Length: 0\n\n") as connection:
                assert re.match(rb"HTTP/1.1 40[345] ", connection.recv(100))


def test_other_protocols_are_refused(site: Site) -> None:
    upgrade = "GET / HTTP/1.1\nHost: localhost\nConnection: Upgrade\nUpgrade: websocket\nSec-WebSocket-Version: 13\n"
    for request, status in ((f"{upgrade}Sec-WebSocket-Key: {'a' * 22}==\n\n", b"200"), ("\x16\x03\x01\n\n", b"400")):
        with site.connect(request) as connection:
            assert connection.recv(12) == b"HTTP/1.1 " + status
    site.must_answer()


def test_slow_connections_are_closed(site: Site, slow_connections: list[socket.socket]) -> None:
    deadline = time.monotonic() + 8
    while not all(map(is_closed, slow_connections)):
        assert time.monotonic() < deadline
        for connection in slow_connections[2:]:
            if not is_closed(connection):
                connection.sendall(b"a")  # does not extend the time
        time.sleep(0.2)
    site.must_answer()


def test_slow_connections_lock_nobody_out(site: Site) -> None:
    body = f"POST {QUESTION} HTTP/1.1\nHost: localhost\nContent-Type: application/json\nContent-Length: 99\n\n{{"
    connections = []
    for request in (*BEGUN, body):
        connections += [site.connect(request) for _ in range(2 * OPEN_FILES)]
        site.must_answer()
    for connection in connections:
        connection.close()


def is_closed(connection: socket.socket) -> bool:
    """Whether the server has closed a connection."""
    connection.setblocking(False)
    try:
        return connection.recv(1) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True

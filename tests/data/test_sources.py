import contextlib
import gzip
import hashlib
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.datasets
from PIL import Image

from mnist_lightning.cli import main
from mnist_lightning.data import download, sources
from mnist_lightning.errors import InputError, SourceUnavailableError
from mnist_lightning.explain.report import choose_digits

DATASETS = {
    "mnist": "MNIST",
    "fashion_mnist": "FashionMNIST",
    "kmnist": "KMNIST",
    "qmnist": "QMNIST",
    "emnist_digits": "EMNIST",
}


def idx(array: np.ndarray) -> bytes:
    kind = {"uint8": 8, "int32": 12}[array.dtype.name]
    header = bytes([0, 0, kind, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    return header + array.astype(array.dtype.newbyteorder(">")).tobytes()


def small(source: str, train: int = 20, test: int = 10) -> dict[str, bytes]:
    """The four files of a source with few images: noise images with labels 0, 1, 2 ... 9, 0, 1 ..."""
    random = np.random.default_rng(0)
    contents = []
    for n in (train, test):
        labels = np.arange(n) % 10
        if source == "qmnist":
            columns = np.stack([labels, *random.integers(0, 100_000, (7, n))], 1).astype(np.int32)
        contents += [
            idx(random.integers(0, 256, (n, 28, 28), dtype=np.uint8)),
            idx(columns if source == "qmnist" else labels.astype(np.uint8)),
        ]
    return dict(zip(sources._ARCHIVES[source].files, contents, strict=True))


def write(root: Path, source: str, files: dict[str, bytes]) -> Path:
    raw = root / DATASETS[source] / "raw"
    raw.mkdir(parents=True)
    for name, content in files.items():
        (raw / name).write_bytes(content)
    return raw


def pixels(content: bytes) -> torch.Tensor:
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=16).reshape(-1, 28, 28).copy())


@pytest.fixture(autouse=True)
def _isolated(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Disables proxies and checks that the test restores the default timeout."""
    monkeypatch.setenv("no_proxy", "*")
    yield
    assert socket.getdefaulttimeout() is None


@pytest.fixture
def small_mnist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sources._ARCHIVES, "mnist", sources._ARCHIVES["mnist"]._replace(checksums={}))


class Mirror(ThreadingHTTPServer):
    """Serves `archives`. Modes: ok, missing, truncate (half of the body), stall (half of the body, then silence)."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, archives: dict[str, bytes], mode: str = "ok") -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.archives, self.mode = archives, mode
        self.requests: list[tuple[str, str]] = []
        self.closing = threading.Event()
        self.start_together = threading.Barrier(1)  # number of downloads that wait for each other
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.server_port}"

    @property
    def url(self) -> str:
        return f"http://{self.host}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Tests disconnect on purpose."""


class Answer(BaseHTTPRequestHandler):
    server: Mirror

    def do_HEAD(self) -> None:
        self.server.requests.append(("HEAD", self.path))
        self.send_error(405)  # some servers refuse HEAD

    def do_GET(self) -> None:
        mirror = self.server
        first = len([1 for verb, _ in mirror.requests if verb == "GET"]) < mirror.start_together.parties
        mirror.requests.append(("GET", self.path))
        if first:
            mirror.start_together.wait(timeout=30)
        body = mirror.archives.get(self.path.lstrip("/"))
        if body is None or mirror.mode == "missing":
            return self.send_error(404)
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body if mirror.mode == "ok" else body[: len(body) // 2])
        if mirror.mode == "stall":
            mirror.closing.wait(30)
        return None

    def log_message(self, *args: Any) -> None: ...


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Any:
    """serve(source, mode, ...) starts one mirror per mode and points torchvision to them in that order."""
    mirrors: list[Mirror] = []

    def start(source: str, *modes: str) -> list[Mirror]:
        archives = {f"{name}.gz": gzip.compress(content) for name, content in small(source).items()}
        sums = {name: hashlib.md5(content).hexdigest() for name, content in archives.items()}
        started = [Mirror(archives, mode) for mode in modes]
        mirrors.extend(started)
        dataset = getattr(torchvision.datasets, DATASETS[source])
        monkeypatch.setattr(dataset, "mirrors", [mirror.url for mirror in started])
        if source == "qmnist":
            pairs = [(started[0].url + name, md5) for name, md5 in sums.items()]
            monkeypatch.setattr(dataset, "resources", {"train": pairs[:2], "test": pairs[2:]})
        elif source == "emnist_digits":
            packed = io.BytesIO()
            with zipfile.ZipFile(packed, "w") as archive:
                for name, content in archives.items():
                    archive.writestr(f"gzip/{name}", content)
            archives["gzip.zip"] = packed.getvalue()
            monkeypatch.setattr(dataset, "url", started[0].url + "gzip.zip")
            monkeypatch.setattr(dataset, "md5", hashlib.md5(packed.getvalue()).hexdigest())
        else:
            monkeypatch.setattr(dataset, "resources", list(sums.items()))
        return started

    yield start
    for mirror in mirrors:
        mirror.closing.set()
        mirror.shutdown()
        mirror.server_close()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "ANSWER_TIMEOUT", 0.4)
    monkeypatch.setattr(download, "STALL_TIMEOUT", 0.4)


def gives_up(source: str, root: Path, within: float = 2.0) -> str:
    """Checks that a fetch fails in time and leaves no files; returns the error message."""
    start = time.monotonic()
    with pytest.raises(SourceUnavailableError) as caught:
        sources.fetch(source, root)
    assert time.monotonic() - start < within
    assert not root.exists() or not list(root.rglob("*"))
    message = str(caught.value)
    assert "\n" not in message
    assert str(root / DATASETS[source] / "raw") in message
    assert "train-images-idx3-ubyte" in message
    assert "--" not in message  # verbs differ in their options
    return message


# Downloads


@pytest.mark.parametrize("source", DATASETS)
@pytest.mark.usefixtures("small_mnist")
def test_downloaded_sources_can_be_read(source: str, serve: Any, tmp_path: Path) -> None:
    serve(source, "ok")
    root = tmp_path / "not" / "yet"
    sources.fetch(source, root)
    raw = root / DATASETS[source] / "raw"
    files = small(source)
    assert {path.name for path in raw.iterdir()} == {*files, "MD5SUMS"}
    assert [path.name for path in root.iterdir()] == [DATASETS[source]]
    for train, first in ((True, 0), (False, 2)):
        images, labels = sources.read(source, root, train=train)
        stored = pixels(files[sources._ARCHIVES[source].files[first]])
        assert torch.equal(images, stored.mT if source == "emnist_digits" else stored)
        assert images.is_contiguous()
        assert labels.dtype == torch.int64
        assert labels.tolist() == [i % 10 for i in range(len(stored))]


@pytest.mark.usefixtures("small_mnist")
def test_second_fetch_makes_no_requests(serve: Any, tmp_path: Path) -> None:
    (mirror,) = serve("mnist", "ok")
    sources.fetch("mnist", tmp_path)
    requests = len(mirror.requests)
    sources.fetch("mnist", tmp_path)
    assert len(mirror.requests) == requests > 0


def test_only_missing_files_are_installed(serve: Any, tmp_path: Path) -> None:
    raw = write(tmp_path, "kmnist", small("kmnist"))
    (raw / "t10k-labels-idx1-ubyte").unlink()
    (raw / "train-labels-idx1-ubyte").write_bytes(b"existing")
    serve("kmnist", "ok")
    sources.fetch("kmnist", tmp_path)
    assert (raw / "t10k-labels-idx1-ubyte").read_bytes() == small("kmnist")["t10k-labels-idx1-ubyte"]
    assert (raw / "train-labels-idx1-ubyte").read_bytes() == b"existing"
    with pytest.raises(InputError, match="train-labels-idx1-ubyte is damaged"):
        sources.read("kmnist", tmp_path, train=True)


@pytest.mark.slow
def test_explore_downloads_its_source(serve: Any, tmp_path: Path) -> None:
    serve("kmnist", "ok")
    main(["explore", "--source", "kmnist", "--root", str(tmp_path / "root")])
    assert "The data: kmnist" in Path("data-report/index.html").read_text()


def test_digits_to_explain_are_downloaded(serve: Any, tmp_path: Path) -> None:
    serve("kmnist", "ok")
    (digit,) = choose_digits("copy.ckpt", 3, None, None, "kmnist", str(tmp_path))
    assert (digit.name, digit.label) == ("kmnist, test image 3", 3)


def test_errors_recommend_options_that_the_verb_has(serve: Any, fails: Callable[..., str]) -> None:
    serve("kmnist", "missing")
    fit = fails("fit", "--model=MLP", "--data.source=kmnist", "--data.root=none", "--trainer.enable_progress_bar=false")
    explore = fails("explore", "--source", "kmnist", "--root", "none")
    assert fit == f"{explore}, or use --data.fallback digits"
    assert "set the root of the data or $MNIST_LIGHTNING_DATA to a folder that has them" in explore
    assert "--data" not in explore


@pytest.mark.parametrize("mode", ["missing", "truncate", "stall"])
@pytest.mark.usefixtures("impatient")
def test_next_mirror_is_tried_after_a_failure(mode: str, serve: Any, tmp_path: Path) -> None:
    bad, good = serve("kmnist", mode, "ok")
    sources.fetch("kmnist", tmp_path)
    assert len(sources.read("kmnist", tmp_path, train=True)[0]) == 20
    assert [path.name for path in tmp_path.iterdir()] == ["KMNIST"]
    assert bad.requests
    assert good.requests


@pytest.mark.parametrize(
    ("mode", "reason"),
    [
        ("missing", "HTTP Error 404: Not Found"),
        ("truncate", "File not found or corrupted"),
        ("stall", "timed out"),
    ],
)
@pytest.mark.parametrize("source", ["kmnist", "qmnist", "emnist_digits"])
@pytest.mark.usefixtures("impatient")
def test_failed_download_reports_the_reason(source: str, mode: str, reason: str, serve: Any, tmp_path: Path) -> None:
    (mirror,) = serve(source, mode)
    assert f"{mirror.host}: {reason}" in gives_up(source, tmp_path)


@pytest.mark.usefixtures("impatient")
def test_failed_download_reports_each_mirror(serve: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (mirror,) = serve("kmnist", "missing")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        unused = f"127.0.0.1:{closed.getsockname()[1]}"
    monkeypatch.setattr(torchvision.datasets.KMNIST, "mirrors", [mirror.url, f"http://{unused}/"])
    message = gives_up("kmnist", tmp_path)
    assert f"{mirror.host}: HTTP Error 404" in message
    assert f"{unused}: [Errno 111] Connection refused" in message


@pytest.mark.usefixtures("impatient")
def test_unresponsive_hosts_time_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with socket.socket() as mute, socket.socket() as full, contextlib.ExitStack() as stack:
        mute.bind(("127.0.0.1", 0))
        mute.listen(5)  # accepts connections but sends nothing, so a TLS handshake hangs
        full.bind(("127.0.0.1", 0))
        full.listen(0)  # the queue is full, so connecting hangs
        for _ in range(3):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        ports = mute.getsockname()[1], full.getsockname()[1]
        hosts = [
            f"http://127.0.0.1:{ports[0]}/",
            f"https://127.0.0.1:{ports[0]}/",
            f"http://127.0.0.1:{ports[1]}/",
        ]
        monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", hosts)
        root = tmp_path / "data"
        message = gives_up("mnist", root, within=1.5)
        assert message.count("127.0.0.1") == 3
        assert not root.exists()


@pytest.mark.slow
@pytest.mark.usefixtures("impatient")
def test_hanging_name_look_up_times_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    finished = threading.Event()

    def hang(*args: Any, **kwargs: Any) -> Any:
        finished.wait(30)
        raise socket.gaierror("finished")

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    try:
        for source in ("mnist", "qmnist", "emnist_digits"):
            assert "no answer within 0.4 s" in gives_up(source, tmp_path, within=1.5)
    finally:
        finished.set()


def test_silent_mirror_does_not_delay_a_fast_one(serve: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (mirror,) = serve("kmnist", "ok")
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen(5)
        silent = f"http://127.0.0.1:{mute.getsockname()[1]}/"
        monkeypatch.setattr(torchvision.datasets.KMNIST, "mirrors", [silent, mirror.url])
        start = time.monotonic()
        sources.fetch("kmnist", tmp_path)
        assert time.monotonic() - start < download.ANSWER_TIMEOUT / 2


def test_unwritable_root_is_reported(serve: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(**kwargs: Any) -> Any:
        raise PermissionError(13, "Permission denied", str(kwargs["dir"]))

    serve("kmnist", "ok")
    monkeypatch.setattr(download, "TemporaryDirectory", refuse)
    assert f"{tmp_path} cannot be written: Permission denied" in gives_up("kmnist", tmp_path)


def test_interrupted_fetch_is_completed_by_the_next(
    serve: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    serve("kmnist", "ok")
    replace = Path.replace

    def stop(self: Path, target: Path) -> Path:
        if self.name == "t10k-images-idx3-ubyte":
            raise KeyboardInterrupt
        return replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", stop)
        with pytest.raises(KeyboardInterrupt):
            sources.fetch("kmnist", tmp_path)
    raw = tmp_path / "KMNIST" / "raw"
    assert [path.name for path in tmp_path.iterdir()] == ["KMNIST"]
    assert {path.name for path in raw.iterdir()} == {*list(small("kmnist"))[:2], "MD5SUMS"}
    sources.fetch("kmnist", tmp_path)
    assert len(sources.read("kmnist", tmp_path, train=False)[0]) == 10


def test_concurrent_threads_download_once(serve: Any, tmp_path: Path) -> None:
    (mirror,) = serve("kmnist", "ok")
    threads = [threading.Thread(target=sources.fetch, args=("kmnist", tmp_path)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len([1 for verb, _ in mirror.requests if verb == "HEAD"]) == 1
    assert len(sources.read("kmnist", tmp_path, train=True)[0]) == 20


FETCH = """
import json, sys, types
package = sys.modules["mnist_lightning"] = types.ModuleType("mnist_lightning")
package.__path__ = ["mnist_lightning"]  # skips the slow imports of the package
import torchvision.datasets
from mnist_lightning.data import sources
dataset = torchvision.datasets.KMNIST
dataset.mirrors, dataset.resources = json.loads(sys.argv[1])
sources.fetch("kmnist", sys.argv[2])
"""


@pytest.mark.slow
def test_concurrent_processes_leave_one_complete_copy(serve: Any, tmp_path: Path) -> None:
    (mirror,) = serve("kmnist", "ok")
    mirror.start_together = threading.Barrier(2)
    dataset = torchvision.datasets.KMNIST
    arguments = [json.dumps([dataset.mirrors, dataset.resources]), str(tmp_path)]
    repository = Path(sources.__file__).parents[2]
    fetching = [subprocess.Popen([sys.executable, "-c", FETCH, *arguments], cwd=repository) for _ in range(2)]
    assert [process.wait(timeout=60) for process in fetching] == [0, 0]
    assert [path.name for path in tmp_path.iterdir()] == ["KMNIST"]
    files = small("kmnist")
    raw = tmp_path / "KMNIST" / "raw"
    assert {path.name for path in raw.iterdir()} == {*files, "MD5SUMS"}
    assert all((raw / name).read_bytes() == content for name, content in files.items())
    assert len(sources.read("kmnist", tmp_path, train=True)[0]) == 20


# Files on disk


def test_truncated_file_is_reported_and_kept(tmp_path: Path) -> None:
    raw = write(tmp_path, "fashion_mnist", small("fashion_mnist"))
    path = raw / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-1])
    sources.fetch("fashion_mnist", tmp_path)
    assert path.stat().st_size == 15_695
    with pytest.raises(InputError) as caught:
        sources.read("fashion_mnist", tmp_path, train=True)
    assert str(path) in str(caught.value)
    assert "expected 15696 bytes, found 15695" in str(caught.value)
    assert "delete it and run again to download a new copy" in str(caught.value)
    assert len(sources.read("fashion_mnist", tmp_path, train=False)[0]) == 10


@pytest.mark.parametrize("content", [b"", b"\0\0\x08", gzip.compress(b"still packed"), b"<html>no such page</html>"])
def test_file_of_another_format_is_reported(content: bytes, tmp_path: Path) -> None:
    raw = write(tmp_path, "kmnist", small("kmnist"))
    assert len(sources.read("kmnist", tmp_path, train=False)[0]) == 10
    (raw / "t10k-labels-idx1-ubyte").write_bytes(content)
    with pytest.raises(InputError, match=r"t10k-labels-idx1-ubyte is damaged \(expected an IDX header 00000801"):
        sources.read("kmnist", tmp_path, train=False)


def test_flipped_bit_is_detected_by_the_recorded_checksum(serve: Any, tmp_path: Path) -> None:
    serve("kmnist", "ok")
    sources.fetch("kmnist", tmp_path)
    path = tmp_path / "KMNIST" / "raw" / "t10k-images-idx3-ubyte"
    content = bytearray(path.read_bytes())
    good = hashlib.md5(content).hexdigest()
    content[1000] ^= 1
    path.write_bytes(content)
    bad = hashlib.md5(content).hexdigest()
    with pytest.raises(InputError, match=rf"t10k-images-idx3-ubyte is damaged \(expected MD5 {good}, found {bad}\)"):
        sources.read("kmnist", tmp_path, train=False)
    assert len(sources.read("kmnist", tmp_path, train=True)[0]) == 20
    path.unlink()
    sources.fetch("kmnist", tmp_path)
    assert len(sources.read("kmnist", tmp_path, train=False)[0]) == 10


def test_other_files_named_like_mnist_are_rejected(tmp_path: Path) -> None:
    write(tmp_path, "mnist", small("mnist"))
    with pytest.raises(InputError, match="expected MD5 6bbc9ace898e44ae57da46a324031adb"):
        sources.read("mnist", tmp_path, train=True)


def test_invalid_labels_and_unequal_counts_are_rejected(tmp_path: Path) -> None:
    raw = write(tmp_path, "kmnist", small("kmnist"))
    labels = raw / "train-labels-idx1-ubyte"
    labels.write_bytes(idx(np.full(20, 10, np.uint8)))
    with pytest.raises(InputError, match="train-labels-idx1-ubyte holds labels 10 to 10, expected 0 to 9"):
        sources.read("kmnist", tmp_path, train=True)
    labels.write_bytes(idx(np.zeros(19, np.uint8)))
    with pytest.raises(InputError, match=r"train-images-idx3-ubyte holds images .* for 19 labels"):
        sources.read("kmnist", tmp_path, train=True)
    for name, shape in (("images-idx3", (0, 28, 28)), ("labels-idx1", (0,))):
        (raw / f"train-{name}-ubyte").write_bytes(idx(np.zeros(shape, np.uint8)))
    with pytest.raises(InputError, match=r"train-images-idx3-ubyte is damaged .expected items, found none"):
        sources.read("kmnist", tmp_path, train=True)


@pytest.mark.parametrize("source", DATASETS)
def test_all_missing_files_are_listed(source: str, tmp_path: Path) -> None:
    with pytest.raises(SourceUnavailableError) as caught:
        sources.read(source, tmp_path, train=False)
    files = sources._ARCHIVES[source].files
    assert all(file in str(caught.value) for file in files[2:])
    assert not any(file in str(caught.value) for file in files[:2])
    assert str(tmp_path / DATASETS[source] / "raw") in str(caught.value)


@pytest.mark.parametrize("function", [sources.fetch, lambda *args: sources.read(*args, train=True)])
def test_unreadable_root_is_reported(function: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "kmnist", small("kmnist"))
    function("kmnist", tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"file.KMNIST.raw cannot be read: Not a directory") as caught:
        function("kmnist", tmp_path / "file")
    assert not isinstance(caught.value, SourceUnavailableError)

    def refuse(self: Path) -> Any:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(InputError, match=r"KMNIST.raw cannot be read: Permission denied"):
        function("kmnist", tmp_path)


def test_folder_in_place_of_a_file_is_reported(tmp_path: Path) -> None:
    raw = write(tmp_path, "kmnist", small("kmnist"))
    (raw / "train-images-idx3-ubyte").unlink()
    (raw / "train-images-idx3-ubyte").mkdir()
    with pytest.raises(InputError, match="train-images-idx3-ubyte cannot be read: Is a directory"):
        sources.read("kmnist", tmp_path, train=True)


@pytest.mark.parametrize("function", [sources.fetch, lambda source: sources.read(source, train=True)])
def test_unknown_source_lists_the_known_ones(function: Any) -> None:
    function("digits")
    with pytest.raises(InputError, match=r"'kmnits', expected one of mnist, .*, folder:PATH; did you mean kmnist\?"):
        function("kmnits")
    with pytest.raises(InputError, match=r"unknown data source 'folder:', .*folder:PATH"):
        function("folder:")


def test_data_root_precedence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MNIST_LIGHTNING_DATA", "/elsewhere")
    assert sources.data_root("here") == Path("here")
    assert sources.data_root(None) == Path("/elsewhere")
    assert sources.data_root("~") == Path.home()
    monkeypatch.setenv("MNIST_LIGHTNING_DATA", "")
    assert sources.data_root(None) == Path("data")
    monkeypatch.delenv("MNIST_LIGHTNING_DATA")
    assert sources.data_root(None) == Path("data")


# Peculiarities of single sources


def test_qmnist_labels_and_test_set_match_mnist(tmp_path: Path) -> None:
    files = small("qmnist", test=10_003)
    write(tmp_path, "qmnist", files)
    assert sources.read("qmnist", tmp_path, train=True)[1].tolist() == [*range(10), *range(10)]
    images, labels = sources.read("qmnist", tmp_path, train=False)
    assert torch.equal(images, pixels(files["qmnist-test-images-idx3-ubyte"])[:10_000])
    assert torch.equal(labels, torch.arange(10_000) % 10)


def test_emnist_is_transposed(tmp_path: Path) -> None:
    files = small("emnist_digits")
    stored = np.zeros((20, 28, 28), np.uint8)
    stored[:, 3, 14] = 255  # written column by column: row 14, column 3
    files["emnist-digits-train-images-idx3-ubyte"] = idx(stored)
    write(tmp_path, "emnist_digits", files)
    images, _ = sources.read("emnist_digits", tmp_path, train=True)
    assert images[0].nonzero().tolist() == [[14, 3]]


@pytest.mark.mnist
def test_real_mnist() -> None:
    sources.fetch("mnist")
    images, labels = sources.read("mnist", train=True)
    assert (images.shape, images.dtype) == ((60_000, 28, 28), torch.uint8)
    assert labels.bincount().tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert labels[:5].tolist() == [5, 0, 4, 1, 9]
    images, labels = sources.read("mnist", train=False)
    assert (images.shape, labels.shape, labels.dtype) == ((10_000, 28, 28), (10_000,), torch.int64)


@pytest.mark.mnist
@pytest.mark.parametrize("damage", ["flip", "truncate"])
def test_damage_to_real_mnist_is_detected(damage: str, tmp_path: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"):
        shutil.copyfile(sources.data_root(None) / "MNIST" / "raw" / name, raw / name)
    assert len(sources.read("mnist", tmp_path, train=False)[0]) == 10_000
    with (raw / "t10k-images-idx3-ubyte").open("r+b") as file:
        if damage == "truncate":
            file.truncate(1000)
        else:
            file.seek(5_000_000)
            file.write(b"\x55")
    expected = {"truncate": "7840016 bytes, found 1000", "flip": "MD5 2646ac647ad5339dbf082846283269ea, found"}[damage]
    with pytest.raises(InputError, match=rf"t10k-images-idx3-ubyte is damaged .expected {expected}"):
        sources.read("mnist", tmp_path, train=False)


# Embedded digits


def test_digits_are_complete_deterministic_and_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("opened a socket")

    monkeypatch.setattr(socket, "socket", refuse)
    sources.fetch("digits", tmp_path)
    parts = [sources.read("digits", tmp_path, train=train) for train in (True, False)]
    assert [len(images) for images, _ in parts] == [1437, 360]
    for train, (images, labels) in zip((True, False), parts, strict=True):
        assert images.shape == (len(labels), 28, 28)
        assert (images.dtype, labels.dtype) == (torch.uint8, torch.int64)
        assert (labels.bincount(minlength=10) >= len(labels) // 10 - 4).all()
        again = sources.read("digits", train=train)
        assert torch.equal(images, again[0])
        assert torch.equal(labels, again[1])
    assert parts[0][1][:10].tolist() == list(range(10))
    assert not list(tmp_path.iterdir())


def test_digits_are_in_mnist_format() -> None:
    images = sources.read("digits", train=True)[0].double()
    rows, columns = (images > 0).any(2).sum(1), (images > 0).any(1).sum(1)
    assert torch.maximum(rows, columns).eq(20).double().mean() > 0.95  # digits fill the box of 20 pixels
    assert torch.maximum(rows, columns).max() == 20  # and do not exceed it
    mass, place = images.sum((1, 2)), torch.arange(28.0, dtype=torch.double)
    for axis in (2, 1):  # centre of mass, within half a pixel and rounding
        assert ((images.sum(axis) @ place / mass) - 14).abs().max() < 0.52
    assert images.amax((1, 2)).eq(255).all()  # white on black
    assert images.mean() / 255 == pytest.approx(0.1307, abs=0.005)  # mean intensity of MNIST
    assert (images > 0).double().mean() == pytest.approx(0.191, abs=0.01)  # share of nonzero pixels in MNIST
    assert (images[:, 0].sum(), images[:, :, 0].sum()) == (0, 0)


# Folders of pictures


def draw(path: Path, value: int, size: tuple[int, int] = (28, 28), mode: str = "L") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, value).convert(mode).save(path)


def test_folder_is_split_by_class_and_shuffled_deterministically(tmp_path: Path) -> None:
    for position, name in enumerate(("ape", "bee", "cat")):
        for n in range(14 * (position + 1)):
            draw(tmp_path / name / f"{n}.png", 50 * position + n)
        (tmp_path / name / ".DS_Store").touch()
    (tmp_path / ".git").mkdir()
    (tmp_path / "README").touch()
    source = f"folder:{tmp_path}"
    sources.fetch(source)
    train, test = (sources.read(source, train=part) for part in (True, False))
    assert (train[0].shape, train[0].dtype, train[1].dtype) == ((72, 28, 28), torch.uint8, torch.int64)
    assert train[1].bincount().tolist() == [12, 24, 36]
    assert test[1].bincount().tolist() == [2, 4, 6]
    values = torch.cat([train[0], test[0]])[:, 0, 0].tolist()
    assert sorted(values) == sorted([*range(14), *range(50, 78), *range(100, 142)])  # each picture is in one split
    assert all(value // 50 == label for value, label in zip(values, torch.cat([train[1], test[1]]), strict=True))
    assert set(train[1][-12:].tolist()) == {0, 1, 2}
    assert torch.equal(train[0], sources.read(source, train=True)[0])


def test_folder_with_train_and_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for part, n in (("train", 5), ("test", 1)):
        for digit in (3, 8):
            for k in range(n):
                draw(tmp_path / "mine" / part / str(digit) / f"{k}.jpg", 10 * digit)
    monkeypatch.chdir(tmp_path)
    images, labels = sources.read("folder:mine", train=True)
    assert sorted(labels.tolist()) == [3] * 5 + [8] * 5
    assert images[:, 5, 5].tolist() == (10 * labels).tolist()
    assert sorted(sources.read("folder:mine", train=False)[1].tolist()) == [3, 8]
    shutil.rmtree("mine/test/3")
    draw(tmp_path / "mine/test/4/0.png", 40)
    for train in (True, False):
        with pytest.raises(InputError, match="hold different sub-folders; they need the same classes"):
            sources.read("folder:mine", train=train)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_all_image_modes_become_grey(mode: str, tmp_path: Path) -> None:
    picture = np.zeros((28, 28), np.uint8)
    picture[4:24, 10:18] = 255
    picture[10:12, 10:18] = 255 if mode == "1" else 85
    image = Image.fromarray(picture)
    for name in "01":
        (tmp_path / name).mkdir()
        for n in range(2):
            path = tmp_path / name / f"{n}.png"
            if mode == "I;16":
                Image.fromarray(picture.astype(np.uint16) * 257).save(path)
            else:
                image.convert(mode).save(path)
    assert np.array_equal(sources.read(f"folder:{tmp_path}", train=True)[0][0], picture)


def test_pictures_are_padded_with_black_and_transparency_is_black(tmp_path: Path) -> None:
    for name in ("wide", "glass"):
        (tmp_path / name).mkdir()
        for n in range(2):
            clear = Image.new("RGBA", (56, 28), (255, 255, 255, 0 if name == "glass" else 255))
            clear.save(tmp_path / name / f"{n}.png")
    images, labels = sources.read(f"folder:{tmp_path}", train=True)
    wide = images[labels == 1][0]
    assert (wide[7:21] == 255).all()
    assert (wide[:7] == 0).all()
    assert (wide[21:] == 0).all()
    assert (images[labels == 0] == 0).all()


def test_unreadable_picture_is_reported(tmp_path: Path) -> None:
    for name in "01":
        for n in range(2):
            draw(tmp_path / name / f"{n}.png", 100, size=(300, 300))
    assert len(sources.read(f"folder:{tmp_path}", train=True)[0]) == 2
    whole = (tmp_path / "0" / "0.png").read_bytes()
    for content in (b"not a picture", b"", whole[:-300]):
        for n in range(2):  # either may be in the training set
            (tmp_path / "1" / f"{n}.png").write_bytes(content)
        with pytest.raises(InputError, match=r"1.[01]\.png cannot be read as a picture"):
            sources.read(f"folder:{tmp_path}", train=True)


def test_strangers_files_among_the_pictures_are_refused(tmp_path: Path) -> None:
    for name in "01":
        for n in range(2):
            draw(tmp_path / name / f"{n}.png", 100)
    source = f"folder:{tmp_path}"
    other = tmp_path / "1" / "other.png"

    def narrow() -> None:
        draw(other, 100, size=(6000, 8))

    def endless() -> None:
        other.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n{} loop\n")  # for Ghostscript

    def too_large() -> None:
        Image.new("1", (4001, 4000)).save(other)

    attacks: dict[str, Callable[[], Any]] = {
        r"\(not a regular file\)": lambda: os.mkfifo(other),  # opening it would block
        r"\(empty\)": other.touch,
        "give PNG, JPEG": endless,
        "more than 16 million pixels": too_large,
        "6000 x 8 pixels, too narrow a strip": narrow,
    }
    for words, place in attacks.items():
        place()
        with pytest.raises(InputError, match=rf"other\.png .*{words}"):
            [sources.read(source, train=train) for train in (True, False)]
        other.unlink()
    assert len(sources.read(source, train=True)[0]) == 2


def test_phone_photos_are_turned_upright_and_large_ones_reduced(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # display rotated by 90 degrees clockwise
    photo = Image.new("L", (4800, 4400))
    photo.paste(255, (0, 0, 4800, 1100))  # the top quarter, the right quarter when turned
    photo.save(tmp_path / "photo.jpg", exif=exif)  # 21 million pixels
    image = sources.read_picture(tmp_path / "photo.jpg")
    assert image[14, 21:26].min() > 250
    assert image[14, :18].max() < 5


def test_invalid_folders_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere cannot be read: No such file or directory") as caught:
        sources.read(f"folder:{tmp_path / 'nowhere'}", train=True)
    assert not isinstance(caught.value, SourceUnavailableError)
    with pytest.raises(InputError, match=f"{tmp_path} holds 0 sub-folders"):
        sources.read(f"folder:{tmp_path}", train=True)
    for n in range(11):
        (tmp_path / f"{n:02}").mkdir()
    with pytest.raises(InputError, match="holds 11 sub-folders, expected 2 to 10"):
        sources.read(f"folder:{tmp_path}", train=True)
    (tmp_path / "10").rmdir()
    with pytest.raises(InputError, match="00 holds 0 pictures, expected at least 2"):
        sources.read(f"folder:{tmp_path}", train=True)

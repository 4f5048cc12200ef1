"""Downloads by torchvision that neither hang on a dead network or server nor leave anything half-done."""

import queue
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from http.client import HTTPException
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

ANSWER_TIMEOUT = 8.0  # seconds for a mirror to answer at all: name look-up, connection and TLS together
STALL_TIMEOUT = 10.0  # seconds without a byte after which a download is given up


def download(dataset: str, options: Mapping[str, str], root: Path, place: Callable[[Path], None]) -> list[str]:
    """Download a data set and have its files put into place, whole or not at all.

    Args:
        dataset: Name of torchvision's class.
        options: What that class must be told besides.
        root: Folder of the data; a scratch folder is made in it.
        place: Moves the files it wants out of the folder that it is given.

    Returns:
        Nothing, or why each mirror failed.
    """
    try:
        return _download(dataset, options, root, place)
    except OSError as error:
        return [f"{root} cannot be written: {error.strerror or error}"]


def _download(dataset: str, options: Mapping[str, str], root: Path, place: Callable[[Path], None]) -> list[str]:
    mirrors, failures = _mirrors(dataset), []
    for url, answer in _answers(mirrors):
        failure = answer
        if not failure:
            root.mkdir(parents=True, exist_ok=True)
            # Under the root, because a move is atomic only within one file system.
            with TemporaryDirectory(prefix=".download-", dir=root, ignore_cleanup_errors=True) as scratch:
                failure = _transfer(mirrors[url], scratch, options)
                if not failure:
                    place(Path(scratch, dataset, "raw"))
                    return []
        failures.append(f"{urlsplit(url).netloc}: {failure}")
    return failures


def _mirrors(name: str) -> dict[str, Any]:
    """Map a file on each mirror to a torchvision class that downloads from that mirror alone."""
    import torchvision.datasets

    dataset = getattr(torchvision.datasets, name)
    if hasattr(dataset, "url"):  # EMNIST: one zip
        return {dataset.url: dataset}
    if isinstance(dataset.resources, dict):  # QMNIST: full addresses, by part
        return {dataset.resources["train"][0][0]: dataset}
    # torchvision names the folder after the class, so every subclass keeps the name.
    return {m + dataset.resources[0][0]: type(name, (dataset,), {"mirrors": [m]}) for m in dataset.mirrors}


def _answers(urls: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Ask all mirrors at once; yield each, quickest first, with "" or what is wrong with it."""
    answers: queue.SimpleQueue[tuple[str, str]] = queue.SimpleQueue()

    def ask(url: str) -> None:
        failure = ""
        try:
            urlopen(Request(url, method="HEAD"), timeout=ANSWER_TIMEOUT).close()
        except HTTPError as error:  # an answer all the same: some servers refuse HEAD
            error.close()
        except Exception as error:
            failure = _short(error)
        answers.put((url, failure))

    silent = list(urls)
    for url in silent:  # in threads that can be left behind, because a name look-up heeds no timeout
        threading.Thread(target=ask, args=(url,), daemon=True).start()
    deadline = time.monotonic() + ANSWER_TIMEOUT
    while silent:
        try:
            url, failure = answers.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            break
        silent.remove(url)
        yield url, failure
    yield from ((url, f"no answer within {ANSWER_TIMEOUT:g} s") for url in silent)


def _transfer(dataset: Any, scratch: str, options: Mapping[str, str]) -> str:
    """Let torchvision download, check and unpack both parts into `scratch`; return "" or why it failed."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(STALL_TIMEOUT)  # torchvision sets none of its own
    try:
        for train in (True, False):
            dataset(scratch, train=train, download=True, **options)
    except (OSError, RuntimeError, HTTPException) as error:
        return _short(error)
    finally:
        socket.setdefaulttimeout(before)
    return ""


def _short(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[-1].removeprefix("<urlopen error ").removesuffix(">").rstrip(".")

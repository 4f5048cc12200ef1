"""Downloads through torchvision with timeouts for dead networks and servers, and without partial files."""

import queue
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

ANSWER_TIMEOUT = 8.0  # seconds until a mirror must answer: name look-up, connection and TLS together
STALL_TIMEOUT = 10.0  # seconds without data until a download is aborted


def download(dataset: str, options: Mapping[str, str], root: Path, install: Callable[[Path], None]) -> list[str]:
    """Downloads all files of a data set to a scratch folder and installs them only if all are complete.

    Args:
        dataset: Name of the torchvision class.
        options: Extra arguments of that class.
        root: Folder of the data, where the scratch folder is created.
        install: Function that moves the files out of the folder it is called with.

    Returns:
        One message per failed mirror; empty on success.
    """
    mirrors, failures = _mirrors(dataset), []
    try:
        for url, failure in _answers(mirrors):
            if not failure:
                root.mkdir(parents=True, exist_ok=True)
                # Inside the root, because a move is atomic only within one file system.
                with TemporaryDirectory(prefix=".download-", dir=root, ignore_cleanup_errors=True) as scratch:
                    failure = _transfer(mirrors[url], scratch, options)
                    if not failure:
                        install(Path(scratch, dataset, "raw"))
                        return []
            failures.append(f"{urlsplit(url).netloc}: {failure}")
    except OSError as error:
        return [f"{root} cannot be written: {error.strerror or error}"]
    return failures


def _mirrors(name: str) -> dict[str, Any]:
    """Maps the URL of one file on each mirror to a torchvision class that downloads from that mirror only."""
    import torchvision.datasets

    dataset = getattr(torchvision.datasets, name)
    if hasattr(dataset, "url"):  # EMNIST is one zip
        return {dataset.url: dataset}
    if isinstance(dataset.resources, dict):  # QMNIST lists full URLs by split
        return {dataset.resources["train"][0][0]: dataset}
    # torchvision names the folder after the class, so all subclasses need the same name.
    return {m + dataset.resources[0][0]: type(name, (dataset,), {"mirrors": [m]}) for m in dataset.mirrors}


def _answers(urls: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Asks all mirrors in parallel. Yields each URL with its error, empty on success, fastest first."""
    answers: queue.SimpleQueue[tuple[str, str]] = queue.SimpleQueue()

    def ask(url: str) -> None:
        failure = ""
        try:
            urlopen(Request(url, method="HEAD"), timeout=ANSWER_TIMEOUT).close()
        except HTTPError as error:  # the mirror is up, but some servers refuse HEAD
            error.close()
        except Exception as error:
            failure = _reason(error)
        answers.put((url, failure))

    waiting = list(urls)
    for url in waiting:  # in daemon threads, because name look-ups ignore timeouts
        threading.Thread(target=ask, args=(url,), daemon=True).start()
    deadline = time.monotonic() + ANSWER_TIMEOUT
    with suppress(queue.Empty):
        while waiting:
            url, failure = answers.get(timeout=max(0.0, deadline - time.monotonic()))
            waiting.remove(url)
            yield url, failure
    yield from ((url, f"no answer within {ANSWER_TIMEOUT:g} s") for url in waiting)


def _transfer(dataset: Any, scratch: str, options: Mapping[str, str]) -> str:
    """Downloads, checks and unpacks both splits into `scratch`. Returns the error, empty on success."""
    previous = socket.getdefaulttimeout()
    socket.setdefaulttimeout(STALL_TIMEOUT)  # torchvision sets no timeout
    try:
        for train in (True, False):
            dataset(scratch, train=train, download=True, **options)
    except (OSError, RuntimeError, HTTPException) as error:
        return _reason(error)
    finally:
        socket.setdefaulttimeout(previous)
    return ""


def _reason(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[-1].removeprefix("<urlopen error ").removesuffix(">").rstrip(".")

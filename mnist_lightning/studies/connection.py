"""Connection to a Ray cluster."""

import logging
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from uuid import uuid4

from mnist_lightning.errors import InputError, one_line
from mnist_lightning.studies.node import Mailbox, examine
from mnist_lightning.version import __version__

_CONNECT = 20  # seconds until a cluster must have answered
_ANSWER = 120  # seconds until a node must have answered: on a slow disk Python starts slowly
_HEAD = {"node:__internal_head__": 0.001}  # the resource that only the head node has
_PORTS = "`ray start --head` listens at HOST:6379, and at ray://HOST:10001 for other machines"
# Ray retries for minutes, and logs each retry to standard error from C++; a process of its own has a time limit.
_PROBE = """
import sys, ray
try:
    ray.init(sys.argv[1], log_to_driver=False, logging_level="CRITICAL")
except Exception as error:
    print(error)
    sys.exit(1)
"""


@contextmanager
def connected(address: str) -> Iterator[None]:
    """Connects this process to a Ray cluster, without Ray's messages. At the end, a cluster of `local` is stopped.

    Args:
        address: As in `RayCluster`.

    Raises:
        InputError: If Ray is not installed, or there is no usable cluster at the address.
    """
    match = re.fullmatch(r"(ray://)?([\w.-]+|\[[\da-fA-F:.]+\]):(\d{1,5})", address)
    if address not in ("auto", "local") and match is None:
        raise InputError(f"address must be auto, local, HOST:PORT or ray://HOST:PORT, got {address}")
    if find_spec("ray") is None:
        raise InputError("the option --address needs Ray: pip install 'mnist-lightning[cluster]'")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray
    import ray._private.worker as ray_worker

    if ray.is_initialized():
        raise InputError("this process is connected to Ray already; call ray.shutdown() first")
    if match is not None:
        _reach(match[2].strip("[]"), int(match[3]), address)
    if address == "local":  # Ray would save a token in the home folder, and use it for all clusters
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    elif not address.startswith("ray://"):  # Ray Client gives up by itself, after 30 seconds
        _probe(address)
    options: dict[str, Any] = {"include_dashboard": False} if address == "local" else {}
    handler = signal.getsignal(signal.SIGTERM)
    printer = ray_worker.print_to_stdstream
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ray.init(address, log_to_driver=False, logging_level=logging.CRITICAL, **options)
    except (RuntimeError, OSError, ValueError, ray.exceptions.RayError) as error:
        ports = f"; {_PORTS}" if isinstance(error, ConnectionError) else ""
        raise InputError(f"cannot use the Ray cluster at {address}: {one_line(error)}{ports}") from error
    finally:
        if threading.current_thread() is threading.main_thread() and handler is not None:
            signal.signal(signal.SIGTERM, handler)  # Ray replaces it
    # Ray prints 20 lines of its log when a node dies, and has no option for it.
    ray_worker.print_to_stdstream = lambda *_, **__: None
    try:
        yield
    finally:
        ray.shutdown()
        ray_worker.print_to_stdstream = printer


def _reach(host: str, port: int, address: str) -> None:
    """Opens a connection, which fails at once where Ray would wait."""
    try:
        socket.create_connection((host, port), timeout=_CONNECT / 2).close()
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"there is no Ray cluster at {address}: {one_line(reason)}") from error


def _probe(address: str) -> None:
    """Connects another process to a cluster, which must succeed soon."""
    command = [sys.executable, "-P", "-c", _PROBE, address]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=_CONNECT
        )
    except subprocess.TimeoutExpired:
        raise InputError(f"no Ray cluster answers at {address} within {_CONNECT} seconds; {_PORTS}") from None
    if done.returncode:
        other = "this machine may not be one of its nodes; use ray://HOST:10001"  # Ray aborts the process then
        reason = one_line(done.stdout.decode(errors="replace")) or other
        raise InputError(f"cannot use the Ray cluster at {address}: {reason}")


def examine_nodes(nodes: Sequence[Mapping[str, Any]]) -> bool:
    """Checks the installation of each node.

    Args:
        nodes: As in `ray.nodes`.

    Returns:
        Whether all nodes share the working directory of this process.

    Raises:
        InputError: If a node cannot run this version of the package.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    remote: Any = ray.remote
    token = Path.cwd() / f".mnist-lightning-{uuid4().hex}"
    try:
        token.touch()
    except OSError as error:
        raise InputError(f"cannot write to {token.parent}: {error.strerror}") from error
    try:
        answers = []
        for node in nodes:
            strategy = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            task = remote(num_cpus=0, max_retries=0, scheduling_strategy=strategy)(examine)
            answers.append(task.remote(str(token)))
        deadline = time.monotonic() + _ANSWER
        shared = [
            _answer(node["NodeManagerAddress"], answer, deadline) for node, answer in zip(nodes, answers, strict=True)
        ]
    finally:
        token.unlink()
    return all(shared)


def open_mailbox(address: str) -> Any:
    """Starts the mailbox on the head node, and returns its handle.

    Args:
        address: Address of the cluster, for the error message.

    Raises:
        InputError: If the head node cannot run it.
    """
    import ray

    api: Any = ray  # its types do not know all options
    mailbox = api.remote(num_cpus=0, resources=_HEAD)(Mailbox).remote()
    try:
        ray.get(mailbox.receive.remote(""), timeout=_ANSWER)
    except ray.exceptions.RayError as error:
        raise InputError(
            f"cannot use the Ray cluster at {address}; are RAY_AUTH_MODE and ~/.ray/auth_token the same on all "
            f"machines? {one_line(error)}"
        ) from error
    return mailbox


def _answer(node: str, answer: Any, deadline: float) -> bool:
    """Returns whether a node shares the working directory.

    Raises:
        InputError: If the node does not answer, or has another version of this package.
    """
    import ray

    try:
        version, is_shared = ray.get(answer, timeout=max(1, deadline - time.monotonic()))
    except ray.exceptions.GetTimeoutError:
        raise InputError(f"the node {node} does not answer within {_ANSWER} seconds") from None
    except (ray.exceptions.RayError, ImportError) as error:
        cause = one_line(getattr(error, "cause", None) or error)
        raise InputError(
            f"the node {node} cannot run mnist-lightning {__version__}, which must be installed on every node: {cause}"
        ) from error
    if version != __version__:
        raise InputError(
            f"the node {node} has mnist-lightning {version}, and this machine has {__version__}; install the same "
            "version on all nodes"
        )
    return bool(is_shared)

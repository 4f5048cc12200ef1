"""What runs on the nodes of a Ray cluster: a training, and the mailbox between trainings and driver."""

import os
import shutil
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from queue import Empty, SimpleQueue
from tempfile import TemporaryDirectory, gettempdir
from threading import Event
from typing import TYPE_CHECKING, Any

from mnist_lightning.errors import InputError
from mnist_lightning.version import __version__

if TYPE_CHECKING:  # the mailbox and `examine` answer before torch is imported
    from mnist_lightning.studies.local import LocalMachine
    from mnist_lightning.studies.plan import Training
    from mnist_lightning.studies.process import Ending, Message

POLL = 0.5  # seconds between two calls of the mailbox
_PREFIX = "mnist-lightning-node-"  # of temporary folders
_NEW = 60  # seconds
_DATA = "MNIST_LIGHTNING_DATA"


@dataclass(frozen=True)
class Outcome:
    """Result of a training on a node.

    Attributes:
        ending: How it ended.
        source: Data source that was used, if it may have been a fallback.
        run: The run's folder as `runs.writing.pack` makes it. None if nothing was saved, or the storage is shared.
        folder: Temporary folder of the run on the node.
    """

    ending: "Ending"
    source: str | None = None
    run: bytes | None = None
    folder: str = ""


class Mailbox:
    """Ray actor that holds the messages of trainings for the driver, and the driver's requests to stop them.

    Nodes and driver call it, because nodes cannot call a driver that is connected by Ray Client.
    """

    def __init__(self) -> None:
        self._messages: dict[str, list[Message]] = {}
        self._stopped: set[str] = set()

    def send(self, key: str, messages: "Sequence[Message]") -> bool:
        """Takes messages of a training, and returns whether it goes on."""
        self._messages.setdefault(key, []).extend(messages)
        return key not in self._stopped

    def receive(self, key: str) -> "list[Message] | None":
        """Returns the new messages of a training. None if it has not started yet."""
        messages = self._messages.get(key)
        if messages is not None:
            self._messages[key] = []
        return messages

    def stop(self, key: str) -> None:
        """Stops a training."""
        self._stopped.add(key)


def examine(token: str) -> tuple[str, bool]:
    """Returns this node's version of the package, and whether the node has a file of the driver."""
    return __version__, Path(token).exists()


def train_shared(training: "Training", cpus: int, mailbox: Any, key: str, folder: str, data: str) -> Outcome:
    """Trains what is left of a training in the driver's folders.

    Args:
        training: The training.
        cpus: Number of CPU threads.
        mailbox: Handle of the mailbox.
        key: Name of the training in the mailbox.
        folder: Working directory of the driver.
        data: Folder of the driver's data, unless the node has another one.
    """
    os.chdir(folder)
    os.environ.setdefault(_DATA, data)
    return Outcome(_train(training, cpus, mailbox, key), training.source)


def train_apart(training: "Training", cpus: int, mailbox: Any, key: str, run: bytes | None) -> Outcome:
    """Trains in a temporary folder of this node, and returns the run.

    Args:
        training: The training.
        cpus: Number of CPU threads.
        mailbox: Handle of the mailbox.
        key: Name of the training in the mailbox.
        run: A run to resume, as `runs.writing.pack` makes it.
    """
    from mnist_lightning.runs.writing import lock, pack, unpack

    _remove_abandoned()
    home = Path.cwd()
    os.environ[_DATA] = str(Path(os.environ.get(_DATA) or "data").expanduser().absolute())
    with TemporaryDirectory(prefix=_PREFIX) as temporary:
        descriptor = lock(Path(temporary))
        os.chdir(temporary)
        try:
            moved = _moved(training, Path(temporary))
            if run is not None:
                unpack(run, moved.experiment)
            ending = _train(moved, cpus, mailbox, key)
            saved = [run for run in moved.runs() if run.is_finished or run.checkpoint("last")]
            if not saved:
                return Outcome(ending, moved.source)
            return Outcome(ending, moved.source, pack(saved[-1]), str(Path(temporary, saved[-1].folder or "")))
        finally:
            os.chdir(home)
            if descriptor is not None:
                os.close(descriptor)


def _remove_abandoned() -> None:
    """Removes temporary folders of trainings that were killed."""
    from mnist_lightning.runs.writing import lock

    for folder in Path(gettempdir()).glob(f"{_PREFIX}*"):
        with suppress(InputError, OSError):  # a training uses it, or it is another user's
            is_new = time.time() - folder.stat().st_mtime < _NEW  # perhaps not locked yet
            if not is_new and (descriptor := lock(folder)) is not None:
                shutil.rmtree(folder, ignore_errors=True)
                os.close(descriptor)


def _moved(training: "Training", folder: Path) -> "Training":
    """Returns the training with one config instead of the driver's files, and its run in the working directory."""
    from mnist_lightning.runs.run import ORIGINS

    config = folder / "study.yaml"
    config.write_text(training.shortened, encoding="utf-8")
    arguments = ["--config", str(config), "--experiment", training.config["experiment"]]
    arguments += ["--trainer.default_root_dir", "null"]
    arguments += [word for name in ORIGINS if (origin := training.config.get(name)) for word in (f"--{name}", origin)]
    settings = {**training.config, "trainer": {**training.config["trainer"], "default_root_dir": None}}
    return replace(training, arguments=tuple(arguments), config=settings)


def _train(training: "Training", cpus: int, mailbox: Any, key: str) -> "Ending":
    """Trains in the working directory."""
    from mnist_lightning.studies.local import LocalMachine
    from mnist_lightning.studies.plan import prepare_data

    os.environ["OMP_NUM_THREADS"] = str(cpus)
    machine = LocalMachine(trainings=1)
    messages: SimpleQueue[Message] = SimpleQueue()
    ended = Event()

    def listener(message: "Message") -> bool:
        messages.put(message)
        return True

    with ThreadPoolExecutor(1) as pool:
        # In the main thread, `ray.get` would release the task's CPU, and Ray would start another task.
        relay = pool.submit(_relay, machine, mailbox, key, messages, ended)
        try:
            if training.config["data"].get("init_args", {}).get("fallback"):
                prepare_data([training])
            ending = machine.train(training, listener)
        finally:
            ended.set()
        relay.result()
    return ending


def _relay(machine: "LocalMachine", mailbox: Any, key: str, messages: "SimpleQueue[Message]", ended: Event) -> None:
    """Sends the messages of a training to the mailbox, and stops the training if the driver wants it."""
    import ray

    try:
        is_last = False
        while not is_last:
            is_last = ended.is_set()
            if not ray.get(mailbox.send.remote(key, _drained(messages))):
                machine.stop()
            ended.wait(POLL)
    except BaseException:
        machine.stop()
        raise


def _drained(messages: "SimpleQueue[Message]") -> "list[Message]":
    drained = []
    with suppress(Empty):
        while True:
            drained.append(messages.get_nowait())
    return drained

import itertools
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import uuid4

import pytest

import mnist_lightning
from mnist_lightning.errors import InputError
from mnist_lightning.studies import connection
from mnist_lightning.studies.cluster import RayCluster, shares
from mnist_lightning.studies.plan import Training, trainings
from mnist_lightning.studies.process import Ending, Message

EIGHT, GPUS = {"CPU": 8.0}, {"CPU": 8.0, "GPU": 2.0}


@pytest.mark.parametrize(
    ("nodes", "jobs", "expected"),
    [
        ([EIGHT, EIGHT], None, (16, 1, 0)),  # one CPU each, so that the bits do not depend on the cluster
        ([EIGHT, EIGHT], 4, (4, 4, 0)),
        ([EIGHT, {"CPU": 4.0}], 3, (3, 4, 0)),  # 12 // 3 on each node
        ([{"CPU": 3.0}, {"CPU": 3.0}], 3, (3, 1, 0)),  # 6 // 3 would leave one waiting
        ([EIGHT, EIGHT], 1, (1, 8, 0)),  # a training has one node
        ([EIGHT], 100, (100, 1, 0)),
        ([GPUS, EIGHT], None, (2, 1, 1)),  # nodes without GPU are not used
        ([GPUS, GPUS], 4, (4, 4, 1)),
        ([GPUS], 4, (4, 2, 0.5)),
        ([GPUS], 6, (6, 1, 0.3333)),
        ([{"CPU": 0.0}, {}], None, (0, 1, 0)),
        ([], 2, (0, 1, 0)),
    ],
)
def test_a_cluster_is_divided(
    nodes: list[dict[str, float]], jobs: int | None, expected: tuple[int, int, float]
) -> None:
    assert shares(nodes, jobs) == expected


@pytest.mark.parametrize("address", ["", "head", "http://head:6379", "ray://head", "head:port", "a b:6379"])
def test_malformed_addresses_are_refused(address: str) -> None:
    with pytest.raises(InputError, match="address must be auto, local, HOST:PORT or ray://HOST:PORT, got "):
        RayCluster(address, trainings=1)


def test_without_ray_its_installation_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"--address needs Ray: pip install 'mnist-lightning\[cluster\]'"):
        RayCluster("127.0.0.1:1", trainings=1)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "[::1]:1"])
def test_closed_ports_are_refused_at_once(address: str) -> None:
    pytest.importorskip("ray")
    with pytest.raises(InputError, match=r"there is no Ray cluster at .*refused"):
        RayCluster(address, trainings=1)


def test_jobs_must_be_positive() -> None:
    with pytest.raises(InputError, match="jobs must be 1 or more, got 0"):
        RayCluster("127.0.0.1:1", trainings=1, jobs=0)


class Nodes:
    """Nodes of a Ray cluster on this machine, each with its own processes and mounts, as in containers.

    Attributes:
        hidden: Folder that no node has.
        scratch: Temporary folder of all nodes.
        address: Address of the head node, which runs no trainings.
        client: Its address for Ray Client.
    """

    def __init__(self, folder: Path, prefix: Sequence[str]) -> None:
        self.hidden, self.scratch, self._home, self._prefix = (
            folder / "hidden",
            folder / "scratch",
            folder / "home",
            prefix,
        )
        for path in (self.hidden, self.scratch, self._home):
            path.mkdir()
        port, client, self._folder = free_port(), free_port(), folder
        self.address, self.client = f"127.0.0.1:{port}", f"ray://127.0.0.1:{client}"
        self._processes: list[subprocess.Popen[str]] = []
        self._numbers = itertools.count(2)
        self._start(f"--head --port={port} --ray-client-server-port={client} --include-dashboard=false --num-cpus=0")

    def start(self, cpus: int = 1) -> subprocess.Popen[str]:
        """Starts another node."""
        ip = f"127.0.0.{next(self._numbers)}"
        return self._start(f"--address={self.address} --node-ip-address={ip} --num-cpus={cpus}")

    def _start(self, options: str) -> subprocess.Popen[str]:
        common = "--num-gpus=0 --min-worker-port=0 --max-worker-port=0 --object-store-memory=100000000 --block"
        temporary = f"--temp-dir={self._folder}/ray" if "--head" in options else ""
        ray = Path(sys.executable).with_name("ray")
        script = f"mount -t tmpfs tmpfs {self.hidden} && exec {ray} start {options} {common} {temporary}"
        detection = {"period_ms": 500, "timeout_ms": 1000, "initial_delay_ms": 1000, "failure_threshold": 3}
        environment = {
            **os.environ,
            "PYTHONPATH": str(Path(mnist_lightning.__file__).parents[1]),
            "TMPDIR": str(self.scratch),
            "SLURM_NTASKS": "2",  # as after `srun ray start`: Lightning would distribute a training
            "SLURM_PROCID": "1",
            "SLURM_JOB_NAME": "study",
            **{f"RAY_health_check_{name}": str(value) for name, value in detection.items()},
        }
        process = subprocess.Popen(
            [*self._prefix, "sh", "-c", script],
            cwd=self._home,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._processes.append(process)
        assert process.stdout is not None
        output = []
        for line in process.stdout:
            output.append(line)
            if "--block" in line:  # "This command will now block until terminated"
                return process
        raise AssertionError("".join(output))

    def stop(self, first: int = 0) -> None:
        """Kills all nodes but some of the first."""
        for process in self._processes[first:]:
            kill(process)
        del self._processes[first:]


def kill(process: subprocess.Popen[str]) -> None:
    """Kills a node with all its processes."""
    process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@pytest.fixture(scope="module")
def head() -> Iterator[Nodes]:
    pytest.importorskip("ray")
    prefix = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    prefix += [] if hasattr(os, "geteuid") and os.geteuid() == 0 else ["--user", "--map-root-user"]
    try:
        subprocess.run([*prefix, "mount", "-t", "tmpfs", "tmpfs", "/mnt"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this machine does not permit mount namespaces")
    # A short path: those of Unix sockets have at most 107 characters.
    with (
        tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("RAY_AUTH_MODE", "disabled")  # a token in the home folder is not for this cluster
        cluster = Nodes(Path(folder), prefix)
        try:
            yield cluster
        finally:
            cluster.stop()


@pytest.fixture
def nodes(head: Nodes) -> Iterator[Nodes]:
    """A head node. The other nodes are killed after each test."""
    yield head
    head.stop(first=1)


@pytest.fixture
def experiment() -> Iterator[str]:
    """Name of an experiment. No process of it is left after the test."""
    name = f"e{uuid4().hex}"
    yield name
    wait_until(lambda: not fits(name))


def fits(experiment: str) -> list[str]:
    """Command lines of the `fit` processes of an experiment, on all nodes."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(path.read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue
    return [line for line in lines if experiment in line and "mnist_lightning fit" in line]


def wait_until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def plan(experiment: str, configs: Sequence[str], seeds: int, epochs: int) -> list[Training]:
    options = ["--data.source=digits", f"--trainer.max_epochs={epochs}", "--trainer.limit_train_batches=2"]
    return trainings(configs, seeds=seeds, options=[*options, "--experiment", experiment])


@pytest.mark.slow
def test_runs_come_home_from_nodes_without_shared_storage_although_one_dies(
    nodes: Nodes, experiment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(nodes.hidden)
    node, planned = nodes.start(), plan(experiment, ["lenet", "mlp"], seeds=2, epochs=1)
    cluster = RayCluster(nodes.client, len(planned))
    messages: list[Message] = []
    try:
        assert (cluster.jobs, cluster.cpus, cluster.is_shared) == (1, 1, False)
        with ThreadPoolExecutor(3) as pool:
            futures = [pool.submit(cluster.train, training, lambda m: not messages.append(m)) for training in planned]
            wait_until(lambda: fits(experiment))
            nodes.start(cpus=2)
            kill(node)
            endings = [future.result() for future in futures]
    finally:
        cluster.close()
    assert not any(ending.error or ending.log for ending in endings)
    warnings = [warning for ending in endings for warning in ending.warnings]
    assert warnings == ["its node or worker died; the training was submitted again (retry 1 of 3)"]
    assert all(training.finished() for training in planned)
    folder = Path("lightning_logs", experiment)
    assert sorted(path.name for path in folder.iterdir()) == [f"version_{number}" for number in range(4)]
    assert {message["epoch"] for message in messages} == {0, 1}
    left = list(nodes.scratch.glob("mnist-lightning-*"))
    assert len(left) <= 1  # of the dead node


@pytest.mark.slow
def test_a_training_whose_node_dies_is_resumed_from_shared_storage(nodes: Nodes, experiment: str) -> None:
    node = nodes.start()
    [training] = plan(experiment, ["mlp"], seeds=1, epochs=60)
    cluster = RayCluster(nodes.address, trainings=1, jobs=1)
    epochs: list[int] = []
    try:
        assert cluster.is_shared
        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(cluster.train, training, lambda message: not epochs.append(message["epoch"]))
            wait_until(lambda: max(epochs, default=0) >= 2)
            kill(node)
            wait_until(lambda: not fits(experiment))
            before = len(epochs)
            nodes.start()
            ending = future.result()
    finally:
        cluster.close()
    assert not ending.error
    assert ending.warnings == ("its node or worker died; the training was submitted again (retry 1 of 3)",)
    assert epochs[before] >= 2  # where the new process begins
    assert epochs[-1] == 60
    [run] = training.runs()
    assert run.is_finished


@pytest.mark.slow
def test_stopped_trainings_come_home_and_are_resumed(
    nodes: Nodes, experiment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(nodes.hidden)
    nodes.start()
    first, second = plan(experiment, ["mlp"], seeds=2, epochs=40)
    cluster = RayCluster(nodes.client, trainings=2, jobs=1)
    try:
        pruned = cluster.train(first, lambda message: message["epoch"] < 2)
        [run] = first.runs()
        assert pruned.is_stopped
        assert not run.is_finished
        assert str(run.folder) in pruned.error  # not that of the node
        epochs: list[int] = []
        resumed = cluster.train(first, lambda message: not epochs.append(message["epoch"]))
        assert resumed == Ending()
        assert epochs[0] >= 2
        assert [run.folder for run in first.runs() if run.is_finished] == [run.folder]
        assert cluster.train(first, lambda message: pytest.fail("a finished run was trained again")) == Ending()
        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(cluster.train, second, lambda message: True)
            wait_until(lambda: fits(experiment))
            cluster.stop()
            assert future.result().is_stopped
    finally:
        cluster.close()


@pytest.mark.slow
def test_nodes_must_have_the_same_version(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes.start()
    cluster = RayCluster(nodes.address, trainings=1)
    cluster.close()
    monkeypatch.setattr(connection, "__version__", "9.9")
    with pytest.raises(InputError, match=r"has mnist-lightning \S+, and this machine has 9\.9; install the same"):
        RayCluster(nodes.address, trainings=1)


@pytest.mark.slow
def test_ray_is_started_on_this_machine_and_stopped(run: Callable[..., str], tmp_path: Path) -> None:
    pytest.importorskip("ray")
    options = ["--data.source=digits", "--trainer.max_epochs=1", "--trainer.limit_train_batches=2"]
    output = run("study", "mlp", "--seeds", "1", "--address", "local", "--", *options, HOME=str(tmp_path / "home"))
    assert "mlp, seed 0: finished" in output
    assert Path("lightning_logs/mlp/version_0/summary.json").is_file()
    assert not (tmp_path / "home" / ".ray").exists()  # no token that Ray would use for other clusters

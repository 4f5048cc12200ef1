"""The promises of SECURITY.md."""

import ast
import gzip
import hashlib
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from shutil import copyfile

import numpy as np
import pytest
import torchvision

import mnist_lightning
from mnist_lightning.data.sources import _EMNIST, fetch, read

SOURCES = sorted(Path(mnist_lightning.__file__).parent.rglob("*.py"))
UNPICKLERS = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
SAFE = {"torch.load": ("weights_only", True), "np.load": ("allow_pickle", False)}
UNSAFE = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "torch.jit.load", "torch.hub.load"}


def dangers(tree: ast.AST) -> Iterator[str]:
    """Calls and imports that could run untrusted code."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = {alias.name.partition(".")[0] for alias in node.names}
            names |= {(node.module or "").partition(".")[0]} if isinstance(node, ast.ImportFrom) else set()
            yield from names & UNPICKLERS
        elif isinstance(node, ast.Call):
            called, given = ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}
            name, value = SAFE.get(called, ("", ""))
            if called in UNSAFE or given.get("shell") == "True" or (name and given.get(name) != str(value)):
                yield ast.unparse(node)
            if called.startswith("yaml.") and "load" in called and called != "yaml.safe_load":
                yield ast.unparse(node)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_the_package_does_not_run_untrusted_code(path: Path) -> None:
    assert list(dangers(ast.parse(path.read_text()))) == []


@pytest.mark.parametrize(
    "code",
    [
        "eval(x)",
        "import pickle",
        "from joblib import load",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path)",
        "yaml.load(text, Loader)",
        "yaml.unsafe_load(text)",
        "subprocess.run(line, shell=True)",
    ],
)
def test_dangerous_code_would_be_found(code: str) -> None:
    assert list(dangers(ast.parse(code)))


@pytest.mark.parametrize(
    "text",
    [
        "model: !!python/object/apply:os.system ['touch executed']",
        "model: {class_path: os.system, init_args: {command: touch executed}}",
        "model: MLP\ntrainer: {logger: {class_path: os.system, init_args: {command: touch executed}}}",
        "model: MLP\ntrainer: {callbacks: [{class_path: subprocess.Popen, init_args: {args: [touch, executed]}}]}",
    ],
)
def test_a_config_cannot_call_arbitrary_functions(text: str, fails: Callable[..., str]) -> None:
    Path("config.yaml").write_text(text)
    fails("fit", "--config", "config.yaml")
    assert not Path("executed").exists()


def idx(array: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    return gzip.compress(header + array.astype(np.uint8).tobytes())


def test_paths_in_an_archive_cannot_leave_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, packed = tmp_path / "deep" / "root", tmp_path / "gzip.zip"
    with zipfile.ZipFile(packed, "w") as archive:
        for name in _EMNIST:
            content = np.arange(20) % 10 if "labels" in name else np.zeros((20, 28, 28))
            archive.writestr(f"gzip/{name}.gz", idx(content))
        for depth in range(7):
            archive.writestr(f"{'../' * depth}evil.py", "evil")
        archive.writestr(str(tmp_path / "evil.py"), "evil")
    monkeypatch.setattr(torchvision.datasets.utils, "_urlretrieve", lambda _, path, *__: copyfile(packed, path))
    monkeypatch.setattr(torchvision.datasets.EMNIST, "url", packed.as_uri())
    monkeypatch.setattr(torchvision.datasets.EMNIST, "md5", hashlib.md5(packed.read_bytes()).hexdigest())
    fetch("emnist_digits", root)
    assert len(read("emnist_digits", root, train=True)[0]) == 20
    assert not list(tmp_path.rglob("evil.py"))
    assert sorted(path.name for path in (root / "EMNIST" / "raw").iterdir()) == sorted(["MD5SUMS", *_EMNIST])
    with packed.open("ab") as file:
        file.write(b"changes the checksum")
    with pytest.raises(ValueError, match="File not found or corrupted"):
        fetch("emnist_digits", tmp_path / "other")

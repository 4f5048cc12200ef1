"""Side effects and cost of imports, owners of facts. `lint-imports` checks the directions of imports."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import mnist_lightning
from mnist_lightning.cli import VERBS

PACKAGE = Path(mnist_lightning.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))
RUN_FILES = re.compile(r"summary\.json|test_predictions|best\.ckpt|last\.ckpt|config\.yaml")
HEAVY = ("torch", "lightning", "scipy", "sklearn", "matplotlib", "torch_geometric", "skimage", "gradio", "PIL")


def tags_in_f_strings(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            text = "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
            yield from re.findall(r"</?[a-zA-Z][\w-]*[\s/>].*", text)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_html_comes_from_templates(path: Path) -> None:
    assert list(tags_in_f_strings(ast.parse(path.read_text()))) == []


@pytest.mark.parametrize("code", ["f'<p>{x}</p>'", "f'<li class=\"a\">{x}'", "f'{x}</div>'", "f'<br/>{x}'"])
def test_html_in_f_strings_would_be_found(code: str) -> None:
    assert list(tags_in_f_strings(ast.parse(code)))


def test_the_layout_of_run_folders_has_one_owner() -> None:
    names = {path.relative_to(PACKAGE) for path in MODULES if RUN_FILES.search(path.read_text())}
    assert names
    assert {name.parts[0] for name in names} == {"runs"}


def loaded_modules(code: str) -> set[str]:
    """Names of the packages that a new process has imported after some code."""
    code = f"import sys\n{code}\nprint(*{{name.partition('.')[0] for name in sys.modules}}, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stderr.splitlines()[-1].split())


def command(*args: str) -> str:
    return (
        f"from mnist_lightning.cli import main\ntry:\n    main({list(args)})\nexcept SystemExit as exit_:\n"
        f"    code = exit_.code"
    )


@pytest.mark.parametrize("args", [["--help"], ["--version"], [], ["fitt"]], ids=["help", "version", "bare", "typo"])
def test_answers_before_anything_slow_is_imported(args: list[str]) -> None:
    loaded = loaded_modules(command(*args))
    assert not loaded & {*HEAVY, "numpy", "jsonargparse", "rich", "jinja2"}


def test_help_of_the_verbs_does_not_import_torch() -> None:
    assert not loaded_modules("\n".join(command(verb, "--help") for verb in VERBS)) & set(HEAVY)


@pytest.mark.slow
def test_explore_never_imports_lightning() -> None:
    loaded = loaded_modules(command("explore", "--source", "digits"))
    assert "torch" in loaded
    assert "lightning" not in loaded
    assert Path("data-report/index.html").is_file()


@pytest.mark.slow
def test_compare_never_imports_lightning(logs: Path) -> None:
    loaded = loaded_modules(command("compare", str(logs)))
    assert "torch" in loaded
    assert "lightning" not in loaded
    assert Path("report/index.html").is_file()


def test_importing_the_package_has_no_side_effects() -> None:
    state = "(gc.isenabled(), gc.get_freeze_count(), warnings.filters[:], dict(os.environ), threading.excepthook)"
    code = f"import gc, os, threading, warnings\nbefore = {state}\nimport mnist_lightning\nassert before == {state}"
    assert "torch" not in loaded_modules(code)


@pytest.mark.slow
def test_pyg_is_imported_by_graph_models_only() -> None:
    loaded = loaded_modules("from mnist_lightning import GNN, MLP, MNISTDataModule, load\nMLP()")
    assert loaded >= {"torch", "lightning"}
    assert "torch_geometric" not in loaded


def test_every_name_of_the_package_can_be_imported() -> None:
    assert {"CNN", "GNN", "load", "InputError", "__version__"} <= set(mnist_lightning.__all__)
    for name in mnist_lightning.__all__:
        assert getattr(mnist_lightning, name) is not None

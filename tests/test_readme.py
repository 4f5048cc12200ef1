"""What the README says is what happens."""

import re
from pathlib import Path

import pytest

README = (Path(__file__).parents[1] / "README.md").read_text()
CONTRIBUTING = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text()


def blocks(text: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)


@pytest.mark.parametrize("code", blocks(README), ids=["compare", "connectivity", "Trainer", "bare loop"])
def test_library_examples_run(code: str) -> None:
    Path("lightning_logs").mkdir()
    names: dict[str, object] = {}
    exec(code, names)  # the README's own words


def test_the_model_in_contributing_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    from mnist_lightning.cli import main

    (code,) = blocks(CONTRIBUTING)
    Path("contributed.py").write_text(code)
    monkeypatch.syspath_prepend(".")
    main(["fit", "--model", "contributed.MyNet", "--data.source", "digits", "--trainer.max_epochs", "1"])
    assert Path("lightning_logs/mynet/version_0/summary.json").is_file()

"""The examples in README and CONTRIBUTING work."""

import re
from pathlib import Path

import pytest

from mnist_lightning.cli import main

README = (Path(__file__).parents[1] / "README.md").read_text()
CONTRIBUTING = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text()


def blocks(text: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)


COMPARE, *OTHERS = blocks(README)


@pytest.mark.slow
@pytest.mark.parametrize(
    "code", OTHERS, ids=["corruptions", "connectivity", "classify", "Trainer", "plain module", "bare loop"]
)
def test_library_examples_run(code: str) -> None:
    exec(code, {})


@pytest.mark.slow
def test_the_example_of_compare(capsys: pytest.CaptureFixture[str]) -> None:
    for model in ("MLP", "LeNet5"):
        main(["fit", "--model", model, "--data.source", "digits", "--trainer.max_epochs", "1"])
    capsys.readouterr()
    exec(COMPARE, {})
    output = capsys.readouterr().out
    assert "'mlp'" in output
    assert "'lenet5'" in output
    assert " is better than " in output or " are not distinguishable at " in output


def test_the_model_in_contributing_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = blocks(CONTRIBUTING)
    Path("contributed.py").write_text(code)
    monkeypatch.syspath_prepend(".")
    main(["fit", "--model", "contributed.MyNet", "--data.source", "digits", "--trainer.max_epochs", "1"])
    assert Path("lightning_logs/mynet/version_0/summary.json").is_file()

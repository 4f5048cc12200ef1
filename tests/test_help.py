"""Help, typos, options that name files and classes: what users read before anything runs."""

import inspect
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import CONFIGS
from lightning.pytorch import Trainer

from mnist_lightning import models
from mnist_lightning.cli import TRAINER_VERBS, VERBS, main
from mnist_lightning.errors import InputError
from mnist_lightning.files import read_yaml
from mnist_lightning.help import OPTIONS, describe_verb
from mnist_lightning.training.parser import check_settings

SHORT = [
    "--model",
    "MLP",
    "--data.source",
    "digits",
    "--trainer.max_epochs",
    "1",
    "--trainer.enable_progress_bar=false",
]


@pytest.fixture
def shown(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Output of a help on a terminal of 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")

    def show(*args: str) -> str:
        with pytest.raises(SystemExit) as exit_:
            main(list(args))
        assert exit_.value.code == 0
        return capsys.readouterr().out

    return show


def test_the_overview_fits_one_screen_and_shows_commands(shown: Callable[..., str]) -> None:
    text = shown("help")
    assert text == shown("--help")
    assert len(text.splitlines()) < 24
    assert text.count("\n  mnist-lightning ") == 3


def test_a_typo_gets_a_suggestion_and_the_verbs(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["comapre"])
    out, err = capsys.readouterr()
    assert exit_.value.code == 2
    assert err == "mnist-lightning: error: unknown verb 'comapre'; did you mean compare?\n"
    assert all(f"\n  {verb} " in out for verb in (*TRAINER_VERBS, *VERBS))


@pytest.mark.parametrize("verb", ["fit", "compare"])
def test_help_and_a_verb_is_the_verbs_help(verb: str, shown: Callable[..., str]) -> None:
    assert shown("help", verb) == shown(verb, "--help")


def test_fit_help_names_all_models_and_configs_and_existing_options(shown: Callable[..., str]) -> None:
    text = shown("fit", "--help")
    for name in (*models.__all__, *(path.stem for path in CONFIGS.glob("*.yaml"))):
        assert re.search(rf"\b{name}\b", text)
    everything = shown("fit", "--help.all") + shown("fit", "--model.help", "MLP")
    everything += shown("fit", "--data.help", "MNISTDataModule")
    everything = everything.partition("All options:")[2]
    for name, _, _, verbs in OPTIONS:
        assert "fit" not in verbs or f"--{name} " in everything


def descriptions(text: str) -> list[str]:
    """Each paragraph and each option's description, without the types and defaults behind it."""
    entries = [""]
    for line in re.sub(r"(?m)^(usage: |  mnist-lightning |Help for |\S.*:$).*\n", "\n", text).splitlines():
        option = re.match(r"  (-\S.*?|\w+)(?:  +(.*))?$", line)
        if option or not line.strip():
            entries.append(option[2] or "" if option else "")
        else:
            entries[-1] += " " + line.strip()
    entries = [re.sub(r" ?\((type: |default: |required).*\)$", "", entry).strip() for entry in entries]
    return [entry for entry in entries if entry]


@pytest.mark.parametrize(
    "args",
    [[verb, flag] for verb in TRAINER_VERBS for flag in ("--help", "--help.all")]
    + [[verb, "--help"] for verb in VERBS]
    + [
        ["fit", f"--{help_}"]
        for help_ in ("model.help=CNN", "data.help=MNISTDataModule", "trainer.logger.help=CSVLogger")
    ],
    ids=" ".join,
)
def test_no_sentence_of_the_help_is_cut(args: list[str], shown: Callable[..., str]) -> None:
    text = shown(*args)
    assert max(map(len, text.splitlines())) <= 80
    texts = descriptions(text)
    assert len(texts) > 3
    assert [words for words in texts if not words.endswith((".", "!", "?"))] == []


def test_a_cut_sentence_would_be_found() -> None:
    text = describe_verb("test").replace("Folder of the data.", "make sure you never run on your")
    assert [words for words in descriptions(text) if not words.endswith(".")] == ["make sure you never run on your"]


@pytest.mark.parametrize("args", [[], ["--trainer.max_epochs", "3"], ["--model.lr", "0.1"], ["--config", "bare.yaml"]])
def test_fit_without_a_model_names_configs_and_models(args: list[str], fails: Callable[..., str]) -> None:
    Path("bare.yaml").write_text("trainer: {max_epochs: 3}")
    line = fails("fit", *args)
    assert "--config (cnn, densenet," in line
    assert "--model (CNN, DenseNet," in line


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--model"], "--model needs a value: CNN, DenseNet,"),
        (["--model", "--model.lr", "3"], "--model needs a value: CNN, DenseNet,"),
        (["--config"], "--config needs a value: cnn, densenet,"),
        (["--config="], "--config needs a value: cnn, densenet,"),
        (["--ckpt_path"], "--ckpt_path needs a value"),
        ([*SHORT, "--data.source"], "--data, or one of --data.OPTION, needs a value"),
        (["--model", "mlp"], "did you mean MLP?"),
        (["--config", "MLP"], "did you mean mlp?"),
        ([*SHORT, "--trainer.precision", "fp16"], "one of 64, 32, 16, transformer-engine,"),
        ([*SHORT, "--trainer.precision", "fp16"], "bf16 or null, got 'fp16'; did you mean bf16?"),
        ([*SHORT, "--trainer.limit_val_batches", "x"], "must be an int, a float or null, got 'x'"),
        ([*SHORT, "--trainer.deterministic", "x"], "must be one of warn, true, false or null, got 'x'"),
        ([*SHORT, "--model.optimizer", "sdg"], "must be one of sgd, adam, adamw or adadelta, got 'sdg'"),
        ([*SHORT, "--data.val_size", "x"], "data.val_size must be an int or a float, got 'x'"),
        ([*SHORT, "--seed_everything", "x"], "seed_everything must be true, false or an int, got 'x'"),
        ([*SHORT, "--seed_everything", "-1"], "from 0 to 4294967295"),
        ([*SHORT, "--trainer.accelerator", "gpuu"], "did you mean gpu?"),
        ([*SHORT, "--trainer.strategy", "dpp"], "did you mean ddp?"),
        (
            [*SHORT, "--trainer.profiler", "simpel"],
            "simple, advanced, pytorch, xla, got 'simpel'; did you mean simple?",
        ),
        ([*SHORT, "--trainer.logger", "foo"], "unknown trainer.logger foo; use CSVLogger,"),
        ([*SHORT, "--trainer.callbacks", "foo"], "unknown trainer.callbacks foo; use BackboneFinetuning,"),
        ([*SHORT, "--trainer.callbacks+=EarlyStoping"], "did you mean EarlyStopping?"),
        ([*SHORT, "--trainer.callbacks+=EarlyStopping"], "trainer.callbacks: the argument monitor is missing"),
        ([*SHORT, "--trainer.max_epochs", "0"], "trainer.max_epochs must be 1 or more, or -1 for no limit, got 0"),
        ([*SHORT, "--trainer.max_steps", "-5"], "trainer.max_steps must be 1 or more, or -1 for no limit, got -5"),
        ([*SHORT, "extra"], "unknown argument extra"),
        ([*SHORT, "--data.root", "a\0b"], "null byte"),
    ],
)
def test_messages_name_what_is_accepted(args: list[str], says: str, fails: Callable[..., str]) -> None:
    assert says in fails("fit", *args)
    assert not Path("lightning_logs").exists()


def test_a_misspelt_run_gets_a_suggestion(logs: Path, fails: Callable[..., str]) -> None:
    line = fails("fit", "--ckpt_path", "lightning_logs/lent5/version_0")
    assert "there is no run or checkpoint lightning_logs/lent5/version_0; did you mean lightning_logs/lenet5" in line
    assert "there is no run or checkpoint nowhere" in fails("test", "--ckpt_path", "nowhere")


NAMES = ["a://b", "[/]", "../x", "a/b", "", " ", ".", "..", "x" * 300, "a\nb", "\x1b[31m", "a\0b", "$HOME"]


DEFAULTS = {name: parameter.default for name, parameter in inspect.signature(Trainer).parameters.items()}
DEFAULTS |= {"accumulate_grad_batches": 1, "barebones": False}


@pytest.mark.parametrize("name", NAMES)
def test_names_of_experiments(name: str) -> None:
    with pytest.raises(InputError, match="experiment must be"):
        check_settings("fit", name, DEFAULTS)
    check_settings("fit", "[a] $x$ é" + "x" * 100, DEFAULTS)


@pytest.mark.parametrize("name", ["[/]", "x" * 300, "a\0b"])
def test_names_of_experiments_are_checked_before_the_training(name: str, fails: Callable[..., str]) -> None:
    assert "experiment must be" in (line := fails("fit", *SHORT, "--experiment", name)) or "null byte" in line
    assert line.isprintable()
    assert not list(Path().iterdir())


BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10))
HOSTILE = {
    "bomb": (BOMB, "more than 50,000 values"),
    "merged": (BOMB.replace("[x, x]", "{k: 1}").replace("[*", "\n  <<: [*"), "more than 50,000 values"),
    "circle": ("model: &a {class_path: *a}", "the alias *a refers to itself"),
    "deep": ("model: " + "[" * 10_000, "more than 50 levels"),
    "date": ("model: 2001-99-99", "month must be in 1..12"),
    "code": ("model: !!python/object/apply:os.mkdir [executed]", "could not determine a constructor"),
    "number": ("model: " + "1:" * 80_000 + "1", "more than 3,500 characters"),
    "large": ("#" * 300_000, "more than 256 KiB"),
    "empty": ("", "must be a mapping of options"),
    "checkpoint": ("PK\x03\x04\xff", "not UTF-8 text"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_configs_are_refused_at_once(name: str, fails: Callable[..., str]) -> None:
    text, says = HOSTILE[name]
    Path("hostile.yaml").write_text(text, encoding="latin-1")
    start = time.monotonic()
    assert says in fails("fit", "--config", "hostile.yaml")
    if name in ("bomb", "circle", "deep", "number"):
        assert says in fails("fit", "--model", "MLP", "--trainer", "hostile.yaml")
    assert time.monotonic() - start < 5  # they took minutes, or did not end
    assert not Path("executed").exists()


def test_a_config_with_anchors_is_read() -> None:
    Path("good.yaml").write_text("base: &base {lr: 0.1}\nmodel: {<<: *base, name: é}")
    assert read_yaml(Path("good.yaml")) == {"base": {"lr": 0.1}, "model": {"lr": 0.1, "name": "é"}}


def test_a_folder_is_no_config(fails: Callable[..., str]) -> None:
    Path("here.yaml").mkdir()
    assert "here.yaml is a folder, not a config" in fails("fit", "--config", "here.yaml")


MODULE = """
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger

from mnist_lightning import MLP


class Net(MLP):
    def __init__(self, width: int = 16):
        super().__init__(widths=[width])


class Logger(CSVLogger):
    def __init__(self, folder: str = "csv"):
        super().__init__(folder)


class Witness(Callback):
    def on_fit_start(self, trainer, module):
        print(f"process {trainer.global_rank} has {type(module).__name__}")
"""


@pytest.mark.parametrize(
    ("option", "name", "text", "says"),
    [
        ("--model", "absent", None, "No module named 'absent'; run the command in the folder of absent.py"),
        ("--model", "typo", "class X(:", "SyntaxError: invalid syntax (typo.py, line 1)"),
        ("--model", "needs", "\nimport nonexistent", "No module named 'nonexistent' (needs.py, line 2)"),
        (
            "--model",
            "fault",
            "class X(Clasifier): pass",
            "NameError: name 'Clasifier' is not defined (fault.py, line 1)",
        ),
        ("--model", "other", "class Y: pass", "AttributeError: module 'other' has no attribute 'X'"),
        ("--model", "plain", "class X: pass", "plain.X is not a subclass of Classifier"),
        ("--data", "data_typo", "class X(:", "SyntaxError: invalid syntax (data_typo.py, line 1)"),
        ("--trainer.logger", "logger_typo", "class X(:", "SyntaxError: invalid syntax (logger_typo.py, line 1)"),
        ("--trainer.callbacks", "needs2", "import nonexistent", "No module named 'nonexistent' (needs2.py, line 1)"),
        ("--trainer.callbacks+", "plain2", "class X: pass", "plain2.X is not a subclass of Callback"),
    ],
)
def test_a_class_that_cannot_be_used_says_why(
    option: str, name: str, text: str | None, says: str, fails: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", sys.path[:])
    if text is not None:
        Path(f"{name}.py").write_text(text)
    line = fails("fit", *SHORT, f"{option}={name}.X")
    assert says in line
    assert f"{option[2:].rstrip('+')} {name}.X " in line


@pytest.mark.slow
def test_classes_in_the_current_folder_are_found_by_every_process(tmp_path: Path) -> None:
    script = tmp_path / "bin" / "mnist-lightning"  # like pip's: its folder, not the current one, is on sys.path
    script.parent.mkdir()
    script.write_text("from mnist_lightning.cli import main\nmain()")
    here = tmp_path / "here"
    here.mkdir()
    (here / "my_module.py").write_text(MODULE)
    (here / "torch.py").write_text("raise SystemExit('shadowed')")
    options = ["--model", "my_module.Net", "--model.width", "8", "--trainer.logger", "my_module.Logger"]
    options += ["--trainer.callbacks+=my_module.Witness", "--trainer.devices=2", "--trainer.strategy=ddp"]
    options += ["--trainer.limit_train_batches=2", "--trainer.limit_val_batches=1"]
    command = [sys.executable, str(script), "fit", *SHORT[2:], "--trainer.accelerator", "cpu", *options]
    done = subprocess.run(command, cwd=here, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "process 0 has Net" in done.stdout
    assert "process 1 has Net" in done.stdout
    assert list(here.glob("csv/**/metrics.csv"))


def test_a_checkpoint_of_an_unknown_class_says_how_to_import_it(
    logs: Path, fails: Callable[..., str], tmp_path: Path
) -> None:
    import torch

    path = logs / "mlp" / "version_0" / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    for name in ("stranger.MyNet", 'x"; touch executed; ".MyNet'):
        torch.save(checkpoint | {"classifier": name}, path)
        Path("stranger.py").write_text("from pathlib import Path\nPath('executed').touch()")
        line = fails("export", str(path))
        command = 'python -c "import stranger, mnist_lightning.cli as c; c.main()" VERB'
        assert (command in line) == (name == "stranger.MyNet")
        assert not Path("executed").exists()


def test_control_characters_do_not_reach_the_terminal(fails: Callable[..., str]) -> None:
    assert fails("compare", "\x1b[31mred").isprintable()

"""`fit --ckpt_path`: a run is continued to the same weights, or refused without a change to its folder."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from mnist_lightning import load
from mnist_lightning.cli import main
from mnist_lightning.data.sources import read
from mnist_lightning.errors import InputError
from mnist_lightning.runs.checkpoint import read_checkpoint
from mnist_lightning.runs.resuming import check_resume
from mnist_lightning.runs.run import Run
from mnist_lightning.runs.writing import lock
from mnist_lightning.training.recording import RunRecorder
from mnist_lightning.training.tensorboard import TensorBoardFigures

FIT = ["fit", "--model=MLP", "--model.widths=[8]", "--model.dropout=0.3", "--model.lr=0.01"]
DIGITS = ["--data.source=digits", "--trainer.enable_progress_bar=false"]
RUN = Path("lightning_logs/mlp/version_0")


@pytest.fixture(autouse=True)
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorBoard's figures take longer than these trainings."""
    monkeypatch.setattr(TensorBoardFigures, "on_test_end", lambda *_: None)


def trained(folder: Path, *args: str, crash_in: int | None = None) -> Path:
    """Trains in a folder. The training may crash at the start of an epoch, as if it was killed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("PL_GLOBAL_SEED", "0")
        patch.setattr(TensorBoardFigures, "on_test_end", lambda *_: None)
        if crash_in is None:
            main([*FIT, *DIGITS, *args])
            return folder / RUN

        def crash(recorder: RunRecorder, trainer: Any, model: Any) -> None:
            if trainer.current_epoch == crash_in:
                raise ZeroDivisionError

        patch.setattr(RunRecorder, "on_train_epoch_start", crash)
        with pytest.raises(ZeroDivisionError):
            main([*FIT, *DIGITS, *args])
    return folder / RUN


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs of three epochs, of two epochs, and one that crashed after two of three."""
    new = tmp_path_factory.mktemp
    three, onecycle, average = "--trainer.max_epochs=3", "--model.schedule=onecycle", "--model.ema=0.9"
    return {
        "whole": trained(new("whole"), three),
        "finished": trained(new("finished"), "--trainer.max_epochs=2"),
        "killed": trained(new("killed"), three, crash_in=2),
        "onecycle": trained(new("onecycle"), three, onecycle, average),
        "onecycle killed": trained(new("onecycle"), three, onecycle, average, crash_in=2),
    }


@pytest.fixture
def state(request: pytest.FixtureRequest, runs: dict[str, Path]) -> str:
    """Copies a run to the test's folder."""
    name: str = request.param
    shutil.copytree(runs[name], RUN)
    return name


def contents(folder: Path) -> dict[str, str]:
    """A hash of each file in a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def same(first: Path, second: Path) -> bool:
    """Whether two runs have the same weights."""
    one, two = (read_checkpoint(run / "checkpoints/last.ckpt") for run in (first, second))
    states = [name for name in ("state_dict", "current_model_state") if name in one]  # averaged, and of the last step
    return all(torch.equal(one[name][key], two[name][key]) for name in states for key in one[name])


@pytest.mark.parametrize(
    ("state", "args", "equals"),
    [
        ("killed", [], "whole"),
        ("killed", ["--config=mine.yaml", "--trainer.max_epochs=3"], "whole"),
        pytest.param(
            "killed", ["--data.num_workers=1", "--trainer.log_every_n_steps=7"], "whole", marks=pytest.mark.slow
        ),
        ("finished", ["--trainer.max_epochs=3"], "whole"),
        ("onecycle killed", [], "onecycle"),
    ],
    indirect=["state"],
)
def test_a_run_is_continued_to_the_same_weights(
    state: str, args: list[str], equals: str, runs: dict[str, Path]
) -> None:
    shutil.copy(RUN / "config.yaml", "mine.yaml")
    main(["fit", f"--ckpt_path={RUN}", *args])
    assert same(RUN, runs[equals])
    assert [path.name for path in RUN.parent.iterdir()] == ["version_0"]
    summary, whole = (json.loads((run / "summary.json").read_text()) for run in (RUN, runs[equals]))
    for key in ("test", "val", "epochs", "steps", "seed", "batch_size", "experiment"):
        assert summary[key] == whole[key]
    configs = [yaml.safe_load((run / "config.yaml").read_text()) for run in (RUN, runs[equals])]
    for config in configs:  # incidental settings may differ
        config["data"]["init_args"]["num_workers"] = config["trainer"]["log_every_n_steps"] = 0
    assert configs[0] == configs[1]


FINISHED = "is finished: 2 epochs, test accuracy"


@pytest.mark.parametrize(
    ("state", "args", "says"),
    [
        ("finished", ["--data.source=mnist"], "was trained with data.source digits, not mnist. Resume it with"),
        ("finished", ["--model=LeNet5"], "contains a MLP, but --model is LeNet5"),
        ("killed", ["--model.widths=[16]"], "was trained with model.widths [8], not [16]"),
        ("killed", ["--model.schedule=cosine"], "was trained with model.schedule constant, not cosine"),
        ("killed", ["--data.batch_size=32"], "was trained with data.batch_size 128, not 32"),
        ("killed", ["--seed_everything=9"], "was trained with seed_everything 0, not 9"),
        ("killed", ["--data.seed=1"], "was trained with data.seed null, not 1"),
        ("killed", ["--data.val_size=100"], "was trained with data.val_size 0.0833"),
        ("killed", ["--data.fold=1/2"], "was trained with data.fold null, not 1/2"),
        ("killed", ["--data.augment={}"], "was trained with data.augment null, not a mapping"),
        ("killed", ["--trainer.precision=bf16-mixed"], "was trained with trainer.precision"),
        ("killed", ["--trainer.limit_train_batches=2"], "was trained with trainer.limit_train_batches null, not 2"),
        ("killed", ["--experiment=x"], "was trained with experiment mlp, not x"),
        ("killed", ["--trainer.devices=2", "--trainer.accelerator=cpu"], "was trained by 1 process, not 2"),
        ("killed", ["--trainer.enable_checkpointing=false"], "trainer.enable_checkpointing null, not false"),
        ("killed", ["--trainer.logger=false"], "a resumed run is continued in its folder"),
        ("killed", ["--init_from=."], "--ckpt_path continues a run, and --init_from starts another one"),
        ("onecycle", ["--trainer.max_epochs=4"], "the onecycle schedule of"),
        ("onecycle killed", ["--trainer.max_epochs=4"], "was made for max_epochs 3, so its length cannot change"),
        ("onecycle killed", ["--trainer.max_steps=30"], "was made for max_steps -1, so its length cannot change"),
    ],
    indirect=["state"],
)
def test_another_training_is_refused_and_changes_nothing(
    state: str, args: list[str], says: str, fails: Callable[..., str]
) -> None:
    before = contents(Path())
    assert says in fails("fit", f"--ckpt_path={RUN}", *args)
    assert contents(Path()) == before


@pytest.mark.parametrize("state", ["killed"], indirect=True)
def test_a_run_from_before_folds_has_none(state: str) -> None:
    run, config = Run(RUN), Run(RUN).full_config
    del run.full_config["data"]["init_args"]["fold"]
    check_resume(run, config, {"hyper_parameters": {}})
    config["data"]["init_args"]["fold"] = "1/2"
    with pytest.raises(InputError, match=r"was trained with data\.fold null, not 1/2"):
        check_resume(run, config, {"hyper_parameters": {}})


@pytest.mark.parametrize("args", [[], ["--trainer.max_epochs=2"], ["--trainer.max_epochs=1"]])
@pytest.mark.parametrize("state", ["finished"], indirect=True)
def test_a_finished_run_stays_as_it_is(state: str, args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(Path())
    main(["fit", f"--ckpt_path={RUN}", *args])
    out = capsys.readouterr().out
    assert FINISHED in out
    assert f"mnist-lightning fit --ckpt_path {RUN.absolute()} --trainer.max_epochs N" in out
    assert contents(Path()) == before


@pytest.mark.slow
@pytest.mark.parametrize("state", ["finished"], indirect=True)
def test_a_run_is_resumed_where_it_lies(state: str, runs: dict[str, Path], tmp_path: Path) -> None:
    original = contents(runs["finished"])
    longer = "--trainer.max_epochs=3"
    Path("link").symlink_to(tmp_path, target_is_directory=True)
    main(["fit", f"--ckpt_path={Path('link') / RUN}", longer])
    copy = Path(shutil.copytree(runs["finished"], "elsewhere/copy"))
    main(["fit", f"--ckpt_path={copy}", longer])
    for run in (RUN, copy):
        assert same(run, runs["whole"])
        assert Run(run).summary["epochs"] == 3
        assert load(run, calibrated=True)
    assert contents(runs["finished"]) == original


@pytest.mark.parametrize("state", ["killed"], indirect=True)
def test_two_processes_never_train_in_one_folder(state: str, runs: dict[str, Path], fails: Callable[..., str]) -> None:
    before = contents(Path())
    other = lock(RUN)
    assert other is not None
    assert "another process trains in" in fails("fit", f"--ckpt_path={RUN}")
    assert contents(Path()) == before
    os.close(other)
    main(["fit", f"--ckpt_path={RUN}"])
    assert same(RUN, runs["whole"])


def pictures(folder: str, offset: int) -> None:
    """Writes 60 digits as a `folder:` source."""
    images, labels = (part[offset : offset + 60] for part in read("digits", train=True))
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        path = Path(folder, str(int(label)), f"{index}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.numpy()).save(path)


@pytest.mark.slow
def test_other_data_behind_the_same_name_are_refused(tmp_path: Path, fails: Callable[..., str]) -> None:
    pictures("mine", offset=0)
    trained(tmp_path, "--data.source=folder:mine", "--trainer.max_epochs=2", crash_in=1)
    before = contents(RUN)
    shutil.rmtree("mine")
    pictures("mine", offset=60)
    assert "the images of folder:mine have changed since" in fails("fit", f"--ckpt_path={RUN}")
    assert contents(RUN) == before
    shutil.rmtree("mine")
    pictures("mine", offset=0)
    main(["fit", f"--ckpt_path={RUN}"])
    assert Run(RUN).is_finished


def test_a_source_that_a_fallback_replaced_is_refused(
    tmp_path: Path, fails: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fallback = ["--data.source=folder:mine", "--data.fallback=digits", "--trainer.max_epochs=2"]
    pictures("mine", offset=0)
    trained(tmp_path, *fallback, crash_in=1)
    content = read_checkpoint(RUN / "checkpoints/last.ckpt")
    content["MNISTDataModule"]["source"] = "digits"  # as if the folder had been missing
    torch.save(content, RUN / "checkpoints/last.ckpt")
    before = contents(RUN)
    line = fails("fit", f"--ckpt_path={RUN}")
    assert "was trained on digits, but the data are folder:mine now; set --data.source digits" in line
    assert contents(RUN) == before


def test_a_checkpoint_outside_of_a_run_is_refused(runs: dict[str, Path], fails: Callable[..., str]) -> None:
    shutil.copy(runs["killed"] / "checkpoints/last.ckpt", "model.ckpt")
    line = fails(*FIT, *DIGITS, "--ckpt_path=model.ckpt")
    assert "model.ckpt is not in a run's folder; start another training from it with --init_from model.ckpt" in line


@pytest.mark.slow
def test_a_checkpoint_from_within_an_epoch_is_refused(tmp_path: Path, fails: Callable[..., str]) -> None:
    callback = ["--trainer.callbacks=ModelCheckpoint", "--trainer.callbacks.filename=within"]
    trained(tmp_path, *callback, "--trainer.callbacks.every_n_train_steps=4", "--trainer.max_epochs=2", crash_in=1)
    line = fails("fit", f"--ckpt_path={RUN}/checkpoints/within.ckpt")
    assert "was saved within an epoch and cannot be resumed; resume" in line
    main(["fit", f"--ckpt_path={RUN}"])
    assert read_checkpoint(RUN / "checkpoints/last.ckpt")["global_step"] == 22


@pytest.mark.slow
@pytest.mark.parametrize(
    ("args", "saved"),
    [
        (["--trainer.max_epochs=3", "--trainer.check_val_every_n_epoch=2"], True),
        (["--trainer.max_epochs=1", "--trainer.check_val_every_n_epoch=2"], True),
        (["--trainer.max_epochs=1", "--trainer.limit_val_batches=0"], True),
        (["--trainer.max_steps=3", "--trainer.max_epochs=-1"], True),
        (["--trainer.max_epochs=1", "--trainer.enable_checkpointing=false"], False),
    ],
)
def test_every_training_is_tested_and_keeps_its_last_epoch(args: list[str], saved: bool, tmp_path: Path) -> None:
    run = Run(trained(tmp_path, *args))
    assert run.summary["test"]["accuracy"] == run.correct.mean()
    assert run.last.is_file() == saved
    if saved:
        assert read_checkpoint(run.last)["global_step"] == run.summary["steps"]
        assert torch.equal(
            load(run.folder or "").classify(read("digits", train=False)[0]), torch.from_numpy(run.logits)
        )


def test_without_a_logger_the_folder_stays_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("summary.json", "test_predictions.npz", "checkpoints/last.ckpt", "config.yaml"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text("a stranger's")
    before = contents(Path())
    main([*FIT, *DIGITS, "--trainer.max_epochs=1", "--trainer.logger=false"])
    assert "Nothing was kept" in capsys.readouterr().out
    assert contents(Path()) == before
    assert not Path("lightning_logs").exists()


@pytest.mark.parametrize("state", ["finished"], indirect=True)
def test_verbs_only_read_a_run(state: str, capsys: pytest.CaptureFixture[str], fails: Callable[..., str]) -> None:
    before = contents(RUN)
    for verb in ("validate", "test", "predict"):
        main([verb, f"--ckpt_path={RUN}", "--trainer.enable_progress_bar=false"])
    assert contents(RUN) == before
    assert len(Path("predictions.csv").read_text().splitlines()) == 361
    main(["predict", f"--ckpt_path={RUN}"])  # replaces its own file
    Path("predictions.csv").write_text("a stranger's")
    assert "predictions.csv exists and holds no predictions; choose another --output" in fails(
        "predict", f"--ckpt_path={RUN}"
    )
    main(["predict", f"--ckpt_path={RUN}", "--output=other.csv"])
    assert Path("predictions.csv").read_text() == "a stranger's"
    assert Path("other.csv").is_file()


@pytest.mark.parametrize("state", ["finished"], indirect=True)
def test_a_run_without_a_seed_has_none(state: str, tmp_path: Path) -> None:
    trained(tmp_path, "--seed_everything=false", "--trainer.max_epochs=1")
    assert Run(RUN.with_name("version_1")).summary["seed"] is None
    assert Run(RUN).summary["seed"] == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "processes"), [(signal.SIGINT, 1), (signal.SIGTERM, 1), (signal.SIGTERM, 2), (signal.SIGUSR1, 1)]
)
def test_a_stopped_training_says_how_to_resume(
    number: signal.Signals, processes: int, spawn: Callable[..., "subprocess.Popen[str]"], tmp_path: Path
) -> None:
    args = [*FIT, *DIGITS, "--data.batch_size=8", "--trainer.max_epochs=30", "--trainer.accelerator=cpu"]
    slurm = {
        "SLURM_NTASKS": "1",
        "SLURM_JOB_NAME": "train",
        "SLURM_JOB_ID": "7",
        "SLURM_PROCID": "0",
        "SLURM_LOCALID": "0",
    }
    environment = slurm if number == signal.SIGUSR1 else {}
    process = spawn(*args, f"--trainer.devices={processes}", **environment)
    deadline = time.monotonic() + 60
    while not (RUN / "checkpoints/last.ckpt").is_file() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    output, _ = process.communicate()
    assert process.returncode == 128 + number
    last = output.splitlines()[-1]
    assert f"stopped by {number.name}; last.ckpt of epoch" in last
    assert f"resume with mnist-lightning fit --ckpt_path {tmp_path / RUN}" in last
    assert "Traceback" not in output
    assert not list(Path().glob("*.ckpt"))

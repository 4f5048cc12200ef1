import json
import os
from pathlib import Path

import numpy as np
import pytest

from mnist_lightning.errors import InputError
from mnist_lightning.runs.run import Run


def test_a_run_of_fit(logs: Path) -> None:
    run = Run(logs / "lenet5" / "version_1")
    assert run.is_finished
    assert (run.name, run.source, run.summary["seed"], run.logits.shape) == ("lenet5", "digits", 1, (360, 10))
    assert run.correct.mean() == pytest.approx(run.summary["test"]["accuracy"])
    assert run.settings["model"] == "mnist_lightning.LeNet5"
    assert run.settings["model.lr"] == 0.001
    assert run.settings["trainer.max_epochs"] == 1
    assert not {"seed_everything", "data.seed", "data.root"} & run.settings.keys()
    class_path, arguments = run.config["data"]
    assert (class_path.split(".")[-1], arguments["source"]) == ("MNISTDataModule", "digits")


def test_files_are_read_when_they_are_needed(tmp_path: Path) -> None:
    run = Run(tmp_path)
    assert not run.is_finished
    assert run.checkpoint() is run.checkpoint("last") is None
    with pytest.raises(InputError, match="is not a finished run"):
        run.summary  # noqa: B018


def test_the_tested_checkpoint_of_a_run_of_an_earlier_version(logs: Path) -> None:
    run = Run(logs / "mlp" / "version_0")
    best = run.last.with_name("best.ckpt")
    best.write_bytes(run.last.read_bytes())
    assert run.checkpoint() == run.checkpoint("last") == run.last
    run.summary_file.write_text(json.dumps({**run.summary, "best_epoch": 0}))
    older = Run(str(run.folder))
    assert (older.checkpoint(), older.checkpoint("last")) == (best, run.last)
    run.last.unlink()
    assert older.checkpoint("last") == best


def test_the_curve_of_a_metric(logs: Path) -> None:
    run = Run(logs / "lenet5" / "version_2")  # of two epochs
    curve = run.curve("val/acc")
    assert len(curve) == run.summary["epochs"] == 2
    assert max(curve) == pytest.approx(run.summary["val"]["accuracy"], abs=1e-6)
    assert run.curve("val/loss") != curve
    assert run.curve("unknown") == Run("nowhere").curve("val/acc") == []


def test_a_run_that_is_not_to_be_tested_is_not_told_to_resume(logs: Path) -> None:
    run = Run(logs / "mlp" / "version_0")
    assert not run.skips_test
    run.summary_file.unlink()
    config = run.config_file.read_text()
    for value, reason in (
        ("0", "it was not tested, because its trainer.limit_test_batches is 0"),
        ("1", "resume with"),
    ):
        run.config_file.write_text(config.replace("limit_test_batches: null", f"limit_test_batches: {value}"))
        with pytest.raises(InputError, match=f"is not a finished run: {reason}"):
            Run(run.folder).summary  # noqa: B018
    run.config_file.write_text("damaged: [")
    assert not Run(run.folder).skips_test


def test_run_of_a_path(logs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(logs / "mlp" / "version_0")
    assert run.folder is not None
    Path("link.ckpt").symlink_to(run.last)
    Path("linked").symlink_to(run.folder)
    paths = [run.folder, f"{run.folder}/", os.path.relpath(run.folder), run.checkpoints, run.last, str(run.last)]
    for path in (*paths, "link.ckpt", "linked", "linked/checkpoints/last.ckpt"):
        same = Run.of(path)
        assert same is not None
        assert same.folder is not None
        assert same.folder.samefile(run.folder)
        assert same.experiment == "mlp"
        assert same.exists
    monkeypatch.chdir(run.checkpoints)
    monkeypatch.setenv("HOME", str(logs))
    for path in (".", "..", "last.ckpt", "~/mlp/version_0"):
        same = Run.of(path)
        assert same is not None
        assert same.last.samefile(run.last)


def test_a_checkpoint_elsewhere_belongs_to_no_run(logs: Path, tmp_path: Path) -> None:
    assert Run.of(tmp_path / "elsewhere" / "model.ckpt") is None
    Path("config.yaml").write_text("model: a stranger's")
    assert not Run(".").exists
    Path("foo.ckpt").write_bytes((logs / "mlp/version_0/checkpoints/last.ckpt").read_bytes())
    assert Run.of("foo.ckpt") is None
    assert Run.of(tmp_path / "foo.ckpt") is None


def test_computed_run() -> None:
    labels = np.zeros(2, np.int64)
    run = Run.computed({"experiment": "ensemble", "source": "digits", "seed": 0}, np.zeros((2, 10), np.float32), labels)
    assert (run.folder, run.name, run.source, run.seeds) == (None, "ensemble", "digits", (0, 0))
    assert run.correct.tolist() == [True, True]


def change_config(run: Run, old: str, new: str) -> Run:
    text = run.config_file.read_text()
    assert old in text
    run.config_file.write_text(text.replace(old, new))
    return Run(run.folder or "")


def test_seeds_of_the_training_and_of_its_data(logs: Path) -> None:
    run = Run(logs / "lenet5" / "version_1")
    assert run.seeds == (1, 1)
    assert change_config(run, "    seed: null", "    seed: 7").seeds == (1, 7)
    assert change_config(run, "seed_everything: 1", "seed_everything: false").seeds is None


def test_the_weights_that_a_run_began_with_are_a_setting(logs: Path) -> None:
    run = Run(logs / "mlp" / "version_0")
    plain = run.settings
    assert change_config(run, "seed_everything: 0", "seed_everything: 0\ninit_from: null").settings == plain
    tuned = change_config(run, "init_from: null", "init_from: other/version_0").settings
    assert tuned == {"init_from": "other/version_0", **plain}

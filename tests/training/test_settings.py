from pathlib import Path

import pytest
import torch
import yaml

from mnist_lightning import InputError, MNISTDataModule
from mnist_lightning.cli import main
from mnist_lightning.runs.run import Run
from mnist_lightning.training.settings import fit_settings

ARGUMENTS = ["--config", "mlp", "--model.widths", "[8]", "--data.source", "digits", "--trainer.max_epochs", "1"]


def test_settings_are_those_that_fit_writes() -> None:
    state = torch.get_rng_state()
    settings = fit_settings(ARGUMENTS)
    assert torch.equal(torch.get_rng_state(), state)
    assert not list(Path().iterdir())
    assert isinstance(settings.data, MNISTDataModule)
    main(["fit", *ARGUMENTS])
    written = Run("lightning_logs/mlp/version_0").full_config
    assert written == {name: settings.config[name] for name in written}


def test_shortened_settings_are_a_config_of_the_same_training() -> None:
    settings = fit_settings(ARGUMENTS)
    Path("mlp.yaml").write_text(settings.shortened)
    assert "stratify" not in settings.shortened
    assert yaml.safe_load(settings.shortened)["trainer"] == {"max_epochs": 1, "precision": "bf16-mixed"}
    config = {**fit_settings(["--config", "mlp.yaml"]).config, "config": None}
    assert config == {**settings.config, "config": None}


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(InputError, match=r"^lr must be positive and finite, got -1\.0$"):
        fit_settings([*ARGUMENTS, "--model.lr", "-1"])

import shutil
from pathlib import Path

import pytest

from mnist_lightning.cli import main


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The logs of four short trainings: two that differ in the seed only, one of two epochs, and another model."""
    root = tmp_path_factory.mktemp("runs")
    short = ["--data.source=digits", "--trainer.limit_train_batches=5", "--trainer.enable_progress_bar=false"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("PL_GLOBAL_SEED", "0")
        for model, seed, epochs in (("LeNet5", 0, 1), ("LeNet5", 1, 1), ("LeNet5", 0, 2), ("MLP", 0, 1)):
            main(["fit", f"--model={model}", f"--seed_everything={seed}", f"--trainer.max_epochs={epochs}", *short])
    return root / "lightning_logs"


@pytest.fixture
def logs(trained: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage, where `compare` looks by default."""
    return Path(shutil.copytree(trained, tmp_path / "lightning_logs"))

from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mnist_lightning.cli import main


def fit(*args: str) -> None:
    main(["fit", "--data.source", "digits", "--trainer.enable_progress_bar", "false", *args])


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs, which no test changes."""
    root = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("PL_GLOBAL_SEED", "0")
        fit("--config", "lenet", "--trainer.max_epochs", "2", "--data.batch_size", "32", "--seed_everything", "5")
    return root / "lightning_logs" / "lenet" / "version_0"


@pytest.fixture(scope="session")
def events(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder), size_guidance={"images": 0}).Reload()

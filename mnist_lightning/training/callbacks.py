"""The callbacks that record a run, for the command line and for Python."""

import os
from typing import Literal, get_type_hints

from lightning.pytorch.callbacks import Callback

from mnist_lightning.checks import at_least, check_types
from mnist_lightning.training.checkpoints import LastCheckpoint
from mnist_lightning.training.recording import RunRecorder
from mnist_lightning.training.reproducibility import ReproducibleEpochs
from mnist_lightning.training.tensorboard import TensorBoardFigures


def record(experiment: str | None = None, seed: int | Literal[False] | None = None) -> list[Callback]:
    """Makes the callbacks with which a Trainer leaves a run, as the command line does.

    They keep the checkpoint of the last epoch, fit the temperature, draw TensorBoard's figures, and write the summary
    and the test predictions. The folder is the logger's, `lightning_logs/version_N` by default. The run is recorded by
    `trainer.test(model, data, ckpt_path="last")` after `trainer.fit(model, data)`. `load` and all verbs of the command
    line take its folder, `trainer.log_dir`.

    Args:
        experiment: Name of the experiment in tables. Default: the name of the model's class, in lower case.
        seed: Seed of the run. Runs that differ only in it count as one model. Default: the seed of `seed_everything`,
            or 0. False for a training without a seed, which cannot be repeated.

    Returns:
        Callbacks of one Trainer. Add your own: `[*record("my_experiment"), EarlyStopping("val/loss")]`.

    Raises:
        InputError: If an argument is not accepted.
    """
    check_types(get_type_hints(record), {"experiment": experiment, "seed": seed})
    at_least(0, seed=seed or 0)
    seed = int(os.environ.get("PL_GLOBAL_SEED", 0)) if seed is None else seed
    callbacks = [TensorBoardFigures(), LastCheckpoint()]
    if seed is False:
        return [RunRecorder(experiment, None), *callbacks]
    return [ReproducibleEpochs(seed), RunRecorder(experiment, seed), *callbacks]

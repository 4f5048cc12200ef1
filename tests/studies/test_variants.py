from typing import Any

import pytest

from mnist_lightning.errors import InputError
from mnist_lightning.studies.plan import model_of
from mnist_lightning.studies.space import parse_space
from mnist_lightning.studies.variants import Variants

OPTIONS = ("--data.source", "digits")
SPACE = [
    "model.lr=log:1e-3:1e-1",
    "model.weight_decay=0:1",
    "model.widths=[64],[256,128]",
    "data.augment.shift=0.0:0.2",
    "data.augment.rotate=0:20",
    "trainer.gradient_clip_val=1.0,null",
    "trainer.max_epochs=2:9",
]


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"model.lr": 0.00321, "model.weight_decay": 1, "model.widths": "[64]"},
        {"model.lr": 0.1, "data.augment.shift": 0.1, "data.augment.rotate": 7, "trainer.gradient_clip_val": "null"},
        {"model.widths": "[256, 128]", "trainer.gradient_clip_val": "1.0", "trainer.max_epochs": 7},
    ],
)
def test_a_training_is_the_one_that_the_command_line_makes(settings: dict[str, Any]) -> None:
    space = [setting for setting in parse_space(SPACE) if setting.name in settings]
    training = Variants("mlp", space, OPTIONS).training("trial 7", settings, seed=3)
    options = (*OPTIONS, "--experiment", "search-mlp", "--trainer.limit_test_batches", "0")
    expected = model_of("mlp", settings, options)
    assert training.arguments == expected.arguments
    assert (training.name, training.seed) == ("trial 7", 3)
    expected.seed = 3
    assert training.planned.identity == expected.planned.identity
    assert training.planned.folder == expected.planned.folder


@pytest.mark.slow
def test_settings_that_cannot_be_searched_are_refused() -> None:
    assert Variants("mlp", parse_space(["model.lr=0.1:1.0"]), OPTIONS).base.config["trainer"]["limit_test_batches"] == 0
    for text, message in (
        ("model.lr=-0.1:1.0", "lr must be positive"),
        ("model.lrr=0.1:1.0", "unknown option model.lrr; did you mean lr"),
        ("model.activation=relu,rely", "did you mean relu"),
        ("data.num_workers=0:1", "data.num_workers does not change the training"),
        ("trainer.logger=true,false", "a study needs the folders of its runs"),
        ("model.class_path=MLP,CNN", "search the settings of each class"),
    ):
        with pytest.raises(InputError, match=message):
            Variants("mlp", parse_space([text]), OPTIONS)

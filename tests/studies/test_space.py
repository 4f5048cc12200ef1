import pytest

from mnist_lightning.errors import InputError
from mnist_lightning.studies.space import Choices, Range, parse_space, short_names


@pytest.mark.parametrize(
    ("text", "setting"),
    [
        ("model.lr=0.001:0.03", Range("model.lr", 0.001, 0.03)),
        ("model.lr=log:1e-3:3e-2", Range("model.lr", 0.001, 0.03, log=True)),
        ("model.weight_decay=0:0.1", Range("model.weight_decay", 0.0, 0.1)),
        ("trainer.max_epochs=2:10", Range("trainer.max_epochs", 2, 10)),
        ("data.batch_size=log:16:512", Range("data.batch_size", 16, 512, log=True)),
        ("model.init_args.lr=-1.5:+1", Range("model.lr", -1.5, 1.0)),
        ("model.activation=relu,tanh", Choices("model.activation", ("relu", "tanh"))),
        ("model.widths=[64],[256, 128]", Choices("model.widths", ("[64]", "[256, 128]"))),
        ("data.stratify=true,false", Choices("data.stratify", ("true", "false"))),
        ("model.dropout=0.1,null", Choices("model.dropout", ("0.1", "null"))),
        ("data.augment.shift=0.0:0.2", Range("data.augment.shift", 0.0, 0.2)),
    ],
)
def test_a_setting_is_a_range_or_values(text: str, setting: Range | Choices) -> None:
    assert parse_space([text]) == [setting]
    assert parse_space([str(setting)]) == [setting]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lr=0.1:1", "NAME is model.OPTION"),
        ("--model.lr=0.1:1", "NAME is model.OPTION"),
        ("model=0.1:1", "NAME is model.OPTION"),
        ("model.lr", "NAME is model.OPTION"),
        ("model.lr=", "NAME is model.OPTION"),
        ("optimizer.lr=0.1:1", "NAME is model.OPTION"),
        ("model.lr=low:high", "bounds of model.lr must be numbers, got low:high"),
        ("model.lr=0:nan", "bounds of model.lr must be numbers"),
        ("model.lr=0:inf", "bounds of model.lr must be numbers"),
        ("model.lr=1:0.1", "lower bound of model.lr must be less than the upper one, got 1:0.1"),
        ("model.lr=0.1:0.1", "lower bound of model.lr must be less"),
        ("model.lr=log:0:0.1", "must be more than 0 on a logarithmic scale, got log:0:0.1"),
        ("model.lr=0.1", "two different values or more; got '0.1'"),
        ("model.lr=0.1,0.1", "two different values or more"),
        ("model.lr=[0.1,", "VALUE,VALUE"),
    ],
)
def test_anything_else_is_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=r"^[^\n]*$") as error:
        parse_space([text])
    assert message in str(error.value)


def test_each_setting_is_searched_once() -> None:
    assert len(parse_space(["model.lr=0.1:1.0", "model.momentum=0.1:1.0"])) == 2
    with pytest.raises(InputError, match=r"model\.lr is searched twice"):
        parse_space(["model.lr=0.1:1.0", "model.init_args.lr=1,2"])
    with pytest.raises(InputError, match="a search needs a setting"):
        parse_space([])


def test_values_of_ranges_have_four_digits_and_stay_inside() -> None:
    setting = Range("model.lr", 0.00123456, 0.98765432)
    assert setting.rounded(0.123456) == 0.1235
    assert setting.rounded(setting.low) == 0.001235
    assert setting.rounded(setting.high) == setting.high
    assert Range("model.width", 1, 10**6).rounded(123456) == 123456


def test_a_config_lies_in_the_space_or_not() -> None:
    reals, integers = Range("model.lr", 0.0, 0.1), Range("model.width", 4, 8)
    assert [reals.find(value) for value in (0, 0.05, 0.1, 0.2, None, True, "0.05")] == [0, 0.05, 0.1, *[None] * 4]
    assert [integers.find(value) for value in (4, 8, 9, 4.0)] == [4, 8, None, None]
    (choices,) = parse_space(["model.x=1e-3,[64, 32],null"])
    assert [choices.find(value) for value in (0.001, [64, 32], None, 7)] == ["1e-3", "[64, 32]", "null", None]


def test_names_are_short_where_that_tells_them_apart() -> None:
    assert short_names(["model.lr", "data.batch_size"]) == ["lr", "batch_size"]
    assert short_names(["model.shift", "data.augment.shift"]) == ["model.shift", "data.augment.shift"]

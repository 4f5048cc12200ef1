"""Short help of `fit`, `validate`, `test` and `predict`. It answers before Lightning is imported."""

from textwrap import wrap

_EVALUATION = ("validate", "test", "predict")
_ALL = ("fit", *_EVALUATION)

DESCRIPTIONS = {
    "fit": "Trains a model, tests the weights of its last epoch once and keeps them. "
    "The run goes to lightning_logs/EXPERIMENT/version_N.",
    "validate": "Evaluates a checkpoint on the validation images. The run is not changed.",
    "test": "Evaluates a checkpoint on the test images. The run is not changed.",
    "predict": "Writes a checkpoint's predictions for the test images to a CSV file.",
}
# The options that people use, in this order: name, value, description, verbs.
OPTIONS = (
    (
        "config",
        "NAME",
        "speedrun, mlp, lenet, cnn, robust, resnet, densenet, efficientnet, gnn, gnn_moments, or a YAML file. "
        "A second one changes the first.",
        ("fit",),
    ),
    (
        "model",
        "NAME",
        "CNN, DenseNet, EfficientNet, GNN, LeNet5, MLP, ResNet, or your own class: my_module.MyNet.",
        ("fit",),
    ),
    ("model.lr", "RATE", "Learning rate, one of the arguments of each model.", ("fit",)),
    ("ckpt_path", "RUN", "Run to continue: its folder or a checkpoint.", ("fit",)),
    ("init_from", "RUN", "Run or file of weights that a new run starts from.", ("fit",)),
    ("distill_from", "RUNS", "Run or folder of runs whose probabilities are learned in place of the labels.", ("fit",)),
    ("ckpt_path", "RUN", "Trained model: a run's folder or a checkpoint.", _EVALUATION),
    ("shifts", "BOOL", "Classify each digit at five positions, too: true or false.", ("test",)),
    ("data.source", "NAME", "mnist, fashion_mnist, kmnist, qmnist, emnist_digits, digits or folder:PATH.", _ALL),
    ("data.root", "FOLDER", "Folder of the data.", _ALL),
    ("trainer.max_epochs", "N", "Number of epochs. Default: the config's, else 10.", ("fit",)),
    ("trainer.devices", "N", "Number of GPUs, or of processes on a CPU.", _ALL),
    ("trainer.precision", "P", "32, bf16-mixed, 16-mixed or 64.", _ALL),
    ("seed_everything", "N", "Random seed. Default: 0.", ("fit",)),
    ("experiment", "NAME", "Name of the run's folder. Default: the config's name.", ("fit",)),
)
_EXAMPLES = {
    "fit": (
        "fit --config speedrun",
        "fit --config lenet --model.lr 0.003 --trainer.max_epochs 5",
        "fit --model CNN --data.source fashion_mnist",
        "fit --config resnet --print_config > my.yaml",
    ),
    "validate": ("validate --ckpt_path lightning_logs/lenet/version_0",),
    "test": ("test --ckpt_path lightning_logs/lenet/version_0",),
    "predict": ("predict --ckpt_path lightning_logs/lenet/version_0",),
}
_MORE = (
    ("--model.help CNN", "Arguments of a model."),
    ("--data.help MNISTDataModule", "Arguments of the data."),
    ("--print_config", "Print every setting as YAML and exit."),
    ("--help.all", "Every option, with Lightning's descriptions."),
)


def describe_verb(verb: str) -> str:
    """Describes `fit`, `validate`, `test` or `predict` by their most used options, 80 columns wide.

    Args:
        verb: The verb.
    """
    lines = [f"usage: mnist-lightning {verb} [options]", "", *wrap(DESCRIPTIONS[verb], 80), ""]
    for name, value, text, verbs in OPTIONS:
        if verb in verbs:
            lines += _entry(f"--{name} {value}", text)
    lines += ["", "Examples:", *(f"  mnist-lightning {example}" for example in _EXAMPLES[verb])]
    lines += ["", "More help:"]
    for flag, text in _MORE:
        lines += _entry(flag, text)
    return "\n".join(lines)


def _entry(left: str, text: str) -> list[str]:
    first, *rest = [f"{'':26}{line}" for line in wrap(text, 54)]
    if len(left) > 22:
        return [f"  {left}", first, *rest]
    return [f"  {left:24}{first.lstrip()}", *rest]

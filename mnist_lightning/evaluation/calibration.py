"""Temperature scaling: a model's confidence brought to what validation says of it (Guo et al. 2017, section 4.2).

All logits are divided by one number, the temperature. The answers stay what they are; their probabilities change.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from torch import Tensor

from mnist_lightning.checkpoint import find_checkpoint, load, temperature_file, temperature_seal
from mnist_lightning.data.graphs import MNISTSuperpixelsDataModule
from mnist_lightning.data.images import MNISTDataModule
from mnist_lightning.data.public_superpixels import PUBLIC
from mnist_lightning.errors import InputError, one_line
from mnist_lightning.evaluation.predictions import predict
from mnist_lightning.evaluation.runs import read_run
from mnist_lightning.evaluation.statistics import Float, calibration_bins, expected_calibration_error
from mnist_lightning.files import write_whole

if TYPE_CHECKING:  # a training, which fits its temperature, draws nothing here
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_HOTTEST = 100.0  # and its inverse the coldest


def fit_temperature(logits: Float, labels: NDArray[np.int64]) -> float:
    """The temperature with the least cross-entropy on some digits, which must not be the test digits.

    Where all N answers are right, the less the better, down to zero, where nothing is ever doubted. N right answers do
    not say that: mean confidence is then brought to (N + 1) / (N + 2), which is Laplace's rule of succession.

    Args:
        logits: [N, 10].
        labels: [N].

    Returns:
        What to divide logits by: above 1 for a model that is too sure of itself, below 1 for one that is too modest, as
        label smoothing makes them. Between 0.01 and 100, whatever the logits.

    Raises:
        InputError: If there are no logits, or some are not finite.

    Example:
        >>> logits = np.log(np.where(np.eye(10)[[3] * 100] > 0, 0.991, 0.001))
        >>> labels = np.array([3] * 90 + [5] * 10)  # 99 % sure and 90 % right
        >>> temperature = fit_temperature(logits, labels)
        >>> round(float(softmax(logits / temperature, axis=1)[0, 3]), 4)
        0.9
    """
    if not len(labels) or not np.isfinite(logits).all():
        raise InputError("a temperature cannot be fitted: there are no logits, or some are infinite or not a number")
    logits = logits.astype(np.float64)
    each = np.arange(len(labels))
    others = logits.copy()
    others[each, labels] = -np.inf
    all_right = bool((logits[each, labels] > others.max(axis=1)).all())
    succession = (len(labels) + 1) / (len(labels) + 2)

    def distance(log_temperature: float) -> float:
        scaled = logits / np.exp(log_temperature)
        if all_right:
            return abs(float(softmax(scaled, axis=1).max(axis=1).mean()) - succession)
        return -float(log_softmax(scaled, axis=1)[each, labels].mean())

    # Cross-entropy is convex in 1 / T and confidence falls with T, so that there is one minimum in log T.
    bounds = (-np.log(_HOTTEST), np.log(_HOTTEST))
    found = minimize_scalar(distance, bounds=bounds, method="bounded", options={"xatol": 1e-7})
    return float(np.exp(found.x))


@dataclass(frozen=True)
class Calibration:
    """What stands beside a checkpoint: its temperature, and what that has changed on validation.

    Attributes:
        temperature: What its logits are to be divided by.
        seal: SHA-256 of the checkpoint's bytes and the temperature's digits: it says nothing of any other checkpoint.
        validation_images: How many it was fitted on.
        precision: Of the model when it gave their logits, as Lightning names it.
        ece_before: Expected calibration error, of 15 bins, as a share.
        ece_after: The same at the temperature.
        loss_before: Cross-entropy.
        loss_after: The same at the temperature.
    """

    temperature: float
    seal: str
    validation_images: int
    precision: str
    ece_before: float
    ece_after: float
    loss_before: float
    loss_after: float


def save_temperature(checkpoint: Path, logits: Tensor, labels: Tensor, precision: str) -> Calibration:
    """Fits a checkpoint's temperature and writes it beside it, where `load(checkpoint, calibrated=True)` finds it.

    Args:
        checkpoint: The file, `best.ckpt`, say; the temperature goes to `best.temperature.json`.
        logits: float [N, 10], the checkpoint's model's, of validation digits.
        labels: int64 [N].
        precision: Of the model when it gave them, as Lightning names it.

    Returns:
        What was written.

    Raises:
        InputError: If there are no logits, or some are not finite.
    """
    before, true = logits.numpy().astype(np.float64), labels.numpy()
    temperature = fit_temperature(before, true)
    after = before / temperature
    calibration = Calibration(
        temperature,
        temperature_seal(checkpoint, temperature),
        len(true),
        precision,
        expected_calibration_error(before, true),
        expected_calibration_error(after, true),
        _cross_entropy(before, true),
        _cross_entropy(after, true),
    )
    write_whole(temperature_file(checkpoint), (json.dumps(asdict(calibration), indent=2) + "\n").encode())
    return calibration


def _cross_entropy(logits: Float, labels: NDArray[np.int64]) -> float:
    return -float(log_softmax(logits, axis=1)[np.arange(len(labels)), labels].mean())


def calibrate(run: str | Path, root: str | None = None) -> Calibration:
    """Fits the temperature of a run that has none, and writes it beside the checkpoint; `fit` does so by itself.

    The validation digits are those of the training. The model is asked in 32 bits, as `load` gives it.

    Args:
        run: A run's folder, whose best checkpoint is calibrated, or one of its checkpoints.
        root: Folder of the data; by default the run's, else $MNIST_LIGHTNING_DATA, else `data`.

    Returns:
        What was written.

    Raises:
        InputError: If the run has not ended or is damaged, or its data is not there or not of this package.
    """
    checkpoint = find_checkpoint(run)
    model = load(checkpoint)
    data = _data_of(checkpoint.absolute().parents[1], root)
    data.setup("validate")
    if isinstance(data, MNISTSuperpixelsDataModule):
        logits, labels = predict(model, data.batches("val"))
    else:  # a GNN makes its graphs on the way
        images, labels = data.images_and_labels("val")
        logits = model.classify(images)
    return save_temperature(checkpoint, logits, labels, "32-true")


def _data_of(folder: Path, root: str | None) -> MNISTDataModule:
    """What a run was trained and validated on, without the distortions of its training images."""
    summary = read_run(folder).summary
    path = folder / "config.yaml"
    cls = MNISTSuperpixelsDataModule if summary["source"] == PUBLIC else MNISTDataModule
    try:
        config = yaml.safe_load(path.read_text())["data"]
        if config["class_path"].split(".")[0] != "mnist_lightning":
            theirs = f"data of another package, {config['class_path']}"
            raise InputError(f"{path} names {theirs}: give save_temperature its validation logits")
        arguments = {**config["init_args"], "augment": None, "fallback": None}
        arguments["source"] = summary["source"]  # what was read; the config's may not have been there
        arguments["root"] = root or arguments["root"]
        if arguments["seed"] is None:
            arguments["seed"] = int(summary["seed"])
        return cls(**arguments)
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{folder} has no config.yaml, which would say what it was validated on") from None
    except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise InputError(f"{path} is damaged: {type(error).__name__}: {one_line(error, 100)}") from error


def reliability_before_and_after(
    names: Sequence[str], models: Sequence[tuple[Float, NDArray[np.int64], float]], colours: Sequence[Any]
) -> "Figure":
    """Accuracy against confidence, as the models are and at their temperatures; the legend has the calibration errors.

    Args:
        names: M of them.
        models: Logits [N, 10], labels [N] and temperature of each.
        colours: M of them.
    """
    from matplotlib.figure import Figure

    rows = -(-len(names) // 3)
    figure = Figure(figsize=(9.5, 5.5 + 0.25 * rows), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    texts = []
    for name, (logits, labels, temperature), colour in zip(names, models, colours, strict=True):
        errors = []
        for axes, scaled in zip(panels, (logits, logits / temperature), strict=True):
            draw_reliability(axes, scaled, labels, colour)
            errors.append(f"{100 * expected_calibration_error(scaled, labels):.2f} %")
        texts.append(f"{name}, T = {temperature:.2f}: {' → '.join(errors)}")
    for axes, title in zip(panels, ("as trained", "at its temperature T"), strict=True):
        axes.plot([0, 1], [0, 1], color="#999999", linewidth=1, zorder=0)
        axes.set(title=title, xlabel="confidence", xlim=(0, 1.02), ylim=(0, 1.02), aspect="equal")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("accuracy")
    handles = [panels[0].plot([], [], color=colour, linewidth=3)[0] for colour in colours]
    title = "\nExpected calibration error, of 15 bins; a large dot is a bin of many digits"
    columns = min(3, len(names))
    figure.legend(handles, texts, title=title, fontsize=9, frameon=False, loc="outside lower center", ncols=columns)
    return figure


def draw_reliability(axes: "Axes", logits: Float, labels: NDArray[np.int64], colour: Any) -> None:
    """Accuracy against confidence in a figure that has others, of bins with ten images or more.

    Args:
        axes: Where to draw.
        logits: [N, 10].
        labels: [N].
        colour: Of the line; the more images in a bin, the larger its dot.
    """
    share, confidence, accuracy = calibration_bins(logits, labels)
    filled = share * len(labels) >= 9.5  # fewer say nothing about accuracy
    area = 8 * np.log10(share[filled] * len(labels)) ** 2
    axes.plot(confidence[filled], accuracy[filled], color=colour, linewidth=1, alpha=0.7)
    axes.scatter(confidence[filled], accuracy[filled], area, color=colour, alpha=0.8, linewidths=0, zorder=3)

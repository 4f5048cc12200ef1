"""Temperature scaling: matches a model's confidence to its accuracy (Guo et al. 2017, section 4.2).

All logits are divided by one number, the temperature. Predicted classes stay the same, only probabilities change.
"""

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from torch import Tensor

from mnist_lightning.data.graphs import MNISTSuperpixelsDataModule
from mnist_lightning.data.images import MNISTDataModule
from mnist_lightning.data.public_superpixels import PUBLIC
from mnist_lightning.errors import InputError, one_line
from mnist_lightning.evaluation.statistics import Float, expected_calibration_error
from mnist_lightning.files import save_tensors
from mnist_lightning.runs.checkpoint import CALIBRATION, find_checkpoint, load, read_checkpoint
from mnist_lightning.runs.predictions import predict
from mnist_lightning.runs.run import Run

_LOG_BOUNDS = (-np.log(100), np.log(100))  # temperatures from 0.01 to 100


def fit_temperature(logits: Float, labels: NDArray[np.int64]) -> float:
    """Fits the temperature that minimises the cross-entropy on held-out images, which must not be the test images.

    If all N images are classified correctly, the cross-entropy falls with the temperature all the way to zero, where
    every confidence is 1. N correct answers don't justify that. The temperature is then chosen such that the mean
    confidence is (N + 1) / (N + 2), Laplace's rule of succession.

    Args:
        logits: Logits of the held-out images [N, 10].
        labels: Labels of the held-out images [N].

    Returns:
        The temperature, from 0.01 to 100: above 1 for an overconfident model, below 1 for an underconfident one, for
        example after training with label smoothing.

    Raises:
        InputError: If there are no logits, or some are not finite.

    Example:
        >>> logits = np.log(np.where(np.eye(10)[[3] * 100] > 0, 0.991, 0.001))
        >>> labels = np.array([3] * 90 + [5] * 10)  # confidence 99 %, accuracy 90 %
        >>> temperature = fit_temperature(logits, labels)
        >>> round(float(softmax(logits / temperature, axis=1)[0, 3]), 4)
        0.9
    """
    if not len(labels) or not np.isfinite(logits).all():
        raise InputError("cannot fit a temperature: there are no logits, or some are infinite or NaN")
    logits = logits.astype(np.float64)
    all_correct = np.array_equal(logits.argmax(axis=1), labels)
    target = (len(labels) + 1) / (len(labels) + 2)

    def objective(log_temperature: float) -> float:
        scaled = logits / np.exp(log_temperature)
        if all_correct:
            return abs(float(softmax(scaled, axis=1).max(axis=1).mean()) - target)
        return _cross_entropy(scaled, labels)

    # One minimum in log T: cross-entropy is convex in 1 / T, and confidence decreases with T.
    result = minimize_scalar(objective, bounds=_LOG_BOUNDS, method="bounded", options={"xatol": 1e-7})
    return float(np.exp(result.x))


@dataclass(frozen=True)
class Calibration:
    """A checkpoint's temperature, and its effect on the validation images.

    Attributes:
        temperature: Divisor of the logits.
        validation_images: Number of images that the temperature was fitted on.
        precision: Lightning's name of the precision in which the model computed the logits.
        ece_before: Expected calibration error of 15 bins, from 0 to 1, without the temperature.
        ece_after: Expected calibration error with the temperature.
        loss_before: Cross-entropy without the temperature.
        loss_after: Cross-entropy with the temperature.
    """

    temperature: float
    validation_images: int
    precision: str
    ece_before: float
    ece_after: float
    loss_before: float
    loss_after: float


def save_temperature(checkpoint: Path, logits: Tensor, labels: Tensor, precision: str) -> Calibration:
    """Fits a model's temperature and adds it to its checkpoint, for `load(checkpoint, calibrated=True)`.

    Args:
        checkpoint: The checkpoint, which is replaced atomically.
        logits: The model's logits of the validation images, float [N, 10].
        labels: Labels of the validation images, int64 [N].
        precision: Lightning's name of the precision in which the model computed the logits.

    Returns:
        The calibration, as saved.

    Raises:
        InputError: If there are no logits, some are not finite, or the checkpoint cannot be read.
        OSError: If the checkpoint cannot be written.
    """
    before, classes = logits.numpy().astype(np.float64), labels.numpy()
    temperature = fit_temperature(before, classes)
    after = before / temperature
    calibration = Calibration(
        temperature=temperature,
        validation_images=len(classes),
        precision=precision,
        ece_before=expected_calibration_error(before, classes),
        ece_after=expected_calibration_error(after, classes),
        loss_before=_cross_entropy(before, classes),
        loss_after=_cross_entropy(after, classes),
    )
    save_tensors({**read_checkpoint(checkpoint), CALIBRATION: asdict(calibration)}, checkpoint)
    return calibration


def _cross_entropy(logits: Float, labels: NDArray[np.int64]) -> float:
    return -float(log_softmax(logits, axis=1)[np.arange(len(labels)), labels].mean())


def calibrate(run: str | Path, root: str | None = None) -> Calibration:
    """Fits the temperature of a finished run and adds it to the checkpoint, for runs from before `fit` did so.

    The model is evaluated in 32-bit precision on the validation images of its training. The checkpoint gets the key
    `calibration`, with the fields of `Calibration`, or a new value of it. Nothing else in the run changes.

    Args:
        run: A checkpoint of a run, a run folder, whose tested checkpoint is calibrated, or a folder that contains
            runs of one experiment.
        root: Folder of the data. Default: the run's, else $MNIST_LIGHTNING_DATA, or `data` if that is not set.

    Returns:
        The calibration, as saved.

    Raises:
        InputError: If the run is not finished or is damaged, or its data is not on disk or belongs to another package.
    """
    checkpoint = find_checkpoint(run)
    model = load(checkpoint)
    data = _data_of(checkpoint, root)
    data.setup("validate")
    if isinstance(data, MNISTSuperpixelsDataModule):
        logits, labels = predict(model, data.batches("val"))
    else:  # a GNN turns the images into graphs
        images, labels = data.images_and_labels("val")
        logits = model.classify(images)
    return save_temperature(checkpoint, logits, labels, "32-true")


def _data_of(checkpoint: Path, root: str | None) -> MNISTDataModule:
    """Rebuilds the data module of a checkpoint's run, without augmentation."""
    run, advice = Run.of(checkpoint), "give save_temperature its validation logits"
    if run is None:
        raise InputError(f"{checkpoint} is not in a run folder; {advice}")
    source = run.source  # the config may name another one, which was not available
    if not run.config:
        raise InputError(f"{run.folder} has no {run.config_file.name}, so its validation images are unknown; {advice}")
    class_path, arguments = run.config["data"]
    if class_path.split(".")[0] != "mnist_lightning":
        raise InputError(f"{run.config_file} names data of another package, {class_path}; {advice}")
    cls = MNISTSuperpixelsDataModule if source == PUBLIC else MNISTDataModule
    if cls is MNISTDataModule and class_path.endswith("MNISTSuperpixelsDataModule"):  # the model makes its own graphs
        arguments = {name: value for name, value in arguments.items() if name not in ("features", "copies")}
    seed = (run.summary["seed"] or 0) if arguments.get("seed") is None else arguments["seed"]
    changes = {"source": source, "root": root or arguments.get("root"), "seed": seed, "augment": None, "fallback": None}
    try:
        return cls(**{**arguments, **changes})
    except InputError:
        raise
    except (TypeError, ValueError) as error:
        raise InputError(f"{run.config_file} is damaged: {type(error).__name__}: {one_line(error, 100)}") from error

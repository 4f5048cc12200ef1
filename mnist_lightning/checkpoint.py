"""A checkpoint back to a model, safely."""

import hashlib
import json
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mnist_lightning.classifier import Classifier
from mnist_lightning.errors import InputError, one_line
from mnist_lightning.sealed import is_whole


def load(path: str | Path, device: torch.device | str = "cpu", calibrated: bool = False) -> Classifier:
    """Loads a trained model, in evaluation mode.

    Nothing is unpickled but tensors and plain values, so that a checkpoint cannot run code. A model class of your
    own is found if the module that defines it has been imported.

    Args:
        path: A checkpoint, or a run's folder, whose best checkpoint is loaded.
        device: Where the model shall be.
        calibrated: Divides the model's logits by its temperature (Guo et al. 2017, "On calibration of modern neural
            networks", section 4.2), so that it is as often right as it is sure. A training fits it on validation and
            puts it beside the checkpoint; `evaluation.calibration.calibrate` does so for older runs.

    Returns:
        The model.

    Raises:
        InputError: If there is no such file, it is not a checkpoint of this package, its class is not known, or it is
            to be calibrated and no temperature of this very checkpoint is beside it.
    """
    path = find_checkpoint(path)
    checkpoint = read_checkpoint(path)
    cls = _class_named(checkpoint["classifier"], path)
    try:
        model = cls(**{**checkpoint["hyper_parameters"], "compile": False})
        model.load_state_dict(checkpoint["state_dict"])
    except (TypeError, RuntimeError) as error:
        raise InputError(f"{path} does not fit the class {cls.__name__} as it is now: {one_line(error)}") from error
    if calibrated:
        model.register_forward_hook(partial(_at_temperature, temperature_of(path)))
    return model.to(device).eval()


def _at_temperature(temperature: float, model: nn.Module, inputs: tuple[Any, ...], logits: Tensor) -> Tensor:
    return logits / temperature


def temperature_of(checkpoint: Path) -> float:
    """The temperature that stands beside a checkpoint.

    Raises:
        InputError: If there is none, it is damaged, or it is another checkpoint's.
    """
    path = temperature_file(checkpoint)
    remedy = f'mnist_lightning.evaluation.calibration.calibrate("{checkpoint}") makes it'
    try:
        content = json.loads(path.read_text())
        temperature, seal = float(content["temperature"]), content["seal"]
        if not 0 < temperature < float("inf"):
            raise ValueError(f"a temperature of {temperature}")
    except FileNotFoundError:
        raise InputError(f"{checkpoint} has no temperature beside it, in {path.name}: {remedy}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is damaged ({one_line(error, 100)}): {remedy} anew") from error
    if seal != temperature_seal(checkpoint, temperature):
        raise InputError(
            f"{path} is of another checkpoint than the {checkpoint.name} beside it, or damaged: {remedy} anew"
        )
    return temperature


def temperature_file(checkpoint: Path) -> Path:
    """Where a checkpoint's temperature is.

    Example:
        >>> temperature_file(Path("best.ckpt")).name
        'best.temperature.json'
    """
    return checkpoint.with_suffix(".temperature.json")


def temperature_seal(checkpoint: Path, temperature: float) -> str:
    """Ties a temperature to its checkpoint: SHA-256 of the file's bytes, and then of the temperature's digits."""
    return hashlib.sha256(checkpoint.read_bytes() + repr(temperature).encode()).hexdigest()


def find_checkpoint(path: str | Path, name: Literal["best", "last"] = "best") -> Path:
    """The checkpoint file that a path names: itself, or one of a run's folder.

    Args:
        path: A checkpoint or a run's folder.
        name: Which one of the folder's.

    Raises:
        InputError: If there is none.
    """
    path = Path(path)
    if path.is_file():
        return path
    # A run that was killed in its first epoch may have the best checkpoint and not yet the last.
    for inside in (path / "checkpoints" / f"{name}.ckpt", path / "checkpoints" / "best.ckpt"):
        if inside.is_file():
            return inside
    if path.is_dir():
        raise InputError(f"{path} is a folder without checkpoints/{name}.ckpt: give a run's folder or a .ckpt file")
    raise InputError(f"there is no checkpoint {path}")


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Reads a checkpoint's content: tensors and plain values, nothing else.

    Raises:
        InputError: If the file is damaged, holds anything else, or was not written by this package.
    """
    try:
        whole = is_whole(path)
        checkpoint = torch.load(path, map_location="cpu", weights_only=True) if whole else None
    except PermissionError as error:
        raise InputError(f"no permission to read the checkpoint {path}") from error
    except Exception as error:  # whole, but of anything
        if "Unsupported global" in str(error) or "Unsupported operand" in str(error):
            raise InputError(
                f"the checkpoint {path} is refused and nothing in it was run: it holds more than tensors and "
                "plain values, and loading that could execute code"
            ) from error
        raise InputError(f"{path} is not a checkpoint: {one_line(error)}") from error
    if not whole:
        raise InputError(
            f"{path} is not a checkpoint, or it is damaged; it is refused and nothing in it was run{_instead_of(path)}"
        )
    if not isinstance(checkpoint, dict) or not {"classifier", "state_dict", "hyper_parameters"} <= checkpoint.keys():
        raise InputError(f"{path} was not written by mnist-lightning: it does not say which model it holds")
    return checkpoint


def _instead_of(path: Path) -> str:
    """How to go on without a checkpoint of a run: with the other one, or from the beginning."""
    others = [other for other in sorted(path.parent.glob("*.ckpt")) if other != path and os.access(other, os.R_OK)]
    ways = [f"take {other}" for other in others if is_whole(other)]
    config = path.parent.parent / "config.yaml"
    if config.is_file():
        ways.append(f"train anew with --config {config}")
    return f"; {', or '.join(ways)}" if ways else ""


def _class_named(name: str, path: Path) -> type[Classifier]:
    import mnist_lightning.models  # noqa: F401 - makes the package's own models known

    for cls in _subclasses(Classifier):  # type: ignore[type-abstract]
        if f"{cls.__module__}.{cls.__qualname__}" == name:
            return cls
    raise InputError(f"{path} holds a {name}, which is not known here: import the module that defines it first")


def _subclasses(cls: type[Classifier]) -> Iterator[type[Classifier]]:
    for subclass in cls.__subclasses__():
        yield subclass
        yield from _subclasses(subclass)

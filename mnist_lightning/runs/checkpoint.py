"""Finds checkpoints, reads them safely, and rebuilds their models."""

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mnist_lightning.classifier import Classifier
from mnist_lightning.errors import InputError, one_line
from mnist_lightning.files import is_intact
from mnist_lightning.runs.finding import existing, find_run
from mnist_lightning.runs.run import CHECKPOINTS, Run

CALIBRATION = "calibration"  # key of a checkpoint


def load(
    path: str | Path,
    device: torch.device | str = "cpu",
    calibrated: bool = False,
    module: nn.Module | None = None,
) -> Classifier:
    """Loads a trained model in evaluation mode.

    Only tensors and plain values are unpickled, so a checkpoint cannot run code. To load a model class of your own,
    import its module first.

    Args:
        path: A checkpoint, a run folder, whose tested checkpoint is loaded, or a folder that contains runs of one
            experiment, whose best run is loaded; see `find_run`.
        device: Device of the model.
        calibrated: Divide the model's logits by the checkpoint's temperature (Guo et al. 2017, "On calibration of
            modern neural networks", section 4.2), so that its confidence matches its accuracy. Training fits the
            temperature on the validation images; `evaluation.calibration.calibrate` adds it to older checkpoints.
        module: Module that gets the weights of a model of `Classifier.of`, made with the arguments of the trained one.

    Returns:
        The model.

    Raises:
        InputError: If the file is missing or not a checkpoint of this package, its class is unknown, its weights do
            not fit or are not finite, or `calibrated` is set and the checkpoint has no temperature.
    """
    path = find_checkpoint(path)
    checkpoint = read_checkpoint(path)
    build = _class_named(checkpoint["classifier"], path) if module is None else partial(Classifier.of, module)
    try:
        model = build(**{**checkpoint["hyper_parameters"], "compile": False})
        model.load_state_dict(checkpoint["state_dict"])
        temperature = temperature_in(checkpoint)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except Exception as error:  # a stranger's checkpoint may contain any values
        cause = f"{type(error).__name__}: {one_line(error)}"
        raise InputError(f"{path} does not fit the current class {checkpoint['classifier']}: {cause}") from error
    if calibrated:
        if temperature is None:
            raise InputError(
                f"{path} has no temperature; mnist_lightning.evaluation.calibration.calibrate({str(path)!r}) adds one"
            )
        model.register_forward_hook(partial(_divide_logits, temperature))
    return model.to(device).eval()


def _divide_logits(temperature: float, model: nn.Module, inputs: tuple[Any, ...], logits: Tensor) -> Tensor:
    return logits / temperature


def temperature_in(checkpoint: dict[str, Any]) -> float | None:
    """Returns the temperature in the content of a checkpoint, or None if it has none."""
    return float(checkpoint[CALIBRATION]["temperature"]) if CALIBRATION in checkpoint else None


def find_checkpoint(path: str | Path, name: Literal["tested", "last"] = "tested") -> Path:
    """Finds a checkpoint file.

    Args:
        path: A checkpoint, a run folder, or a folder that contains runs of one experiment; see `find_run`.
        name: Which checkpoint of a run.

    Raises:
        InputError: If there is none.
    """
    path = existing(path)
    if path.is_file():
        return path
    run = find_run(path)
    if checkpoint := run.checkpoint(name):
        return checkpoint
    way = f"; train again with --config {run.config_file}" if run.config_file.is_file() else ""
    why = "its first epoch did not end, or the file was deleted"
    raise InputError(f"{run.folder} has no {CHECKPOINTS}/{run.last.name}: {why}{way}")


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Reads the content of a checkpoint: tensors and plain values only.

    Raises:
        InputError: If the file is damaged, contains anything else, or was not written by this package.
    """
    checkpoint = _read(path)
    parts = {"classifier": str, "state_dict": dict, "hyper_parameters": dict}
    if not isinstance(checkpoint, dict) or not all(isinstance(checkpoint.get(k), t) for k, t in parts.items()):
        raise InputError(f"{path} was not written by mnist-lightning: it does not name its model")
    return checkpoint


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads the weights in a file: a checkpoint of Lightning, or a state dict that was written by `torch.save`.

    Returns:
        The state dict, and the content of the checkpoint, which is empty for a state dict alone.

    Raises:
        InputError: If the file is damaged, or contains no weights or anything else.
    """
    content = _read(path)
    checkpoint = content if isinstance(content, dict) and isinstance(content.get("state_dict"), dict) else {}
    weights = checkpoint.get("state_dict", content)
    if not isinstance(weights, dict) or not weights or not all(isinstance(each, Tensor) for each in weights.values()):
        raise InputError(f"{path} contains no weights; give a run, a checkpoint, or a state dict")
    return dict(weights), checkpoint


def data_in(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Returns the data module's state in the content of a checkpoint: source, classes and a checksum of the labels.

    It is empty for a checkpoint of an earlier version, or of another data module.
    """
    states = (value for value in checkpoint.values() if isinstance(value, dict))
    return next((state for state in states if {"source", "classes", "labels"} <= state.keys()), {})


def _read(path: Path) -> Any:
    try:
        intact = is_intact(path)
        checkpoint = torch.load(path, map_location="cpu", weights_only=True) if intact else None
    except PermissionError as error:
        raise InputError(f"no permission to read the checkpoint {path}") from error
    except Exception as error:  # an intact archive may contain anything
        # Not torch's own text: it advises to load the file unsafely.
        if type(error).__name__ == "UnpicklingError":
            raise InputError(
                f"the checkpoint {path} is refused and nothing in it was run: it contains more than tensors and "
                "plain values, and loading it could execute code"
            ) from error
        raise InputError(f"{path} is not a checkpoint; it is refused and nothing in it was run") from error
    if not intact:
        raise InputError(
            f"{path} is not a checkpoint, or it is damaged; it is refused and nothing in it was run{_instead_of(path)}"
        )
    return checkpoint


def _instead_of(path: Path) -> str:
    """Suggests how to continue without a damaged checkpoint: with another one, or from the start."""
    others = [other for other in sorted(path.parent.glob("*.ckpt")) if other != path and os.access(other, os.R_OK)]
    ways = [f"use {other}" for other in others if is_intact(other)]
    run = Run.of(path)
    if run is not None and run.config_file.is_file():
        ways.append(f"train again with --config {run.config_file}")
    return f"; {', or '.join(ways)}" if ways else ""


def _class_named(name: str, path: Path) -> type[Classifier]:
    import mnist_lightning.models  # noqa: F401 - defines the package's own models

    for cls in _subclasses(Classifier):  # type: ignore[type-abstract]
        if f"{cls.__module__}.{cls.__qualname__}" == name:
            return cls
    # No import here: the name is a stranger's text, and a module of that name may lie in the current folder.
    module, _, cls_name = name.rpartition(".")
    command = f'python -c "import {module}, mnist_lightning.cli as c; c.main()" VERB ...'
    hint = f" (on the command line: {command})" if all(map(str.isidentifier, module.split("."))) else ""
    raise InputError(
        f"{path} contains a {name}, which is unknown: import the module that defines it first{hint} or, for a plain "
        f"torch.nn.Module, use load(path, module={cls_name}())"
    )


def _subclasses(cls: type[Classifier]) -> Iterator[type[Classifier]]:
    for subclass in cls.__subclasses__():
        yield subclass
        yield from _subclasses(subclass)

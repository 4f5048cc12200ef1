"""A checkpoint back to a model, safely."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch

from mnist_lightning.classifier import Classifier
from mnist_lightning.errors import InputError, one_line


def load(path: str | Path, device: torch.device | str = "cpu") -> Classifier:
    """Loads a trained model, in evaluation mode.

    Nothing is unpickled but tensors and plain values, so that a checkpoint cannot run code. A model class of your
    own is found if the module that defines it has been imported.

    Args:
        path: A checkpoint, or a run's folder, whose best checkpoint is loaded.
        device: Where the model shall be.

    Returns:
        The model.

    Raises:
        InputError: If there is no such file, it is not a checkpoint of this package, or its class is not known.
    """
    path = find_checkpoint(path)
    checkpoint = read_checkpoint(path)
    cls = _class_named(checkpoint["classifier"], path)
    try:
        model = cls(**{**checkpoint["hyper_parameters"], "compile": False})
        model.load_state_dict(checkpoint["state_dict"])
    except (TypeError, RuntimeError) as error:
        raise InputError(f"{path} does not fit the class {cls.__name__} as it is now: {one_line(error)}") from error
    return model.to(device).eval()


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
    inside = path / "checkpoints" / f"{name}.ckpt"
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
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except PermissionError as error:
        raise InputError(f"no permission to read the checkpoint {path}") from error
    except Exception as error:  # a damaged file can raise anything
        if "Unsupported global" in str(error) or "Unsupported operand" in str(error):
            raise InputError(
                f"the checkpoint {path} is refused and nothing in it was run: it holds more than tensors and "
                "plain values, and loading that could execute code"
            ) from error
        raise InputError(f"{path} is not a checkpoint, or it is damaged: {one_line(error)}") from error
    if not isinstance(checkpoint, dict) or not {"classifier", "state_dict", "hyper_parameters"} <= checkpoint.keys():
        raise InputError(f"{path} was not written by mnist-lightning: it does not say which model it holds")
    return checkpoint


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

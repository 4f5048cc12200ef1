"""`mnist-lightning export`: writes a model to one file that runs without this package; ONNX also without PyTorch."""

import importlib.util
import json
import logging
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import dataclass
from importlib.metadata import version
from io import BytesIO, StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mnist_lightning.errors import InputError, one_line
from mnist_lightning.files import writable, write_whole
from mnist_lightning.runs.run import Run

if TYPE_CHECKING:  # `export --help` answers before these are imported
    from torch import Tensor

    from mnist_lightning.classifier import Classifier

DIGITS = 1000  # test digits for the comparison with PyTorch
BATCHES = (1, 7, 256)
TOLERANCE = 1e-4  # in logits; the order of 32-bit sums alone changes them by 1e-6 to 1e-5

_Array = NDArray[np.float32]
_ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


@dataclass(frozen=True)
class Export:
    """An exported file, and its largest differences from PyTorch.

    Attributes:
        path: The file.
        digits: Description of the digits of the comparison.
        differences: Largest absolute difference of a logit from the checkpoint in PyTorch, by batch size.
    """

    path: Path
    digits: str
    differences: dict[int, float]

    def __str__(self) -> str:
        *sizes, last = map(str, self.differences)
        return (
            f"{self.path}: {self.path.stat().st_size / 1024:,.0f} KiB; on {self.digits}, in batches of "
            f"{', '.join(sizes)} and {last}, its logits are within {max(self.differences.values()):.1e} of PyTorch's"
        )


def export_model(
    checkpoint: str, output: str = "model.onnx", source: str | None = None, root: str | None = None
) -> Export:
    """Exports an image model to ONNX (.onnx) or as a torch.export program (.pt2), and checks the file on real digits.

    The exported model maps `images`, float32 [batch, 1, 28, 28] with intensities from 0 (background) to 1 (ink), to
    `logits`, float32 [batch, 10], for any batch size. It includes the standardisation. The file's metadata contain the
    model's name, the classes, the training source, the test accuracy and the versions: in the `metadata_props` of an
    .onnx file, or in `metadata.json` among the `extra_files` of a .pt2 file. The file is written only if it agrees with
    PyTorch on 1,000 test digits in batches of 1, 7 and 256: equal predictions, and all logits within 1e-4. An .onnx
    file is checked in onnxruntime.

    Args:
        checkpoint: Checkpoint of an image model, a run folder, or a folder that contains runs of one experiment.
        output: File to write, .onnx or .pt2.
        source: Source of the digits for the check. Default: the run's source or, if it cannot be read, the embedded
            digits.
        root: Folder of the data. Default: $MNIST_LIGHTNING_DATA, or `data` if that is not set.

    Returns:
        The written file, and its largest differences from PyTorch.

    Raises:
        InputError: If a file or an argument cannot be used, the model cannot be exported, or the exported model differs
            from it.
    """
    path = writable(output, [".onnx", ".pt2"], [checkpoint])
    if path.suffix == ".onnx":
        _require_onnx()
    from mnist_lightning.runs.checkpoint import find_checkpoint, load

    checkpoint = str(find_checkpoint(checkpoint))
    model = load(checkpoint)
    facts = _facts(model, checkpoint)
    digits, description = _digits(source, facts.get("source", "mnist"), root)
    images = digits.unsqueeze(1).float() / 255
    _check_inputs(model, digits[:2], images[:2], checkpoint)
    logits = model.classify(digits)
    content = _quietly_converted(model, path.suffix, facts, checkpoint)
    differences = _differences(_loaded(content, path.suffix), images.numpy(), logits.numpy())
    write_whole(path, content)
    return Export(path, description, differences)


def _require_onnx() -> None:
    needed = [name for name in _ONNX_PACKAGES if importlib.util.find_spec(name) is None]
    if tuple(map(int, version("torch").split(".")[:2])) < (2, 7):  # 2.6 cannot translate batch norm
        needed.append(f"torch 2.7 or newer, not {version('torch')}")
    if needed:
        packages = ", ".join(needed)
        raise InputError(f"an .onnx file needs {packages}: pip install 'mnist-lightning[export]', or write a .pt2 file")


def _facts(model: "Classifier", checkpoint: str) -> dict[str, str]:
    """Metadata of the exported file. A checkpoint outside of a finished run has no source and no test accuracy."""
    from mnist_lightning.classifier import CLASSES
    from mnist_lightning.runs.checkpoint import read_checkpoint

    packages = ("mnist-lightning", "torch", *(name for name in _ONNX_PACKAGES if importlib.util.find_spec(name)))
    facts = {
        "model": type(model).__name__,
        "classes": ",".join(map(str, range(CLASSES))),
        "input": "images: float32 [batch, 1, 28, 28], from 0 (background) to 1 (ink); standardisation is inside",
        "output": f"logits: float32 [batch, {CLASSES}]",
        "versions": json.dumps({name: version(name) for name in packages}),
    }
    run = Run.of(checkpoint)
    if run is not None and run.is_finished:
        facts["source"] = run.source
        # Only the tested weights have a test accuracy.
        content, summary = read_checkpoint(Path(checkpoint)), run.summary
        old = "best_epoch" in summary  # earlier versions tested that epoch
        if content.get("epoch" if old else "global_step") == summary.get("best_epoch" if old else "steps"):
            facts["test_accuracy"] = str(float(summary["test"]["accuracy"]))
            facts["test_accuracy_measured_in"] = str(summary.get("precision"))
    return facts


def _digits(source: str | None, run_source: str, root: str | None) -> "tuple[Tensor, str]":
    """Returns test digits, uint8 [N, 28, 28], and their description."""
    from mnist_lightning.data.sources import fetch, read

    name = source or run_source
    try:
        if source is not None:
            fetch(source, root)
        digits, _ = read(name, root, train=False)
    except InputError:
        if source is not None:
            raise
        digits, _ = read("digits", train=False)
        name = f"digits (as {run_source} cannot be read here)"
    return digits[:DIGITS], f"{min(DIGITS, len(digits)):,} test digits of {name}"


def _check_inputs(model: "Classifier", digits: "Tensor", images: "Tensor", checkpoint: str) -> None:
    """Refuses models that preprocess digits in Python: an exported file contains only `forward`."""
    from mnist_lightning.models.gnn import GNN

    if isinstance(model, GNN):
        raise InputError(
            f"{checkpoint} contains a GNN, which cannot be exported: scikit-image computes its superpixel graphs "
            "outside the model, and torch.export cannot trace its `forward`, whose output size depends on `batch`"
        )
    inputs = model.inputs(digits)
    if len(inputs) != 1 or not inputs[0].equal(images):
        raise InputError(
            f"{checkpoint} contains a {type(model).__name__}, which cannot be exported: its `inputs` does not return "
            "images [N, 1, 28, 28] from 0 to 1; move other preprocessing to `forward`, the only part that is exported"
        )


def _quietly_converted(model: "Classifier", suffix: str, facts: dict[str, str], checkpoint: str) -> bytes:
    """Converts the model without torch's messages, which appear even if tracing succeeds; the result is checked."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(action="ignore"), redirect_stderr(StringIO()):  # a failed trace prints its graph
            return _converted(model, suffix, facts)
    except Exception as error:  # tracing and translation raise many types; the first cause is the clearest
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        name = type(model).__name__
        raise InputError(f"{checkpoint} contains a {name}, which torch cannot export: {one_line(cause)}") from error
    finally:
        logging.disable(disabled)


def _converted(model: "Classifier", suffix: str, facts: dict[str, str]) -> bytes:
    """Content of the exported file."""
    import torch
    from torch import Tensor, nn

    class Program(nn.Module):
        """Names the input `images`, whatever the classifier's `forward` calls it."""

        def __init__(self, classifier: "Classifier") -> None:
            super().__init__()
            self.classifier = classifier

        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = self.classifier(images)
            return logits

    # Channels-last is faster to train on a CPU, but other runtimes choose their own layout.
    module = Program(model.to(memory_format=torch.contiguous_format)).eval()
    shapes: Any = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(module, (torch.zeros(2, 1, 28, 28),), dynamic_shapes=shapes, strict=False)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # contains paths of this machine
    if suffix == ".pt2":
        file = BytesIO()
        torch.export.save(program, file, extra_files={"metadata.json": json.dumps(facts, indent=2)})
        return file.getvalue()
    names: dict[str, Any] = {"input_names": ["images"], "output_names": ["logits"], "dynamic_shapes": shapes}
    exported = torch.onnx.export(program, dynamo=True, optimize=True, verbose=False, **names)
    assert exported is not None
    exported.model.metadata_props.update(facts)
    content: bytes = exported.model_proto.SerializeToString()
    return content


def _loaded(content: bytes, suffix: str) -> Callable[[_Array], _Array]:
    """Function from images to logits that runs the exported model."""
    if suffix == ".onnx":
        from onnxruntime import InferenceSession

        session = InferenceSession(content, providers=["CPUExecutionProvider"])
        return lambda images: session.run(["logits"], {"images": images})[0]
    import torch

    module = torch.no_grad()(torch.export.load(BytesIO(content)).module())
    return lambda images: module(torch.from_numpy(images)).numpy()


def _differences(run: Callable[[_Array], _Array], images: _Array, logits: _Array) -> dict[int, float]:
    """Largest absolute differences of the exported model's logits from PyTorch's, by batch size."""
    differences = {}
    for size in BATCHES:
        parts = np.split(images, range(size, len(images), size))
        exported = np.concatenate([run(part) for part in parts])
        differences[size] = float(np.abs(exported - logits).max())
        changed = int((exported.argmax(axis=1) != logits.argmax(axis=1)).sum())
        if changed or not differences[size] <= TOLERANCE:  # also for NaN
            raise InputError(
                f"nothing was written: in batches of {size}, the exported model's logits differ from PyTorch's by up "
                f"to {differences[size]:.1e} (allowed: {TOLERANCE:.0e}), and {changed:,} of {len(logits):,} "
                "predictions differ"
            )
    return differences

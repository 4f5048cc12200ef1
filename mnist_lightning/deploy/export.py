"""`mnist-lightning export`: from a checkpoint to one file that runs without this package, as ONNX without PyTorch."""

import importlib.util
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from importlib.metadata import version
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import torch
from rich.text import Text
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from mnist_lightning.checkpoint import find_checkpoint, load, read_checkpoint
from mnist_lightning.classifier import CLASSES, Classifier
from mnist_lightning.data.sources import read
from mnist_lightning.errors import InputError, one_line
from mnist_lightning.files import writable, write_whole
from mnist_lightning.models import GNN

DIGITS = 1000  # that a file is compared with PyTorch on
BATCHES = (1, 7, 256)
TOLERANCE = 1e-4  # of a logit; sums of 32-bit numbers in another order differ by 1e-6 to 1e-5

_ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
_SHAPES = ({0: Dim("batch")},)


@dataclass(frozen=True)
class Export:
    """A file that was written, and how well it agrees with PyTorch.

    Attributes:
        path: The file.
        digits: The real digits that it was compared on, in words.
        differences: For each size of the batches, the largest absolute difference between a logit of the file and the
            same of the checkpoint in PyTorch.
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

    def __rich__(self) -> Text:
        return Text(str(self))  # rich would show a dataclass as its fields


def export_model(
    checkpoint: str, output: str = "model.onnx", source: str | None = None, root: str | None = None
) -> Export:
    """Exports an image model to ONNX (.onnx) or as a torch.export program (.pt2), and checks the file on real digits.

    The file takes `images`, float32 [batch, 1, 28, 28] with intensities from 0 (background) to 1 (ink), and gives
    `logits`, float32 [batch, 10], for any batch; standardisation is inside. It also says what it is: the model's name,
    the classes, what it was trained on, test accuracy and versions; an .onnx file in its `metadata_props`, a .pt2 file
    in `metadata.json`, one of its `extra_files`. It is written only if onnxruntime, or the program read back, gives
    PyTorch's answers for 1,000 test digits in batches of 1, 7 and 256, all logits within 1e-4.

    Args:
        checkpoint: A checkpoint of an image model, or a run's folder, whose best checkpoint is taken.
        output: File to write, .onnx or .pt2.
        source: Where the digits for the check come from; by default what the run was trained on, or the embedded
            digits where that cannot be read.
        root: Folder of the data; by default $MNIST_LIGHTNING_DATA, else `data`.

    Returns:
        The file that was written, and its largest differences from PyTorch.

    Raises:
        InputError: If a file or an argument cannot be used, the model cannot be exported, or the exported one does not
            agree with it.
    """
    path = writable(output, [".onnx", ".pt2"])
    if path.suffix == ".onnx":
        _require_onnx()
    model = load(checkpoint)
    facts = _facts(model, checkpoint)
    digits, found = _digits(source, facts.get("source", "mnist"), root)
    images = digits.unsqueeze(1).float() / 255
    _refuse_other_inputs(model, digits[:2], images[:2], checkpoint)
    logits = model.classify(digits)
    with _silence(), _refusal_in_one_line(model, checkpoint):
        program = _program(model)
        content = _onnx(program, facts) if path.suffix == ".onnx" else _pt2(program, facts)
    run = _onnxruntime(content) if path.suffix == ".onnx" else _torch(content)
    differences = _differences(run, images, logits)
    write_whole(path, content)
    return Export(path, found, differences)


def _require_onnx() -> None:
    needed = [name for name in _ONNX_PACKAGES if importlib.util.find_spec(name) is None]
    if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 7):  # 2.6 stumbles over batch norm
        needed.append(f"torch 2.7 or newer, not {torch.__version__}")
    if needed:
        raise InputError(
            f"an .onnx file needs {', '.join(needed)}: pip install 'mnist-lightning[export]', or write a .pt2 file"
        )


def _facts(model: Classifier, checkpoint: str) -> dict[str, str]:
    """What the file says of itself; nothing is said of a run whose folder is not there any more."""
    packages = ("mnist-lightning", "torch", *(name for name in _ONNX_PACKAGES if importlib.util.find_spec(name)))
    facts = {
        "model": type(model).__name__,
        "classes": ",".join(map(str, range(CLASSES))),
        "input": "images: float32 [batch, 1, 28, 28], from 0 (background) to 1 (ink); standardisation is inside",
        "output": f"logits: float32 [batch, {CLASSES}]",
        "versions": json.dumps({name: version(name) for name in packages}),
    }
    path = find_checkpoint(checkpoint)
    summary_path = path.parent.with_name("summary.json")
    if path.parent.name != "checkpoints" or not summary_path.is_file():
        return facts
    try:
        summary = json.loads(summary_path.read_text())
        facts["source"] = str(summary["source"])
        if read_checkpoint(path).get("epoch") == summary["best_epoch"]:  # the weights that the run has tested
            facts["test_accuracy"] = str(float(summary["test"]["accuracy"]))
            facts["test_accuracy_measured_in"] = str(summary["precision"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{summary_path} is damaged: {type(error).__name__}: {error}") from error
    return facts


def _digits(source: str | None, trained_on: str, root: str | None) -> tuple[Tensor, str]:
    """Test digits, uint8 [N, 28, 28], and what they are in words."""
    note = ""
    try:
        digits, _ = read(source or trained_on, root, train=False)
    except InputError:
        if source is not None:
            raise
        digits, _ = read("digits", train=False)
        note = f" (as {trained_on} cannot be read here)"
    digits = digits[:DIGITS]
    return digits, f"{len(digits):,} test digits of {'digits' if note else source or trained_on}{note}"


def _refuse_other_inputs(model: Classifier, digits: Tensor, images: Tensor, checkpoint: str) -> None:
    """What a model makes of digits before its `forward`, in Python, is in no file."""
    if isinstance(model, GNN):
        raise InputError(
            f"{checkpoint} holds a GNN, which cannot be exported: it takes graphs of superpixels, which scikit-image "
            "makes of a picture outside of the model, and torch.export cannot trace its `forward`, which looks at the "
            "edges to choose its way"
        )
    inputs = model.inputs(digits)
    if len(inputs) != 1 or not torch.equal(inputs[0], images):
        raise InputError(
            f"{checkpoint} holds a {type(model).__name__}, which cannot be exported: its `inputs` makes of digits "
            "something else than images [N, 1, 28, 28] from 0 to 1, and a file holds only what its `forward` does"
        )


@contextmanager
def _silence() -> Iterator[None]:
    """Hides what torch says while it traces, even of success; whether the program is right is measured."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stderr(StringIO()):  # it prints the graph that it cannot complete
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


@contextmanager
def _refusal_in_one_line(model: Classifier, checkpoint: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # tracing and translating raise dozens of kinds; the first cause says most
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        name = type(model).__name__
        raise InputError(f"{checkpoint} holds a {name}, which torch cannot export: {one_line(cause)}") from error


class _Program(nn.Module):
    """A classifier whose input is called `images`, whatever its own `forward` calls it."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.classifier(images)
        return logits


def _program(model: Classifier) -> ExportedProgram:
    # Channels-last is faster to train on a CPU; whatever runs the file has layouts of its own.
    module = _Program(model.to(memory_format=torch.contiguous_format)).eval()
    program = torch.export.export(module, (torch.zeros(2, 1, 28, 28),), dynamic_shapes=_SHAPES, strict=False)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # names files of this machine
    return program


def _onnx(program: ExportedProgram, facts: dict[str, str]) -> bytes:
    names: dict[str, Any] = {"input_names": ["images"], "output_names": ["logits"], "dynamic_shapes": _SHAPES}
    exported = torch.onnx.export(program, dynamo=True, optimize=True, verbose=False, **names)
    assert exported is not None
    proto = exported.model_proto
    for name, value in facts.items():
        proto.metadata_props.add(key=name, value=value)
    content: bytes = proto.SerializeToString()
    return content


def _pt2(program: ExportedProgram, facts: dict[str, str]) -> bytes:
    file = BytesIO()
    torch.export.save(program, file, extra_files={"metadata.json": json.dumps(facts, indent=2)})
    return file.getvalue()


def _onnxruntime(content: bytes) -> Callable[[Tensor], Tensor]:
    from onnxruntime import InferenceSession

    session = InferenceSession(content, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


def _torch(content: bytes) -> Callable[[Tensor], Tensor]:
    module = torch.export.load(BytesIO(content)).module()
    return torch.no_grad()(module)


def _differences(run: Callable[[Tensor], Tensor], images: Tensor, logits: Tensor) -> dict[int, float]:
    """The largest differences of the file's logits from PyTorch's, by batch size."""
    differences = {}
    for size in BATCHES:
        found = torch.cat([run(part) for part in torch.split(images, size)])
        differences[size] = float((found - logits).abs().max())
        changed = int((found.argmax(dim=1) != logits.argmax(dim=1)).sum())
        if changed or not differences[size] <= TOLERANCE:  # NaN is not, either
            raise InputError(
                f"nothing was written: in batches of {size} the exported model's logits differ by up to "
                f"{differences[size]:.1e} from PyTorch's ({TOLERANCE:.0e} is allowed), and {changed:,} of "
                f"{len(logits):,} answers"
            )
    return differences

"""The command line `mnist-lightning`: parses arguments, calls functions and prints their results."""

import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mnist_lightning.errors import InputError, StoppedError, one_line, suggestion
from mnist_lightning.training.supervision import end_with_study, in_study

if TYPE_CHECKING:
    from threading import ExceptHookArgs

# The verbs of Lightning's command line, training/command.py.
TRAINER_VERBS = {
    "fit": "train a model, then test it once",
    "validate": "evaluate a checkpoint on the validation images",
    "test": "evaluate a checkpoint on the test images",
    "predict": "write a checkpoint's predictions for the test images",
}
# All other verbs: the function, which is imported when the verb is called, and a line for --help.
VERBS = {
    "study": (
        "mnist_lightning.studies.report.study_runs",
        "train many configs with many seeds, or search settings",
    ),
    "compare": ("mnist_lightning.evaluation.compare.report.compare_runs", "compare runs: a report with statistics"),
    "robustness": (
        "mnist_lightning.evaluation.robustness.report.measure_robustness",
        "measure errors on corrupted digits, and calibration",
    ),
    "explore": ("mnist_lightning.evaluation.explore.report.explore_data", "describe a data set"),
    "connectivity": (
        "mnist_lightning.explain.report.explain_connectivity",
        "show the superpixels and edges behind a GNN's answer",
    ),
    "gradcam": (
        "mnist_lightning.explain.report.explain_saliency",
        "show the pixels behind an image model's answer",
    ),
    "classify": ("mnist_lightning.deploy.classify.classify_pictures", "classify your own pictures"),
    "export": ("mnist_lightning.deploy.export.export_model", "export a model to ONNX or torch.export"),
    "app": ("mnist_lightning.deploy.app.serve", "draw digits in the browser and see the models' answers"),
}
_EXAMPLES = (
    "fit --config speedrun",
    "study lenet cnn --seeds 3",
    "classify lightning_logs/speedrun/version_0 seven.png",
)

# Advice of Lightning and other libraries that does not apply to this package.
_IRRELEVANT = (
    r".*does not have many workers.*",  # a batch takes 0.1 ms
    r".*is smaller than the logging interval.*",  # the rest of an epoch is logged at its end
    r"`ModelCheckpoint\(monitor='val/acc'\)` could not find.*",  # a training without validation
    r".*Checkpoint directory .* exists and is not empty.*",  # a resumed run continues in its folder
    r".*callbacks used to create the checkpoint need to be provided.*",  # testing needs none of them
    r".*pickle protocol.*weights_only Unpickler.*",  # unsupported content is refused
    r".*recommended to use `Trainer\(devices=1.*",  # our samplers do not repeat images
    r".*is not supported by the model summary.*",  # the size is that of the 32-bit weights
    r".*LeafSpec.*is deprecated.*",  # between Lightning and torch
    r".*JsonargparseDeprecationWarning.*",  # between Lightning and jsonargparse
    r".*was deprecated in v4\.\d+\.0 and will be removed in v5\.0\.0.*",
    r".*trace to be incorrect.*",  # the graph in TensorBoard is of one example
    r".*could be decompression bomb.*",  # larger pictures are refused by name
    r".*(EXIF|Palette images with Transparency).*",  # Pillow's notes about metadata
    r".*`torch.jit.*deprecated.*",  # TensorBoard's graph is traced by torch's own writer
    r".*Data has no positive values.*",  # a chart of facts that the runs do not have
    r".*Glyph .* missing from font.*",  # a figure shows a box in place of the letter
)


def main(args: list[str] | None = None) -> None:
    """Runs the command line. Wrong input ends it with one line on standard error and exit code 2.

    Args:
        args: The arguments. Default: those of the process.
    """
    if args is None:
        args = sys.argv[1:]
        _print_warnings_without_paths()
    if args[:1] == ["help"]:  # `help fit` is `fit --help`
        args = [*args[1:2], "--help"]
    verb = args[0] if args else ""
    if in_study():
        end_with_study()
    try:
        if verb in ("", "-h", "--help"):
            print(_overview())
            sys.exit(0 if verb else 2)
        if verb == "--version":
            from mnist_lightning.version import __version__

            print(f"mnist-lightning {__version__}")
            sys.exit(0)
        if verb in VERBS:
            _prepare_process()
            with _own_classes() if verb == "study" else nullcontext():
                _run_verb(verb, args[1:])
        else:
            _run_trainer(args)
    except InputError as error:
        _print_error(error)
        sys.exit(2)
    except OSError as error:
        if error.filename is None:
            raise
        _print_error(f"{os.fsdecode(error.filename)}: {error.strerror}")
        sys.exit(2)
    except StoppedError as stop:
        sys.stderr.write(f"mnist-lightning: {one_line(stop, 1000)}\n")
        sys.exit(128 + stop.signal)  # the shells' code
    except KeyboardInterrupt:
        sys.exit(130)  # the shells' code for Ctrl-C; written files are complete
    finally:
        gc.enable()


def _overview() -> str:
    """Describes the command line before anything slow is imported."""
    lines = ["usage: mnist-lightning VERB [options]", "Train, compare and explain classifiers of handwritten digits."]
    lines += ["", *_verbs(), "", "Examples:", *(f"  mnist-lightning {example}" for example in _EXAMPLES)]
    return "\n".join([*lines, "", "Help of a verb: mnist-lightning VERB --help. Version: mnist-lightning --version."])


def _verbs() -> list[str]:
    lines = TRAINER_VERBS | {verb: text for verb, (_, text) in VERBS.items()}
    return [f"  {verb:14}{text}" for verb, text in lines.items()]


def _print_error(error: object) -> None:
    sys.stderr.write(f"mnist-lightning: error: {one_line(error, 1000)}\n")


def _print_warnings_without_paths() -> None:
    """Prints each warning on one line, also after Lightning has replaced `formatwarning`."""
    import warnings

    def show(message: Warning | str, *_: object) -> None:
        sys.stderr.write(f"mnist-lightning: warning: {one_line(message, 1000)}\n")

    warnings.showwarning = show  # type: ignore[assignment]


def _prepare_process() -> None:
    """Changes settings of the process that a library must not change."""
    import logging
    import threading
    import warnings

    gc.disable()  # imports create half a million objects that stay; frozen below
    for message in _IRRELEVANT:
        warnings.filterwarnings("ignore", message)
    warnings.filterwarnings("ignore", module=r"PIL\.")  # notes on damaged metadata; unusable pictures raise errors
    logging.getLogger("PIL").setLevel(logging.CRITICAL)
    warnings.formatwarning = lambda message, *_: f"mnist-lightning: warning: {one_line(message, 1000)}\n"
    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # a resumed run has a graph from each start
    threading.excepthook = _thread_failed
    _keep_freed_memory()


def _thread_failed(failure: "ExceptHookArgs") -> None:
    """Hides a disk-full error in TensorBoard's writer thread: the next event raises it again in the main thread."""
    import threading

    if not (isinstance(failure.exc_value, OSError) and type(failure.thread).__name__ == "_AsyncWriterThread"):
        threading.__excepthook__(failure)


def _keep_freed_memory() -> None:
    """Makes glibc keep the memory of freed tensors for the next step.

    By default the memory goes back to the kernel and returns page by page, which takes a quarter of ResNet's training
    step on a CPU and two fifths of DenseNet's (benchmarks/README.md).
    """
    import contextlib
    import ctypes

    with contextlib.suppress(OSError, AttributeError):  # not Linux, or another C library
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(-3, 32 * 2**20)  # M_MMAP_THRESHOLD, at its maximum
        mallopt(-1, 2**30)  # M_TRIM_THRESHOLD


def _run_trainer(args: list[str]) -> None:
    """Runs a verb of Lightning's command line, or prints its help."""
    options_first = args[0].startswith("-")  # mnist-lightning --config mlp fit
    verb = next((word for word in args[: None if options_first else 1] if word in TRAINER_VERBS), None)
    if verb is None:
        known = [*TRAINER_VERBS, *VERBS]
        _print_error(f"unknown verb {args[0]!r}{suggestion(args[0], known) or '; use one of ' + ', '.join(known)}")
        print("\n".join(["", *_verbs(), "", "Help of a verb: mnist-lightning VERB --help."]))
        sys.exit(2)
    if {"-h", "--help", "--help.all"} & set(args):
        from mnist_lightning.help import describe_verb

        print(describe_verb(verb))
        if "--help.all" not in args:
            sys.exit(0)
        print("\nAll options:\n")
        args = [verb, "--help"]
    _prepare_process()
    with _own_classes():
        from mnist_lightning.training.command import run

        run(args)


@contextmanager
def _own_classes() -> Iterator[None]:
    """Finds classes of the user in the current folder, last: a file torch.py there must not shadow torch."""
    here = str(Path.cwd())
    sys.path.append(here)
    try:
        yield
    finally:
        sys.path.remove(here)


def _run_verb(verb: str, args: list[str]) -> None:
    """Calls a verb's function with parsed arguments and prints its result.

    Of the function's parameters, `*names` take any number of values, those with the default False are flags, those with
    the default () may be repeated, and one named `fit` takes everything after --.
    """
    import inspect
    from pkgutil import resolve_name

    from docstring_parser import parse

    from mnist_lightning.arguments import OneLineParser
    from mnist_lightning.evaluation.page import print_result

    function = resolve_name(VERBS[verb][0])
    docstring = str(inspect.getdoc(function))
    description = docstring.partition("\n\nArgs:\n")[0]
    texts = {entry.arg_name.lstrip("*"): entry.description for entry in parse(docstring).params}
    parameters = inspect.signature(function).parameters.values()
    several = [parameter.name for parameter in parameters if parameter.kind is parameter.VAR_POSITIONAL]
    flags = [parameter.name for parameter in parameters if parameter.default is False]
    repeated = [parameter.name for parameter in parameters if parameter.default == () and parameter.name != "fit"]
    passed_on: dict[str, Any] = {}
    if "fit" in texts:
        end = args.index("--") if "--" in args else len(args)
        args, passed_on = args[:end], {"fit": args[end + 1 :]}
    required = [p.name for p in parameters if p.default is p.empty and p.name not in several]
    values = " ".join([*required, *(f"[{name} ...]" for name in several), *["[-- options of fit]" for _ in passed_on]])
    parser = OneLineParser(
        prog=f"mnist-lightning {verb}", usage=f"%(prog)s [options] {values}", description=description
    )
    for name in (*several, *flags):  # jsonargparse ignores *args and expects a value after a bool flag
        options: dict[str, Any] = {"nargs": "*", "default": []} if name in several else {"action": "store_true"}
        parser.add_argument(name if name in several else f"--{name}", help=texts[name], **options)
    for name in repeated:
        option = name.rstrip("_")
        parser.add_argument(
            f"--{option}", dest=name, metavar=option.upper(), action="append", default=[], type=str, help=texts[name]
        )
    skipped: set[str | int] = {*flags, *repeated, *passed_on}
    parser.add_function_arguments(function, as_group=False, as_positional=True, skip=skipped)
    arguments = {**parser.parse_args(args).as_dict(), **passed_on}
    gc.freeze()  # the imported objects
    gc.enable()
    positional = [value for name in several for value in arguments.pop(name)]
    result = function(*positional, **arguments)
    if result is not None:
        print_result(result)
    if problems := getattr(result, "problems", []):  # inputs that could not be used; the others were
        for problem in problems:
            _print_error(problem)
        sys.exit(1)

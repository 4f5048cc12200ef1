"""Which runs may be resumed, and with which arguments."""

import os
from collections.abc import Iterator, Mapping
from typing import Any

from mnist_lightning.errors import InputError
from mnist_lightning.runs.run import INCIDENTAL, Run, flat

# Length of a training. It may change if the learning rate does not depend on it.
LIMITS = ("max_epochs", "max_steps", "max_time", "min_epochs", "min_steps")
_BATCHES = "epoch_loop.batch_progress"  # part of Lightning's checkpoint
# Settings that do not change the training, or are compared in another way.
_SKIPPED = {"config", "ckpt_path", "model.compile", "trainer.devices", "trainer.num_nodes", "trainer.strategy"}
_SKIPPED |= {f"trainer.{name}" for name in LIMITS}


class FinishedError(Exception):
    """Nothing is left to do for a run. The command line prints the message and exits with 0."""


def check_resume(run: Run, config: Mapping[str, Any], checkpoint: Mapping[str, Any]) -> None:
    """Checks that the arguments of `fit` continue the training of a run.

    Args:
        run: The run.
        config: Arguments of `fit`, as in `config.yaml`.
        checkpoint: Content of the checkpoint to resume from.

    Raises:
        FinishedError: If the run was tested and the training is not to be longer.
        InputError: If a setting differs, the run's folder cannot be written to, or the checkpoint was saved within an
            epoch.
    """
    saved = _saved(run)
    new = {"data.fold": None, "distill_from": None, "model.ema": 0.0}  # runs of earlier versions lack these
    old = {**new, **_flat(saved)}
    if changed := list(_differences(old, _flat(config))):
        more = f", and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise InputError(
            f"{run.folder} was trained with {'; '.join(changed[:3])}{more}. Resume it with mnist-lightning fit "
            f"--ckpt_path {run.folder} alone, or start another training from its weights with --init_from {run.folder}"
        )
    limits, before = _limits(config), _limits(saved)
    schedule = checkpoint["hyper_parameters"].get("schedule", "constant")
    if run.is_finished:
        targets = ((limits["max_epochs"], run.summary.get("epochs")), (limits["max_steps"], run.summary.get("steps")))
        reached = any(target not in (None, -1) and done is not None and target <= done for target, done in targets)
        if reached or limits == before:
            raise FinishedError(
                f"{run.folder} is finished: {run.summary.get('epochs')} epochs, test accuracy "
                f"{100 * run.summary['test']['accuracy']:.2f} %. Nothing was changed. To train longer: mnist-lightning "
                f"fit {'--ckpt_path' if schedule == 'constant' else '--init_from'} {run.folder} --trainer.max_epochs N"
            )
    if schedule != "constant" and limits != before:
        length = ", ".join(f"{name} {before[name]}" for name in LIMITS if before[name] != limits[name])
        raise InputError(
            f"the {schedule} schedule of {run.folder} was made for {length}, so its length cannot change. Train again "
            f"with --config {run.config_file}, or start another training from its weights with --init_from {run.folder}"
        )
    if not checkpoint.get("loops", {}).get("fit_loop", {}).get(_BATCHES, {}).get("is_last_batch", True):
        way = f"resume {run.last}" if run.last.is_file() else f"train again with --config {run.config_file}"
        raise InputError(f"the checkpoint of {run.folder} was saved within an epoch and cannot be resumed; {way}")
    if run.folder is not None and not os.access(run.folder, os.W_OK):
        raise InputError(f"cannot write to {run.folder}, so it cannot be resumed; copy it to a folder of your own")


def check_processes(run: Run, saved: int | None, processes: int) -> None:
    """Checks that a resumed training has as many processes as before, because the batch size is per process.

    Args:
        run: The run.
        saved: Number of processes of the training so far; None if unknown.
        processes: Number of processes now.

    Raises:
        InputError: If the numbers differ.
    """
    if saved is not None and saved != processes:
        raise InputError(
            f"{run.folder} was trained by {_count(saved)}, not {processes}, and the batch size is per process. Set "
            "--trainer.devices and --trainer.num_nodes as before, or start another training from its weights with "
            f"--init_from {run.folder}"
        )


def check_data(run: Run, saved: Mapping[str, Any], data: Mapping[str, Any]) -> None:
    """Checks that a resumed training has the same data as before: a fallback may have replaced the source.

    Args:
        run: The run.
        saved: State of the data module in the checkpoint.
        data: State of the data module now.

    Raises:
        InputError: If the sources or their labels differ.
    """
    if saved["source"] != data["source"]:
        before, now = saved["source"], data["source"]
        way = f"set --data.root to the folder of {before}" if before != "digits" else f"set --data.source {before}"
        raise InputError(f"{run.folder} was trained on {before}, but the data are {now} now; {way}")
    if saved["labels"] != data["labels"]:
        raise InputError(
            f"the images of {data['source']} have changed since {run.folder} was trained; train again with --config "
            f"{run.config_file}, or start another training from its weights with --init_from {run.folder}"
        )


def _count(processes: int) -> str:
    return "1 process" if processes == 1 else f"{processes} processes"


def _saved(run: Run) -> dict[str, Any]:
    """Reads a run's config."""
    if not run.full_config:
        raise InputError(
            f"{run.folder} has no {run.config_file.name}, so it cannot be resumed; start another training from its "
            f"weights with --init_from {run.folder}"
        )
    return run.full_config


def _limits(config: Mapping[str, Any]) -> dict[str, Any]:
    return {name: config["trainer"].get(name) for name in LIMITS}


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that a resumed training must share, by their names on the command line."""
    settings = {name.replace(".init_args.", "."): value for name, value in flat("", config).items()}
    return {name: value for name, value in settings.items() if name not in _SKIPPED and _matters(name)}


def _matters(name: str) -> bool:
    part, _, option = name.partition(".")
    option = option.partition(".")[0]
    return option not in INCIDENTAL.get(part, set()) or option in ("enable_checkpointing", "seed")


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    """Describes the settings that differ. Settings that only one version of the package has are left out."""
    for name in dict.fromkeys([*old, *new]):
        values = [settings.get(name, "a mapping" if _has_group(settings, name) else None) for settings in (old, new)]
        known = [name in settings or _has_group(settings, name) for settings in (old, new)]
        if all(known) and values[0] != values[1]:
            yield f"{name.removesuffix('.class_path')} {_text(values[0])}, not {_text(values[1])}"


def _has_group(settings: Mapping[str, Any], name: str) -> bool:
    return any(other.startswith(f"{name}.") for other in settings)


def _text(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)

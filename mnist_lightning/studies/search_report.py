"""Results of a search on a screen, and as a picture."""

import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

from mnist_lightning.errors import InputError, one_line
from mnist_lightning.evaluation.charts import literal, palette
from mnist_lightning.evaluation.page import Table, line, picture, unbroken
from mnist_lightning.studies import Metric
from mnist_lightning.studies.plan import as_text
from mnist_lightning.studies.searching import SearchResult, search
from mnist_lightning.studies.space import Choices, Setting, short_names
from mnist_lightning.studies.trials import COMPLETED, FAILED, PRUNED, Trial

if TYPE_CHECKING:
    from rich.console import ConsoleOptions, RenderableType

_ROWS = 10  # of the table
_ERRORS = 3  # different ones that are shown
_FONT = 12
_NAMES = {"val/acc": "validation accuracy", "val/loss": "validation loss"}


@dataclass(frozen=True)
class SearchReport:
    """A search on a terminal.

    Attributes:
        result: The result.
        picture: Path of the picture; None if no trial was completed.
        next: Command that compares the best settings with the config.
    """

    result: SearchResult
    picture: Path | None
    next: str

    @property
    def problems(self) -> list[str]:
        """Why there is no result: the errors of the trials."""
        return [] if self.result.settings else ["no trial was completed", *_errors(self.result)]

    def __rich_console__(self, _: Any, options: "ConsoleOptions") -> "Iterator[RenderableType]":
        result = self.result
        if result.log:
            yield unbroken(result.log)
        if not result.settings:
            return
        best = result.ranking[0]
        yield ""
        yield trials_table(result)
        yield ""
        yield line(f"trials: {_counts(result)}", options)
        for error in _errors(result):
            yield line(error, options)
        value = shown_value(result.metric, best.value)
        yield line(f"best: {settings_text(best)} (trial {best.number}, {_NAMES[result.metric]} {value})", options)
        if result.importance:
            names = short_names(result.importance)
            shares = zip(names, result.importance.values(), strict=True)
            shown = ", ".join(f"{name} {100 * share:.0f} %" for name, share in shares)
            yield line(f"importance: {shown} (of the variance after {_count(result.rung, 'epoch')})", options)
        else:
            yield line("importance: unknown, because no two trials differ", options)
        yield line("The test images were not used.", options)
        yield unbroken(f"config   {result.config_file}")
        yield unbroken(f"picture  {self.picture}")
        yield "next:"
        yield unbroken(f"  {self.next}")


def search_settings(
    configs: Sequence[str],
    space: Sequence[str],
    trials: int,
    seeds: int,
    metric: Metric,
    fit: Sequence[str],
    jobs: int | None,
    address: str | None,
    set_: Sequence[str] = (),
    folds: int | None = None,
) -> SearchReport:
    """Searches for the command line; see `search`.

    Args:
        configs: The config.
        space: Settings to search.
        trials: Number of trials.
        seeds: Number of seeds.
        metric: Metric to improve.
        fit: More arguments of every `fit`.
        jobs: Number of simultaneous trainings.
        address: Address of a Ray cluster.
        set_: Values of a grid, which a search does not take.
        folds: Number of folds, which a search does not take.

    Raises:
        InputError: If an argument cannot be used.
    """
    if len(configs) != 1:
        raise InputError(f"a search takes one config, which may be a+b; got {', '.join(configs) or 'none'}")
    for option, value in (("--set", set_), ("--folds", folds)):
        if value:
            raise InputError(f"{option} cannot be combined with --search")
    result = search(configs[0], space, trials, seeds, metric, fit, jobs, address)
    if not result.settings:
        return SearchReport(result, None, "")
    path = result.folder / "search.png"
    picture(draw(result), "", path)
    words = ["mnist-lightning", "study", str(result.config_file), configs[0], "--seeds", "5"]
    return SearchReport(result, path, shlex.join([*words, *(["--", *fit] if fit else [])]))


def trials_table(result: SearchResult) -> Table:
    """Makes the table of the best trials."""
    completed = result.ranking
    title = f"The best {min(_ROWS, len(completed))} of {_count(len(result.trials), 'trial')}"
    header = ["trial", _NAMES[result.metric], *short_names(setting.name for setting in result.space)]
    rows = [
        [str(trial.number), shown_value(result.metric, trial.value), *map(as_text, trial.settings.values())]
        for trial in completed[:_ROWS]
    ]
    return Table(title, header, rows)


def shown_value(metric: Metric, value: float | None) -> str:
    """Formats a value of a metric."""
    if value is None:
        return ""
    return f"{100 * value:.2f} %" if metric == "val/acc" else f"{value:.4f}"


def settings_text(trial: Trial) -> str:
    """Writes the settings of a trial as `lr 0.01, weight_decay 0.05`."""
    names = short_names(trial.settings)
    return ", ".join(f"{n} {as_text(v)}" for n, v in zip(names, trial.settings.values(), strict=True))


def _counts(result: SearchResult) -> str:
    counts = Counter(trial.state for trial in result.trials)
    words = [f"{counts[state]} {state}" for state in (COMPLETED, PRUNED, FAILED) if counts[state] or state == COMPLETED]
    repeated = sum(trial.repeats is not None for trial in result.trials)
    return ", ".join(words) + (f"; {repeated} had the settings of an earlier trial" if repeated else "")


def _errors(result: SearchResult) -> list[str]:
    """The most frequent errors of trials, one line each."""
    failed = [trial for trial in result.trials if trial.state == FAILED]
    first = {trial.error: trial for trial in reversed(failed)}
    return [
        f"failed: trial {first[error].number}{f' and {count - 1} more' if count > 1 else ''}: {one_line(error)}"
        for error, count in Counter(trial.error for trial in failed).most_common(_ERRORS)
    ]


def _count(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


def draw(result: SearchResult) -> Figure:
    """Draws the trials in their order, and the metric over each setting.

    The metric's axis shows the completed trials; pruned ones with worse values are at its edge.
    """
    panels = 1 + len(result.space)
    columns = 2 if panels == 4 else min(3, panels)
    rows = -(-panels // columns)
    figure = Figure(figsize=(4.6 * columns, 4.2 * rows + 0.5), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    scale = 100 if result.metric == "val/acc" else 1
    completed = [trial for trial in result.trials if trial.state == COMPLETED]
    values = [scale * (trial.value or 0.0) for trial in completed]
    shown = [trial for trial in result.trials if trial.state in (COMPLETED, PRUNED)]
    # Equal values would leave an empty picture.
    spread = values if len(set(values)) > 1 else [scale * trial.value for trial in shown if trial.value is not None]
    margin = 0.06 * (max(spread) - min(spread) or 1)
    limits = min(spread) - margin, max(spread) + margin
    heights = np.array([_height(trial, scale, limits, result.metric) for trial in shown])
    pruned = np.array([trial.state == PRUNED for trial in shown])
    first, *others = grid.flat
    _scatter(first, [trial.number for trial in shown], heights, pruned, result)
    steps = (np.maximum if result.metric == "val/acc" else np.minimum).accumulate(values)
    last = max(trial.number for trial in result.trials)
    first.step(
        [*(trial.number for trial in completed), last],
        [*steps, steps[-1]],
        where="post",
        color=palette(3)[2],
        label="best so far",
    )
    first.xaxis.set_major_locator(MaxNLocator(integer=True))
    first.set_xlabel("trial", fontsize=_FONT)
    first.set_title("Trials", fontsize=_FONT + 1, pad=12)
    names = short_names(setting.name for setting in result.space)
    for axes, setting, name in zip(others, result.space, names, strict=False):
        _scatter(axes, _positions(axes, setting, shown), heights, pruned, result)
        share = result.importance.get(setting.name)
        axes.set_xlabel(literal(name), fontsize=_FONT)
        axes.set_title("" if share is None else f"importance {100 * share:.0f} %", fontsize=_FONT + 1, pad=12)
    for axes in others[len(names) :]:
        axes.set_visible(False)
    for row in grid:
        row[0].set_ylabel(f"{_NAMES[result.metric]}{' %' if scale == 100 else ''}", fontsize=_FONT)
    for axes in grid.flat:
        axes.set_ylim(*limits)
        axes.tick_params(labelsize=_FONT - 1)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(
        *first.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=_FONT, frameon=False
    )
    return figure


def _height(trial: Trial, scale: int, limits: tuple[float, float], metric: Metric) -> float:
    if trial.value is None:  # pruned like an earlier trial
        return limits[0] if metric == "val/acc" else limits[1]
    return float(np.clip(scale * trial.value, *limits))


def _positions(axes: Axes, setting: Setting, trials: Sequence[Trial]) -> list[float]:
    """Places trials on the axis of a setting, and sets its scale."""
    values = [trial.settings[setting.name] for trial in trials]
    if isinstance(setting, Choices):
        labels = [literal(one_line(text, 14)) for text in setting.examples]
        axes.set_xticks(range(len(labels)), labels, rotation=30 if sum(map(len, labels)) > 28 else 0)
        axes.set_xlim(-0.5, len(labels) - 0.5)
        return [setting.examples.index(value) for value in values]
    if setting.log:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        edge = (setting.high / setting.low) ** 0.04
        axes.set_xlim(setting.low / edge, setting.high * edge)
    else:
        edge = 0.04 * (setting.high - setting.low)
        axes.set_xlim(setting.low - edge, setting.high + edge)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=setting.is_integer))
    return values


def _scatter(axes: Axes, places: Sequence[float], heights: Any, pruned: Any, result: SearchResult) -> None:
    blue, orange, _ = palette(3)
    x = np.asarray(places, dtype=float)
    axes.scatter(x[~pruned], heights[~pruned], 45, color=blue, label=COMPLETED, zorder=3, clip_on=False)
    if pruned.any():
        axes.scatter(
            x[pruned],
            heights[pruned],
            40,
            color="#666666",
            marker="x",
            label=f"{PRUNED} (worse ones at the edge)",
            clip_on=False,
        )
    best = [trial for trial in result.trials if trial.state in (COMPLETED, PRUNED)].index(result.ranking[0])
    axes.scatter(
        x[best],
        heights[best],
        150,
        facecolors="none",
        edgecolors=orange,
        linewidths=2,
        label="best",
        zorder=4,
        clip_on=False,
    )

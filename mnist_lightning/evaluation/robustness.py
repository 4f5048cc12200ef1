"""How often models are wrong when digits are corrupted, and what of that can be known."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import norm, ttest_ind
from torch import Tensor

from mnist_lightning.classifier import Classifier
from mnist_lightning.data.corruptions import CORRUPTIONS, PUBLISHED
from mnist_lightning.evaluation.runs import Run
from mnist_lightning.evaluation.statistics import bootstrapped_accuracies, expected_calibration_error, holm
from mnist_lightning.evaluation.unknowns import Detection, detection

Float = NDArray[np.floating[Any]]
SEVERITIES = (1, 2, 3, 4, 5)
_AT_ONCE = 256  # digits; of 512, a GNN takes 2.5 times as long for each


class Condition(NamedTuple):
    """What was done to the digits."""

    corruption: str
    severity: int

    @property
    def name(self) -> str:
        """The corruption's, for people."""
        return self.corruption.replace("_", " ")


CLEAN = Condition("clean", 0)
PUBLISHED_CONDITIONS = tuple(Condition(corruption, PUBLISHED[corruption]) for corruption in CORRUPTIONS)
ALL_CONDITIONS = tuple(Condition(corruption, severity) for corruption in CORRUPTIONS for severity in SEVERITIES)


@dataclass(frozen=True)
class Model:
    """Runs that differ in nothing but the seed.

    Attributes:
        name: The experiment's, numbered where two have the same.
        runs: n of them.
        classifiers: Each run's best checkpoint.
        temperatures: Each run's; NaN where none has been fitted.
    """

    name: str
    runs: list[Run]
    classifiers: list[Classifier]
    temperatures: Float

    @torch.no_grad()
    def logits(self, digits: Tensor) -> NDArray[np.float32]:
        """The runs' logits [n, N, 10] of digits uint8 [N, 28, 28]; in 32 bits, on the CPU.

        What `forward` takes is made once for all runs: superpixel graphs take longer than what is done with them.
        """
        parts = []
        for part in torch.split(digits, _AT_ONCE):
            inputs = self.classifiers[0].inputs(part)
            parts.append(torch.stack([classifier(*inputs).float() for classifier in self.classifiers]))
        return torch.cat(parts, dim=1).numpy()


@dataclass(frozen=True)
class Robustness:
    """Models on one test set, clean and corrupted. A list has an element a model; K conditions, n runs, N digits.

    Attributes:
        source: The test set's source.
        labels: int64 [N].
        models: Those first that validation prefers.
        conditions: K of them, `CLEAN` first.
        wrong: bool [n, K, N] each, which digits are not recognised.
        calibration_errors: Expected calibration errors [n, K] each, of 15 bins.
        scaled_errors: The same, of logits at the run's temperature; NaN where it has none.
        clean_logits: float [n, N, 10] each.
        samples: uint8 [K, S, 28, 28], the first digit of each class in every condition.
        unknown: Pictures without digits, uint8 [M, 28, 28] by the set's name.
        detections: How well each run of each model tells them from the clean digits.
    """

    source: str
    labels: NDArray[np.int64]
    models: list[Model]
    conditions: list[Condition]
    wrong: Sequence[NDArray[np.bool_]]
    calibration_errors: Sequence[Float]
    scaled_errors: Sequence[Float]
    clean_logits: list[NDArray[np.float32]]
    samples: Tensor
    unknown: dict[str, Tensor]
    detections: list[list[list[Detection]]]

    @cached_property
    def errors(self) -> list[Float]:
        """Shares of wrong answers [n, K], of each model."""
        return [wrong.mean(axis=2) for wrong in self.wrong]

    @cached_property
    def published(self) -> list[int]:
        """Where in `conditions` the 15 are that MNIST-C's files have."""
        return [self.conditions.index(condition) for condition in PUBLISHED_CONDITIONS]

    @property
    def all_severities(self) -> bool:
        """Whether all severities were measured, and not only those that MNIST-C's files have."""
        return len(self.conditions) > 1 + len(PUBLISHED_CONDITIONS)

    @property
    def without_temperature(self) -> list[str]:
        """The folders of the runs that have none."""
        return [
            str(run.folder)
            for model in self.models
            for run, temperature in zip(model.runs, model.temperatures, strict=True)
            if np.isnan(temperature)
        ]

    def at(self, severity: int) -> list[int]:
        """Where in `conditions` a severity is."""
        return [index for index, condition in enumerate(self.conditions) if condition.severity == severity]

    def mean_errors(self, model: int) -> Float:
        """A model's mean over the 15 corruptions, as MNIST-C's files have them, run by run [n]."""
        means: Float = self.errors[model][:, self.published].mean(axis=1)
        return means

    @cached_property
    def bootstrapped(self) -> Float:
        """Mean errors [models, R] over the 15 corruptions, had there been other test images and other seeds."""
        shares = [wrong[:, self.published].mean(axis=1) for wrong in self.wrong]
        return bootstrapped_accuracies(shares)

    def interval(self, model: int) -> tuple[float, float]:
        """The 95 % interval of a model's mean error, over images and seeds; of one run over images alone."""
        low, high = np.percentile(self.bootstrapped[model], [2.5, 97.5])
        return float(low), float(high)


def measure(
    source: str,
    models: Sequence[Model],
    labels: Tensor,
    conditions: Sequence[Condition],
    corrupted: Callable[[Condition], Tensor],
    unknown: Mapping[str, Tensor],
    seen: Callable[[Condition, str], None] = lambda condition, name: None,
) -> Robustness:
    """Has models classify digits in some conditions.

    Args:
        source: The test set's source.
        models: M of them.
        labels: int64 [N].
        conditions: What to measure, after the clean digits.
        corrupted: Gives the digits in a condition, uint8 [N, 28, 28].
        unknown: Pictures without digits, uint8 [M, 28, 28] by the set's name.
        seen: Is called when a model, by name, has seen the digits in a condition or a set of pictures without digits.

    Returns:
        Who was wrong where, in 32 bits.
    """
    true = labels.numpy()
    _, chosen = np.unique(true, return_index=True)
    conditions = [CLEAN, *conditions]
    size = len(conditions)
    wrong = [np.empty((len(model.runs), size, len(true)), dtype=bool) for model in models]
    errors = [np.empty((len(model.runs), size)) for model in models]
    scaled = [np.full((len(model.runs), size), np.nan) for model in models]
    samples, clean_logits = [], []
    for place, condition in enumerate(conditions):
        digits = corrupted(condition)
        samples.append(digits[chosen])
        for index, model in enumerate(models):
            logits = model.logits(digits)
            if condition == CLEAN:
                clean_logits.append(logits)
            wrong[index][:, place] = logits.argmax(axis=2) != true
            for run, temperature in enumerate(model.temperatures):
                errors[index][run, place] = expected_calibration_error(logits[run], true)
                if not np.isnan(temperature):
                    scaled[index][run, place] = expected_calibration_error(logits[run] / temperature, true)
            seen(condition, model.name)
    detections = [_detections(model, clean, unknown, seen) for model, clean in zip(models, clean_logits, strict=True)]
    return Robustness(
        source=source,
        labels=true,
        models=[*models],
        conditions=conditions,
        wrong=wrong,
        calibration_errors=errors,
        scaled_errors=scaled,
        clean_logits=clean_logits,
        samples=torch.stack(samples),
        unknown={**unknown},
        detections=detections,
    )


def _detections(
    model: Model, clean: NDArray[np.float32], unknown: Mapping[str, Tensor], seen: Callable[[Condition, str], None]
) -> list[list[Detection]]:
    """Run by run."""
    logits = {}
    for name, pictures in unknown.items():
        logits[name] = model.logits(pictures)
        seen(Condition("no digits", 0), model.name)
    return [
        detection(of_run, {name: of_set[run] for name, of_set in logits.items()}) for run, of_run in enumerate(clean)
    ]


def costliest(found: Robustness, model: int) -> str:
    """Which corruption costs a model most, in words.

    Several are named if the images and seeds cannot tell the worst from the others: if the 95 % interval of the
    difference, which other images and seeds would give, has 0 in it.
    """
    wrong, errors = found.wrong[model], found.errors[model].mean(axis=0)
    worst, *others = sorted(found.published, key=lambda index: -errors[index])
    differences = [wrong[:, worst].astype(np.float32) - wrong[:, other] for other in others]
    low = np.percentile(bootstrapped_accuracies(differences), 2.5, axis=1)
    named = [worst, *(other for other, least in zip(others, low, strict=True) if least <= 0)]
    costs = [f"{found.conditions[index].name} ({100 * errors[index]:.2f} % wrong)" for index in named]
    name, n = found.models[model].name, len(wrong)
    if len(named) == 1:
        return f"{name}: {costs[0]} costs most, n = {n}"
    *first, last = costs
    return f"{name}: {', '.join(first)} and {last} cost most, and which of them is not known at n = {n}"


@dataclass(frozen=True)
class Pair:
    """Two models under the 15 corruptions.

    Attributes:
        verdict: Whose mean error is lower, in words, if that can be known.
        known: Whether it can.
        p: Adjusted for the number of pairs (Holm).
    """

    verdict: str
    known: bool
    p: float


def pairs(found: Robustness) -> list[Pair]:
    """Every two models' mean errors.

    One is said to be better only if both hold: the 95 % interval of the difference, which other seeds and other test
    images would give, has one sign; and p is below 0.05 after Holm's adjustment. p is the larger of two: of the same
    draws, taken as normally distributed; and, where a model has several seeds, whose spread draws from few seeds
    understate, of a t-test over these (Welch's; Student's beside a model of one seed, which says nothing of its
    spread). This is about these 15 corruptions, not about others.
    """
    both = list(combinations(range(len(found.models)), 2))
    drawn = [found.bootstrapped[first] - found.bootstrapped[second] for first, second in both]
    p_values = holm([_p(found.mean_errors(i), found.mean_errors(j), d) for (i, j), d in zip(both, drawn, strict=True)])
    result = []
    for pair, draws, p in zip(both, drawn, p_values, strict=True):
        low, high = np.percentile(draws, [2.5, 97.5])
        # The better one first: that with the lower mean error.
        (mean, name, n), (other_mean, other, other_n) = sorted(
            (float(found.mean_errors(index).mean()), found.models[index].name, len(found.models[index].runs))
            for index in pair
        )
        of = f"n = {n}" if n == other_n else f"n = {n} and {other_n}"
        known = p < 0.05 and bool(low > 0 or high < 0)
        least, most = sorted([100 * abs(low), 100 * abs(high)])
        by = f"by {100 * (other_mean - mean):.2f} points ({least:.2f} to {most:.2f})"
        verdict = f"{name}'s mean error is below {other}'s {by}, {of}"
        result.append(Pair(verdict if known else f"{name} and {other} are not distinguishable at {of}", known, p))
    return result


def _p(first: Float, second: Float, draws: Float) -> float:
    """Of mean errors [n] each of two models, and draws [R] of the difference of their means."""
    difference = abs(float(first.mean() - second.mean()))
    p = 2 * float(norm.sf(difference / max(float(draws.std()), 1e-12)))
    if max(first.std(), second.std()) > 0:  # of one seed it is 0
        p = max(p, float(ttest_ind(first, second, equal_var=min(len(first), len(second)) == 1).pvalue))
    return p

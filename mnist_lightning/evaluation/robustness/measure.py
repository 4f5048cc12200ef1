"""Measures models on corrupted digits and on pictures without digits, and tests which differences are significant."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import norm, ttest_ind
from torch import Tensor

from mnist_lightning.classifier import Classifier
from mnist_lightning.data.corruptions import CORRUPTIONS, PUBLISHED
from mnist_lightning.data.sources import read
from mnist_lightning.errors import InputError
from mnist_lightning.evaluation.robustness.unknowns import Detection, detection
from mnist_lightning.evaluation.statistics import Float, bootstrapped_accuracies, expected_calibration_error, holm
from mnist_lightning.runs.checkpoint import find_checkpoint, load, read_checkpoint, temperature_in
from mnist_lightning.runs.run import Run, group_by_test_set, names_of

SEVERITIES = (1, 2, 3, 4, 5)
_BATCH_SIZE = 256  # with 512, a GNN takes 2.5 times as long per digit


class Condition(NamedTuple):
    """A corruption at a severity from 1 to 5. Severity 0 is for digits that are not corrupted."""

    corruption: str
    severity: int

    @property
    def name(self) -> str:
        """Name of the corruption, with spaces."""
        return self.corruption.replace("_", " ")


CLEAN = Condition("clean", 0)
NO_DIGITS = Condition("no digits", 0)
PUBLISHED_CONDITIONS = tuple(Condition(corruption, PUBLISHED[corruption]) for corruption in CORRUPTIONS)
ALL_CONDITIONS = tuple(Condition(corruption, severity) for corruption in CORRUPTIONS for severity in SEVERITIES)


@dataclass(frozen=True)
class Model:
    """A trained model, with one run per seed.

    Attributes:
        name: Name for tables and figures, see `runs.run.names_of`.
        runs: The model's n runs.
        classifiers: Best checkpoint of each run, loaded.
        temperatures: Temperature of each run, [n]; NaN for a checkpoint without one.
    """

    name: str
    runs: list[Run]
    classifiers: list[Classifier]
    temperatures: Float

    @torch.no_grad()
    def logits(self, digits: Tensor) -> NDArray[np.float32]:
        """Computes the logits of all runs, in 32 bits on the CPU.

        Args:
            digits: Images, uint8 [N, 28, 28].

        Returns:
            Logits, float32 [n, N, 10].
        """
        parts = []
        for part in torch.split(digits, _BATCH_SIZE):
            inputs = self.classifiers[0].inputs(part)  # once for all runs: superpixel graphs are expensive
            parts.append(torch.stack([classifier(*inputs).float() for classifier in self.classifiers]))
        return torch.cat(parts, dim=1).numpy()


@dataclass(frozen=True)
class TestSet:
    """Test images, and the models to measure on them.

    Attributes:
        source: Name of the data source.
        images: Test images, uint8 [N, 28, 28].
        labels: Labels, int64 [N].
        models: Models, sorted by mean validation accuracy, the best first.
    """

    source: str
    images: Tensor
    labels: Tensor
    models: list[Model]


def test_sets(runs: Sequence[Run], problems: list[str]) -> Iterator[TestSet]:
    """Groups runs by test set, reads the test images and loads the best checkpoints.

    Args:
        runs: Finished runs of any models, sources and seeds.
        problems: List that gets a line for each run that cannot be measured.

    Yields:
        Test sets, the one with the most models first.
    """
    for groups in group_by_test_set(runs):
        source = groups[0][0].source
        try:
            images, labels = read(source, train=False)
        except InputError as error:
            problems.append(f"the runs on {source}: {error}")
            continue
        if not np.array_equal(labels.numpy(), groups[0][0].labels):
            problems.append(f"the runs on {source}: the test labels on disk differ from the labels in the runs")
            continue
        loaded = [_load(name, group, problems) for name, group in zip(names_of(groups), groups, strict=True)]
        if models := [model for model in loaded if model.runs]:
            yield TestSet(source, images, labels, models)


def _load(name: str, group: Sequence[Run], problems: list[str]) -> Model:
    runs, classifiers, temperatures = [], [], []
    for run in group:
        assert run.folder is not None
        try:
            checkpoint = find_checkpoint(run.folder)
            classifiers.append(load(checkpoint))
        except InputError as error:
            problems.append(str(error))
            continue
        temperature = temperature_in(read_checkpoint(checkpoint))
        temperatures.append(np.nan if temperature is None else temperature)
        runs.append(run)
    return Model(name, runs, classifiers, np.array(temperatures))


@dataclass(frozen=True)
class Robustness:
    """Results of M models on one test set: N test images in K conditions. Model m has n runs.

    Attributes:
        source: Name of the data source.
        labels: Labels of the test images, int64 [N].
        models: The M models, sorted by mean validation accuracy, the best first.
        conditions: The K conditions. The first is `CLEAN`.
        wrong: Mask of misclassified images of each model, bool [n, K, N].
        calibration_errors: Expected calibration error of each model, with 15 bins, [n, K].
        scaled_errors: The same after the logits are divided by the run's temperature. NaN for a run without one.
        clean_logits: Logits of each model for the clean images, float32 [n, N, 10].
        samples: First image of each of the S classes in every condition, uint8 [K, S, 28, 28].
        unknown: Pictures without digits by the name of their set, uint8 [P, 28, 28].
        detections: How well the runs of each model tell digits from these pictures.
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
        """Error rate of each model, [n, K]."""
        return [wrong.mean(axis=2) for wrong in self.wrong]

    @cached_property
    def published(self) -> list[int]:
        """Indices of the 15 corruptions at the severities of MNIST-C's files."""
        return [self.conditions.index(condition) for condition in PUBLISHED_CONDITIONS]

    @property
    def has_all_severities(self) -> bool:
        """Whether all severities were measured, not only those of MNIST-C's files."""
        return len(self.conditions) > 1 + len(PUBLISHED_CONDITIONS)

    @property
    def without_temperature(self) -> list[str]:
        """Folders of the runs without a temperature."""
        return [
            str(run.folder)
            for model in self.models
            for run, temperature in zip(model.runs, model.temperatures, strict=True)
            if np.isnan(temperature)
        ]

    def at_severity(self, severity: int) -> list[int]:
        """Returns the indices of the conditions with a severity."""
        return [index for index, condition in enumerate(self.conditions) if condition.severity == severity]

    def mean_errors(self, model: int) -> Float:
        """Returns the mean error rate of each of a model's runs over the 15 published conditions, [n]."""
        means: Float = self.errors[model][:, self.published].mean(axis=1)
        return means

    def mean_detections(self, model: int) -> list[Detection]:
        """Returns the mean AUROC and FPR95 over a model's runs, for each set and score."""
        return [
            replace(
                rows[0],
                auroc=float(np.mean([row.auroc for row in rows])),
                fpr95=float(np.mean([row.fpr95 for row in rows])),
            )
            for rows in zip(*self.detections[model], strict=True)
        ]

    @cached_property
    def bootstrapped(self) -> Float:
        """Bootstrapped mean error rates over the 15 published conditions, over test images and seeds, [M, R]."""
        return bootstrapped_accuracies([wrong[:, self.published].mean(axis=1) for wrong in self.wrong])

    def interval(self, model: int) -> tuple[float, float]:
        """Returns the 95 % confidence interval of a model's mean error rate.

        It covers test images and seeds. For a single run it covers test images only.
        """
        low, high = np.percentile(self.bootstrapped[model], [2.5, 97.5])
        return float(low), float(high)


def measure(
    test_set: TestSet,
    conditions: Sequence[Condition],
    corrupted: Callable[[Condition], Tensor],
    unknown: Mapping[str, Tensor],
    progress: Callable[[Condition, str], None] = lambda condition, model: None,
) -> Robustness:
    """Measures models on clean digits, corrupted digits and pictures without digits, in 32 bits.

    Args:
        test_set: Test images and models.
        conditions: Conditions to measure besides the clean digits.
        corrupted: Function that returns the test images in a condition, uint8 [N, 28, 28].
        unknown: Pictures without digits by the name of their set, uint8 [P, 28, 28].
        progress: Function that is called after each evaluation with the condition and the model's name.

    Returns:
        The results.
    """
    models, labels = test_set.models, test_set.labels.numpy()
    _, first_of_class = np.unique(labels, return_index=True)
    conditions = [CLEAN, *conditions]
    shapes = [(len(model.runs), len(conditions)) for model in models]
    wrong = [np.empty((*shape, len(labels)), dtype=bool) for shape in shapes]
    errors, scaled = ([np.full(shape, np.nan) for shape in shapes] for _ in range(2))
    samples, clean_logits, detections = [], [], []
    for k, condition in enumerate(conditions):
        digits = test_set.images if condition == CLEAN else corrupted(condition)
        samples.append(digits[first_of_class])
        for m, model in enumerate(models):
            logits = model.logits(digits)
            if condition == CLEAN:
                clean_logits.append(logits)
            wrong[m][:, k] = logits.argmax(axis=2) != labels
            for run, temperature in enumerate(model.temperatures):
                errors[m][run, k] = expected_calibration_error(logits[run], labels)
                if not np.isnan(temperature):
                    scaled[m][run, k] = expected_calibration_error(logits[run] / temperature, labels)
            progress(condition, model.name)
    for model, known in zip(models, clean_logits, strict=True):
        others = {}
        for name, pictures in unknown.items():
            others[name] = model.logits(pictures)
            progress(NO_DIGITS, model.name)
        detections.append(
            [
                detection(logits, {name: of_set[run] for name, of_set in others.items()})
                for run, logits in enumerate(known)
            ]
        )
    return Robustness(
        source=test_set.source,
        labels=labels,
        models=models,
        conditions=conditions,
        wrong=wrong,
        calibration_errors=errors,
        scaled_errors=scaled,
        clean_logits=clean_logits,
        samples=torch.stack(samples),
        unknown={**unknown},
        detections=detections,
    )


def worst_corruption(results: Robustness, model: int) -> str:
    """Describes the corruption with a model's highest error rate.

    The sentence also names each corruption that is not distinguishable from the worst: the bootstrapped 95 % confidence
    interval of their difference, over test images and seeds, contains zero.
    """
    wrong, errors = results.wrong[model], results.errors[model].mean(axis=0)
    worst, *others = sorted(results.published, key=lambda index: -errors[index])
    differences = [wrong[:, worst].astype(np.float32) - wrong[:, other] for other in others]
    low = np.percentile(bootstrapped_accuracies(differences), 2.5, axis=1)
    tied = [other for other, end in zip(others, low, strict=True) if end <= 0]
    *most, last = (f"{results.conditions[index].name} ({100 * errors[index]:.2f} %)" for index in (worst, *tied))
    name, n = results.models[model].name, len(wrong)
    if not most:
        return f"{name} has its highest error under {last}, n = {n}"
    return f"{name} has its highest errors under {', '.join(most)} and {last}, which are not distinguishable at n = {n}"


@dataclass(frozen=True)
class Pair:
    """Two models under the 15 corruptions of MNIST-C.

    Attributes:
        verdict: The result as a sentence.
        is_distinguishable: Whether one model's mean error is significantly lower.
        p: p-value, adjusted for the number of pairs (Holm).
    """

    verdict: str
    is_distinguishable: bool
    p: float

    def __str__(self) -> str:
        return f"{self.verdict} (p {f'= {self.p:.2g}' if self.p >= 1e-4 else '< 0.0001'})"


def pairs(results: Robustness) -> list[Pair]:
    """Compares the mean errors of every two models.

    One model is better than another if two conditions hold: the bootstrapped 95 % confidence interval of the
    difference, over test images and seeds, excludes zero, and p < 0.05 after Holm's adjustment.

    p is the larger of two p-values. The first treats the bootstrapped differences as normally distributed. The second
    is that of a t-test over the seeds, because the bootstrap underestimates the spread of few seeds. The t-test is
    Welch's, or Student's if one model has a single seed. It is left out if both models have a single seed.

    The result covers these 15 corruptions, not others.
    """
    both = list(combinations(range(len(results.models)), 2))
    differences = [results.bootstrapped[i] - results.bootstrapped[j] for i, j in both]
    p_values = holm(
        [
            _p_value(results.mean_errors(i), results.mean_errors(j), difference)
            for (i, j), difference in zip(both, differences, strict=True)
        ]
    )
    result = []
    for pair, difference, p in zip(both, differences, p_values, strict=True):
        low, high = np.percentile(difference, [2.5, 97.5])
        (mean, name, n), (other_mean, other, other_n) = sorted(
            (float(results.mean_errors(m).mean()), results.models[m].name, len(results.models[m].runs)) for m in pair
        )
        seeds = f"n = {n}" if n == other_n else f"n = {n} and {other_n}"
        is_distinguishable = p < 0.05 and bool(low > 0 or high < 0)
        verdict = f"{name} and {other} are not distinguishable at {seeds}"
        if is_distinguishable:
            least, most = sorted([100 * abs(low), 100 * abs(high)])
            gap = f"{100 * (other_mean - mean):.2f} points ({least:.2f} to {most:.2f})"
            verdict = f"{name} is better than {other}: its mean error is lower by {gap}, {seeds}"
        result.append(Pair(verdict, is_distinguishable, p))
    return result


def _p_value(first: Float, second: Float, differences: Float) -> float:
    """Computes the p-value of a pair from mean errors by run, [n] each, and bootstrapped differences [R]."""
    difference = abs(float(first.mean() - second.mean()))
    p = 2 * float(norm.sf(difference / max(float(differences.std()), 1e-12)))
    if max(first.std(), second.std()) > 0:  # a t-test needs a spread over seeds
        p = max(p, float(ttest_ind(first, second, equal_var=min(len(first), len(second)) == 1).pvalue))
    return p

"""Measures models on corrupted digits and on pictures without digits, and tests which differences are significant."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations
from statistics import fmean
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
from mnist_lightning.evaluation.statistics import (
    Float,
    Pair,
    bootstrapped_accuracies,
    compare_pairs,
    expected_calibration_error,
)
from mnist_lightning.runs.checkpoint import find_checkpoint, load, read_checkpoint, temperature_in
from mnist_lightning.runs.finding import group_by_test_set, names_of
from mnist_lightning.runs.run import Run

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

    def __str__(self) -> str:
        return f"{self.name} {self.severity}" if self.severity else self.name


CLEAN = Condition("clean", 0)
NO_DIGITS = Condition("no digits", 0)
PUBLISHED_CONDITIONS = tuple(Condition(corruption, PUBLISHED[corruption]) for corruption in CORRUPTIONS)
ALL_CONDITIONS = tuple(Condition(corruption, severity) for corruption in CORRUPTIONS for severity in SEVERITIES)


@dataclass(frozen=True)
class Model:
    """A trained model, with one run per seed.

    Attributes:
        name: Name for tables and figures, see `runs.finding.names_of`.
        runs: The model's n runs.
        classifiers: Best checkpoint of each run, loaded.
        temperatures: Temperature of each run, None for a checkpoint without one.
    """

    name: str
    runs: list[Run]
    classifiers: list[Classifier]
    temperatures: list[float | None]

    def __str__(self) -> str:
        return f"{self.name} (n = {len(self.runs)})"

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


def test_sets(runs: Sequence[Run], problems: list[str], root: str | None) -> Iterator[TestSet]:
    """Groups runs by test set, reads the test images and loads the best checkpoints.

    Args:
        runs: Finished runs of any models, sources and seeds.
        problems: List that gets a line for each run that cannot be measured.
        root: Folder of the data; see `data_root`.

    Yields:
        Test sets, the one with the most models first.
    """
    for groups in group_by_test_set(runs):
        source = groups[0][0].source
        try:
            images, labels = read(source, root, train=False)
            if not np.array_equal(labels.numpy(), groups[0][0].labels):
                raise InputError("the test labels on disk differ from the labels in the runs")
        except InputError as error:
            problems.append(f"the runs on {source}: {error}")
            continue
        loaded = [_load(name, group, problems) for name, group in zip(names_of(groups), groups, strict=True)]
        if models := [model for model in loaded if model.runs]:
            yield TestSet(source, images, labels, models)


def _load(name: str, group: Sequence[Run], problems: list[str]) -> Model:
    model = Model(name, [], [], [])
    for run in group:
        assert run.folder is not None
        try:
            checkpoint = find_checkpoint(run.folder)
            classifier, temperature = load(checkpoint), temperature_in(read_checkpoint(checkpoint))
        except InputError as error:
            problems.append(str(error))
            continue
        model.runs.append(run)
        model.classifiers.append(classifier)
        model.temperatures.append(temperature)
    return model


@dataclass(frozen=True)
class Robustness:
    """Results of M models on one test set: N test images in K conditions. Model m has n runs.

    Attributes:
        test_set: The test set and the M models.
        conditions: The K conditions. The first is `CLEAN`.
        samples: First image of each of the S classes in every condition, uint8 [K, S, 28, 28].
        wrong: Mask of misclassified images of each model, bool [n, K, N].
        calibration_errors: Expected calibration error of each model, with 15 bins, [n, K].
        scaled_errors: The same after the logits are divided by the run's temperature. NaN for a run without one.
        clean_logits: Logits of each model for the clean images, float32 [n, N, 10].
        unknown: Pictures without digits by the name of their set, uint8 [P, 28, 28].
        detections: How well the runs of each model tell digits from these pictures.
    """

    test_set: TestSet
    conditions: Sequence[Condition]
    samples: Tensor
    wrong: Sequence[NDArray[np.bool_]]
    calibration_errors: Sequence[Float]
    scaled_errors: Sequence[Float]
    clean_logits: Sequence[NDArray[np.float32]]
    unknown: Mapping[str, Tensor]
    detections: Sequence[list[list[Detection]]]

    @property
    def models(self) -> list[Model]:
        """The M models, sorted by mean validation accuracy, the best first."""
        return self.test_set.models

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
        runs = [pair for model in self.models for pair in zip(model.runs, model.temperatures, strict=True)]
        return [str(run.folder) for run, temperature in runs if temperature is None]

    def at_severity(self, severity: int) -> list[int]:
        """Returns the indices of the conditions with a severity."""
        return [index for index, condition in enumerate(self.conditions) if condition.severity == severity]

    @cached_property
    def mean_errors(self) -> list[Float]:
        """Mean error rate of each model over the 15 published conditions, [n]."""
        return [errors[:, self.published].mean(axis=1) for errors in self.errors]

    @property
    def best(self) -> str:
        """Name of the model with the lowest mean error rate."""
        return min(zip(self.models, self.mean_errors, strict=True), key=lambda model: model[1].mean())[0].name

    @cached_property
    def mean_detections(self) -> list[list[Detection]]:
        """Mean AUROC and FPR95 of each model over its runs, for each set and score."""

        def mean(rows: Sequence[Detection]) -> Detection:
            return replace(rows[0], auroc=fmean(row.auroc for row in rows), fpr95=fmean(row.fpr95 for row in rows))

        return [[mean(rows) for rows in zip(*of_model, strict=True)] for of_model in self.detections]

    @cached_property
    def bootstrapped(self) -> Float:
        """Bootstrapped mean error rates over the 15 published conditions, over test images and seeds, [M, R]."""
        return bootstrapped_accuracies([wrong[:, self.published].mean(axis=1) for wrong in self.wrong])

    @cached_property
    def intervals(self) -> Float:
        """95 % confidence interval of each model's mean error rate, low and high, [M, 2].

        It covers test images and seeds. For a single run it covers test images only.
        """
        return np.percentile(self.bootstrapped, [2.5, 97.5], axis=1).T


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
                if temperature is not None:
                    scaled[m][run, k] = expected_calibration_error(logits[run] / temperature, labels)
            progress(condition, model.name)
    for model, known in zip(models, clean_logits, strict=True):
        others = {name: model.logits(pictures) for name, pictures in unknown.items()}
        progress(NO_DIGITS, model.name)
        runs = range(len(model.runs))
        detections.append([detection(known[run], {name: others[name][run] for name in others}) for run in runs])
    return Robustness(
        test_set, conditions, torch.stack(samples), wrong, errors, scaled, clean_logits, unknown, detections
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


def pairs(results: Robustness) -> list[Pair]:
    """Compares the mean errors of every two models with `compare_pairs`.

    p is the larger of two p-values. The first treats the bootstrapped differences as normally distributed. The second
    is that of a t-test over the seeds, because the bootstrap underestimates the spread of few seeds. The t-test is
    Welch's, or Student's if one model has a single seed. It is left out if both models have a single seed.

    The result covers these 15 corruptions, not others.
    """
    names, errors, samples = [model.name for model in results.models], results.mean_errors, results.bootstrapped
    indices = combinations(range(len(names)), 2)
    p_values = [_p_value(errors[i], errors[j], samples[i] - samples[j]) for i, j in indices]
    return compare_pairs(names, [-each for each in errors], -samples, p_values, ": its mean error is lower by")


def _p_value(first: Float, second: Float, differences: Float) -> float:
    """Computes the p-value of a pair from mean errors by run, [n] each, and bootstrapped differences [R]."""
    difference = abs(float(first.mean() - second.mean()))
    p = 2 * float(norm.sf(difference / max(float(differences.std()), 1e-12)))
    if max(first.std(), second.std()) > 0:  # a t-test needs a spread over seeds
        p = max(p, float(ttest_ind(first, second, equal_var=min(len(first), len(second)) == 1).pvalue))
    return p

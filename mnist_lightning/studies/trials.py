"""Trials of a search: Optuna proposes and prunes them, and a journal on disk keeps them."""

import math
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING, Any

from mnist_lightning.errors import InputError
from mnist_lightning.studies.space import Setting

if TYPE_CHECKING:
    import optuna

COMPLETED, PRUNED, FAILED = "completed", "pruned", "failed"
_STATES = {"COMPLETE": COMPLETED, "PRUNED": PRUNED, "FAIL": FAILED}
_REDUCTION = 3  # of three trials that reach a rung, one goes on
_FIRST_RUNG = 5  # after a fifth of the epochs


@dataclass(frozen=True)
class Trial:
    """A trial that ended.

    Attributes:
        number: Number, from 0.
        settings: Settings by option.
        state: `completed`, `pruned` or `failed`.
        value: Validation metric: of a completed trial the mean over the seeds, of a pruned one that of its last epoch,
            of a failed one None.
        error: Why it failed, in one line.
        repeats: Number of the trial that had the same settings, so that nothing was trained; None if there is none.
    """

    number: int
    settings: Mapping[str, Any]
    state: str
    value: float | None
    error: str = ""
    repeats: int | None = None


class Trials:
    """The trials of a search. Its methods may be called from several threads.

    Trials are proposed by TPE (Bergstra et al. 2011, "Algorithms for hyper-parameter optimization") and pruned by
    asynchronous successive halving (Li et al. 2020, "A system for massively parallel hyperparameter tuning").

    Args:
        folder: Folder of the journal, in which no other process searches.
        name: Name of the search. A journal may hold several.
        space: Settings of the search.
        maximize: Whether higher values are better.
        epochs: Number of epochs of a training.
        first: Settings of the first trial, which is never pruned. None to have them proposed, too.

    Attributes:
        rung: Number of epochs after which a trial may be pruned for the first time.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        space: Sequence[Setting],
        maximize: bool,
        epochs: int,
        first: Mapping[str, Any] | None,
    ) -> None:
        import optuna
        from optuna.storages.journal import JournalFileBackend

        self._space = space
        self.rung = max(1, epochs // _FIRST_RUNG)
        self._lock = RLock()
        journal = folder.resolve() / "journal.log"
        _repair(journal)
        with _quiet():
            self._study = optuna.create_study(
                storage=optuna.storages.JournalStorage(JournalFileBackend(str(journal))),
                study_name=name,
                direction="maximize" if maximize else "minimize",
                pruner=optuna.pruners.SuccessiveHalvingPruner(self.rung, _REDUCTION),
                load_if_exists=True,
            )
        given = [_fixed(trial) for trial in self._study.trials if trial.state.name != "FAIL"]
        if first is not None and first not in given:
            self._study.enqueue_trial(dict(first))

    def ended(self) -> list[Trial]:
        """Returns the trials that ended, by number."""
        with self._lock:
            return [self._read(trial) for trial in self._study.trials if trial.state.name in _STATES]

    def unfinished(self) -> list[int]:
        """Numbers of the trials that a stopped search left."""
        with self._lock:
            return [trial.number for trial in self._study.trials if trial.state.name == "RUNNING"]

    def start(self, number: int | None = None) -> "tuple[optuna.Trial, dict[str, Any]]":
        """Starts a trial.

        Args:
            number: Number of an unfinished trial, to continue it. None for a new one.

        Returns:
            The trial, and its settings.
        """
        import optuna

        with self._lock:
            trials = self._study.trials
            # Seeded by the number of trials, so that a continued search proposes the same as one that was not stopped.
            # The constant liar keeps simultaneous trials from being alike.
            seed = len(trials) if number is None else number
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the constant liar was experimental before Optuna 5
                self._study.sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=True)
            trial = self._study.ask() if number is None else optuna.Trial(self._study, trials[number]._trial_id)
            for setting in self._space:
                setting.suggest(trial)  # an unfinished trial keeps its values
            return trial, self._settings(self._frozen(trial))

    def goes_on(self, trial: "optuna.Trial", epoch: int, value: float, is_last: bool) -> bool:
        """Takes the metric of an epoch, and returns whether the training goes on. If not, the trial has ended.

        Args:
            trial: The trial.
            epoch: Number of completed epochs.
            value: The metric.
            is_last: Whether it is the last epoch, after which no time can be saved.
        """
        with self._lock:
            now = self._frozen(trial)
            if now.state.name != "RUNNING":
                return False
            if epoch in now.intermediate_values or not math.isfinite(value):  # an epoch is repeated after a kill
                return True
            trial.report(value, epoch)
            is_worse = trial.should_prune()  # also notes the value, with which later trials compete
            if is_last or not is_worse or _fixed(now):
                return True
            self._study.tell(trial, state=_state(PRUNED))
            return False

    def seed_value(self, trial: "optuna.Trial", seed: int, value: float | None = None) -> float | None:
        """Returns the value of a finished seed of a trial, after setting it if one is given."""
        with self._lock:
            if value is not None:
                trial.set_user_attr(f"seed {seed}", value)
            return self._frozen(trial).user_attrs.get(f"seed {seed}")

    def complete(self, trial: "optuna.Trial", value: float) -> None:
        """Ends a trial with its value."""
        with self._lock:
            self._study.tell(trial, value)

    def fail(self, trial: "optuna.Trial", error: str) -> None:
        """Ends a trial with an error."""
        with self._lock:
            trial.set_user_attr("error", error)
            self._study.tell(trial, state=_state(FAILED))

    def repeat(self, trial: "optuna.Trial") -> Trial | None:
        """Ends a trial like an earlier one with the same settings, if there is one."""
        with self._lock:
            mine = self._settings(self._frozen(trial))
            equal = [other for other in self.ended() if other.settings == mine and other.state != FAILED]
            if not equal:
                return None
            first = equal[0]
            trial.set_user_attr("repeats", first.number if first.repeats is None else first.repeats)
            value = first.value if first.state == COMPLETED else None
            self._study.tell(trial, value, state=_state(first.state))
            return first

    def importance(self) -> dict[str, float]:
        """Computes the share of the variance of the metric that each setting explains, the largest first.

        The metric is that of the first seed after `rung` epochs, because all trials have it, and the few that are
        completed may be equal. By fANOVA (Hutter et al. 2014, "An efficient approach for assessing hyperparameter
        importance"). Empty if there are fewer than two different values.
        """
        import optuna

        with self._lock, _quiet():
            measured = [trial for trial in self._study.trials if self.rung in trial.intermediate_values]
            if len({trial.intermediate_values[self.rung] for trial in measured}) < 2:
                return {}
            early = optuna.create_study(direction=self._study.direction)
            for trial in measured:
                value, params = trial.intermediate_values[self.rung], trial.params
                early.add_trial(
                    optuna.trial.create_trial(value=value, params=params, distributions=trial.distributions)
                )
            evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
            with suppress(RuntimeError, ValueError):  # fANOVA's trees found no variance
                return optuna.importance.get_param_importances(early, evaluator=evaluator)
        return {}

    def _frozen(self, trial: "optuna.Trial") -> "optuna.trial.FrozenTrial":
        return self._study.trials[trial.number]

    def _settings(self, trial: "optuna.trial.FrozenTrial") -> dict[str, Any]:
        given = _fixed(trial)
        return {
            s.name: given.get(s.name, s.rounded(trial.params[s.name])) for s in self._space if s.name in trial.params
        }

    def _read(self, trial: "optuna.trial.FrozenTrial") -> Trial:
        facts = trial.user_attrs
        error, repeats = facts.get("error", ""), facts.get("repeats")
        return Trial(trial.number, self._settings(trial), _STATES[trial.state.name], trial.value, error, repeats)


def check_optuna() -> None:
    """Checks that Optuna is installed.

    Raises:
        InputError: If it is not.
    """
    if find_spec("optuna") is None:
        raise InputError("the option --search needs Optuna: pip install 'mnist-lightning[search]'")


def _fixed(trial: "optuna.trial.FrozenTrial") -> dict[str, Any]:
    """Settings that were given and not proposed."""
    return dict(trial.system_attrs.get("fixed_params", {}))


def _state(name: str) -> "optuna.trial.TrialState":
    import optuna

    return next(optuna.trial.TrialState[key] for key, value in _STATES.items() if value == name)


def _repair(journal: Path) -> None:
    """Removes what a killed process may leave: Optuna's lock, and an incomplete line, which cannot be read."""
    for lock in journal.parent.glob(f"{journal.name}.lock*"):
        lock.unlink(missing_ok=True)
    if journal.is_file() and (content := journal.read_bytes()) and not content.endswith(b"\n"):
        os.truncate(journal, content.rfind(b"\n") + 1)


@contextmanager
def _quiet() -> Iterator[None]:
    """Hides Optuna's messages below warnings."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)

"""An Optuna study read as what the strategy knows: a space, rungs in samples, and a ledger of runs.

Everything is read off the study's trials at each call, so several processes may work on one study, and a study that is
taken up again goes on as if it had never stopped.
"""

from __future__ import annotations

import math
import statistics
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..core.dimension import Dimension
from ..core.errors import ArgumentError
from ..core.results import Setting
from ..core.specs import Plan, Proposal
from ..core.trial_record import TrialRecord
from ..core.trials import Facts, TrialReport
from ..strategy.cost import Clock, Cost, fitted
from ..strategy.improvement import ImprovementSampler
from ..strategy.ledger import LATE, Ledger, Run
from ..strategy.posterior import Context
from ..strategy.race import RACE_MOST, RACE_OCTAVES
from ..strategy.rungs import Rungs
from ..strategy.space import Space, make_space
from .meaning import EPOCH, Meaning

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.study import Study
    from optuna.trial import FrozenTrial

LEAST_S = 2.0
"""Of shorter trials, asking for parameters and storing what is reported may be the most part."""
FAILURES = 2
"""From so many trials on that failed without any value, failing says something of their settings."""
FAILURES_OF_BATCH = 3
"""So many at one batch size, and it is given up, with all larger ones: such as they may be out of memory."""


RESERVED = frozenset({"batch_size", "learning_rate"})
"""What the space calls its own two dimensions."""
FIRST_SHARE, LAST_SHARE, FACTOR = 1 / 27, 0.7, 3
"""Rungs, in shares of a full run: from where the first reports are, by this factor, and the end."""


class StudyReading:
    """What the trials of a study say, in samples and losses.

    Attributes:
        curves: By number of a trial; trials without a batch size are left out where it is needed to count samples.
        full: Samples of a full run; a guess until a trial has come to its end.
        full_known: Whether one has.
        rungs: Where trials are compared.
    """

    def __init__(self, meaning: Meaning, trials: Sequence[FrozenTrial], *, maximise: bool, seed: int) -> None:
        """Read the trials; `seed` is that of what is drawn."""
        self._meaning = meaning
        self._seed = seed
        self.curves = _curves(meaning, trials, maximise=maximise)
        ends = [curve.ended for curve in self.curves.values() if curve.ended is not None]
        self.full_known = bool(ends)
        most = max(ends, default=0) or EPOCH
        self.full = max([most, *(curve.batch for curve in self.curves.values())])
        self.rungs = _rungs(self.full, [curve.points[0][0] for curve in self.curves.values() if curve.points])

    @property
    def same_steps(self) -> bool:
        """Whether trials of very different batch sizes have ended at the same step: epochs may be meant."""
        ends = [
            (curve.batch, curve.ended // curve.batch)
            for curve in self.curves.values()
            if curve.ended and self._meaning.steps == "optimizer"
        ]
        batches, steps = {batch for batch, _ in ends}, {step for _, step in ends}
        return len(steps) == 1 and len(batches) > 1 and max(batches) >= 2 * min(batches)

    def at_rungs(self, number: int) -> dict[int, float]:
        """Return the losses of a trial at the rungs that it has reached, and at its last report."""
        return _at_rungs(self.curves[number].points, self.rungs)

    def strategy(self, distributions: Mapping[str, BaseDistribution]) -> tuple[ImprovementSampler, Ledger] | None:
        """Return the strategy with its ledger; None where the distributions hold no batch sizes or no learning rates.

        Args:
            distributions: The parameters that are searched together; of others nothing is known here.
        """
        space = make_study_space(self._meaning, distributions, self.full)
        if space is None:
            return None
        rungs = Rungs(float(self.full), 1, self.rungs)
        ledger = Ledger()
        for number, curve in self.curves.items():
            setting = _setting(curve, space)
            if setting is not None:
                _enter(ledger, number, curve, setting, space, rungs, self._seed)
        failed = [run for run in ledger if run.cause == "error"]
        if len(failed) >= FAILURES:
            for run in failed:
                run.values[self.full] = math.nan
                run.cause = None
        facts = _facts(self._meaning, self.full)
        clock = Clock(rungs, space.batches, Cost.of(facts, None, fitted(ledger).line))
        banned = frozenset(run.key for run in failed)
        too_large = frozenset(size for size in space.batches if size >= _too_large(ledger, failed))
        context = Context(space, rungs, self._seed, False, False, banned, too_large)
        return ImprovementSampler(context, clock), ledger


def read(study: Study, meaning: Meaning, seed: int = 0, trial: FrozenTrial | None = None) -> StudyReading:
    """Return what the trials of a study say; `trial` is one that runs, as it is now.

    Raises:
        ArgumentError: The study has several objectives.
    """
    from optuna.study import StudyDirection

    refuse_several(study)
    trials = study.get_trials(deepcopy=False)
    if trial is not None:
        trials = [trial if each.number == trial.number else each for each in trials]
    return StudyReading(meaning, trials, maximise=study.direction == StudyDirection.MAXIMIZE, seed=seed)


def search_space(study: Study, meaning: Meaning) -> dict[str, BaseDistribution]:
    """Return the parameters that all trials of a study have, but those with the names of the space's own dimensions."""
    from optuna.search_space import intersection_search_space

    found = intersection_search_space(study.get_trials(deepcopy=False), include_pruned=True)
    return {name: given for name, given in found.items() if name in meaning.names or name not in RESERVED}


def refuse_several(study: Study) -> None:
    """Refuse a study of several objectives.

    Raises:
        ArgumentError: It is one.
    """
    if len(study.directions) > 1:
        raise ArgumentError(
            f"bstune: the study has {len(study.directions)} objectives: expected one, the validation loss (or a score "
            "to maximise). Use one of Optuna's samplers and pruners for several."
        )


def make_study_space(meaning: Meaning, distributions: Mapping[str, BaseDistribution], full: int) -> Space | None:
    """Return the space of the parameters that are searched together; None where one of the two is not there."""
    sizes = meaning.sizes(None if isinstance(meaning.batch, int) else distributions.get(meaning.batch))
    rates = meaning.rates(distributions.get(meaning.lr))
    if not sizes or rates is None:
        return None
    extras = {name: Dimension.of(given) for name, given in distributions.items() if name not in meaning.names}
    plan = Plan(space={"batch_size": Dimension.of(sorted(sizes)), "learning_rate": rates, **extras})
    space = make_space(plan, _facts(meaning, max(full, *sizes)), None)
    if rates.kind != "range":
        return space
    # The rates of the grid have three digits, and so may lie a little outside.
    inside = sorted({min(max(rate, rates.low), rates.high) for rate in space.learning_rates})
    return replace(space, learning_rates=tuple(inside))


def _facts(meaning: Meaning, full: int) -> Facts:
    return Facts("study", "loop", n_samples=full, epochs=1, optimizer_family=meaning.family)


@dataclass(frozen=True)
class _Curve:
    """A trial in samples and losses: lower is better."""

    batch: int
    """1 where nobody says and samples are known all the same."""
    lr: float | None
    params: Mapping[str, Any]
    state: str
    points: tuple[tuple[int, float], ...]
    final: float | None
    """What a complete trial returned."""
    ended: int | None
    """Samples of the last report of a complete trial, 0 where it reported nothing; None of others."""
    seconds: float | None


def _curves(meaning: Meaning, trials: Sequence[FrozenTrial], *, maximise: bool) -> dict[int, _Curve]:
    """Return the trials by their numbers."""
    from optuna.trial import TrialState

    names = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}
    known = [trial for trial in trials if trial.state != TrialState.WAITING]
    first = min((step for trial in known for step in trial.intermediate_values), default=0)
    turned = _turned(known) if maximise else float
    found = {}
    for trial in known:
        batch, lr = meaning.batch_of(trial.params), meaning.lr_of(trial.params)
        if batch is None and meaning.steps == "optimizer":
            continue
        batch = batch or 1
        points = tuple((samples, turned(value)) for samples, value in meaning.curve(trial, batch, min(first, 1)))
        complete = trial.state == TrialState.COMPLETE
        seconds = 0.0 if trial.duration is None else trial.duration.total_seconds()
        found[trial.number] = _Curve(
            batch,
            lr,
            trial.params,
            names.get(trial.state, "running"),
            points,
            turned(trial.values[0]) if complete and trial.values else None,
            (points[-1][0] if points else 0) if complete else None,
            seconds if seconds >= LEAST_S else None,
        )
    return found


def _turned(trials: Sequence[FrozenTrial]) -> Callable[[float], float]:
    """Return what turns values that are to be large into losses: a share, such as accuracy, into what it lacks of 1."""
    values = [value for trial in trials for value in (*trial.intermediate_values.values(), *(trial.values or ()))]
    shares = all(0 <= value <= 1 for value in values if math.isfinite(value))
    return lambda value: (1.0 if shares else 0.0) - value


def _rungs(full: int, firsts: Sequence[int]) -> tuple[int, ...]:
    """Return where trials are compared, in samples: from about where they report first."""
    if not firsts:
        return (full,)
    share = max(FIRST_SHARE, statistics.median(firsts) / full)
    rungs = []
    while share < LAST_SHARE:
        rungs.append(max(1, round(share * full)))
        share *= FACTOR
    return (*dict.fromkeys(rungs), full)


def _too_large(ledger: Ledger, failed: Sequence[Run]) -> float:
    """Return from which batch size on all are given up: trials of it failed, and none as large ended otherwise."""
    counted = Counter(run.setting.global_batch_size for run in failed)
    ended = [run.setting.global_batch_size for run in ledger if run.finite and run.state != "running"]
    largest = max(ended, default=0)
    return min((size for size, n in counted.items() if n >= FAILURES_OF_BATCH and size > largest), default=math.inf)


def _setting(curve: _Curve, space: Space) -> Setting | None:
    """Return the setting of a trial; None where a parameter that is searched is missing."""
    names = [*space.fixed, *(extra.name for extra in space.extras)]
    if curve.lr is None or any(name not in curve.params for name in names):
        return None
    return Setting(curve.batch, curve.lr, {name: curve.params[name] for name in names})


def _enter(ledger: Ledger, number: int, curve: _Curve, setting: Setting, space: Space, rungs: Rungs, seed: int) -> None:
    """Enter a trial in the ledger, finished or running."""
    full = int(rungs.full_samples)
    values = _at_rungs(curve.points, rungs.samples)
    if curve.final is not None:
        values = {samples: value for samples, value in values.items() if samples < full and math.isfinite(value)}
        values[full] = curve.final if math.isfinite(curve.final) else math.nan
    samples = full if curve.final is not None else max((at for at, _ in curve.points), default=0)
    stage = "anchor" if is_racing(setting, space) else "search"
    if curve.state == "running":
        ledger.start(number, Proposal(stage, setting, seed, full, ()), full)
        for at, value in values.items():
            ledger.report(TrialReport(number, (at,), samples, value, {}, 0.0))
        return
    ledger.finish(
        TrialRecord(
            number=number,
            stage=stage,
            state=curve.state,
            reason="",
            global_batch_size=setting.global_batch_size,
            micro_batch_size=curve.batch,
            accumulation_steps=1,
            learning_rate=setting.learning_rate,
            seed=seed,
            samples=samples,
            val_loss=None,
            best_val_loss=None,
            seconds=curve.seconds,
            samples_per_s=None,
            peak_bytes=None,
            params=dict(setting.params),
            values=tuple(values.items()),
            end_samples=full,
            cause="error" if curve.state == "failed" and not values else None,
        )
    )


def is_racing(setting: Setting, space: Space) -> bool:
    """Tell whether a setting is one of the race along the learning rate."""
    batch = space.anchor_batch
    if setting.global_batch_size != batch or setting.params != space.default_params():
        return False
    start = space.nearest_learning_rate(space.centre(batch))
    lattice = {space.nearest_learning_rate(start * 2.0 ** (k * RACE_OCTAVES)) for k in range(-RACE_MOST, RACE_MOST + 1)}
    return any(math.isclose(setting.learning_rate, rate, rel_tol=1e-9) for rate in lattice)


def _at_rungs(points: Sequence[tuple[int, float]], rungs: Sequence[int]) -> dict[int, float]:
    """Return a curve at the rungs, on the line between two reports over ln samples, and at its last point."""
    bad = next((i for i, (_, value) in enumerate(points) if not math.isfinite(value)), len(points))
    finite = points[:bad]
    values: dict[int, float] = {}
    at = [samples for samples, _ in finite]
    for rung in rungs:
        i = bisect_left(at, rung)
        if i == len(at):
            break
        if at[i] == rung or i == 0:
            if at[i] <= LATE * rung:
                values[rung] = finite[i][1]
            continue
        (low, before), (high, after) = finite[i - 1], finite[i]
        share = math.log(rung / low) / math.log(high / low)
        values[rung] = before + share * (after - before)
    if finite:
        values[at[-1]] = finite[-1][1]
    if bad < len(points):
        values[points[bad][0]] = math.nan
    return dict(sorted(values.items()))

"""Which settings are worth confirming on fresh seeds, and which were never compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ..core.results import Setting
from .gaussian_process import expand
from .ledger import Key, Run, key_of
from .posterior import Model
from .samples_to_target import Evidence, batch_answer, samples_to

USUAL_BATCH = 32
"""What many frameworks begin with."""
LEFT_OVER_FROM = 4
"""A search with so large a budget leaves a full run over for another finalist: near its end a fresh seed tells as much, and verifies."""
FAST_OPTIMISM = 1.0
"""A faster setting is run to the end if it may be within tolerance by its expected end less this many standard deviations."""
OPTIMISM = 0.5
"""A finalist after the first is judged by its expected end less this many standard deviations, and by no more than `MOST_OPTIMISM`."""
MOST_OPTIMISM = 0.35
"""In compressed gaps: where nothing is known, a full run is too much to pay for knowing it."""
COMPARED_EXCESS = 1.0
"""A setting that is expected to end by this share above the best is not run to the end to be told so."""
NOISE_PRIOR = (0.05, 2.0)
"""Relative standard deviation of a full run between seeds, and how many degrees of freedom that guess is worth.

MLPerf's reference runs: median 3.7 %, nine in ten below 18 % (of samples to target; mlcommons/logging).
"""


def finalists(evidence: Evidence, n: int) -> list[Setting]:
    """Return the settings to confirm: those whose confirmation has begun, then the best by the surrogate and what the goal asks for."""
    chosen: dict[Key, Setting] = {}
    out: set[Key] = set()
    for run in evidence.ledger:
        if run.stage == "confirm":
            bad = run.diverged or (run.state == "failed" and run.cause in ("oom", "error", "no_report"))
            (out.add(run.key) if bad else chosen.setdefault(run.key, run.setting))
    chosen = {key: setting for key, setting in chosen.items() if key not in out}
    model = Model.of(evidence.context, evidence.ledger)
    places = n - len(chosen)
    if model is None or places < 1:
        return list(chosen.values())[:n]
    leaders = [run for run in _leaders(evidence, model) if run.key not in chosen and run.key not in out]
    if evidence.plan.goal == "largest":
        waiting = [run.setting for run in _largest_first(evidence, model, leaders)]
    elif evidence.plan.goal == "time":
        waiting = [run.setting for run in _fastest_first(evidence, leaders)]
    else:
        waiting = _lowest_first(evidence, model, leaders, list(chosen.values()), n)
    waiting = list(
        {key: setting for setting in waiting if (key := key_of(setting)) not in chosen and key not in out}.values()
    )
    compared = _compared(evidence, model, list(chosen.values()), waiting[:places], n)[:places]
    others = [setting for setting in waiting if setting not in compared][: places - len(compared)]
    going = [setting for setting in waiting if setting in others or setting in compared]
    return [*chosen.values(), *going, *(setting for setting in compared if setting not in going)]


def _compared(
    evidence: Evidence, model: Model, chosen: Sequence[Setting], waiting: Sequence[Setting], n: int
) -> list[Setting]:
    """Return what users compare with, unless its like was chosen already or it is hopeless; what waits for its turn anyway comes first.

    Their own setting, the batch size that should reach the target first, the usual batch of 32, and the largest.
    """
    own, largest, fastest = baseline_key(evidence), max(evidence.context.space.batches), batch_answer(evidence).fastest
    if fastest is not None and any(fastest / 2 <= setting.global_batch_size <= fastest * 2 for setting in chosen):
        fastest = None  # It is known to an octave at best, and moves with each run.
    wanted: list[tuple[int, Callable[[Setting], bool]]] = [
        (3, lambda setting: key_of(setting) == own),
        (3, lambda setting: setting.global_batch_size == fastest),
        (5, lambda setting: setting.global_batch_size == USUAL_BATCH),
        (6, lambda setting: setting.global_batch_size == largest),
    ]
    if n < min(least for least, _ in wanted):
        return []
    settings = [point.setting for point in model.weighed(evidence.ledger)]
    excess = model.excess(settings)
    worth = [settings[i] for i in np.argsort(excess, kind="stable") if excess[i] <= COMPARED_EXCESS]
    found: list[Setting] = []
    for least, fits in wanted:
        if n >= least and not any(map(fits, [*chosen, *found])):
            found += [setting for setting in (*waiting, *worth) if fits(setting)][:1]
    return found


def _leaders(evidence: Evidence, model: Model) -> list[Run]:
    """Return one run of each setting that may be recommended, best first."""
    found: dict[Key, Run] = {}
    for run in model.leaders:
        if run.number not in model.lost and evidence.context.allowed(run.key, run.setting.global_batch_size):
            found.setdefault(run.key, run)
    return list(found.values())


def baseline_key(evidence: Evidence) -> Key | None:
    """Return the setting that the user trains with today; None where it was not told."""
    if evidence.plan.baseline is None:
        return None
    space = evidence.context.space
    return key_of(space.setting(*evidence.plan.baseline, space.default_params()))


def _largest_first(evidence: Evidence, model: Model, leaders: Sequence[Run]) -> list[Run]:
    """Return the runs with the largest batch sizes that are not measurably worse first."""
    slack = evidence.plan.tolerance + NOISE_PRIOR[0]
    good = [
        run
        for run, excess in zip(leaders, model.excess([run.setting for run in leaders]), strict=True)
        if excess <= slack
    ]
    return sorted(good, key=lambda run: -run.setting.global_batch_size) + [run for run in leaders if run not in good]


def _fastest_first(evidence: Evidence, leaders: Sequence[Run]) -> list[Run]:
    """Return the runs that reached the target by their seconds to it, then the others.

    The best run of the batch size that should be fastest comes second, if not first, so that it is checked by running it.
    """
    target = evidence.target
    reached = (
        []
        if target is None
        else [(seconds, run) for run in leaders if (seconds := _seconds_to(evidence, target, run)) is not None]
    )
    ordered = [run for _, run in sorted(reached, key=lambda pair: pair[0])]
    ordered += [run for run in leaders if run not in ordered]
    fastest = batch_answer(evidence).fastest
    expected = next((run for run in leaders if run.setting.global_batch_size == fastest), None)
    if expected is not None and expected is not ordered[0]:
        ordered.remove(expected)
        ordered.insert(1, expected)
    return ordered


def _lowest_first(
    evidence: Evidence, model: Model, leaders: Sequence[Run], chosen: Sequence[Setting], n: int
) -> list[Setting]:
    """Return what to confirm for the lowest loss: the best that was run, one that is faster and may be as good, then what may end lowest.

    After the first, a setting need not have been run: what the runs to the end have shown tells where the next one is worth most.
    """
    best = [run.setting for run in leaders[:1]] if not chosen else []
    settings = [run.setting for run in leaders]
    within = model.excess(settings, optimism=0.0 if n == 1 else FAST_OPTIMISM) <= evidence.plan.tolerance
    fast = _fastest(evidence, [setting for setting, fits in zip(settings, within, strict=True) if fits])[:1]
    fast = fast if _fastest(evidence, [*chosen, *best, *fast])[:1] == fast else []
    return [*fast, *best] if n == 1 else [*best, *fast, *_hopeful(evidence, model)]


def _hopeful(evidence: Evidence, model: Model) -> list[Setting]:
    """Return all settings that may be run by how low they may end; of those within tolerance of the lowest, the fastest first."""
    points = model.weighed(evidence.ledger)
    if not points:
        return []
    mean, sd = model.final(points)
    ends = expand(mean - np.minimum(OPTIMISM * sd, MOST_OPTIMISM))
    settings = [points[i].setting for i in np.argsort(ends, kind="stable")]
    n_alike = int(np.sum(1 + ends <= (1 + ends.min()) * (1 + evidence.plan.tolerance)))
    return [*_fastest(evidence, settings[:n_alike]), *settings]


def _fastest(evidence: Evidence, settings: Sequence[Setting]) -> list[Setting]:
    """Return settings by the seconds that a sample takes, the fastest first; none where that is not known or does not count."""
    if evidence.plan.tolerance <= 0:
        return []
    cost = evidence.cost
    timed = [(s, setting) for setting in settings if (s := cost.seconds(setting.global_batch_size, 1)) is not None]
    return [setting for _, setting in sorted(timed, key=lambda pair: pair[0])]


def _seconds_to(evidence: Evidence, target: float, run: Run) -> float | None:
    """Return the seconds in which a run reached a target; its samples where no step time is known."""
    samples = samples_to(target, run)
    seconds = None if samples is None else evidence.cost.seconds(run.setting.global_batch_size, samples)
    return samples if seconds is None else seconds

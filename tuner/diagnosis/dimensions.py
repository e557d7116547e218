"""Claims about what a search may have as a dimension of its own: the optimizer, and momentum. From the trials."""

from __future__ import annotations

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Sequence

from ..core.diagnosis import Judgement
from ..core.examination import Look
from ..core.trial_record import TrialRecord
from ..report.units import number
from .known import Known, Ruling, beyond, ratio_ruling, unknown, unmeasured
from .learning_rate import GROWS, STAYS
from .noise import mean_interval
from .sizes import middle
from .tables import EqualSamples, seed_error, seed_sd, slope_of, tables_of

LEAST_SETTINGS = 4
"""Settings of an optimizer from which its best says something."""
MOMENTUM = ("momentum", "beta1", "beta_1", "b1")
BOTH = (
    "Let the optimizer be a dimension, with as many trials each: optimizer=lambda p, lr, kind='sgd': ..., then bstune "
    "search MODEL --space kind=sgd,adam"
)
MOMENTA = (
    "Make it a dimension, with enough trials: optimizer=lambda p, lr, momentum=0.9: ..., then bstune search MODEL "
    "--space momentum=0.5,0.75,0.9,0.95,0.98 --space batch_size={sizes} --sampler random --n-trials {n} --budget {n}"
)
NAMED = {"adam": "Adam", "sgd": "SGD"}
Key = tuple[int, float, str]


def adam_or_sgd(known: Known) -> Ruling:
    """Adam learns faster than SGD."""
    assert known.facts is not None
    by_kind: dict[str, list[TrialRecord]] = {"sgd": [], "adam": []}
    for record in known.records:
        if record.values and (kind := _kind(record)) is not None:
            by_kind[kind].append(record)
    looks = known.looked("two_optimizers")
    if looks:
        return _trained_with_both(looks[0])
    if not all(by_kind.values()) and not known.facts.can_be_looked_at:
        return unknown("it takes a search of both optimizers", BOTH)
    if not all(by_kind.values()):
        return unmeasured(known, "two_optimizers")
    curves = {kind: _settings(records) for kind, records in by_kind.items()}
    n = min(map(len, curves.values()))
    counted = f"{len(curves['sgd'])} settings of SGD and {len(curves['adam'])} of Adam were tried"
    if n < LEAST_SETTINGS:
        return unknown(f"{counted}; {LEAST_SETTINGS} of each are needed", BOTH)
    # Both get as many settings, the first ones that were tried: the best of more is better by chance.
    equal = {kind: dict(list(settings.items())[:n]) for kind, settings in curves.items()}
    found = _best_at_equal_samples(equal)
    if found is None:
        return unknown(f"{counted}, but none of both has a finite loss above 0 at the same samples", BOTH)
    samples, best = found
    loser = max(best, key=lambda kind: best[kind][0])
    rates = [rate for batch, rate, _ in equal[loser] if batch == best[loser][2]]
    figure = math.log(best["sgd"][0] / best["adam"][0])
    half = math.sqrt(2) * seed_error(known.records)
    verdict = beyond(figure - half, figure + half, 0.0)
    when = EqualSamples(samples, known.facts.full_run_samples, {}).when
    said = (
        f"the best of the first {n} settings of each {when}: Adam {number(best['adam'][0])}, SGD "
        f"{number(best['sgd'][0])}"
    )
    again = "Search on, with more trials of each: the same bstune search with a larger --budget and --n-trials."
    if verdict != "cannot tell" and best[loser][1] in (min(rates), max(rates)):
        return unknown(f"{said}; but the best rate of {NAMED[loser]} is the last one tried on its side", again)
    advice = {"holds": "Use Adam here.", "does not hold": "Use SGD here: it learns faster."}.get(verdict, again)
    data = {"optimizer": list(best), "loss": [loss for loss, *_ in best.values()], "settings": [n, n]}
    logs = figure, figure - half, figure + half
    return ratio_ruling(verdict, said, advice, logs, "times the loss of Adam, with SGD", data)


def _trained_with_both(look: Look) -> Ruling:
    """Return what trainings with both say, as many rates of each and the best of them with the same seeds."""
    losses = {kind: look.values[kind] for kind in ("adam", "sgd")}
    best = {kind: look.values[f"{kind}_best"][0] for kind in losses}
    n = int(look.values["settings"][0])
    shown = {kind: middle(found) for kind, found in losses.items()}
    said = (
        f"after {look.values['samples'][0]:,.0f} samples at the best of {n} rates each Adam ends at {shown['adam']} "
        f"(rate {best['adam']:.3g}), SGD at {shown['sgd']} (rate {best['sgd']:.3g}), over {len(losses['adam'])} seeds"
    )
    if not all(math.isfinite(x) and x > 0 for found in losses.values() for x in found):
        return unknown(f"{said}; one of them diverged, or ended at a loss of zero", BOTH)
    logs = [math.log(sgd / adam) for adam, sgd in zip(losses["adam"], losses["sgd"], strict=True)]
    mean, low, high = mean_interval(logs, least_sd=0.02)
    verdict = beyond(low, high, 0.0)
    loser = "sgd" if mean > 0 else "adam"
    rates = look.values[f"{loser}_rates"]
    if verdict != "cannot tell" and best[loser] in (rates[0], rates[-1]):
        return unknown(f"{said}; but the best rate of {NAMED[loser]} is the last one tried on its side", BOTH)
    advice = {
        "holds": "Use Adam, and search with it. Full runs may bring them closer: bstune search MODEL",
        "does not hold": "Use SGD here: it learns faster.",
    }.get(verdict, BOTH)
    data = {"optimizer": list(losses), "loss": [list(found) for found in losses.values()], "rate": list(best.values())}
    return ratio_ruling(verdict, said, advice, (mean, low, high), "times the loss of Adam, with SGD", data)


def _kind(record: TrialRecord) -> str | None:
    """Return which optimizer a trial says that it had: a value that names one tells it, whatever its dimension."""
    for value in record.params.values():
        word = value.lower() if isinstance(value, str) else ""
        if "adam" in word:
            return "adam"
        if "sgd" in word:
            return "sgd"
    return None


def _settings(records: Sequence[TrialRecord]) -> dict[Key, dict[int, float]]:
    """Return losses by samples of each setting in the order of trials: of its first seed, as others are of the few."""
    seeds: dict[Key, int] = {}
    curves: dict[Key, dict[int, float]] = {}
    for record in sorted(records, key=lambda record: record.number):
        key = (record.global_batch_size, record.learning_rate, repr(sorted(record.params.items())))
        if seeds.setdefault(key, record.seed) == record.seed:
            curve = curves.setdefault(key, {})
            curve.update((at, math.inf if loss is None else loss) for at, loss in record.values)
    return curves


def _best_at_equal_samples(
    curves: dict[str, dict[Key, dict[int, float]]],
) -> tuple[int, dict[str, tuple[float, float, int]]] | None:
    """Return the latest samples that a setting of each optimizer has reached, and the best loss, its rate and batch."""
    points = {at for settings in curves.values() for curve in settings.values() for at in curve}
    for at in sorted(points, reverse=True):
        best = {}
        for kind, settings in curves.items():
            losses = [(curve[at], rate, batch) for (batch, rate, _), curve in settings.items() if at in curve]
            best[kind] = min(losses, default=(math.inf, 0.0, 0))
        if all(0 < loss < math.inf for loss, *_ in best.values()):
            return at, best
    return None


def momentum_for_batch(known: Known) -> Ruling:
    """More momentum does what a smaller batch would undo."""
    assert known.facts is not None
    tried = sorted({record.global_batch_size for record in known.records}) or [8, 32, 128]
    sizes = sorted({tried[0], tried[len(tried) // 2], tried[-1]})
    advice = MOMENTA.format(sizes=",".join(map(str, sizes)), n=max(60, 2 * len(known.records)))
    name, records = _with_momentum(known.records)
    if len({record.params[name] for record in records}) < 2:
        return unknown("it takes trials at several values of momentum", advice)
    found = _best_momenta(records, name, known.facts.full_run_samples, seed_sd(known.records))
    if len(found) < 2:
        return unknown(
            f"two batch sizes are needed at which one {name} is better than smaller and larger ones by more than seeds "
            f"differ, each with its best rate between worse ones; the trials show {len(found) or 'none'}",
            f"Keep the {name}, and tune the rate: that may matter more here. To know, {advice[0].lower()}{advice[1:]}",
        )
    xs = [math.log2(batch) for batch in found]
    slope = slope_of(xs, [best for best, _ in found.values()], [error for _, error in found.values()])
    assert slope is not None
    verdict: Judgement = "holds" if slope.low > GROWS else "does not hold" if slope.high < STAYS else "cannot tell"
    momenta = [1 - 2**-best for best, _ in found.values()]
    each = ", ".join(f"{best:.3g} at {batch}" for batch, best in zip(found, momenta, strict=True))
    said = f"best {name}: {each}; doubling the batch multiplies 1 / (1 - {name}) by {2**slope.value:.2f}"
    todo = {
        "holds": f"When you double the batch, divide 1 - {name} by {2**slope.value:.2f}, and tune the rate.",
        "does not hold": f"Keep the {name} when you change the batch; tune the rate.",
    }.get(verdict, advice)
    data = {"batch_size": list(found), "best_momentum": momenta}
    return Ruling(verdict, said, todo, slope.value, "(slope)", slope.low, slope.high, data)


def _with_momentum(records: Sequence[TrialRecord]) -> tuple[str, list[TrialRecord]]:
    """Return the dimension that is a momentum, and most of its trials that differ otherwise in batch and rate alone."""
    for name in MOMENTUM:
        groups: dict[str, list[TrialRecord]] = defaultdict(list)
        for record in records:
            value = record.params.get(name)
            if isinstance(value, (int, float)) and 0 <= value < 1:
                groups[repr(sorted((key, each) for key, each in record.params.items() if key != name))].append(record)
        if groups:
            return name, max(groups.values(), key=len)
    return MOMENTUM[0], []


def _best_momenta(
    records: Sequence[TrialRecord], name: str, full_samples: float, sd: float
) -> dict[int, tuple[float, float]]:
    """Return by batch size log2 of the best 1 / (1 - momentum), and its error, at the latest samples with the most.

    Momenta are told apart by octaves of 1 / (1 - momentum); each counts with its best rate, and only where that lies
    between worse ones. A batch size counts where what is as good as its best, within what seeds differ, has worse
    momenta on both sides.
    """
    by_octave: dict[int, list[TrialRecord]] = defaultdict(list)
    for record in records:
        by_octave[round(-math.log2(1 - record.params[name]))].append(record)
    losses: dict[int, dict[int, dict[float, float]]] = defaultdict(lambda: defaultdict(dict))
    for group in by_octave.values():
        memory = statistics.mean(1 / (1 - record.params[name]) for record in group)
        for table in tables_of(group, full_samples):
            for batch, (_, loss) in table.tuned.items():
                losses[table.samples][batch][memory] = loss
    told: dict[int, dict[int, tuple[float, float]]] = {}
    for samples, rows in losses.items():
        table, told[samples] = EqualSamples(samples, full_samples, rows), {}
        for batch, (_, loss) in table.tuned.items():
            as_good = [x for x, value in rows[batch].items() if value <= loss * math.exp(1.645 * math.sqrt(2) * sd)]
            if min(rows[batch]) < min(as_good) and max(as_good) < max(rows[batch]):
                best, error = table.best_rate(batch)
                told[samples][batch] = best, max(error, math.log2(max(as_good) / min(as_good)) / 2)
    most = Counter({samples: len(found) for samples, found in told.items()})
    return told[max(most, key=lambda samples: (most[samples], samples))] if most else {}

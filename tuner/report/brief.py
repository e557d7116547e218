"""The answer in short parts, for page, card and notebook: how much sooner, why not larger, how sure, at what cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ..core.plain_text import one_line
from ..core.results import SearchResult
from . import wording
from .reasons import no_advice, tells_nothing
from .units import duration, gib, given_params, number

if TYPE_CHECKING:
    from ..core.trials import Facts


@dataclass(frozen=True)
class Part:
    """One question of a reader, with its answer in a few words and in one or two sentences."""

    question: str
    short: str
    detail: str


@dataclass(frozen=True)
class Brief:
    """The answer of a search."""

    title: str
    standing: Literal["verified", "unverified"]
    badge: str
    """Whether it is confirmed, in a few words."""
    split: str
    """How a step is made of micro-batches, and what it costs; empty where nothing can be told of any setting."""
    parts: tuple[Part, ...]


def brief(result: SearchResult) -> Brief:
    """Return the answer of a search in short parts."""
    best = result.recommendation
    on = " on a fresh seed" if best.val_loss.n_seeds == 1 else ""
    badge = sentences(f"{wording.confirmed(best).replace('run', 'full run')}{on}")
    if not best.verified:
        badge = "Not confirmed by a run on a fresh seed yet."
    short, ran = wording.larger(result)
    limits = [limit.sentence for limit in wording.limits(result)]
    ran = sentences(ran or wording.tried_larger(result))
    larger = Part("Why not larger?", short, " ".join(filter(None, [ran, *limits])))
    any_best = not tells_nothing(best.warnings)  # Else nobody should train with the setting that stands here.
    parts = (
        *((_sooner(result), larger) if any_best else ()),
        _sure(result),
        Part("What did the search cost?", wording.spent_text(result).partition(" in ")[0], _cost(result)),
    )
    return Brief(
        wording.title(best),
        "verified" if best.verified else "unverified",
        badge.removesuffix("."),
        _split(result) if any_best else "",
        tuple(part for part in parts if part is not None),
    )


def sentences(*said: str) -> str:
    """Return phrases as sentences, one after the other; empty ones are left out."""
    return " ".join(f"{text[0].upper()}{text[1:]}." for text in said if text)


def _split(result: SearchResult) -> str:
    best = result.recommendation
    said = [f"{given_params(best.params, ', ')}. " if best.params else "", wording.split_text(best, "×").capitalize()]
    if best.samples_per_s is not None:
        said.append(f", {wording.speed_text(result.probe, best, best.world_size)}")
    if best.peak_bytes is not None:
        said.append(f", peak memory {gib(best.peak_bytes)}")
    if best.seconds_per_full_run is not None:
        said.append(f", a full run takes {duration(best.seconds_per_full_run)} with validation")
    return f"{''.join(said)}."


def _sooner(result: SearchResult) -> Part | None:
    """Return how the answer compares with the user's setting and with batch 32, by what is expected of each."""
    best, target = result.recommendation, ""
    if best.seconds_to_target is not None and result.target is not None:
        target = f"it is expected to reach the target loss of {number(result.target)} after "
        target += wording.to_target(result, best)
    source = wording.target_source(result)
    origin = f"the target is {source}" if target and source else ""
    compared = [said for each in best.compared if (said := wording.compared(result, each)) is not None]
    if compared:
        return Part(
            "How much sooner?",
            compared[0].short,
            sentences(*(text for said in compared for text in (said.whole, said.loss)), target, origin),
        )
    if not target:
        return None
    return Part("How soon?", f"{wording.to_target(result, best)} to the target", sentences(target, origin))


def _sure(result: SearchResult) -> Part:
    best = result.recommendation
    if tells_nothing(best.warnings):
        return Part("How sure is it?", f"Losses of {wording.ends_of_runs(result)}", "")
    loss = best.val_loss
    short = "No full run yet" if loss.mean is None else f"Loss {loss.mean:.3g}"
    if loss.low is not None and loss.high is not None:
        short = f"Expect a loss of {two_digits(loss.low)} to {two_digits(loss.high)} in 9 of 10 new runs"
    equal, rests_on = wording.as_good(result)
    if equal and no_advice(best.warnings) is None:
        short += f"; {equal}"
    measured, source = wording.measured_loss(best), wording.interval_source(result)
    range_holds = source and f"that range holds if new runs differ as much {source}"
    if source and not best.verified and no_advice(best.warnings) is None:
        range_holds = "so is the range"
    said = sentences(
        measured.removeprefix("no full run yet: ") if loss.mean is None else f"measured: loss {measured}",
        range_holds,
        wording.chance(result),
        rests_on.replace("them", "these batch sizes"),
    )
    return Part("How sure is it?", short, said)


def two_digits(value: float) -> str:
    """Return a number with two digits, also where the last is a zero.

    Example:
        >>> two_digits(0.1006), two_digits(2.04), two_digits(123.4), two_digits(1e-7)
        ('0.10', '2.0', '123', '1.0e-07')
    """
    if value == 0 or not 1e-4 <= abs(value) < 1e6:
        return f"{value:.1e}"
    return f"{value:.{max(0, 1 - math.floor(math.log10(abs(value))))}f}"


def _cost(result: SearchResult) -> str:
    probe = "" if result.probe is None else f", after a probe of {duration(result.probe.seconds)}"
    n = len(result.records)
    return sentences(
        f"{n:,} trial{'' if n == 1 else 's'}{probe}", wording.diverged_text(result), wording.why_ended(result)
    )


def _outside(what: str, tried: Sequence[float]) -> str:
    """Return what lies outside of what was tried."""
    low, high = (f"{end:.3g}" if end < 1 else f"{end:g}" for end in (min(tried), max(tried)))
    return f"{what} other than {low}" if low == high else f"{what} below {low} and above {high}"


def not_tested(result: SearchResult, facts: Facts | None) -> list[str]:
    """Return what the search says nothing of, one sentence each."""
    best, records = result.recommendation, result.records
    said = []
    if records:
        batches = [record.global_batch_size for record in records]
        rates = [record.learning_rate for record in records]
        said.append(f"{_outside('Batch sizes', batches)}; {_outside('learning rates', rates)}.")
    full = max((record.end_samples or record.samples for record in records), default=0)
    furthest: dict[tuple[int, float, str], int] = {}
    for record in records:
        key = record.global_batch_size, record.learning_rate, repr(record.params)
        furthest[key] = max(furthest.get(key, 0), record.samples)
    if n := sum(samples < 0.9 * full for samples in furthest.values()):
        said.append(f"The end of a full run for {n} of {len(furthest)} settings: their beginnings told enough.")
    seeds = {record.seed for record in records if record.state == "complete"}
    if not seeds:
        said.append("A full run: none has been finished.")
    elif len(seeds) < 4:
        said.append(f"More than {len(seeds)} seed{'' if len(seeds) == 1 else 's'} in full runs.")
    if facts is not None:
        varied = "" if not best.params else f" besides {', '.join(one_line(name, 80) for name in best.params)}"
        said.append(
            f"Other settings{varied}: the optimizer ({one_line(facts.optimizer or 'unknown', 60)}), "
            f"its schedule ({one_line(facts.schedule, 60)}) and its other arguments are as your code has them."
        )
        said.append(
            f"Longer training than {facts.epochs:g} epochs of {facts.n_samples:,} {facts.size_unit}, and other data."
        )
    if result.probe is not None:
        said.append(f"Other devices than {one_line(result.probe.device.name, 80)}, and several devices to one model.")
    if result.goal != "loss":
        said.append("Any goal but the validation loss: accuracy and the like may rank settings otherwise.")
    return said

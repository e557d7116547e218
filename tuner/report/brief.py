"""The answer in short parts, for page, card and notebook: how much sooner, why not larger, how sure, at what cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ..core.plain_text import one_line
from ..core.results import Candidate, Comparison, Recommendation, SearchResult
from .charts.frame import candidates
from .reasons import no_advice
from .units import duration, gib, given_params, number, per_second

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
    """Whether it is verified, in a few words."""
    split: str
    """How a step is made of micro-batches, and what it costs."""
    parts: tuple[Part, ...]


def brief(result: SearchResult) -> Brief:
    """Return the answer of a search in short parts."""
    best = result.recommendation
    standing: Literal["verified", "unverified"] = "verified" if best.verified else "unverified"
    seeds = f"{best.val_loss.n_seeds} fresh seed{'' if best.val_loss.n_seeds == 1 else 's'}"
    badge = f"Verified on {seeds}" if best.verified else "Not verified on a fresh seed yet"
    parts = (
        _sooner(result),
        _larger(result),
        _sure(best),
        Part("What did the search cost?", f"{duration(result.spent.seconds)} of training", _cost(result)),
    )
    return Brief(_title(best), standing, badge, _split(best), tuple(part for part in parts if part is not None))


def _title(best: Recommendation) -> str:
    """Return what to train with; what is not verified is the best so far, or no advice where nothing was learned."""
    setting = f"batch {best.global_batch_size}, learning rate {best.learning_rate:.3g}"
    if no_advice(best.warnings) is not None:
        return f"No advice yet (tried: {setting})"
    return f"{'Train with' if best.verified else 'Best so far:'} {setting}"


def _split(best: Recommendation) -> str:
    steps = f"{best.accumulation_steps} accumulation step{'' if best.accumulation_steps == 1 else 's'}"
    devices = f"{best.world_size} device{'' if best.world_size == 1 else 's'}"
    said = [f"Micro-batch {best.micro_batch_size} × {steps} × {devices}"]
    if best.samples_per_s is not None:
        said.append(per_second(best.samples_per_s))
    if best.peak_bytes is not None:
        said.append(f"peak memory {gib(best.peak_bytes)}")
    if best.seconds_per_full_run is not None:
        said.append(f"a full run takes {duration(best.seconds_per_full_run)}")
    return f"{given_params(best.params, ', ') + '. ' if best.params else ''}{', '.join(said)}."


def _sooner(result: SearchResult) -> Part | None:
    """Return how the answer compares with the user's setting and with batch 32, by what is expected of each."""
    best = result.recommendation
    compared = [(each, said) for each in best.compared if (said := _compared(each))]
    target = ""
    if best.seconds_to_target is not None and result.target is not None:
        target = f"It is expected at a loss of {number(result.target)} after {duration(best.seconds_to_target)}."
    if not compared:
        if not target:
            return None
        return Part("How soon?", f"{duration(best.seconds_to_target)} to the target", target)
    first, (short, _) = compared[0]
    details = [f"{_name(each)}: {detail}." for each, (_, detail) in compared]
    return Part("How much sooner?", f"{short} than {one_line(first.name, 60)}", " ".join([*details, target]).strip())


def _name(each: Comparison) -> str:
    name = one_line(each.name, 60)
    batch = "" if name.startswith("batch") else f"batch {each.setting.global_batch_size}, "
    return f"Against {name} ({batch}learning rate {each.setting.learning_rate:.3g})"


def _compared(each: Comparison) -> tuple[str, str] | None:
    factor, ratio = each.times_sooner, each.loss_ratio
    loss = None
    if ratio is not None:
        change = abs(ratio - 1)
        loss = "the same loss" if change < 0.005 else f"loss {change:.1%} {'lower' if ratio < 1 else 'higher'}"
    if factor is None or factor <= 0:
        return None if loss is None else (loss[0].upper() + loss[1:], f"expected {loss} at the end of a full run")
    times = f"{factor:.2g} times sooner" if factor >= 1 else f"{1 / factor:.2g} times later"
    short = "No sooner" if 0.975 <= factor <= 1.025 else f"{times[0].upper()}{times[1:]}"
    end = "" if loss is None else f", {loss} at the end of a full run"
    return short, f"expected {times if short != 'No sooner' else 'no sooner'} at the target{end}"


def _larger(result: SearchResult) -> Part:
    """Return why the batch is not larger: what the next larger one that was run costs, and what limits it."""
    best = result.recommendation
    batch = best.global_batch_size
    tried = [record.global_batch_size for record in result.records]
    larger = [each for each in candidates(result) if each.global_batch_size > batch and each.val_loss.mean is not None]
    if tried and batch >= max(tried):
        return Part("Why not larger?", f"{batch} is the largest that was tried", " ".join(_limits(result)))
    if not larger:
        short = "No larger batch has been run to the end"
    elif result.goal == "loss":
        short = "Larger batches end no lower"
    elif result.goal == "largest":
        short = "Larger batches end higher"
    elif best.seconds_to_target is None or all(each.seconds_to_target is None for each in larger):
        short = "Not known yet"
    elif min(each.seconds_to_target or math.inf for each in larger) < best.seconds_to_target:
        short = "A larger batch may be sooner"
    elif best.batch_interval and best.batch_interval[-1] > batch:
        short = "Larger ones may be as good; none was sooner"
    else:
        short = "Larger batches reach the target later"
    return Part("Why not larger?", short, " ".join([*_larger_ran(result, larger), *_limits(result)]))


def _larger_ran(result: SearchResult, larger: list[Candidate]) -> list[str]:
    """Return how the best of the larger batches did that were run to the end."""
    best = result.recommendation
    timed = [each for each in larger if each.seconds_to_target is not None]
    if result.goal == "time" and timed and best.seconds_to_target is not None:
        next_best = min(timed, key=lambda each: each.seconds_to_target or 0.0)
        return [
            f"Batch {next_best.global_batch_size} is expected at the target after "
            f"{duration(next_best.seconds_to_target)}, this one after {duration(best.seconds_to_target)}."
        ]
    if not larger:
        return []
    lowest = min(larger, key=lambda each: each.val_loss.mean or 0.0)
    return [f"Batch {lowest.global_batch_size} ended at a loss of {number(lowest.val_loss.mean)}."]


def _limits(result: SearchResult) -> list[str]:
    """Return what memory, hardware and gradient noise say, one sentence each; what was not measured is left out."""
    limits, answer, best = result.limits, result.batch_answer, result.recommendation
    said = []
    if limits.memory is not None:
        more = " or more" if result.probe is not None and result.probe.limited_by != "memory" else ""
        if best.global_batch_size < limits.memory:
            said.append(f"Memory is not the limit: {limits.memory}{more} fit.")
        else:
            said.append(f"Memory fits {limits.memory}{more} at once.")
    if limits.hardware is not None:
        said.append(
            f"The hardware reaches half of its top speed at batch {limits.hardware:.0f}; beyond it, gains shrink."
        )
    if limits.noise is not None:
        low, high = (None, None) if answer is None else (answer.b_crit_low, answer.b_crit_high)
        ends = "" if low is None else f" ({low:.0f} or more)" if high is None else f" ({low:.0f} to {high:.0f})"
        said.append(f"At batch {limits.noise:.0f}{ends} training needs twice as many samples as at very small batches.")
    return said


def _sure(best: Recommendation) -> Part:
    loss = best.val_loss
    short, said = "No full run yet", []
    if loss.mean is not None:
        seeds = f"{loss.n_seeds} {'fresh ' if best.verified else ''}seed{'' if loss.n_seeds == 1 else 's'}"
        short = f"Loss {loss.mean:.3g}"
        said.append(f"Measured: loss {number(loss.mean)} on {seeds}.")
        if not best.verified and loss.n_seeds == 1:
            said.append("It was chosen on this seed, so the loss is likely too low.")
    else:
        said.append("It was chosen by the beginnings of runs.")
    if loss.low is not None and loss.high is not None:
        short = f"Expect a loss of {two_digits(loss.low)} to {two_digits(loss.high)} in 9 of 10 new runs"
    if best.batch_interval:
        low, high = best.batch_interval[0], best.batch_interval[-1]
        said.append(
            "No other batch size that was run is as good."
            if low == high
            else f"Batch sizes {low} to {high} may be as good: the runs do not tell them apart for certain."
        )
    return Part("How sure is it?", short, " ".join(said))


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
    spent, n = result.spent, len(result.records)
    ends = {
        "interrupted": "The search is not finished.",
        "converged": "It ended because no further run was worth its cost.",
        "budget": "It ended since its budget was used up.",
        "timeout": "It ended by its timeout.",
        "n_trials": "It ended by its number of trials.",
    }
    runs = spent.reference_runs
    amount = f"{runs:,.1f}" if runs >= 1 else f"{runs:.2g}"
    trials = f"{n:,} trial{'' if n == 1 else 's'}, as much training as {amount} full runs"
    probe = "" if result.probe is None else f", after a probe of {duration(result.probe.seconds)}"
    return f"{trials}{probe}. {ends.get(result.stopped_by, '')}".strip()


def _outside(what: str, tried: Sequence[float]) -> str:
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
        said.append(f"Longer training than {facts.epochs:g} epochs of {facts.n_samples:,} samples, and other data.")
    if result.probe is not None:
        said.append(f"Other devices than {one_line(result.probe.device.name, 80)}, and several devices to one model.")
    if result.goal != "loss":
        said.append("Any goal but the validation loss: accuracy and the like may rank settings otherwise.")
    return said

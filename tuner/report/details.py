"""What --verbose adds to an answer: what it trades for what, what limits the batch, what was not tested."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..core.plain_text import one_line
from ..core.results import BatchAnswer, Candidate, LossEstimate, SearchResult
from .units import duration, gib, given_params, number, per_second
from .view import labelled, said

if TYPE_CHECKING:
    from rich.console import RenderableType


def details(result: SearchResult) -> list[RenderableType]:
    """Return all that is known of the answer and is not in its short form, one row each."""
    rows = [*_measured(result), *_trades(result), *_importance(result), *_batch(result), *_untested(result)]
    spent = result.spent
    foreseen = (
        "" if spent.predicted_seconds is None else f", {duration(spent.predicted_seconds)} were foreseen for them"
    )
    rows.append(("trained", f"{spent.samples:,} samples in {duration(spent.seconds)}{foreseen}"))
    rows.append(("study", f"{result.study} in {result.storage}"))
    return [labelled([(label, said(text)) for label, text in rows], least=11)]


def _measured(result: SearchResult) -> Iterator[tuple[str, str]]:
    best = result.recommendation
    if best.eval_batch_size is not None:
        yield "validation", f"batches of {best.eval_batch_size} samples"
    if best.samples_per_s is not None:
        yield "speed", f"{per_second(best.samples_per_s)}, peak memory {gib(best.peak_bytes)}"
    if best.samples_to_target is not None:
        samples, loss = f"{best.samples_to_target:,.0f}", number(result.target)
        yield "to target", f"{duration(best.seconds_to_target)}, {samples} samples to a loss of {loss}"
    for each in best.by_device:
        ran = [record for record in result.records if record.device == each.device]
        speed = "speed unknown" if each.samples_per_s is None else per_second(each.samples_per_s)
        took = duration(sum(record.seconds or 0.0 for record in ran))
        yield "device", f"{each.device}: {speed}; {len(ran)} trial{'s' if len(ran) != 1 else ''}, {took}"


def _trades(result: SearchResult) -> Iterator[tuple[str, str]]:
    """Yield what the answer trades for what: each other answer once, and none that is the answer itself."""
    best = result.recommendation
    for each in best.compared:
        if each.loss_ratio is not None:
            change = abs(each.loss_ratio - 1)
            how = "the same" if change < 0.005 else f"{change:.1%} {'lower' if each.loss_ratio < 1 else 'higher'}"
            yield (
                "compared",
                f"the expected loss of a full run is {how} than that of {each.name}".replace("same than", "same as"),
            )
    if best.lowest_loss is not None:
        yield "lowest loss", f"expected of {_setting(best.lowest_loss)}"
    if best.full_runs_to_best is not None and best.full_runs_to_best > 1.05:
        yield (
            "longer",
            f"about {best.full_runs_to_best:.2g} full runs of the answer reach the lowest loss expected of any",
        )
    equal = best.lowest_loss_at_equal_seconds
    if equal is not None and best.seconds_per_full_run is not None:
        after = duration(best.seconds_per_full_run)
        setting = f"batch {equal.global_batch_size} at lr {equal.learning_rate:.3g}"
        yield "equal time", f"averaged over all seeds that were run, {setting} was lowest after {after}"
    named = {"about as soon" if result.goal == "time" else "soonest": best.fastest}
    named["smaller"] = best.smallest_within_tolerance
    for label, other in named.items():
        if other is not None and (other.global_batch_size, other.learning_rate) != (
            best.global_batch_size,
            best.learning_rate,
        ):
            yield label, _setting(other)
    if best.batch_interval:
        low, high = best.batch_interval[0], best.batch_interval[-1]
        yield (
            "as good as",
            "no other batch size that was run"
            if low == high
            else f"batch sizes {low} to {high} cannot be told from it",
        )
    if best.lr_rule is not None:
        yield "rule", f"double the batch, multiply the learning rate by {2**best.lr_rule.alpha:.2f}"


def _importance(result: SearchResult) -> Iterator[tuple[str, str]]:
    """Yield how much each dimension matters, as far as the study says."""
    if result.importance:
        shares = ", ".join(f"{one_line(name, 80)} {share:.0%}" for name, share in result.importance.items())
        yield "importance", f"{shares}: how much of the expected loss each explains alone, over what was tried"
    elif result.no_importance:
        yield "importance", f"not known: {one_line(result.no_importance, 200)}"


def _setting(candidate: Candidate) -> str:
    extra = f", {given_params(candidate.params, ', ')}" if candidate.params else ""
    return (
        f"batch {candidate.global_batch_size}, lr {candidate.learning_rate:.3g}{extra}: {loss_text(candidate.val_loss)}"
    )


def _batch(result: SearchResult) -> Iterator[tuple[str, str]]:
    limits, more = result.limits, ""
    if result.probe is not None and result.probe.limited_by != "memory":
        more = f"; the probe ended there by {result.probe.limited_by}, not by memory"
    yield "memory", "not measured" if limits.memory is None else f"micro-batches of up to {limits.memory} samples{more}"
    yield (
        "hardware",
        "not measured" if limits.hardware is None else f"half of the peak speed at batch {limits.hardware:.0f}",
    )
    critical = None if result.batch_answer is None else batch_text(result.batch_answer)
    yield "noise", critical or "the critical batch size was not measured"


def _untested(result: SearchResult) -> Iterator[tuple[str, str]]:
    """Yield what the answer does not rest on, so that nobody takes it for tested."""
    best, records = result.recommendation, result.records
    if records:
        batches = [record.global_batch_size for record in records]
        rates = [record.learning_rate for record in records]
        yield "not tested", f"batch sizes outside {min(batches)} to {max(batches)}"
        yield "not tested", f"learning rates outside {min(rates):.3g} to {max(rates):.3g}"
    full = max((record.end_samples or record.samples for record in records), default=0)
    furthest: dict[tuple[int, float, str], int] = {}
    for record in records:
        key = record.global_batch_size, record.learning_rate, repr(record.params)
        furthest[key] = max(furthest.get(key, 0), record.samples)
    n = sum(samples < 0.9 * full for samples in furthest.values())
    if n:
        yield "not tested", f"{n} of {len(furthest)} settings to the end: they were judged by the beginnings of runs"
    if best.val_loss.n_seeds == 1:
        yield "not tested", "a second seed of the answer: its interval rests on how much seeds differ elsewhere"


def batch_text(answer: BatchAnswer) -> str | None:
    """Return the critical batch size and on what evidence; None if unknown.

    Example:
        >>> batch_text(BatchAnswer("trials", 0.3, 4, b_crit=290.0, b_crit_low=200.0, b_crit_high=410.0))
        'batch 290 (200 to 410) by 4 batch sizes: there, samples to the target are twice their least'
    """
    if answer.source is None:
        low = answer.noise_scale_low
        return None if low is None else f"batch {low:.0f} at least: gradient noise dominates"
    rests_on = (
        f"{answer.n_batches} batch sizes" if answer.source == "trials" else "gradient noise, which tends to be low"
    )
    critical = _ranged(answer.b_crit, answer.b_crit_low, answer.b_crit_high)
    return f"batch {critical} by {rests_on}: there, samples to the target are twice their least"


def _ranged(value: float | None, low: float | None, high: float | None) -> str:
    middle = "without end" if value is None else f"{value:.0f}"
    if low is None:
        return middle
    return f"{middle} ({low:.0f} or more)" if high is None else f"{middle} ({low:.0f} to {high:.0f})"


def loss_text(loss: LossEstimate) -> str:
    """Return a loss with its uncertainty."""
    if loss.n_seeds == 0:
        return "no full run yet"
    spread = "" if loss.sd is None else f" ± {loss.sd:.2g}"
    seeds = f"{loss.n_seeds} seed{'s' if loss.n_seeds != 1 else ''}"
    interval = (
        ""
        if loss.low is None or loss.high is None
        else f"; a fresh run lands between {number(loss.low)} and {number(loss.high)} (90 %)"
    )
    return f"loss {number(loss.mean)}{spread} on {seeds}{interval}"

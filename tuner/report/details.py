"""What --verbose adds to an answer: what it trades for what, what limits the batch, what was not tested."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..core.plain_text import one_line
from ..core.results import BatchAnswer, Candidate, LossEstimate, SearchResult
from . import wording
from .brief import not_tested, sentences
from .units import REFERENCE_RUN, duration, gib, number, setting_text
from .view import labelled, said

if TYPE_CHECKING:
    from rich.console import RenderableType

    from ..core.trials import Facts


def details(result: SearchResult, facts: Facts | None = None) -> list[RenderableType]:
    """Return all that is known of the answer and is not in its short form, one row each."""
    rows = [*_measured(result), *_trades(result), *_importance(result), *_batch(result)]
    rows += [("not tested", said) for said in not_tested(result, facts)]
    spent = result.spent
    foreseen = (
        "" if spent.predicted_seconds is None else f", {duration(spent.predicted_seconds)} were foreseen for them"
    )
    rows.append(("trained", f"{spent.samples:,} samples in {duration(spent.seconds)}{foreseen}"))
    rows.append(("budget", f"{spent.reference_runs:.1f} reference runs used ({REFERENCE_RUN})"))
    rows.append(("study", f"{result.study} in {result.storage}"))
    return [labelled([(label, said(text)) for label, text in rows], least=11)]


def _measured(result: SearchResult) -> Iterator[tuple[str, str]]:
    best = result.recommendation
    if best.eval_batch_size is not None:
        yield (
            "validation",
            f"batches of {best.eval_batch_size} samples (eval_batch_size)",
        )
    if best.samples_per_s is not None:
        yield "speed", f"{wording.speed_text(result.probe, best, best.world_size)}, peak memory {gib(best.peak_bytes)}"
    if best.samples_to_target is not None:
        samples, loss = f"{best.samples_to_target:,.0f}", number(result.target)
        yield "to target", f"{wording.to_target(result, best)}; {samples} samples to a loss of {loss}"
    for each in best.by_device:
        ran = [record for record in result.records if record.device == each.device]
        speed = wording.speed_text(result.probes.get(each.device), each, best.world_size)
        took = duration(sum(record.seconds or 0.0 for record in ran))
        yield "device", f"{each.device}: {speed}; {len(ran)} trial{'s' if len(ran) != 1 else ''}, {took}"


def _trades(result: SearchResult) -> Iterator[tuple[str, str]]:
    """Yield what the answer trades for what: each other answer once, and none that is the answer itself."""
    best = result.recommendation
    for each in best.compared:
        if (beside := wording.compared(result, each)) is not None and beside.loss:
            yield "compared", f"{one_line(each.name, 60)}: {beside.loss}"
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
    if alike := sentences(": ".join(filter(None, wording.as_good(result)))):
        yield "as good as", alike
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
    return f"{setting_text(candidate)}: {loss_text(candidate.val_loss)}"


def _batch(result: SearchResult) -> Iterator[tuple[str, str]]:
    known = {limit.name: limit.sentence for limit in wording.limits(result)}
    for name in ("memory", "hardware"):
        yield name, known.get(name, "not measured")
    critical = None if result.batch_answer is None else batch_text(result.batch_answer)
    yield "noise", critical or "the critical batch size was not measured"


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

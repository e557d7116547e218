"""The answer of a search on one screen: what to train with, how much sooner, how sure, why, and the frontier.

It says each thing once. What is measured stands in the table; what is expected, by all that is known of a setting,
is said to be expected.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from ..core.plain_text import one_line
from ..core.results import Candidate, Comparison, LossEstimate, OnDevice, Recommendation, SearchResult, TrialRecord
from .reasons import no_advice, without_limits
from .units import duration, gib, given_params
from .view import Column, View, even, labelled, said, tabled

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

USUAL_BATCH = 32
"""What many frameworks begin with."""
MOST_ROWS = 5
"""Of the frontier, without --verbose."""
MOST_METRICS = 2


def answer(result: SearchResult, view: View, *, verbose: bool = False) -> list[RenderableType]:
    """Return the block: the answer, how it compares, how sure it is and why it is that, one row each."""
    best = result.recommendation
    held = no_advice(best.warnings) is None
    rows = [("split", text) for text in _split(best)]
    if held:
        rows += [("against", text) for each in best.compared if (text := _against(result, each))]
        if not best.compared and best.global_batch_size != USUAL_BATCH:
            rows.append(("against", f"batch {USUAL_BATCH} was not tried, so it is not compared"))
    rows.append(("loss", how_sure(best)))
    if held:
        rows.append(("why", without_limits(best.reason, best.global_batch_size, best.learning_rate)))
    rows.append(("limits", limits_text(result) or "not measured"))
    if best.params:
        rows.insert(0, ("with", given_params(best.params, ", ")))
    rows.append(("spent", spent_text(result)))
    shown = _short(best.warnings) if not verbose else best.warnings
    rows += [("warning", text) for text in shown]
    if held and len(best.warnings) > len(shown):
        rows.append(("", f"{len(best.warnings) - len(shown)} more with --verbose"))
    return [_title(best, view, held=held), labelled([(label, said(text, 600)) for label, text in rows])]


def _short(warnings: Sequence[str]) -> Sequence[str]:
    """Return the warnings that matter most: why nothing should be trained with, else the first two."""
    nothing = no_advice(warnings)
    return warnings[:2] if nothing is None else (nothing,)


def _title(best: Recommendation, view: View, *, held: bool) -> Text:
    """Return the first line: what to train with and whether that is verified, in less words where they do not fit."""
    from rich.text import Text

    style = "bold green" if best.verified else "bold yellow"
    verified = "true" if best.verified else "false"
    batch, rate = best.global_batch_size, f"{best.learning_rate:.3g}"
    for said_first in (
        f"Train with batch {batch} and learning rate {rate}"
        if held
        else f"Nothing to train with yet (best: batch {batch}, lr {rate})",
        f"{'Batch' if held else 'No answer; batch'} {batch}, lr {rate}",
    ):
        line = Text.assemble((said_first, style), "  verified: ", (verified, style))
        if line.cell_len <= view.width:
            break
    return line


def _split(best: Recommendation) -> list[str]:
    """Return how a step is split; for each kind of device, where a cluster has several."""
    if best.by_device:
        return [_split_on(each) for each in best.by_device]
    devices = f"{best.world_size} device{'s' if best.world_size != 1 else ''}"
    peak = "" if best.peak_bytes is None else f", peak {gib(best.peak_bytes)}"
    return [f"micro-batch {best.micro_batch_size} x {_steps(best.accumulation_steps)} x {devices}{peak}"]


def _split_on(each: OnDevice) -> str:
    target = "" if each.seconds_to_target is None else f", {duration(each.seconds_to_target)} to target"
    split = f"micro-batch {each.micro_batch_size} x {_steps(each.accumulation_steps)}"
    return f"{one_line(each.device, 60)}: {split}{target}"


def _steps(n: int) -> str:
    return f"{n} accumulation step{'s' if n != 1 else ''}"


def _against(result: SearchResult, each: Comparison) -> str:
    """Return how the answer compares with the user's setting or with batch 32, by all that is known of both."""
    setting, ratio, sooner = each.setting, each.loss_ratio, each.times_sooner
    rate = f"lr {setting.learning_rate:.3g}{'' if setting.val_loss.n_seeds else ', not run to its end'}"
    name = f"{each.name} ({rate if each.name.startswith('batch') else f'batch {setting.global_batch_size}, {rate}'})"
    if result.goal == "time" and sooner is not None:
        return f"{name}: expected {_factor(sooner, 'sooner', 'later')} at the target"
    took = "" if not sooner else f", a full run takes {1 / sooner:.0%} of its time"
    return "" if ratio is None else f"{name}: expected loss {_change(ratio)}{took}"


def _factor(factor: float, more: str, less: str) -> str:
    """Return by what factor, in two digits; one that is next to 1 is said to be none."""
    if factor <= 0 or 0.95 <= factor <= 1.05:
        return f"neither {more} nor {less}" if factor > 0 else more
    return f"{factor:.2g} times {more}" if factor > 1 else f"{1 / factor:.2g} times {less}"


def _change(ratio: float) -> str:
    if abs(ratio - 1) < 0.005:
        return "the same"
    return f"{abs(ratio - 1):.1%} {'lower' if ratio < 1 else 'higher'}"


def how_sure(best: Recommendation) -> str:
    """Return the loss with its interval, and on what seeds it was measured."""
    loss = best.val_loss
    if loss.n_seeds == 0 or loss.mean is None:
        return "no full run yet: chosen by the beginnings of runs"
    spread = "" if loss.sd is None else f" ± {loss.sd:.2g}"
    fresh = f"{loss.n_seeds} fresh seed{'s' if loss.n_seeds != 1 else ''}"
    where = fresh if best.verified or loss.n_seeds > 1 else "the seed it was chosen on, so likely too low"
    if not best.verified and no_advice(best.warnings) is not None:
        where = f"{loss.n_seeds} seed{'s' if loss.n_seeds != 1 else ''}"
    ends = ""
    if loss.low is not None and loss.high is not None:
        ends = "; 90 % of new runs end in {} to {}".format(*even([loss.low, loss.high]))
    return f"{number3(loss.mean)}{spread} on {where}{ends}"


def number3(value: float | None) -> str:
    """Return a number with three significant digits, and no exponent where it needs none."""
    return even([value])[0]


def interval_text(loss: LossEstimate) -> str:
    """Return the 90 % interval of a fresh run's loss; nothing where there is none."""
    if loss.low is None or loss.high is None:
        return ""
    low, high = even([loss.low, loss.high])
    return f"{low}-{high}" if loss.low >= 0 else f"{low}..{high}"


def limits_text(result: SearchResult) -> str:
    """Return the batch size that memory, hardware and gradient noise each point to; what is not known is left out."""
    limits, known = result.limits, []
    if limits.memory is not None:
        more = " or more" if result.probe is not None and result.probe.limited_by != "memory" else ""
        known.append(f"memory {limits.memory}{more}")
    if limits.hardware is not None:
        batch = f"{limits.hardware:.0f}" if limits.hardware >= 1 else "below 1"
        known.append(f"hardware {batch} (half speed)")
    least = None if result.batch_answer is None else result.batch_answer.noise_scale_low
    if limits.noise is not None:
        known.append(f"noise {limits.noise:.0f} (critical)")
    elif least is not None:
        known.append(f"noise {least:.0f} or more (critical)")
    return ", ".join(known)


def spent_text(result: SearchResult) -> str:
    """Return what the search cost and why it ended."""
    spent, n = result.spent, len(result.records)
    ends = {
        "interrupted": "not finished",
        "converged": "no other run was worth it",
        "budget": "the budget is used up",
        "timeout": "ended by timeout",
        "n_trials": "ended by n_trials",
    }
    trained = f"{spent.reference_runs:.1f} reference runs ({n} trial{'s' if n != 1 else ''}, {duration(spent.seconds)})"
    return f"{trained}; {ends.get(result.stopped_by, f'ended by {result.stopped_by}')}"


# --- the table ----------------------------------------------------------------------------------------------------


def frontier_table(
    result: SearchResult, view: View, *, most: int = MOST_ROWS, verbose: bool = False
) -> list[RenderableType]:
    """Return the settings that no other beats in loss and time, and those that people know, as they were measured."""
    rows = _rows(result)
    ran = [row for row in rows if row.val_loss.mean is not None]
    if not ran:
        return []
    shown = ran if verbose else _few(ran, result.recommendation, most)
    loss = even([row.val_loss.mean for row in shown])
    marked = [text + ("" if row.verified else "*") for text, row in zip(loss, shown, strict=True)]
    width = max(map(len, marked))
    full_s, full_unit = span([row.seconds_per_full_run for row in shown])
    target_s, target_unit = span([row.seconds_to_target for row in shown])
    peaks, peak_unit = _memory([_peak(result, row) for row in shown])
    columns = [
        Column("batch", [str(row.global_batch_size) for row in shown], 0),
        Column("lr", [f"{row.learning_rate:.3g}" for row in shown], 0),
        Column("val loss", [m if m.endswith("*") or len(m) == width else f"{m} " for m in marked], 1),
        Column("90 % interval", [interval_text(row.val_loss) or "-" for row in shown], 5),
        Column(f"full run {full_unit}", full_s, 2),
        Column(f"target {target_unit}", target_s, 3),
        Column(f"peak {peak_unit}", peaks, 7),
        *_metric_columns(result, shown, verbose=verbose),
        Column("", [_whose(result, row) for row in shown], 4, "left"),
    ]
    kept = [column for column in columns if any(cell not in ("-", "") for cell in column.cells)]
    chosen = [i for i, row in enumerate(shown) if _is(result.recommendation, row)]
    notes = []
    if any(not row.verified for row in shown):
        notes.append("* on the seed that it was chosen on, so likely too low")
    if len(shown) < len(ran):
        notes.append(f"{len(ran) - len(shown)} more with --verbose")
    return [tabled(kept, view, chosen=chosen), *([said("; ".join(notes), style="dim")] if notes else [])]


def _rows(result: SearchResult) -> list[Candidate]:
    """Return what stands in the table, the shortest full run first: each setting once."""
    best = result.recommendation
    ended = [c for c in (best.fastest, best.lowest_loss, best.smallest_within_tolerance) if c is not None]
    rows: dict[tuple[int, float, str], Candidate] = {}
    for row in (*best.frontier, *(each.setting for each in best.compared), *ended, *best.alternatives):
        known = row in best.frontier or row.val_loss.mean is not None
        if known:
            rows.setdefault((row.global_batch_size, row.learning_rate, repr(row.params)), row)
    if not any(_is(best, row) for row in rows.values()):
        rows[best.global_batch_size, best.learning_rate, repr(best.params)] = _as_candidate(best)
    return sorted(rows.values(), key=lambda row: (row.seconds_per_full_run or 0.0, -row.global_batch_size))


def _as_candidate(best: Recommendation) -> Candidate:
    return Candidate(
        global_batch_size=best.global_batch_size,
        micro_batch_size=best.micro_batch_size,
        accumulation_steps=best.accumulation_steps,
        learning_rate=best.learning_rate,
        params=best.params,
        val_loss=best.val_loss,
        seconds_per_full_run=best.seconds_per_full_run,
        samples_per_s=best.samples_per_s,
        seconds_to_target=best.seconds_to_target,
        samples_to_target=best.samples_to_target,
        verified=best.verified,
    )


def _few(rows: Sequence[Candidate], best: Recommendation, most: int) -> list[Candidate]:
    """Return the rows of a short table: the answer and what it is compared with, and of the rest the lowest losses."""
    known = [each.setting for each in best.compared]
    first = [row for row in rows if _is(best, row) or row in known]
    rest = sorted((row for row in rows if row not in first), key=lambda row: row.val_loss.mean or 0.0)
    kept = [*first, *rest][:most]
    return [row for row in rows if row in kept]


def _is(best: Recommendation, row: Candidate) -> bool:
    return (row.global_batch_size, row.learning_rate, row.params) == (
        best.global_batch_size,
        best.learning_rate,
        best.params,
    )


def _whose(result: SearchResult, row: Candidate) -> str:
    return (
        "yours"
        if any(each.setting == row and not each.name.startswith("batch") for each in result.recommendation.compared)
        else ""
    )


def span(seconds: Sequence[float | None]) -> tuple[list[str], str]:
    """Return seconds of one column in one unit, and the unit.

    Example:
        >>> span([2.38, 20.0]), span([7200.0, None])
        ((['2.38', '20.00'], 's'), (['2.00', '-'], 'h'))
    """
    most = max((value for value in seconds if value is not None and math.isfinite(value)), default=0.0)
    unit, size = ("s", 1.0) if most < 120 else ("min", 60.0) if most < 7200 else ("h", 3600.0)
    return even([None if value is None else value / size for value in seconds]), unit


def _memory(peaks: Sequence[int | None]) -> tuple[list[str], str]:
    most = max((peak for peak in peaks if peak is not None), default=0)
    unit, size, decimals = ("GiB", 1 << 30, 2) if most >= 1 << 30 else ("MiB", 1 << 20, 0)
    return ["-" if peak is None else f"{peak / size:.{decimals}f}" for peak in peaks], unit


def runs_of(result: SearchResult, row: Candidate) -> list[TrialRecord]:
    """Return the trials of a setting."""
    return [
        record
        for record in result.records
        if (record.global_batch_size, record.learning_rate, record.params)
        == (row.global_batch_size, row.learning_rate, row.params)
    ]


def _peak(result: SearchResult, row: Candidate) -> int | None:
    """Return the peak memory of a setting, on the kind of device that the figures are for."""
    device = next(iter(result.probes), None)
    peaks = [record.peak_bytes for record in runs_of(result, row) if device in (None, record.device)]
    return max((peak for peak in peaks if peak is not None), default=None)


def _metric_columns(result: SearchResult, rows: Sequence[Candidate], *, verbose: bool) -> list[Column]:
    """Return a column for each of the user's own metrics, as they were at the end of the runs that gave the loss."""
    found = [_metrics(result, row) for row in rows]
    names = list(dict.fromkeys(name for metrics in found for name in metrics))
    if not verbose:
        names = names[:MOST_METRICS]
    return [Column(said(name, 20).plain, even([metrics.get(name) for metrics in found]), 6) for name in names]


def _metrics(result: SearchResult, row: Candidate) -> dict[str, float]:
    runs = [run for run in runs_of(result, row) if run.state == "complete"]
    longest = max((run.end_samples or run.samples for run in runs), default=0)
    runs = [run for run in runs if (run.end_samples or run.samples) == longest]
    runs = [run for run in runs if run.stage == "confirm"] or runs[:1]
    names = dict.fromkeys(name for run in runs for name in run.metrics)
    return {name: mean for name in names if (mean := _mean(run.metrics.get(name) for run in runs)) is not None}


def _mean(values: Iterable[object]) -> float | None:
    numbers = [value for value in values if isinstance(value, (int, float)) and math.isfinite(value)]
    return sum(numbers) / len(numbers) if numbers else None

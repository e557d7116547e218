"""The answer of a search on one screen: what to train with, how much sooner, how sure, why, and the frontier.

It says each thing once. What is measured stands in the table; what is expected, by all that is known of a setting,
is said to be expected.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from ..core.plain_text import one_line
from ..core.results import USUAL_BATCH, Candidate, LossEstimate, OnDevice, Recommendation, SearchResult
from ..core.trial_record import TrialRecord
from . import wording
from .reasons import PAST_THE_END, no_advice, tells_nothing, without_limits
from .units import duration, gib, given_params
from .view import Column, View, even, labelled, said, tabled

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

    from ..core.trials import Facts

MOST_ROWS = 5
"""Of the frontier, without --verbose."""
MOST_METRICS = 2
_SOONEST = re.compile(
    rf"expected to reach the target loss of (\S+) soonest of (\d+) settings tried, after [^,]+(, {PAST_THE_END})?"
)


def answer(result: SearchResult, facts: Facts | None, view: View, *, verbose: bool = False) -> list[RenderableType]:
    """Return the block: the answer, how it compares, how sure it is and why it is that, one row each."""
    best = result.recommendation
    held, any_best = no_advice(best.warnings) is None, not tells_nothing(best.warnings)
    rows = [("with", given_params(best.params, ", "))] if best.params and any_best else []
    rows += [("split", text) for text in _split(result)] if any_best else []
    if held:
        rows += [("soon", beside.whole) for each in best.compared if (beside := wording.compared(result, each))]
        by_samples = facts is None or facts.size_unit == "samples"  # 32 tokens are nobody's batch.
        if by_samples and not best.compared and best.global_batch_size != USUAL_BATCH:
            rows.append(("soon", f"batch {USUAL_BATCH} was not tried, so it is not compared"))
    source = wording.interval_source(result)
    interval = f"{wording.new_runs(best)}{f', if they differ as much {source}' if source else ''}"
    loss = "; ".join(filter(None, [wording.measured_loss(best), interval]))
    rows.append(("loss", loss if any_best else wording.ends_of_runs(result)))
    if held:
        rows.append(("why", _why(result)))
        if equal := wording.as_good(result)[0]:
            rows.append(("equal", f"{equal}: the runs do not tell them apart"))
        short, ran = wording.larger(result)
        rows.append(("larger", f"{short[0].lower()}{short[1:]}{': ' if ran else ''}{ran}"))
    rows.append(("limits", "; ".join(limit.short for limit in wording.limits(result)) or "not measured"))
    rows.append(("cost", wording.cost_text(result)))
    shown = _short(best.warnings) if not verbose else best.warnings
    rows += [("warning", text) for text in shown]
    if held and len(best.warnings) > len(shown):
        n = len(best.warnings) - len(shown)
        rows.append(("", f"{n} more warning{'s' if n > 1 else ''} with --verbose"))
    return [_title(best, view), labelled([(label, said(text, 600)) for label, text in rows])]


def _why(result: SearchResult) -> str:
    """Return why it is this setting, and where the target is from.

    In how many seconds and runs it is reached stands in the table and above the lines to paste.
    """
    best = result.recommendation
    why = without_limits(best.reason, best.global_batch_size, best.learning_rate)
    source = wording.target_source(result).replace("the lowest loss expected of any setting", "lowest expected")
    if source and (found := _SOONEST.match(why)):
        return f"expected soonest of {found[2]} to the target {found[1]} ({source}){why[found.end() :]}"
    return "; ".join(filter(None, [why, wording.chance(result)]))


def _short(warnings: Sequence[str]) -> Sequence[str]:
    """Return the warnings that matter most: why nothing should be trained with, else the first two."""
    nothing = no_advice(warnings)
    return warnings[:2] if nothing is None else (nothing,)


def _title(best: Recommendation, view: View) -> Text:
    """Return the first line: what to train with and by what it is confirmed, in less words where they do not fit."""
    from rich.text import Text

    style = "bold green" if best.verified else "bold yellow"
    standing = wording.confirmed(best) if best.verified else "not verified"
    first = wording.title(best)
    line = Text.assemble((first, style), "  ", (standing, style))
    if line.cell_len > view.width:
        shorter = first.replace(" and learning rate", ", lr").replace(", learning rate", ", lr")
        shorter = shorter.replace("Train with batch", "Batch")
        line = Text.assemble(
            (shorter.replace("Nothing to train with yet", "No answer"), style), "  ", (standing, style)
        )
    return line


def _split(result: SearchResult) -> list[str]:
    """Return how a step is split, where it is; for each kind of device, where a cluster has several."""
    best = result.recommendation
    if best.by_device:
        return [_split_on(each) for each in best.by_device]
    if best.accumulation_steps == best.world_size == 1:
        return []
    peak = "" if best.peak_bytes is None else f", peak {gib(best.peak_bytes)}"
    return [f"{wording.split_text(best)}{peak}"]


def _split_on(each: OnDevice) -> str:
    target = "" if each.seconds_to_target is None else f", {duration(each.seconds_to_target)} to target"
    steps = f"{each.accumulation_steps} accumulation step{'s' if each.accumulation_steps != 1 else ''}"
    return f"{one_line(each.device, 60)}: micro-batch {each.micro_batch_size} x {steps}{target}"


def interval_text(loss: LossEstimate) -> str:
    """Return the 90 % interval of a fresh run's loss; nothing where there is none."""
    if loss.low is None or loss.high is None:
        return ""
    low, high = even([loss.low, loss.high])
    return f"{low}-{high}" if loss.low >= 0 else f"{low}..{high}"


# --- the table ----------------------------------------------------------------------------------------------------


def frontier_table(
    result: SearchResult, view: View, *, most: int = MOST_ROWS, verbose: bool = False
) -> list[RenderableType]:
    """Return the settings that no other beats in loss and time, and those that people know, as they were measured."""
    rows = _rows(result)
    ran = [row for row in rows if row.val_loss.mean is not None]
    if not ran:
        return []
    best = result.recommendation
    shown = ran if verbose else _few(ran, best, most)
    loss = even([row.val_loss.mean for row in shown])
    marked = [text + ("" if row.verified else "*") for text, row in zip(loss, shown, strict=True)]
    width = max(map(len, marked))
    full_s, full_unit = span([row.seconds_per_full_run for row in shown])
    target_s, target_unit = span([row.seconds_to_target for row in shown])
    foreseen = [wording.past_end(result, row) for row in shown]
    target_s = [f"~{text}" if past else text for text, past in zip(target_s, foreseen, strict=True)]
    peaks, peak_unit = _memory([_peak(result, row) for row in shown])
    columns = [
        Column("batch", [str(row.global_batch_size) for row in shown], 0),
        Column("lr", [f"{row.learning_rate:.3g}" for row in shown], 0),
        *param_columns(shown, 2),
        Column("val loss", [m if m.endswith("*") or len(m) == width else f"{m} " for m in marked], 1),
        Column("90 % interval", [interval_text(row.val_loss) or "-" for row in shown], 5),
        Column(f"full run {full_unit}", full_s, 2),
        Column(f"target {target_unit}", target_s, 3),
        Column(f"peak {peak_unit}", peaks, 7),
        *_metric_columns(result, shown, verbose=verbose),
        Column("", [_whose(result, row) for row in shown], 4, "left"),
    ]
    kept = [column for column in columns if any(cell not in ("-", "") for cell in column.cells)]
    chosen = [] if tells_nothing(best.warnings) else [i for i, row in enumerate(shown) if _is(best, row)]
    notes = []
    if any(not row.verified for row in shown):
        notes.append("* on the seed that it was chosen on, so likely too low")
    if any(foreseen):
        notes.append("~ estimated: its full runs ended above the target")
    if len(shown) < len(ran):
        n = len(ran) - len(shown)
        notes.append(f"{n} more row{'s' if n > 1 else ''}: --verbose")
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
    """Return the rows of a short table: the answer and what it is compared with; of the rest other batches first."""
    known = [each.setting for each in best.compared]
    first = [row for row in rows if _is(best, row) or row in known]
    rest = sorted(
        (row for row in rows if row not in first),
        key=lambda row: (row.global_batch_size == best.global_batch_size, row.val_loss.mean or 0.0),
    )
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


def param_columns(rows: Sequence[Candidate | TrialRecord], rank: int) -> list[Column]:
    """Return a column for each of the user's own dimensions: settings that differ in these only look different."""
    names = dict.fromkeys(name for row in rows for name in row.params)
    return [
        Column(said(name, 14).plain, [_param(row.params.get(name)) for row in rows], rank + (i > 2))
        for i, name in enumerate(names)
    ]


def _param(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.3g}" if isinstance(value, float) else said(value, 14).plain


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

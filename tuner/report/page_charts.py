"""The sections of a page: which charts stand in each, what they show in words, and what is left out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..core.probe_results import ProbeResult
from ..core.results import SearchResult
from ..core.trial_record import TrialRecord
from .charts.curves import MOST_CURVES, curve_records, curves
from .charts.frame import answer_of, candidates
from .charts.landscape import MOST_POINTS, landscape, landscape_records
from .charts.probe_lines import memory, throughput
from .charts.reach import reach
from .charts.search_lines import STAGES, limits, noise, spending
from .charts.settings import confirmations, frontier
from .units import gib, limited_text, number, per_second

VISIBLE = 0.1
"""A point that lies off its line by more than this share is seen to, and needs a word."""


@dataclass(frozen=True)
class Drawn:
    """One chart of a page."""

    id: str
    title: str
    label: str
    """What a reader who does not see it is told."""
    spec: dict[str, Any]
    picks: bool = False
    """A trial can be picked in it."""


@dataclass(frozen=True)
class Section:
    """A heading with a sentence and the charts below it."""

    id: str
    title: str
    text: str
    charts: tuple[Drawn, ...]


def sections(
    records: Sequence[TrialRecord], probe: ProbeResult | None, result: SearchResult | None
) -> tuple[list[Section], list[str]]:
    """Return the sections that have something to show, and a sentence for each that has not."""
    made = [
        _why(result),
        _landscape(records, result),
        _curves(records, probe, result),
        _frontier(result),
        _probe(probe),
        _reach(result),
        _noise(records),
        _spending(records, probe),
    ]
    shown = [section for section, _ in made if section.charts]
    return shown, [missing for section, missing in made if not section.charts]


def drawn(chart: Any, name: str, title: str, label: str, *, picks: bool = False) -> tuple[Drawn, ...]:
    """Return a chart ready for a page, or nothing where there is none."""
    if chart is None:
        return ()
    spec = chart.to_dict(validate=False)  # Which takes as long as all else; the tests see to it.
    for unused in ("$schema", "config"):
        spec.pop(unused, None)
    return (Drawn(name, title, label, spec, picks),)


_Made = tuple[Section, str]


def _why(result: SearchResult | None) -> _Made:
    answer = "" if answer_of(result) is None else ", and the answer"
    said = f"What memory, hardware and gradient noise each allow, and what was tried{answer}, by batch size."
    chart = None if result is None else limits(result)
    section = Section(
        "why",
        "Why this batch size",
        f"{said} A larger batch is of use only as long as memory holds it, the hardware still gains speed, and the "
        "noise of the gradient makes more samples worth averaging.",
        drawn(chart, "c-limits", "", said),
    )
    return section, "What limits the batch size: nothing was measured yet."


def _landscape(records: Sequence[TrialRecord], result: SearchResult | None) -> _Made:
    best = answer_of(result)
    shown = landscape_records(records)
    said = (
        "Each mark is a setting: its colour is the loss where it ended, blue the lowest; the smaller it is, the "
        "sooner it was stopped."
    )
    if best is not None:
        said += " The ring is about the answer."
    if best is not None and best.lr_rule is not None:
        alpha = best.lr_rule.alpha
        said += f" Along the dashed ridge, twice the batch goes with {2**alpha:.2f} times the learning rate."
    if len(shown) == MOST_POINTS:
        said += f" Shown are the {MOST_POINTS:,} settings that trained longest."
    label = (
        f"{len(shown)} settings by batch size and learning rate, with the loss as colour. The table has all figures."
    )
    charts = drawn(landscape(records, result), "c-landscape", "", label, picks=True)
    return Section("landscape", "Batch size and learning rate together", said, charts), (
        "Batch size by learning rate: no trial has a loss yet."
    )


def _curves(records: Sequence[TrialRecord], probe: ProbeResult | None, result: SearchResult | None) -> _Made:
    n, most = len(curve_records(records)), MOST_CURVES
    said = "Every trial, by the samples it has seen and by the seconds that takes."
    if n == most:
        said = f"The {most} trials that came furthest, by the samples they have seen and by the seconds that takes."
    if answer_of(result) is not None:
        said += " Those of the answer are thicker."
    label = f"Validation loss of {n} trials along their training."
    by_samples, by_seconds = (curves(records, probe, by, result=result) for by in ("samples", "seconds"))
    charts = (
        *drawn(by_samples, "c-samples", "By samples", f"{label} By samples.", picks=True),
        *drawn(by_seconds, "c-seconds", "By seconds", f"{label} By seconds.", picks=True),
    )
    return Section("curves", "Learning curves", said, charts), "Learning curves: no trial has reported a loss yet."


def _frontier(result: SearchResult | None) -> _Made:
    ended = [] if result is None else [c for c in candidates(result) if c.val_loss.mean is not None]
    batches = sorted({c.global_batch_size for c in ended})
    alone = f"of all batch sizes, only {batches[0]} was run to the end." if len(batches) == 1 else ""
    first = None if result is None or alone else frontier(result)
    second = None if result is None else confirmations(result)
    charts = (
        *drawn(first, "c-frontier", "Loss against time", "Loss at the end of a full run against its seconds."),
        *drawn(second, "c-confirm", "Runs on fresh seeds", "Losses of the confirmation runs with the 90 % interval."),
    )
    said = "Settings that were run to the end, each with the interval in which 9 of 10 new runs end."
    if first is not None:
        if result is not None and len(result.recommendation.frontier) > 1:
            said += " No setting beats those on the dashed line both in loss and in time."
        said += " Seconds are by the step times of the probe, validation included."
    elif len(batches) == 1:
        said += f" Loss is not drawn against time: {alone}"
    if first is not None and any(not c.verified for c in ended):
        said += " A hollow point is the run that the setting was chosen by, so its loss is likely too low."
    if ended and second is None:
        said += " No run on a fresh seed has been finished."
    return Section("frontier", "Loss against time, and how sure it is", said, charts), (
        f"Loss against time: {alone or 'no trial has been run to the end yet.'}"
    )


def _probe(probe: ProbeResult | None) -> _Made:
    if probe is None:
        return Section("probe", "", "", ()), "Memory and throughput: no probe is stored in this study."
    said = (
        f"Measured on real steps: micro-batches of up to {probe.micro_batch_size} fit, with a peak of "
        f"{gib(probe.peak_bytes or None)} of {gib(probe.budget_bytes)} allowed (limited by {limited_text(probe)})."
    )
    if probe.budget_bytes > 4 * max((a.peak_bytes or 0 for a in probe.attempts), default=0):
        said += " What is allowed lies far above what is drawn."
    if probe.throughput:
        fastest = max(probe.throughput, key=lambda row: row.samples_per_s)
        said += f" The fastest measured is {per_second(fastest.samples_per_s)} at batch {fastest.batch_size}."
        said += _off_the_line(probe)
    charts = (
        *drawn(memory(probe), "c-memory", "Memory", "Peak memory by micro-batch size, with the line through it."),
        *drawn(throughput(probe), "c-speed", "Throughput", "Samples per second by the samples of a step."),
    )
    return Section(
        "probe", "What fits, and how fast it is", said, charts
    ), "Memory and throughput: nothing was measured."


def _off_the_line(probe: ProbeResult) -> str:
    """Return what the line in the chart of throughput is, and how far and why measured points lie off it."""
    line = probe.step_time_line
    if line is None:
        return ""
    said = " The grey line is the one that seconds are counted with, t = a + c n for a step of n samples."
    worst = max(probe.throughput, key=lambda row: abs(math.log(row.s_per_step / line.step_s(row.batch_size))))
    off = worst.samples_per_s * line.step_s(worst.batch_size) / worst.batch_size - 1
    if abs(off) < VISIBLE:
        return said
    spread = max(row.spread for row in probe.throughput)
    why = f"single steps of one size differed by up to {spread:.0%}, so the machine may have been busy"
    if spread < abs(off):
        why = "this device does not follow a line at all sizes"
    return f"{said} At {worst.batch_size}, {abs(off):.0%} {'more' if off > 0 else 'less'} was measured: {why}."


def _reach(result: SearchResult | None) -> _Made:
    missing = "Seconds to a loss by batch size: too few batch sizes have come down to the same loss."
    answer = None if result is None else result.batch_answer
    if result is None or answer is None or not any(reach(result, what) for what in ("samples", "seconds")):
        return Section("reach", "", "", ()), missing
    loss, time = number(answer.target), None if result.probe is None else result.probe.step_time_line
    said = (
        f"What each batch size takes to come to a loss of {loss}: samples, seconds of a step, and from these two the "
        "seconds, without validation."
    )
    on_the_way = result.target is not None and answer.target is not None and answer.target > result.target
    if on_the_way:
        said += (
            f" This loss is on the way to the target of {number(result.target)}, to which too few batch sizes have "
            "come. The batch that is soonest here need not be soonest at the target: the answer is for the target."
        )
    said += " A point is what a batch size took with the best of its learning rates."
    if answer.e_min_samples is not None and answer.s_min_steps is not None:
        said += f" The lines are E(B) = {answer.e_min_samples:,.0f} + {answer.s_min_steps:,.3g} B samples"
        if time is not None:
            said += f" and t(B) = {step_time(time.a_s)} + {step_time(time.c_s_per_sample)} B for a step"
        said += "."
    if answer.worst_residual is not None:
        said += f" Points lie up to {answer.worst_residual:.0%} off the line."
    loss = f"{loss}, on the way to the target" if on_the_way else loss
    if not all(each.reached for each in answer.reaches):
        said += " A triangle needs more than that: a full run did not get there."
    titles = {
        "samples": f"Samples E(B) to a loss of {loss}",
        "step": "Time of a step, t(B)",
        "seconds": f"Seconds to a loss of {loss}",
    }
    charts = tuple(
        chart
        for what in ("samples", "step", "seconds")
        for chart in drawn(reach(result, what), f"c-reach-{what}", titles[what], f"{titles[what]}, by batch size.")
    )
    return Section("reach", "Time to a loss by batch size", said, charts), missing


def step_time(seconds: float) -> str:
    """Return seconds in a unit that keeps them readable.

    Example:
        >>> step_time(0.000988), step_time(7.39e-05), step_time(2.5)
        ('0.988 ms', '73.9 µs', '2.5 s')
    """
    if seconds >= 1:
        return f"{seconds:.3g} s"
    return f"{seconds * 1e3:.3g} ms" if seconds >= 5e-4 else f"{seconds * 1e6:.3g} µs"


def _noise(records: Sequence[TrialRecord]) -> _Made:
    said = (
        "The gradient noise scale says how many samples are worth averaging in one step; it usually grows as training "
        "goes on. It was measured along runs of the search itself."
    )
    charts = drawn(noise(records), "c-noise", "", "Gradient noise scale along training, in samples.")
    return Section("noise", "Gradient noise along training", said, charts), (
        "Gradient noise along training: this search recorded none."
    )


def _spending(records: Sequence[TrialRecord], probe: ProbeResult | None) -> _Made:
    stages = dict.fromkeys(record.stage for record in records)
    what = "; ".join(f"{stage}: {STAGES[stage]}" for stage in STAGES if stage in stages)
    said = "Seconds by what they were for, and how the runs ended. Runs that promise little are stopped."
    said = f"{said} {what[:1].upper()}{what[1:]}." if what else said
    charts = drawn(spending(records, probe), "c-spending", "", said)
    return Section("spending", "Where the seconds of the search went", said, charts), (
        "Where the seconds went: no seconds were measured."
    )

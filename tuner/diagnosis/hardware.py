"""Claims about what the hardware does with a batch: step times, memory, the loader. Answered from the probe alone."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence

from ..core.probe_results import StepTimeLine, ThroughputRow
from ..report.reasons import loader_advice
from ..report.units import gib, per_second
from ..theory.intervals import student_quantile
from ..theory.step_time import LINE_KNOWN, fit_step_time, worst_error
from .known import Known, Ruling, below, beyond, unknown

FLAT = 1.33
"""Steps of the largest size that take no more than so many times those of the smallest count as equally long."""
GAIN = 1.05
"""A doubled batch that trains more than so many times the samples in a second still makes better use of the device."""
WASTE = 0.8
"""Share of the device's best speed below which a batch size wastes it."""
LEAST_ERROR = (0.05, 2.0)
"""Relative scatter of step times about the line to begin with, and how many degrees of freedom that guess is worth."""
MEDIAN_ERROR = 0.2
"""Of the interquartile range: standard error of the median of some twenty steps."""
MOST_WAIT = 0.1
"""Share of a step that may be waiting."""
DRAWS = 400
PROBE_AGAIN = "Probe again on an idle machine: bstune probe MODEL --fresh"


def _lines(rows: Sequence[ThroughputRow]) -> list[StepTimeLine]:
    """Return lines that the step times may lie on: each time moved by as much as they scatter, then fitted again."""
    line = fit_step_time(rows)
    if line is None:
        return []
    prior, weight = LEAST_ERROR
    squares = sum(math.log(row.s_per_step / line.step_s(row.batch_size)) ** 2 for row in rows)
    freedom = weight + max(0, len(rows) - 2)
    sd = math.sqrt((weight * prior**2 + squares) / freedom) * student_quantile(freedom) / student_quantile(1e6)
    own = {row.batch_size: MEDIAN_ERROR * row.spread for row in rows}
    chance = random.Random(0)
    found = []
    for _ in range(DRAWS):
        moved = [
            ThroughputRow(
                row.batch_size,
                1.0,
                row.s_per_step * math.exp(chance.gauss(0.0, math.hypot(sd, own[row.batch_size]))),
                0.0,
            )
            for row in rows
        ]
        if (drawn := fit_step_time(moved)) is not None:
            found.append(drawn)
    return found


def _interval(lines: Sequence[StepTimeLine], of: Callable[[StepTimeLine], float]) -> tuple[float, float]:
    values = sorted(of(line) for line in lines)
    return values[round(0.05 * (len(values) - 1))], values[round(0.95 * (len(values) - 1))]


def _saturation(line: StepTimeLine) -> float:
    return line.a_s / line.c_s_per_sample if line.c_s_per_sample > 0 else math.inf


def _plot(rows: Sequence[ThroughputRow]) -> dict[str, list[float]]:
    ordered = sorted(rows, key=lambda row: row.batch_size)
    return {"batch_size": [row.batch_size for row in ordered], "s_per_step": [row.s_per_step for row in ordered]}


def _timed(known: Known) -> tuple[Sequence[ThroughputRow], StepTimeLine] | None:
    rows = () if known.probe is None else known.probe.throughput
    line = fit_step_time(rows)
    return None if line is None else (rows, line)


NOT_TIMED = unknown(
    "the probe timed fewer than two batch sizes", "Probe again with more room: bstune probe MODEL --fresh"
)


def flat_step_time(known: Known) -> Ruling:
    """A step takes the same time at any batch size."""
    if (timed := _timed(known)) is None:
        return NOT_TIMED
    rows, line = timed
    small, large = min(row.batch_size for row in rows), max(row.batch_size for row in rows)
    lines = _lines(rows)
    low, high = _interval(lines, lambda line: line.step_s(large) / line.step_s(small))
    figure = line.step_s(large) / line.step_s(small)
    half = _saturation(line)
    free = max(1.0, (FLAT - 1) * half)
    found = (
        f"a step of {large:,} takes {figure:.3g} times as long as one of {small:,}; one of {2 * half:.0f} takes 1.5 "
        f"times as long as one of {half:.0f}"
        if 1 <= half < math.inf
        else f"a step of {large:,} takes {figure:.3g} times as long as one of {small:,}"
    )
    verdict = below(low, high, FLAT)
    advice = f"Up to about {free:.0f} samples a larger batch costs next to no time; beyond, count seconds, not steps."
    if free < 2:
        advice = "Even small batches take as much longer as they are larger: count seconds, not steps."
    if verdict == "cannot tell":
        advice = PROBE_AGAIN
    if verdict == "holds":
        advice = f"Batches up to {large:,} cost next to no time here: let the gradient noise decide, not the step time."
    return Ruling(verdict, found, advice, figure, "times", low, high, _plot(rows))


def step_time_line(known: Known) -> Ruling:
    """The time of a step is a fixed part plus a part for each sample."""
    if (timed := _timed(known)) is None:
        return NOT_TIMED
    rows, line = timed
    if len({row.batch_size for row in rows}) < 3:
        return unknown("the probe timed two batch sizes, and any two lie on a line", NOT_TIMED.advice)
    worst = worst_error(line, rows)
    spread = max(row.spread for row in rows)
    found = (
        f"the line t(B) = {1000 * line.a_s:.3g} ms + B x {1e6 * line.c_s_per_sample:.3g} us is off by up to "
        f"{worst:.0%}; single steps of one size scatter by up to {spread:.0%}"
    )
    data = _plot(rows)
    if worst <= LINE_KNOWN:
        return Ruling("holds", found, "Times between the sizes can be read off the line.", 100 * worst, "%", data=data)
    if worst <= max(2 * LINE_KNOWN, spread):
        return Ruling(
            "cannot tell",
            f"{found}, so steps and noise cannot be told apart",
            PROBE_AGAIN,
            100 * worst,
            "%",
            data=data,
        )
    return Ruling(
        "does not hold",
        f"{found}: the device works in stairs, or changes its way at some size",
        "Take a batch size that was timed itself, rather than one in between.",
        100 * worst,
        "%",
        data=data,
    )


def better_use(known: Known) -> Ruling:
    """The larger the batch, the better the use of the device."""
    if (timed := _timed(known)) is None:
        return NOT_TIMED
    rows, line = timed
    batch = min(known.batch, max(row.batch_size for row in rows))

    def gain(line: StepTimeLine) -> float:
        return 2 * line.step_s(batch) / line.step_s(2 * batch)

    low, high = _interval(_lines(rows), gain)
    figure = gain(line)
    peak = "" if line.c_s_per_sample <= 0 else f", {batch * line.c_s_per_sample / line.step_s(batch):.0%} of the most"
    found = (
        f"batch {batch:,} trains {per_second(batch / line.step_s(batch))}{peak}; "
        f"twice the batch would train {figure - 1:+.0%}"
    )
    verdict = beyond(low, high, GAIN)
    advice = {
        "holds": "A larger batch still uses the device better: let the gradient noise decide how far to go.",
        "does not hold": "The device is busy at this size: a larger batch takes as much longer as it is larger.",
    }.get(verdict, PROBE_AGAIN)
    return Ruling(
        verdict, found, advice, 100 * (figure - 1), "% samples/s", 100 * (low - 1), 100 * (high - 1), _plot(rows)
    )


def below_32(known: Known) -> Ruling:
    """A batch below 32 wastes what the hardware can do."""
    if (timed := _timed(known)) is None:
        return NOT_TIMED
    rows, line = timed

    def share(line: StepTimeLine, batch: int = 16) -> float:
        return batch * line.c_s_per_sample / line.step_s(batch)

    low, high = _interval(_lines(rows), share)
    at = {batch: share(line, batch) for batch in (8, 16, 32, 64)}
    verdict = below(low, high, WASTE)
    found = "of its top speed this device reaches " + ", ".join(f"{part:.0%} at batch {n}" for n, part in at.items())
    half = _saturation(line)
    half_text = "any size that fits" if half == math.inf else f"a batch of {max(1, round(half)):,}"
    advice = {
        "holds": f"Small batches are slow here; half of the top speed takes {half_text}. They may still need fewer "
        "samples.",
        "does not hold": "Batches of 16 lose little speed here: do not rule them out for the hardware's sake.",
    }.get(verdict, PROBE_AGAIN)
    return Ruling(
        verdict, found, advice, 100 * at[16], "% of top speed at batch 16", 100 * low, 100 * high, _plot(rows)
    )


def loader(known: Known) -> Ruling:
    """Reading the data costs training no time."""
    found = None if known.probe is None else known.probe.loader
    if found is None:
        return unknown(
            "the wait for batches cannot be seen where the loop is your own",
            "Time your loop once with a batch that is loaded already, and compare.",
        )
    said = (
        f"a step waits {found.wait_share:.0%} of its time for its batch; on a batch that is loaded already the device "
        f"trains {per_second(found.samples_per_s_without)}"
    )
    share = 100 * found.wait_share
    if found.bound:
        return Ruling(
            "does not hold",
            said,
            loader_advice(found, 1.0 if known.facts is None else known.facts.mean_size),
            share,
            "% of a step",
        )
    if found.wait_share > MOST_WAIT:
        return Ruling(
            "cannot tell",
            f"{said}, which is no more",
            PROBE_AGAIN,
            share,
            "% of a step",
        )
    return Ruling("holds", said, "Leave the loader as it is.", share, "% of a step")


def which_memory(known: Known) -> Ruling:
    """Memory limits the batch size."""
    probe = known.probe
    assert probe is not None
    kind = "GPU memory" if probe.device.kind == "cuda" else "main memory"
    used = f"{gib(probe.peak_bytes)} of {gib(probe.budget_bytes)} {kind}"
    figure, unit = 100 * probe.peak_bytes / max(1, probe.budget_bytes), "% of the memory"
    if probe.limited_by == "memory":
        found = f"{probe.micro_batch_size:,} samples fit, and take {used}"
        advice = "For larger batches accumulate gradients; checkpointing or lower precision make room for more at once."
        return Ruling("holds", found, advice, figure, unit)
    what = {
        "dataset": "the data set has no more",
        "max_batch": "no more were tried",
        "plateau": "more are not faster",
        "timeout": "the time of the probe was over",
    }[probe.limited_by]
    found = f"{probe.micro_batch_size:,} samples take {used}, and {what}"
    if probe.limited_by == "timeout":
        return Ruling("cannot tell", found, "Give the probe more time: bstune probe MODEL --fresh", figure, unit)
    return Ruling("does not hold", found, "Do not spend effort on memory: it is not what limits you.", figure, unit)


def updates_per_epoch(known: Known) -> Ruling:
    """Twice the batch makes half the updates in an epoch."""
    assert known.facts is not None
    n, batch = known.facts.n_samples, known.batch
    whole, rest = divmod(n, batch)
    left = (
        f"; {rest:,} samples ({rest / n:.1%}) are left over, and lost in each epoch with drop_last=True" if rest else ""
    )
    twice = n // (2 * batch)
    found = f"batch {batch:,} makes {whole:,} full updates in an epoch of {n:,}{left}; {2 * batch:,} makes {twice:,}"
    advice = "The learning rate must make up for the updates that are missing."
    if rest == 1:
        advice = "Drop the last batch: it has a single sample."
    if whole < 1:
        advice = "The batch is larger than the data set: full batches take samples of several epochs."
        return Ruling("does not hold", found, advice, float(whole), "updates an epoch", data={"waste": [rest]})
    return Ruling("holds", found, advice, float(whole), "updates an epoch", data={"waste": [rest]})

"""What a search has met: the limits of the batch size, gradient noise along training, and where its seconds went."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from ...core.probe_results import ProbeResult
from ...core.results import SearchResult
from ...core.trial_record import TrialRecord
from .frame import (
    BLUE,
    GREEN,
    GREY,
    HEIGHT,
    NUMBER,
    ORANGE,
    PURPLE,
    RED,
    STATES,
    Row,
    amount_axis,
    answer_of,
    batch_axis,
    batch_colour,
    only_stopped,
    rows,
)

STAGES = {
    "anchor": "the first runs, which find a learning rate to begin with",
    "search": "runs of other settings",
    "confirm": "full runs on fresh seeds",
    "baseline": "a full run of your present setting",
}
"""What trials are run for."""


def limits(result: SearchResult) -> Any:
    """Return memory, hardware and noise on one axis of batch sizes, with what was searched and the answer.

    A bar reaches over an interval; a dot is a measured value.
    """
    import altair

    bars, dots = _limit_rows(result)
    best = answer_of(result)
    marks = [] if best is None else [best.global_batch_size]
    ends = [*marks, *(row[end] for row in bars for end in ("batch", "to")), *(row["batch"] for row in dots)]
    order = list(dict.fromkeys(row["what"] for row in [*bars, *dots]))
    if not order:
        return None
    x = batch_axis([min(max(end, 0.5), 2.0**24) for end in ends], title="batch size")
    y = altair.Y("what:N", title=None, sort=order, axis=altair.Axis(labelLimit=130, grid=False))
    colour = altair.Color(
        "what:N", scale=altair.Scale(domain=order, range=[_COLOURS[what] for what in order]), legend=None
    )
    drawn = altair.Chart(rows(bars)).mark_bar(height=14, opacity=0.55, cornerRadius=3)
    points = altair.Chart(rows(dots)).mark_point(filled=True, size=110, opacity=1)
    words = altair.Chart(rows(bars)).mark_text(align="left", dy=-16)
    here = [altair.Chart(rows([{"batch": batch, "said": f"answer {batch}"}])) for batch in marks]
    layers = [
        drawn.encode(x=x, x2="to:Q", y=y, color=colour, tooltip=["said:N"]),
        *(mark.mark_rule(color=PURPLE, strokeWidth=2.5).encode(x=x) for mark in here),
        words.encode(x=altair.value(3), y=y, text="said:N"),
        *(mark.mark_text(dy=-8, fontWeight="bold").encode(x=x, y=altair.value(0), text="said:N") for mark in here),
        points.encode(x=x, y=y, color=colour, tooltip=["said:N"]),
    ]
    return altair.layer(*layers).properties(height=52 * len(order))


_COLOURS = {"memory": BLUE, "hardware": GREEN, "noise": ORANGE, "searched": GREY, "may be as good": PURPLE}


def _limit_rows(result: SearchResult) -> tuple[list[Row], list[Row]]:
    """Return bars from `batch` to `to`, and dots."""
    known, answer, best = result.limits, result.batch_answer, answer_of(result)
    bars: list[Row] = []
    dots: list[Row] = []
    batches = [record.global_batch_size for record in result.records]

    def bar(what: str, low: float, high: float, said: str) -> None:
        bars.append({"what": what, "batch": low, "to": max(high, low * 1.02), "said": said})

    if known.memory is not None:
        more = result.probe is not None and result.probe.limited_by != "memory"
        bar("memory", 1, known.memory, f"fits up to {known.memory}{' or more' if more else ''}")
    if known.hardware is not None and known.hardware > 0:
        bar(
            "hardware",
            known.hardware,
            19 * known.hardware,
            f"half of top speed at {known.hardware:.0f}, 95 % at {19 * known.hardware:.0f}",
        )
        dots.append({"what": "hardware", "batch": known.hardware, "said": f"half of top speed at {known.hardware:.0f}"})
    if known.noise is not None and answer is not None and answer.b_crit_low is not None:
        high = answer.b_crit_high
        until = f"{answer.b_crit_low:.0f} {'or more' if high is None else f'to {high:.0f}'}"
        bar(
            "noise",
            answer.b_crit_low,
            high or 8 * known.noise,
            f"twice the samples at {known.noise:.0f} ({until})",
        )
        dots.append({"what": "noise", "batch": known.noise, "said": f"critical batch {known.noise:.0f}"})
    if batches:
        bar("searched", min(batches), max(batches), f"tried {min(batches)} to {max(batches)}")
    if best is not None and best.batch_interval and best.batch_interval[0] != best.batch_interval[-1]:
        low, last = best.batch_interval[0], best.batch_interval[-1]
        short = only_stopped(result)
        sizes = ", ".join(map(str, short)) if len(short) <= 3 else f"{len(short)} of these"
        bar("may be as good", low, last, f"{low} to {last}{f' ({sizes}: stopped runs only)' if short else ''}")
    return bars, dots


def noise(records: Sequence[TrialRecord]) -> Any:
    """Return the gradient noise scale along the runs that measured it; None where none did."""
    import altair

    points: list[Row] = [
        {
            "trial": record.number,
            "batch": record.global_batch_size,
            "samples": point.at_samples,
            "scale": point.covariance_trace / point.gradient_squared,
        }
        for record in records
        for point in record.noise
        if point.gradient_squared and point.covariance_trace and min(point.gradient_squared, point.covariance_trace) > 0
    ]
    if not points:
        return None
    ordered = sorted(row["scale"] for row in points)
    chart = altair.Chart(rows(points[:2000])).mark_point(filled=True, size=70, opacity=0.9)
    return chart.encode(
        x=altair.X("samples:Q", title="training samples", axis=amount_axis(max(row["samples"] for row in points))),
        y=altair.Y(
            "scale:Q",
            title="gradient noise scale (samples)",
            scale=altair.Scale(type="log", domain=[ordered[0] / 1.3, ordered[-1] * 1.3], nice=False),
            axis=altair.Axis(format="~g", tickCount=4),
        ),
        color=batch_colour(
            [row["batch"] for row in points],
            [record.global_batch_size for record in records],
            title="in runs at batch size",
            symbol="circle",
        ),
        tooltip=[
            altair.Tooltip("trial:Q", title="trial"),
            altair.Tooltip("samples:Q", title="samples", format=","),
            altair.Tooltip("scale:Q", title="noise scale", format=NUMBER),
        ],
    ).properties(height=HEIGHT - 60)


def spending(records: Sequence[TrialRecord], probe: ProbeResult | None = None) -> Any:
    """Return the seconds of a search by what they were for and how the runs ended; None where none were measured."""
    import altair

    took: dict[tuple[str, str], list[float]] = defaultdict(list)
    if probe is not None and probe.seconds > 0:
        took["probe", "probe"].append(probe.seconds)
    for record in records:
        if record.seconds:
            took[record.stage, STATES.get(record.state, record.state)].append(record.seconds)
    if not took:
        return None
    found: list[Row] = [
        {"stage": stage, "ended": ended, "seconds": sum(seconds), "runs": len(seconds)}
        for (stage, ended), seconds in took.items()
    ]
    order = [name for name in ["probe", *STAGES] if any(row["stage"] == name for row in found)]
    order += sorted({row["stage"] for row in found} - set(order))
    domain = ["probe", "complete", "stopped", "failed", "running"]
    kept = [name for name in domain if any(row["ended"] == name for row in found)]
    colours = dict(zip(domain, [GREY, BLUE, ORANGE, RED, GREEN], strict=True))
    chart = altair.Chart(rows(found)).mark_bar(height=18)
    return chart.encode(
        x=altair.X(
            "sum(seconds):Q", title="seconds, as measured", axis=amount_axis(sum(row["seconds"] for row in found))
        ),
        y=altair.Y("stage:N", title=None, sort=order, axis=altair.Axis(labelLimit=140)),
        color=altair.Color(
            "ended:N",
            title=None,
            scale=altair.Scale(domain=kept, range=[colours[name] for name in kept]),
            legend=altair.Legend(orient="top", columns=2),
        ),
        tooltip=[
            altair.Tooltip("stage:N", title="for"),
            altair.Tooltip("ended:N", title="ended"),
            altair.Tooltip("seconds:Q", title="seconds", format=NUMBER),
            altair.Tooltip("runs:Q", title="runs"),
        ],
    ).properties(height=40 * len(order) + 10)

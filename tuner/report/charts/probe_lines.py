"""What a probe has measured: peak memory against the budget, and throughput with its knee."""

from __future__ import annotations

from typing import Any

from ...core.probe_results import ProbeResult
from .frame import BLUE, GREEN, GREY, HEIGHT, NUMBER, ORANGE, PURPLE, RED, Row, batch_axis, rows

GIB = 1 << 30
MIB = 1 << 20


def memory(probe: ProbeResult) -> Any:
    """Return the peaks that were measured with the line through them and the budget; None without a peak."""
    import altair

    tried = [attempt for attempt in probe.attempts if attempt.peak_bytes is not None]
    if not tried:
        return None
    unit, name = (GIB, "GiB") if max(attempt.peak_bytes or 0 for attempt in tried) >= GIB else (MIB, "MiB")
    points: list[Row] = [
        {"batch": each.size, "peak": (each.peak_bytes or 0) / unit, "outcome": each.outcome, "steps": each.steps}
        for each in tried
    ]
    x = batch_axis([probe.micro_batch_size, *(row["batch"] for row in points)], title="micro-batch (samples)")
    top = max(row["peak"] for row in points)
    outcomes = sorted({row["outcome"] for row in points})
    budget = probe.budget_bytes / unit
    near = budget <= 4 * top
    y = altair.Y(
        "peak:Q",
        title=f"peak memory ({name})",
        scale=altair.Scale(domain=[0, 1.12 * (max(budget, top) if near else top)], nice=False),
    )
    dots = altair.Chart(rows(points)).mark_point(filled=True, size=90, opacity=1)
    dots = dots.encode(
        x=x,
        y=y,
        color=altair.Color(
            "outcome:N",
            title=None,
            scale=altair.Scale(domain=["ok", "oom", "limit", "error"], range=[BLUE, RED, ORANGE, GREY]),
            legend=altair.Legend(orient="top", values=outcomes) if len(outcomes) > 1 else None,
        ),
        tooltip=[
            altair.Tooltip("batch:Q", title="micro-batch"),
            altair.Tooltip("peak:Q", title=f"peak ({name})", format=NUMBER),
            altair.Tooltip("outcome:N", title="outcome"),
        ],
    )
    layers = [_memory_line(probe, points, unit, x, y), _budget(budget, y) if near else None, dots, _fits(probe, x)]
    return altair.layer(*(layer for layer in layers if layer is not None)).properties(height=HEIGHT)


def _memory_line(probe: ProbeResult, points: list[Row], unit: int, x: Any, y: Any) -> Any:
    import altair

    line = probe.memory_line
    if line is None:
        return None
    low, high = min(row["batch"] for row in points), max(row["batch"] for row in points)
    sizes = [low * (high / low) ** (k / 32) for k in range(33)]
    drawn = [{"batch": n, "peak": (line.fixed_bytes + line.bytes_per_sample * n) / unit} for n in sizes]
    return altair.Chart(rows(drawn)).mark_line(color=GREY, strokeWidth=2).encode(x=x, y=y)


def _fits(probe: ProbeResult, x: Any) -> Any:
    import altair

    here = rows([{"batch": probe.micro_batch_size, "said": f"fits: {probe.micro_batch_size}"}])
    rule = altair.Chart(here).mark_rule(color=PURPLE, strokeDash=[3, 3]).encode(x=x)
    word = altair.Chart(here).mark_text(align="right", dx=-6).encode(x=x, y=altair.value(10), text="said:N")
    return altair.layer(rule, word)


def _budget(budget: float, y: Any) -> Any:
    import altair

    here = rows([{"peak": budget, "said": "budget"}])
    rule = altair.Chart(here).mark_rule(color=RED, strokeDash=[6, 4], strokeWidth=2).encode(y=y)
    word = altair.Chart(here).mark_text(align="left", dx=6, dy=-8).encode(y=y, x=altair.value(0), text="said:N")
    return altair.layer(rule, word)


def throughput(probe: ProbeResult) -> Any:
    """Return the samples per second that were measured, with the line t = a + c n; None where nothing was timed."""
    import altair

    measured: list[Row] = [
        {
            "batch": row.batch_size,
            "rate": row.samples_per_s,
            "low": row.samples_per_s / (1 + row.spread / 2),
            "high": row.samples_per_s * (1 + row.spread / 2),
        }
        for row in probe.throughput
    ]
    if not measured:
        return None
    x = batch_axis([row["batch"] for row in measured], title="samples in a step")
    title = "samples per second"
    y = altair.Y("rate:Q", title=title, scale=altair.Scale(zero=True), axis=altair.Axis(format=",~f", tickCount=5))
    base = altair.Chart(rows(measured))
    spread = base.mark_rule(color=GREEN, opacity=0.5, strokeWidth=5)
    spread = spread.encode(x=x, y=altair.Y("low:Q", title=title), y2="high:Q")
    dots = base.mark_point(filled=True, size=90, color=GREEN, opacity=1).encode(
        x=x,
        y=y,
        tooltip=[
            altair.Tooltip("batch:Q", title="samples in a step"),
            altair.Tooltip("rate:Q", title="samples/s", format=",.0f"),
        ],
    )
    layers = [spread, dots]
    low, high = measured[0]["batch"], measured[-1]["batch"]
    low, high = min(low, high), max(low, high)
    time = probe.step_time_line
    if time is not None and high > low:
        sizes = [low * (high / low) ** (k / 32) for k in range(33)]
        line = [{"batch": n, "rate": n / (time.a_s + time.c_s_per_sample * n)} for n in sizes]
        layers.insert(0, altair.Chart(rows(line)).mark_line(color=GREY, strokeWidth=2).encode(x=x, y=y))
    half = None if time is None else time.saturation_batch
    if half is not None and low <= half <= high:
        here = rows([{"batch": half, "said": "half of the top speed"}])
        layers.append(altair.Chart(here).mark_rule(color=PURPLE, strokeDash=[3, 3]).encode(x=x))
        layers.append(altair.Chart(here).mark_text(align="left", dx=6).encode(x=x, y=altair.value(10), text="said:N"))
    return altair.layer(*layers).properties(height=HEIGHT)

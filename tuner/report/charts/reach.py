"""Samples to a loss, seconds of a step and seconds to that loss, by batch size: what was measured, and the lines."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Literal

from ...core.results import SearchResult
from .frame import BLUE, GREY, HEIGHT, NUMBER, Row, batch_axis, rows

Axis = Literal["samples", "step", "seconds"]
IN_MS_BELOW_S = 1.0


def reach(result: SearchResult, what: Axis) -> Any:
    """Return samples to a loss, seconds of a step, or their product, over the batch size; None where not known.

    The points are what each batch size needed to the loss that E(B) is counted to; the lines are E(B) and t(B).
    """
    import altair

    points = _reached(result, what)
    line = _lines(result, what)
    if not points and not line:
        return None
    titles = {"samples": "samples to this loss", "step": "seconds of a step", "seconds": "seconds to this loss"}
    if what == "step" and max(row["value"] for row in [*points, *line]) < IN_MS_BELOW_S:
        titles[what] = "milliseconds of a step"
        points, line = ([{**row, "value": 1e3 * row["value"]} for row in some] for some in (points, line))
    x = batch_axis([row["batch"] for row in [*points, *line]])
    y = altair.Y(
        "value:Q",
        title=titles[what],
        scale=altair.Scale(type="log", nice=False, padding=12),
        axis=altair.Axis(format="~g", tickCount=4),
    )
    drawn = altair.Chart(rows(line)).mark_line(color=GREY, strokeWidth=2).encode(x=x, y=y)
    dots = altair.Chart(rows(points)).mark_point(size=90, color=BLUE, opacity=1)
    tooltip = [
        altair.Tooltip("batch:Q", title="batch"),
        altair.Tooltip("value:Q", title=titles[what], format=NUMBER),
        altair.Tooltip("said:N", title="is"),
    ]
    full = altair.condition("datum.reached", altair.value(BLUE), altair.value("transparent"))
    shape = altair.condition("datum.reached", altair.value("circle"), altair.value("triangle-up"))
    dots = dots.encode(x=x, y=y, fill=full, shape=shape, tooltip=tooltip)
    return altair.layer(*([drawn] if line else []), *([dots] if points else [])).properties(height=HEIGHT - 70)


def _reached(result: SearchResult, what: Axis) -> list[Row]:
    """Return what was measured: steps by the probe, samples by trials, and seconds as these take them."""
    answer = result.batch_answer
    if what == "step":
        measured = [] if result.probe is None else result.probe.throughput
        return [_point(row.batch_size, row.s_per_step) for row in measured]
    found = []
    for each in () if answer is None else answer.reaches:
        batch, samples = each.global_batch_size, each.samples
        step_s = _step_s(result, batch)
        value = samples if what == "samples" else step_s and samples / batch * step_s
        if value:
            found.append(_point(batch, value, reached=each.reached))
    return found


def _point(batch: int, value: float, *, reached: bool = True) -> Row:
    said = "measured" if reached else "not enough: it needs more"
    return {"batch": batch, "value": value, "reached": reached, "said": said}


def _lines(result: SearchResult, what: Axis) -> list[Row]:
    """Return E(B), t(B) or E(B) / B * t(B), over the batch sizes that were tried."""
    answer = result.batch_answer
    if answer is None or answer.e_min_samples is None or answer.s_min_steps is None or not result.records:
        return []
    batches = [record.global_batch_size for record in result.records]
    low, high = min(batches), max(batches)
    line: list[Row] = []
    for k in range(33 if high > low else 1):
        batch = low * (high / low) ** (k / 32)
        samples = answer.e_min_samples + answer.s_min_steps * batch
        step_s = _step_s(result, batch)
        value = {"samples": samples, "step": step_s, "seconds": step_s and samples / batch * step_s}[what]
        if value is not None and value > 0:
            line.append({"batch": batch, "value": value})
    return line


def _step_s(result: SearchResult, batch: float) -> float | None:
    """Return the seconds of a step, on the line between the batch sizes that are searched; None where not known."""
    known = () if result.batch_answer is None else result.batch_answer.step_times
    for (low, low_s), (high, high_s) in pairwise([*known[:1], *known]):
        if low <= batch <= high:
            return high_s if low == high else low_s + (batch - low) / (high - low) * (high_s - low_s)
    return None

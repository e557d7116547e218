"""Batch size by learning rate: the loss of each setting, the ridge of the best rates, and what was stopped where."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ...core.results import SearchResult
from ...core.trial_record import TrialRecord
from .frame import (
    CONFIRMED,
    GREY,
    HEIGHT,
    LOSS_COLOURS,
    PURPLE,
    Row,
    answer_of,
    batch_axis,
    decades,
    last_of_each,
    picked,
    positive,
    rows,
    trial_row,
    trial_tooltip,
)

KEY = {
    CONFIRMED: "full run, fresh seed",
    "complete": "full run",
    "stopped": "stopped early (small)",
    "failed": "failed",
    "running": "runs",
}
"""What the shapes mean."""
MOST_POINTS = 1500
"""More cannot be told apart, and make a page slow."""


def landscape_records(records: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Return the trials that the landscape shows: those with a loss or a failure, the longest of each setting."""
    longest: dict[Any, TrialRecord] = {}
    for record in last_of_each(records):
        if record.val_loss is None and record.state != "failed":
            continue
        key = record.global_batch_size, record.learning_rate, repr(sorted(record.params.items()))
        known = longest.get(key)
        if known is None or record.samples >= known.samples:
            longest[key] = record
    kept = sorted(longest.values(), key=lambda record: -record.samples)[:MOST_POINTS]
    # What trained longest and ended lowest comes last, and so lies above the rest.
    return sorted(kept, key=lambda record: (record.samples, -math.inf if record.val_loss is None else -record.val_loss))


def landscape(
    records: Sequence[TrialRecord],
    result: SearchResult | None = None,
    *,
    alone: bool = False,
    domain: tuple[Sequence[float], Sequence[float]] | None = None,
) -> Any:
    """Return the landscape of a search; None where no trial has a loss.

    Args:
        records: The trials.
        result: What they led to; without it there is no ridge and no answer in it.
        alone: A click picks a trial; in a page the page does it.
        domain: Batch sizes and rates that both axes reach over, where two landscapes stand side by side.
    """
    import altair

    shown = landscape_records(records)
    losses = sorted(record.val_loss for record in shown if record.val_loss is not None)
    if not losses:
        return None
    batches = [record.global_batch_size for record in shown]
    rates = [record.learning_rate for record in shown]
    most = max(1, *(record.samples for record in shown))
    points = [{**trial_row(record), "share": record.samples / most} for record in shown]
    x = batch_axis(domain[0] if domain else batches, pad=1.35)
    reach = domain[1] if domain else rates
    y = altair.Y(
        "rate:Q",
        title="learning rate",
        scale=altair.Scale(type="log", domain=[min(reach) / 1.6, max(reach) * 1.6], nice=False),
        axis=altair.Axis(format="~g", values=decades(min(reach) / 1.6, max(reach) * 1.6)),
    )
    parameter, is_picked = picked(alone)
    base = altair.Chart(rows(points))
    marks = base.mark_point(filled=True, strokeWidth=1, stroke=GREY).encode(
        x=x,
        y=y,
        color=_loss_colour(losses),
        shape=altair.Shape(
            "state:N",
            title=None,
            scale=altair.Scale(
                domain=["complete", CONFIRMED, "stopped", "failed", "running"],
                range=["circle", "square", "circle", "cross", "triangle-up"],
            ),
            legend=_key(points),
        ),
        size=altair.Size("share:Q", scale=altair.Scale(domain=[0, 1], range=_sizes(len(shown))), legend=None),
        opacity=altair.condition(is_picked, altair.value(1), altair.value(0.12)),
        tooltip=trial_tooltip(),
    )
    # The marks come last, so that nothing lies above what can be clicked.
    layers = [*_ridge(result, batches, rates, x, y), *_answer(result, x, y), marks.add_params(parameter)]
    return altair.layer(*layers).properties(height=HEIGHT + 60)


def _sizes(n: int) -> list[int]:
    """Return the areas of the shortest and the longest run: smaller where there are many."""
    return [45, 260] if n <= 300 else [14, 70]


def _key(points: Sequence[Row]) -> Any:
    """Return the key of the shapes that are there."""
    import altair

    states = [state for state in KEY if any(row["state"] == state for row in points)]
    words = " : ".join(f"datum.value == '{state}' ? '{KEY[state]}'" for state in states)
    return altair.Legend(
        orient="bottom",
        direction="horizontal",
        columns=2,
        values=states,
        labelExpr=f"{words} : datum.value",
        labelLimit=200,
        symbolFillColor=GREY,
        symbolStrokeColor=GREY,
        symbolSize=110,
    )


def _loss_colour(losses: Sequence[float]) -> Any:
    import altair

    high = losses[min(len(losses) - 1, int(0.9 * len(losses)))]
    if high == losses[0]:
        return altair.value(LOSS_COLOURS[0])
    digits = ",.2~r" if losses[0] <= 0 or high > 1.5 * losses[0] else ",.4~r"
    scale = (
        altair.Scale(type="log", domain=[losses[0], high], range=list(LOSS_COLOURS), clamp=True)
        if losses[0] > 0
        else altair.Scale(domain=[losses[0], high], range=list(LOSS_COLOURS), clamp=True)
    )
    return altair.Color(
        "loss:Q",
        title="loss where it ended",
        scale=scale,
        legend=altair.Legend(
            orient="top", format=digits, gradientLength=220, titleLimit=240, values=_labelled(losses[0], high)
        ),
    )


def _labelled(low: float, high: float) -> list[float]:
    """Return the losses that the colour bar names: both ends, and what is clear of them.

    Example:
        >>> _labelled(0.0354, 2.3), _labelled(0.0, 2.0)
        ([0.0354, 0.1, 1.0, 2.3], [0.0, 1.0, 2.0])
    """
    if low <= 0:
        return [low, (low + high) / 2, high]
    width = high / low  # The label of the low end has up to five digits, on a bar of 220 pixels.
    inner = [tick for tick in decades(low, high) if low * width**0.23 <= tick <= high / width**0.15]
    return [low, *inner[:: max(1, -(-len(inner) // 3))], high]


def _ridge(result: SearchResult | None, batches: Sequence[int], rates: Sequence[float], x: Any, y: Any) -> list[Any]:
    """Return the line of the best rate by batch size, through the answer, with its slope."""
    import altair

    best = answer_of(result)
    if best is None or best.lr_rule is None or min(batches) == max(batches):
        return []
    line: list[Row] = []
    for k in range(25):
        batch = min(batches) * (max(batches) / min(batches)) ** (k / 24)
        rate = best.learning_rate * (batch / best.global_batch_size) ** best.lr_rule.alpha
        if min(rates) / 1.6 <= rate <= max(rates) * 1.6:
            line.append({"batch": batch, "rate": rate})
    if len(line) < 2:
        return []
    drawn = altair.Chart(rows(line)).mark_line(color=GREY, strokeDash=[6, 4], strokeWidth=1.5).encode(x=x, y=y)
    return [drawn]


def _answer(result: SearchResult | None, x: Any, y: Any) -> list[Any]:
    import altair

    if (best := answer_of(result)) is None:
        return []
    here = rows([{"batch": best.global_batch_size, "rate": best.learning_rate, "said": "answer"}])
    ring = altair.Chart(here).mark_point(filled=False, stroke=PURPLE, strokeWidth=3, size=520).encode(x=x, y=y)
    word = (
        altair.Chart(here)
        .mark_text(align="left", dx=13, dy=17, fontSize=13, fontWeight="bold")
        .encode(x=x, y=y, text="said:N")
    )
    return [ring, word]


def reaches(records: Sequence[TrialRecord]) -> tuple[list[int], list[float]] | None:
    """Return the batch sizes and rates of a landscape; None where there is none."""
    shown = [record for record in landscape_records(records) if positive(record.learning_rate)]
    return ([r.global_batch_size for r in shown], [r.learning_rate for r in shown]) if shown else None

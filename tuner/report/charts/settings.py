"""Settings that were run to the end: loss against seconds, and the runs on fresh seeds."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from ...core.results import Candidate, SearchResult
from ..units import given_params, setting_text
from .frame import BLUE, GREY, HEIGHT, NUMBER, PURPLE, Row, answer_of, candidates, loss_scale, positive, rows


def frontier(result: SearchResult) -> Any:
    """Return loss against seconds of a full run, with those that nothing beats joined; None where neither is known.

    What was not run on a fresh seed is hollow.
    """
    import altair

    named = candidates(result)
    answer = None if answer_of(result) is None else named[0]
    shown = [row for each in named if (row := _setting_row(each, each is answer)) and positive(row["seconds"])]
    if not shown:
        return None
    unbeaten = sorted(_unbeaten(shown), key=lambda row: row["seconds"])
    ends = [row[end] for row in shown for end in ("low", "loss", "high") if row[end] is not None]
    x = altair.X(
        "seconds:Q",
        title="seconds of a full run, validation included",
        scale=altair.Scale(type="log", nice=False, padding=30),
        axis=altair.Axis(format=",.3~r", tickCount=5),
    )
    y = altair.Y("loss:Q", title="validation loss at its end", scale=loss_scale(ends))
    line = altair.Chart(rows(unbeaten)).mark_line(color=GREY, strokeDash=[4, 4]).encode(x=x, y=y)
    base = altair.Chart(rows(shown))
    spread = base.transform_filter("datum.low != null && datum.high != null").mark_rule(color=GREY, strokeWidth=2)
    colour = altair.Color(
        "kind:N",
        title=None,
        scale=altair.Scale(domain=["answer", "other setting"], range=[PURPLE, BLUE]),
        legend=None if answer is None else altair.Legend(orient="top", symbolType="circle"),
    )
    points = [
        altair.Chart(rows(some))
        .mark_point(filled=fresh, size=130, strokeWidth=2.5, opacity=1)
        .encode(x=x, y=y, color=colour, tooltip=_tooltip(known))
        for (fresh, known), some in _alike(shown).items()
    ]
    words = [
        altair.Chart(rows(some)).mark_text(align="right" if dx < 0 else "left", dx=dx, dy=dy)
        for dx, dy, some in _labels(shown)
    ]
    words = [text.encode(x=x, y=y, text="said:N") for text in words]
    layers = [line, spread.encode(x=x, y="low:Q", y2="high:Q"), *points, *words]
    return altair.layer(*layers).properties(height=HEIGHT)


def _alike(shown: list[Row]) -> dict[tuple[bool, frozenset[str]], list[Row]]:
    """Return the points by whether they are fresh and by what is known of them: the rest stands in no tooltip."""
    found: dict[tuple[bool, frozenset[str]], list[Row]] = {}
    for row in shown:
        known = frozenset(name for name, value in row.items() if value is not None)
        found.setdefault((row["fresh"], known), []).append(row)
    return found


def _labels(shown: list[Row]) -> Iterator[tuple[int, int, list[Row]]]:
    """Yield one label for each batch size, at the answer or the lowest, by where it stands.

    That is beside a point, towards the middle, and off the line of the unbeaten.

    That line falls from left to right: what is above it on the right or below it on the left of a point is clear of it.
    """
    batches = Counter(row["batch"] for row in shown)
    middle = math.sqrt(min(row["seconds"] for row in shown) * max(row["seconds"] for row in shown))
    found: dict[tuple[int, int], list[Row]] = {}
    named = {row["batch"]: row for row in sorted(shown, key=lambda row: (row["kind"] != "answer", row["loss"]))[::-1]}
    for row in named.values():
        if batches[row["batch"]] > 1:  # The batch does not tell one from the other.
            row["said"] += f", lr {row['rate']:.3g}"
        place = (9, -11) if row["seconds"] <= middle else (-9, 14)
        found.setdefault(place, []).append(row)
    yield from ((dx, dy, some) for (dx, dy), some in found.items())


def _unbeaten(shown: Sequence[Row]) -> list[Row]:
    return [
        row
        for row in shown
        if not any(
            other["seconds"] <= row["seconds"] and other["loss"] <= row["loss"] and other is not row for other in shown
        )
    ]


def _setting_row(each: Candidate, is_answer: bool) -> Row | None:
    loss = each.val_loss
    if loss.mean is None:
        return None
    return {
        "batch": each.global_batch_size,
        "rate": each.learning_rate,
        "own": given_params(each.params, ", ") or None,
        "loss": loss.mean,
        "low": loss.low,
        "high": loss.high,
        "seeds": loss.n_seeds,
        "seconds": each.seconds_per_full_run,
        "to_target": each.seconds_to_target,
        "said": f"batch {each.global_batch_size}",
        "fresh": each.verified,
        "kind": "answer" if is_answer else "other setting",
    }


def _tooltip(known: frozenset[str]) -> list[Any]:
    import altair

    shown = [
        altair.Tooltip("batch:Q", title="batch"),
        altair.Tooltip("rate:Q", title="learning rate", format=NUMBER),
        altair.Tooltip("own:N", title="and"),
        altair.Tooltip("loss:Q", title="loss", format=NUMBER),
        altair.Tooltip("low:Q", title="90 % from", format=NUMBER),
        altair.Tooltip("high:Q", title="90 % to", format=NUMBER),
        altair.Tooltip("seeds:Q", title="seeds"),
        altair.Tooltip("seconds:Q", title="seconds of a full run", format=NUMBER),
        altair.Tooltip("to_target:Q", title="seconds to target", format=NUMBER),
    ]
    return [each for each in shown if each.shorthand.partition(":")[0] in known]


def confirmations(result: SearchResult) -> Any:
    """Return the runs on fresh seeds, one point each, with the interval of the next; None where there are none."""
    import altair

    runs: list[Row] = [
        {
            "trial": record.number,
            "setting": setting_text(record),
            "loss": record.val_loss,
            "seed": record.seed,
        }
        for record in result.records
        if record.stage == "confirm" and record.state == "complete" and record.val_loss is not None
    ]
    if not runs:
        return None
    ran = {row["setting"] for row in runs}
    spreads: list[Row] = [
        {"setting": setting, "low": each.val_loss.low, "high": each.val_loss.high}
        for each in candidates(result)
        if (setting := setting_text(each)) in ran and each.val_loss.low is not None and each.val_loss.high is not None
    ]
    ends = [row["loss"] for row in runs] + [row[end] for row in spreads for end in ("low", "high")]
    x = altair.X("loss:Q", title="validation loss", scale=loss_scale(ends), axis=altair.Axis(tickCount=5, format="~g"))
    y = altair.Y("setting:N", title=None, sort=None, axis=altair.Axis(labelLimit=200))
    bars = altair.Chart(rows(spreads)).mark_rule(color=GREY, strokeWidth=6, opacity=0.5)
    points = altair.Chart(rows(runs)).mark_point(filled=True, size=110, color=PURPLE, opacity=1)
    tooltip = [
        altair.Tooltip("trial:Q", title="trial"),
        altair.Tooltip("seed:Q", title="seed"),
        altair.Tooltip("loss:Q", title="loss", format=NUMBER),
    ]
    layers = [bars.encode(y=y, x=altair.X("low:Q", scale=loss_scale(ends)), x2="high:Q")]
    layers.append(points.encode(x=x, y=y, tooltip=tooltip))
    return altair.layer(*(layers if spreads else layers[1:])).properties(height=max(90, 46 * len(ran)))

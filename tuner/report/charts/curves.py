"""Learning curves of the trials, by samples and by seconds; a trial that is picked stands out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from ...core.probe_results import ProbeResult
from ...core.results import Recommendation, SearchResult
from ...core.trial_record import TrialRecord
from .frame import (
    HEIGHT,
    Row,
    amount_axis,
    answer_of,
    batch_colour,
    full_samples,
    last_of_each,
    loss_scale,
    picked,
    rows,
    target_line,
    trial_row,
    trial_tooltip,
)

MOST_CURVES = 200
MOST_REPORTS = 60
"""Points of one curve; between them nothing is seen at the width of a page."""


def curve_records(records: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Return the trials whose curves are shown: those that came furthest."""
    known = [record for record in last_of_each(records) if any(loss is not None for _, loss in record.values)]
    return sorted(sorted(known, key=lambda r: (-r.samples, r.number))[:MOST_CURVES], key=lambda r: r.number)


def curves(
    records: Sequence[TrialRecord],
    probe: ProbeResult | None = None,
    by: Literal["samples", "seconds"] = "samples",
    *,
    result: SearchResult | None = None,
    alone: bool = False,
) -> Any:
    """Return the learning curves over samples or over seconds; None where there are none.

    With a result, seconds are those of `seconds_per_full_run`, validation included, the target is marked, and the runs
    of the answer are thicker.
    """
    import altair

    validating = 0.0 if result is None else validation_s_per_sample(result)
    start_s = 0.0 if result is None else start_s_of(result)
    points = []
    for record in curve_records(records):
        training = seconds_per_sample(record, probe)
        points += _points(record, None if training is None else training + validating, start_s)
    points = [point for point in points if point[by] is not None]
    if not points:
        return None
    parameter, is_picked = picked(alone)
    best = answer_of(result)
    for point in points:
        params = point.pop("params")
        point["own"] = best is not None and _is_of(best, params, point)
    how = "without validation" if result is None else "validation included"
    title = "training samples" if by == "samples" else f"seconds by the step times, {how}"
    losses = [point["loss"] for point in points]
    if result is not None and result.target is not None:
        losses.append(result.target)
    y = altair.Y("loss:Q", title="validation loss", scale=loss_scale(losses))
    encoded: dict[str, Any] = {
        "x": altair.X(f"{by}:Q", title=title, axis=amount_axis(max(point[by] for point in points))),
        "y": y,
        "color": batch_colour([point["batch"] for point in points], [record.global_batch_size for record in records]),
        "detail": "trial:N",
        "opacity": altair.condition(is_picked, altair.value(0.85), altair.value(0.07)),
        "tooltip": trial_tooltip(),
    }
    lines = [
        altair.Chart(rows(some)).mark_line(strokeWidth=width, clip=True).encode(**encoded)
        for own, width in ((False, 1.6), (True, 4))
        if (some := [point for point in points if point["own"] == own])
    ]
    dots = (
        altair.Chart(rows(points)).encode(**encoded).mark_point(filled=True, size=22, clip=True).add_params(parameter)
    )
    return altair.layer(*target_line(result, y), *lines, dots).properties(height=HEIGHT)


def _is_of(best: Recommendation, params: dict[str, Any], row: Row) -> bool:
    """Tell whether a point is of a run of the answer."""
    return (row["batch"], row["rate"], params) == (best.global_batch_size, best.learning_rate, best.params)


def validation_s_per_sample(result: SearchResult) -> float:
    """Return what the validations of a full run of the answer take, shared out over its training samples."""
    best, whole = result.recommendation, full_samples(result)
    if not best.seconds_per_full_run or not best.samples_per_s or not whole:
        return 0.0
    return max(0.0, (best.seconds_per_full_run - start_s_of(result)) / whole - 1 / best.samples_per_s)


def start_s_of(result: SearchResult) -> float:
    """Return the seconds that each run takes before it trains: those that the probe has timed, where they count."""
    best, start_s = result.recommendation, 0.0 if result.probe is None else result.probe.start_s or 0.0
    if not best.seconds_per_full_run or not best.samples_per_s:
        return start_s
    return start_s if best.seconds_per_full_run >= full_samples(result) / best.samples_per_s + start_s else 0.0


def seconds_per_sample(record: TrialRecord, probe: ProbeResult | None) -> float | None:
    """Return what a sample of a trial costs: as the search counts it, by its step time where that was probed."""
    if record.samples_per_s:
        return 1 / record.samples_per_s
    if probe is not None and probe.step_time_line is not None:
        steps = probe.step_time_line.step_s(record.micro_batch_size, record.accumulation_steps)
        return steps / (record.micro_batch_size * record.accumulation_steps)
    trained = record.samples - record.start_samples
    return record.seconds / trained if record.seconds and trained > 0 else None


def _points(record: TrialRecord, each_s: float | None, start_s: float) -> list[Row]:
    known = [(samples, loss) for samples, loss in record.values if loss is not None]
    stride = max(1, -(-len(known) // MOST_REPORTS))
    kept = known[::stride] if (len(known) - 1) % stride == 0 else [*known[::stride], known[-1]]
    row = {**trial_row(record), "params": record.params}
    return [
        {**row, "samples": samples, "loss": loss, "seconds": None if each_s is None else start_s + samples * each_s}
        for samples, loss in kept
    ]

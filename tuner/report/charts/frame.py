"""What all charts share: colours that are told apart on white and on black, axes of batch sizes, and rows of trials."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ...core.errors import BstuneError
from ...core.results import Candidate, Recommendation, SearchResult
from ...core.trial_record import TrialRecord
from ..reasons import tells_nothing

if TYPE_CHECKING:
    import altair

BLUE, GREEN, ORANGE, RED, GREY, PURPLE = "#2f7bea", "#2c9a5b", "#d07014", "#e0483e", "#808894", "#9b62e0"
BATCH_COLOURS = ("#c2563c", "#c9851f", "#8f9a1e", "#2c9a5b", "#2496a8", "#2f7bea", "#7a5fe0", "#b8479c")
LOSS_COLOURS = ("#1f6fe0", "#2c9a8a", "#c99a1f", "#c2563c")
"""From the lowest loss to the highest."""
HEIGHT = 300
STATES = {"pruned": "stopped"}
"""States in the words of people, where these are others than in the storage."""
CONFIRMED = "complete, confirm"
"""A full run on a fresh seed."""
WIDTH = 460
MISSING = "Charts need Altair, vl-convert and Jinja2, which are not installed: pip install 'bstune[report]'."

NUMBER = ",.4~r"
"""Numbers where the pointer is: four digits, as everywhere, and no powers of ten."""

Row = dict[str, Any]


def require_charts() -> None:
    """Make sure that charts can be drawn.

    Raises:
        BstuneError: A package of the extra `report` is missing.
    """
    try:
        import altair  # noqa: F401
        import jinja2  # noqa: F401
        import vl_convert  # noqa: F401
    except ImportError as error:
        raise BstuneError(MISSING) from error


def rows(values: Sequence[Row]) -> altair.Data:
    """Return data that stand in the chart itself."""
    import altair

    return altair.Data(values=list(values))  # type: ignore[no-untyped-call]


def batch_axis(
    batches: Sequence[float], title: str = "global batch size", field: str = "batch", pad: float = 1.25
) -> altair.X:
    """Return the axis of batch sizes: octaves, with a tick at each power of two that is in reach."""
    import altair

    low, high = min(batches), max(batches)
    step = 1 if math.log2(high / low) <= 10 else 2
    ticks = [2.0**k for k in range(math.floor(math.log2(low)), math.ceil(math.log2(high)) + 1, step)]
    return altair.X(
        f"{field}:Q",
        title=title,
        scale=altair.Scale(type="log", base=2, domain=[low / pad, high * pad], nice=False),
        axis=altair.Axis(values=ticks, format="~s" if high > 20_000 else "d", labelOverlap=True),
    )


def decades(low: float, high: float) -> list[float]:
    """Return the ticks of a logarithmic axis: powers of ten, and on a short axis 2 and 5 times those.

    Example:
        >>> decades(0.02, 3), decades(0.3, 1.1)
        ([0.1, 1.0], [0.5, 1.0])
    """
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    steps = (1, 2, 5) if high / low < 30 else (1,)
    ticks = [float(f"{step}e{k}") for k in range(first, last + 1) for step in steps]
    return [tick for tick in ticks if low <= tick <= high]


def loss_scale(losses: Sequence[float]) -> altair.Scale:
    """Return a scale for losses: logarithmic where all are above zero and far apart; what is far off is cut."""
    import altair

    ordered = sorted(losses)
    low, high = ordered[0], ordered[min(len(ordered) - 1, int(0.97 * len(ordered)))]
    if low > 0 and high / low > 4:
        return altair.Scale(type="log", domain=[low / 1.15, high * 1.15], nice=False, clamp=True)
    margin = 0.06 * (high - low) or abs(low) * 0.1 or 1.0
    return altair.Scale(domain=[low - margin, high + margin], nice=False, zero=False, clamp=True)


def batch_colour(
    batches: Sequence[int], tried: Sequence[int], title: str = "batch size", symbol: str = "stroke"
) -> altair.Color:
    """Return a colour for each batch size, along the rainbow of all that were tried: one in all charts of a study."""
    import altair

    known, all_tried = sorted(set(batches)), sorted(set(tried))
    last = max(1, len(all_tried) - 1)
    colours = [BATCH_COLOURS[round(all_tried.index(batch) * (len(BATCH_COLOURS) - 1) / last)] for batch in known]
    return altair.Color(
        "batch:O",
        title=title,
        scale=altair.Scale(domain=known, range=colours),
        legend=altair.Legend(orient="top", columns=6, symbolType=symbol, symbolStrokeWidth=3),
    )


def amount_axis(most: float) -> altair.Axis:
    """Return an axis of counts or seconds: written out as far as that is short."""
    import altair

    return altair.Axis(format="~s" if most >= 1e6 else ",~f" if most >= 10 else "~g", tickCount=5)


def answer_of(result: SearchResult | None) -> Recommendation | None:
    """Return what is recommended; None before there is an answer, and where losses say nothing of how to train."""
    return None if result is None or tells_nothing(result.recommendation.warnings) else result.recommendation


def candidates(result: SearchResult) -> list[Candidate]:
    """Return every setting that the recommendation names, the recommended one first."""
    best = result.recommendation
    chosen = Candidate(
        best.global_batch_size,
        best.micro_batch_size,
        best.accumulation_steps,
        best.learning_rate,
        best.params,
        best.val_loss,
        best.seconds_per_full_run,
        best.samples_per_s,
        best.seconds_to_target,
        best.samples_to_target,
        best.verified,
    )
    others = [best.fastest, best.smallest_within_tolerance, best.lowest_loss, best.lowest_loss_at_equal_seconds]
    named = [chosen, *others, *best.frontier, *(each.setting for each in best.compared), *best.alternatives]
    found: dict[Any, Candidate] = {}
    for each in named:
        if each is not None:
            key = each.global_batch_size, each.learning_rate, repr(sorted(each.params.items()))
            found.setdefault(key, each)
    return list(found.values())


def full_samples(result: SearchResult) -> int:
    """Return the training samples of the longest run that was asked for: those of a full run; 0 without a run."""
    return max((record.end_samples or record.samples for record in result.records), default=0)


def ran_in_full(record: TrialRecord, samples: int) -> bool:
    """Tell whether a trial came to the end of a full run of so many samples: its last step may end before that."""
    return record.samples + record.global_batch_size > samples


def only_stopped(result: SearchResult) -> list[int]:
    """Return the batch sizes of those that may be as good of which every run was stopped before its end."""
    best = result.recommendation
    low, high = best.batch_interval[0], best.batch_interval[-1]
    tried = {record.global_batch_size for record in result.records if low <= record.global_batch_size <= high}
    samples = full_samples(result)
    ended = {record.global_batch_size for record in result.records if ran_in_full(record, samples)}
    return sorted(tried - ended)


def last_of_each(records: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Return the trials that no other trial went on from: the curve of each is whole."""
    gone_on = {record.continues for record in records if record.continues is not None}
    return [record for record in records if record.number not in gone_on]


def target_line(result: SearchResult | None, y: altair.Y) -> list[Any]:
    """Return the line of the target loss with its name at its left end; nothing where no target is asked for."""
    import altair

    if result is None or result.target is None or result.goal != "time":
        return []
    here = altair.Chart(rows([{"loss": result.target, "said": f"target {result.target:.4g}"}]))
    word = here.mark_text(align="left", dx=4, dy=-7, fontWeight="bold")
    return [
        here.mark_rule(color=PURPLE, strokeDash=[2, 3], strokeWidth=1.5).encode(y=y),
        word.encode(y=y, x=altair.value(0), text="said:N"),
    ]


def positive(value: float | None) -> bool:
    """Tell whether a value is known and above zero, so that it can stand on a logarithmic axis."""
    return value is not None and value > 0


def trial_row(record: TrialRecord) -> Row:
    """Return what each mark of a trial says of it."""
    state = CONFIRMED if record.stage == "confirm" and record.state == "complete" else record.state
    return {
        "trial": record.number,
        "state": STATES.get(state, state),
        "batch": record.global_batch_size,
        "rate": record.learning_rate,
        "loss": record.val_loss,
        "samples": record.samples,
    }


def trial_tooltip() -> list[altair.Tooltip]:
    """Return what is shown of a trial where the pointer is: the fields of its row."""
    import altair

    return [
        altair.Tooltip("trial:Q", title="trial"),
        altair.Tooltip("state:N", title="state"),
        altair.Tooltip("batch:Q", title="batch"),
        altair.Tooltip("rate:Q", title="learning rate", format=NUMBER),
        altair.Tooltip("loss:Q", title="loss", format=NUMBER),
        altair.Tooltip("samples:Q", title="samples", format=","),
    ]


def picked(standalone: bool) -> tuple[Any, Any]:
    """Return how a trial is picked: the parameter, and the condition that this one is picked or none is.

    A page sets the parameter itself, so that all its charts pick together; elsewhere a click in the chart does.
    """
    import altair

    if standalone:
        point = altair.selection_point(name="picked", fields=["trial"], on="click")
        return point, point
    return altair.param(name="trial", value=-1), "trial < 0 || datum.trial == trial"


def standalone(chart: Any, title: str | None = None) -> Any:
    """Return a chart as it is shown by itself: with a size and readable type."""
    if title is not None:
        chart = chart.properties(title=title)
    return (
        chart.configure(font="sans-serif")
        .configure_view(stroke=None)
        .configure_axis(labelFontSize=11, titleFontSize=12, titleFontWeight="normal", gridColor="#8883")
    )

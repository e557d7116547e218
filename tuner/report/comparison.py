"""Two searches side by side: another device, another version of the model, another goal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..core.plain_text import hide_secrets, one_line
from ..core.results import SearchResult
from . import wording
from .brief import brief
from .charts.curves import curves
from .charts.frame import answer_of, require_charts
from .charts.landscape import landscape, reaches
from .charts.probe_lines import throughput
from .charts.settings import frontier
from .page import rendered
from .page_charts import Drawn, Section, drawn
from .page_told import Told, device_text
from .units import duration, gib, number


def comparison(one: Told, other: Told) -> str:
    """Return a page that shows two studies side by side.

    Raises:
        BstuneError: A package of the extra `report` is missing.
    """
    require_charts()
    both = (one, other)
    shown = [
        section for section in (_landscapes(both), _frontiers(both), _curves(both), _speeds(both)) if section.charts
    ]
    title = f"{one_line(one.study, 60)} beside {one_line(other.study, 60)}"
    context = {"title": f"{title} - bstune", "names": _names(both), "rows": _rows(both), "sections": shown}
    return rendered("page_comparison.html", {**context, "difference": _difference(both)}, shown)


def _names(both: tuple[Told, Told]) -> list[str]:
    """Return what the two are called: by device too, where the names are the same."""
    names = [one_line(told.study, 120) for told in both]
    return names if names[0] != names[1] else [f"{names[0]} (first)", f"{names[1]} (second)"]


_OF_ANSWERS: tuple[tuple[str, Callable[[SearchResult], str]], ...] = (
    ("batch size", lambda r: f"{r.recommendation.global_batch_size}"),
    (
        "micro-batch × accumulation",
        lambda r: f"{r.recommendation.micro_batch_size} × {r.recommendation.accumulation_steps}",
    ),
    ("learning rate", lambda r: f"{r.recommendation.learning_rate:.3g}"),
    ("confirmed", lambda r: wording.confirmed(r.recommendation)),
    ("loss", lambda r: number(r.recommendation.val_loss.mean)),
    (
        "9 of 10 new runs end at",
        lambda r: f"{number(r.recommendation.val_loss.low)} to {number(r.recommendation.val_loss.high)}",
    ),
    ("target loss", lambda r: number(r.target)),
    ("time to target", lambda r: wording.to_target(r, r.recommendation)),
    ("full run", lambda r: duration(r.recommendation.seconds_per_full_run)),
    (
        "throughput",
        lambda r: wording.speed_text(r.probe, r.recommendation, r.recommendation.world_size).removeprefix("speed "),
    ),
    ("peak memory", lambda r: gib(r.recommendation.peak_bytes)),
)
_OF_SEARCHES: tuple[tuple[str, Callable[[SearchResult], str]], ...] = (
    ("micro-batch that fits", lambda r: "unknown" if r.limits.memory is None else f"{r.limits.memory}"),
    ("half of top speed at", lambda r: "unknown" if r.limits.hardware is None else f"{r.limits.hardware:.0f}"),
    ("critical batch", lambda r: "unknown" if r.limits.noise is None else f"{r.limits.noise:.0f}"),
    ("cost of the search", lambda r: f"{duration(r.spent.seconds)}, {len(r.records)} trials"),
    ("versions", lambda r: ", ".join(f"{name} {value}" for name, value in r.versions.items())),
)


def _rows(both: tuple[Told, Told]) -> list[tuple[str, list[str]]]:
    rows = [("answer", ["No answer yet" if told.result is None else brief(told.result).title for told in both])]
    rows += [("device", [device_text(told) or "unknown" for told in both])]
    rows += [("training data", [_data(told) for told in both])]
    results = [told.result for told in both]
    answered = [None if answer_of(result) is None else result for result in results]
    for figures, found in ((_OF_ANSWERS, answered), (_OF_SEARCHES, results)):
        for name, figure in figures:
            cells = ["-" if result is None else hide_secrets(one_line(figure(result), 300)) for result in found]
            if set(cells) - {"-", "unknown"}:
                rows.append((name, cells))
    return [*rows, ("command", [one_line(told.command or "-", 300) for told in both])]


def _data(told: Told) -> str:
    facts = told.facts
    return "unknown" if facts is None else f"{facts.n_samples:,} {facts.size_unit}, {facts.epochs:g} epochs"


def _difference(both: tuple[Told, Told]) -> str:
    """Return in a sentence or two how the two answers differ, and whether their losses may be compared."""
    one, other = (told.result for told in both)
    first, second = answer_of(one), answer_of(other)
    if first is None or second is None:
        return "Neither has an answer." if first is second else "One of the two has no answer."
    said = []
    if (first.global_batch_size, first.learning_rate) == (second.global_batch_size, second.learning_rate):
        said.append("Both recommend the same batch size and learning rate.")
    else:
        said.append(
            f"Batch {first.global_batch_size} here, {second.global_batch_size} there; learning rate "
            f"{first.learning_rate:.3g} here, {second.learning_rate:.3g} there."
        )
    a, b = first.seconds_per_full_run, second.seconds_per_full_run
    if a and b:
        times = max(a, b) / min(a, b)
        said.append(
            "A full run takes as long in both."
            if times < 1.025
            else f"A full run takes {times:.2g} times as long {'here' if a > b else 'there'}."
        )
    facts = [told.facts for told in both]
    if facts[0] is not None and facts[1] is not None and facts[0].code_hash != facts[1].code_hash:
        said.append("The objectives are not the same code, so their losses may not be comparable.")
    return " ".join(said)


def _drawn_of(both: tuple[Told, Told], what: str, chart: Callable[[Told], Any], label: str) -> tuple[Drawn, ...]:
    """Return the charts of the two, ready for the page, as far as there are any; `label` has a place for a name."""
    return tuple(
        each
        for i, (told, name) in enumerate(zip(both, _names(both), strict=True))
        for each in drawn(chart(told), f"c-{what}-{i}", name, label.format(name))
    )


def _landscapes(both: tuple[Told, Told]) -> Section:
    found = [reach for told in both if (reach := reaches(told.records)) is not None]
    domain = None
    if found:
        domain = ([b for batches, _ in found for b in batches], [r for _, rates in found for r in rates])
    charts = _drawn_of(
        both,
        "landscape",
        lambda told: landscape(told.records, told.result, domain=domain),
        "Settings of {} by batch size and learning rate, with the loss as colour.",
    )
    return Section("landscape", "Batch size and learning rate together", "The axes of the two are the same.", charts)


def _frontiers(both: tuple[Told, Told]) -> Section:
    charts = _drawn_of(
        both,
        "frontier",
        lambda told: None if told.result is None else frontier(told.result),
        "Loss against seconds of a full run, {}.",
    )
    return Section("frontier", "Loss against time", "Settings that were run to the end; the axes may differ.", charts)


def _curves(both: tuple[Told, Told]) -> Section:
    charts = _drawn_of(
        both,
        "curves",
        lambda told: curves(told.records, told.probe, "seconds", result=told.result),
        "Learning curves by seconds, {}.",
    )
    return Section("curves-two", "Learning curves by seconds", "The axes may differ.", charts)


def _speeds(both: tuple[Told, Told]) -> Section:
    charts = _drawn_of(
        both,
        "speed",
        lambda told: None if told.probe is None else throughput(told.probe),
        "Throughput by micro-batch size, {}.",
    )
    return Section("probe", "Throughput", "Measured on real steps; the axes may differ.", charts)

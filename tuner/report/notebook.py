"""Results as a notebook shows them: plain HTML that takes its colours from the notebook, light or dark."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from ..core.plain_text import hide_secrets, one_line
from ..core.probe_results import ProbeResult
from ..core.results import Recommendation, SearchResult
from . import wording
from .brief import brief, sentences
from .page_told import device_name
from .reasons import tells_nothing
from .units import duration, gib, limited_text, number, per_second, rate_text

_BOX = "border-left:4px solid {colour};padding:4px 14px;max-width:860px"
_GOOD, _DOUBT = "#2c9a5b", "#d07014"
"""Colours that stand out on white and on black; all text has the colour of the notebook."""


def search_html(result: SearchResult) -> str:
    """Return a search: the answer, how sure it is, what it cost, and the settings that nothing beats."""
    said = brief(result)
    colour = _GOOD if said.standing == "verified" else _DOUBT
    rows = [(part.question, f"{part.short}. {part.detail}") for part in said.parts]
    rows += [("Warning", warning) for warning in result.recommendation.warnings[:5]]
    more = f"Study {result.study}. Trials: result.trials. Charts: plot_landscape(), plot_curves(), plot_frontier()."
    below = f"{said.badge}. {said.split}".rstrip()
    return _box(said.title, below, rows, colour, more=more, table=_frontier(result.recommendation))


def recommendation_html(best: Recommendation) -> str:
    """Return a recommendation by itself."""
    loss = best.val_loss
    about = [
        (
            "micro-batch × accumulation × devices",
            f"{best.micro_batch_size} × {best.accumulation_steps} × {best.world_size}",
        ),
        ("loss", f"{number(loss.mean)} ({number(loss.low)} to {number(loss.high)} in 9 of 10 new runs)"),
        ("full run", duration(best.seconds_per_full_run)),
        ("why", best.reason),
    ]
    title = f"Batch {best.global_batch_size}, learning rate {best.learning_rate:.3g}"
    if tells_nothing(best.warnings):  # Nobody should train with what stands in it.
        title, about = wording.title(best), []
    rows = [*about, *(("warning", warning) for warning in best.warnings[:5])]
    return _box(
        title,
        sentences(wording.confirmed(best)).removesuffix("."),
        rows,
        _GOOD if best.verified else _DOUBT,
        table=_frontier(best),
    )


def probe_html(probe: ProbeResult) -> str:
    """Return a probe: what fits, how that is known, and what was timed."""
    rows = [
        ("device", device_name(probe.device)),
        ("limited by", f"{limited_text(probe)} (proof: {probe.proof})"),
        ("peak memory", f"{gib(probe.peak_bytes or None)} of {gib(probe.budget_bytes)} allowed"),
        *((f"speed at {row.batch_size}", per_second(row.samples_per_s)) for row in probe.throughput),
        *(("warning", warning) for warning in probe.warnings[:5]),
    ]
    title = f"Micro-batches of up to {probe.micro_batch_size} samples fit"
    return _box(title, "", rows, _GOOD, more="Chart: probe.plot().")


def _frontier(best: Recommendation) -> str:
    if len(best.frontier) < 2:
        return ""
    heads = "".join(f"<th>{name}</th>" for name in ("batch", "learning rate", "loss", "full run"))
    rows = "".join(
        f"<tr><td>{each.global_batch_size}</td><td>{_text(rate_text(each))}</td>"
        f"<td>{number(each.val_loss.mean)}</td><td>{duration(each.seconds_per_full_run)}</td></tr>"
        for each in best.frontier[:6]
    )
    caption = '<caption style="white-space:nowrap">Settings that no other beats in loss and time</caption>'
    return f"<table>{caption}<thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>"


def _box(
    title: str, below: str, rows: Sequence[tuple[str, str]], colour: str, *, more: str = "", table: str = ""
) -> str:
    """Return a box; every text in it is escaped, `table` is HTML already."""
    style = _BOX.format(colour=colour)
    body = "".join(
        f'<tr><th style="text-align:left;vertical-align:top">{_text(name)}</th>'
        f'<td style="text-align:left">{_text(value)}</td></tr>'
        for name, value in rows
    )
    said = "".join(f"<p>{_text(text)}</p>" for text in (below, more) if text)
    head = f'<strong style="font-size:1.3em">{_text(title)}</strong>'
    return f'<div style="{style}">{head}{said}<table>{body}</table>{table}</div>'


def _text(value: object) -> str:
    return escape(hide_secrets(one_line(value, 800)))

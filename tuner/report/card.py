"""A search to share: a card of some twenty lines of Markdown, and a picture with landscape, answer and cost."""

from __future__ import annotations

import json
import re
import textwrap
from typing import Any

from ..core.errors import NoSignalError
from ..core.plain_text import hide_secrets, one_line
from ..core.results import SearchResult
from .brief import Brief, brief
from .charts.frame import require_charts, standalone
from .charts.landscape import landscape
from .page_told import Told, device_text
from .units import duration, number, rate_text

MOST_FRONTIER = 5
MARK = "<!-- bstune report -->"
"""The first line of a card: a file that begins with it is ours, and may be written over."""


def result_of(told: Told) -> SearchResult:
    """Return the result that is told of.

    Raises:
        NoSignalError: Nothing was learned yet.
    """
    if told.result is None:
        raise NoSignalError(
            f"{told.headline}: no trial has a finite validation loss yet, so there is nothing to show but a page: "
            "bstune report -o report.html"
        )
    return told.result


def marked_down(text: object) -> str:
    r"""Return text as Markdown that shows just this text, as one line.

    Example:
        >>> marked_down("a|b <i> *c*")
        'a\\|b &lt;i&gt; \\*c\\*'
    """
    line = one_line(text, 600).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|#~!$])", r"\\\1", line)


def markdown(told: Told) -> str:
    """Return a card: the answer, the questions that people ask, the frontier, device, versions and command.

    Raises:
        NoSignalError: Nothing was learned yet.
    """
    result = result_of(told)
    said = brief(result)
    lines = [MARK, f"## {marked_down(said.title)}", "", f"**{marked_down(said.badge)}.** "]
    lines[-1] = f"{lines[-1]}{marked_down(said.split)}".rstrip()
    lines += ["", "| | |", "| --- | --- |"]
    lines += [f"| {part.question} | **{marked_down(part.short)}.** {marked_down(part.detail)} |" for part in said.parts]
    about = [("Device", device_text(told)), ("Command", told.command), ("Date", told.date)]
    lines += [f"| {name} | {marked_down(value)} |" for name, value in about if value]
    versions = ", ".join(f"{name} {value}" for name, value in result.versions.items())
    lines += [f"| Versions | {marked_down(versions)} |", *_frontier(result)]
    return hide_secrets("\n".join(lines)) + "\n"


def _frontier(result: SearchResult) -> list[str]:
    rows = result.recommendation.frontier[:MOST_FRONTIER]
    if len(rows) < 2:
        return []
    table = [
        f"| {each.global_batch_size} | {marked_down(rate_text(each))} | {number(each.val_loss.mean)} | "
        f"{duration(each.seconds_per_full_run)} |"
        for each in rows
    ]
    head = "Settings that no other one beats in loss and time:"
    return ["", head, "", "| batch | learning rate | loss | full run |", "| ---: | ---: | ---: | ---: |", *table]


def picture(result: SearchResult, kind: str) -> bytes:
    """Return a picture of a search for a chat or a README, as PNG, SVG or PDF.

    Raises:
        BstuneError: A package of the extra `report` is missing, or there is no landscape.
    """
    require_charts()
    chart = landscape(result.records, result, alone=True)
    if chart is None:
        raise NoSignalError(f"Study {one_line(result.study)}: no trial has a loss yet, so there is nothing to draw.")
    said = brief(result)
    title = {"text": said.title, "subtitle": _subtitle(result, said), "anchor": "start", "fontSize": 26}
    title |= {"subtitleFontSize": 14, "subtitlePadding": 8, "subtitleLineHeight": 20, "offset": 16}
    return rendered(standalone(chart.properties(width=760, height=380, title=title, padding=24)), kind, scale=2.0)


def _subtitle(result: SearchResult, said: Brief) -> list[str]:
    """Return what stands below the answer: how much sooner, why not larger, how sure, and the cost."""
    device = "" if result.probe is None else f" on {one_line(result.probe.device.name, 60)}"
    said_of = {part.question: part for part in said.parts}
    lines = [f"{said.badge}. Study {one_line(result.study, 60)}{device}, bstune {result.versions.get('bstune', '')}"]
    lines += [f"{part.question} {part.short}." for part in said_of.values()]
    return [wrapped for line in lines for wrapped in textwrap.wrap(line, 105)]


def rendered(chart: Any, kind: str, *, scale: float = 1.0) -> bytes:
    """Return an Altair chart as PNG, SVG or PDF, drawn without a browser and without the network."""
    import vl_convert

    spec = json.dumps(chart.to_dict())
    if kind == "svg":
        return vl_convert.vegalite_to_svg(spec, allowed_base_urls=[]).encode()
    if kind == "pdf":
        return vl_convert.vegalite_to_pdf(spec, allowed_base_urls=[])
    return vl_convert.vegalite_to_png(spec, scale=scale, allowed_base_urls=[])

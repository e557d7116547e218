"""A diagnosis as people read it: text, and HTML for a notebook; what holds first, then what does not."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from ..core.diagnosis import Costs, Diagnosis, Finding
from ..core.plain_text import hide_secrets, one_line
from .units import duration
from .view import View, labelled, laid_out, said

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

ORDER = ("holds", "does not hold", "cannot tell", "not applicable")
HEADS = {
    "holds": "Holds for your model",
    "does not hold": "Does not hold for your model",
    "cannot tell": "Cannot be told",
    "not applicable": "Not applicable",
}
STYLES = {"holds": "bold green", "does not hold": "bold red", "cannot tell": "bold yellow", "not applicable": "bold"}


def diagnosis_text(diagnosis: Diagnosis, view: View | None = None, *, model: str = "MODEL") -> str:
    """Return a diagnosis as text: each claim with what was found here, and what to do.

    Args:
        diagnosis: What was found.
        view: Of whom it is for.
        model: Stands in the lines to paste where findings have MODEL.
    """
    view = view or View()
    parts: list[RenderableType] = [said(f"Study {one_line(diagnosis.study)}: {headline(diagnosis)}", style="bold")]
    for verdict in ORDER:
        found = [finding for finding in diagnosis.findings if finding.verdict == verdict]
        if not found:
            continue
        parts += [said(""), said(HEADS[verdict], style=STYLES[verdict])]
        for alike in _alike(found):
            parts += [_claim(finding) for finding in alike]
            parts.append(labelled(_rows(alike[0], model), least=7))
    if diagnosis.reused:
        parts += [said(""), said(f"{reused_sentence(diagnosis)}.")]
    if diagnosis.left_out_runs:
        # With spaces, so that no name is broken where the line is.
        only = f' --only "{", ".join(diagnosis.left_out)}"' if diagnosis.left_out else ""
        asked = f"bstune diagnose {model}{only} --budget {_enough(diagnosis)}"
        parts += [said(""), said(f"{left_out_sentence(diagnosis)}: {asked}")]
    if diagnosis.warnings:
        parts += [said(""), labelled([("warning", said(text)) for text in diagnosis.warnings])]
    return laid_out(parts, view)


def _alike(found: Sequence[Finding]) -> list[list[Finding]]:
    """Return findings in groups of which all say the same, such as that there is no probe."""
    groups: dict[tuple[str, str], list[Finding]] = {}
    for finding in found:
        groups.setdefault((finding.found, finding.advice), []).append(finding)
    return list(groups.values())


def _claim(finding: Finding) -> Text:
    text = said(f"{finding.name}:", style="bold")
    text.append(" ")
    text.append_text(said(finding.claim))
    return text


def headline(diagnosis: Diagnosis) -> str:
    """Return how many claims hold, and what that cost."""
    n = {verdict: sum(each.verdict == verdict for each in diagnosis.findings) for verdict in ORDER}
    known = n["holds"] + n["does not hold"]
    holds, fails = n["holds"], n["does not hold"]
    judged = f"{holds} hold{'s' if holds == 1 else ''}, {fails} do{'es' if fails == 1 else ''} not"
    of = f"{known} of {len(diagnosis.findings)} claims could be judged: {judged}"
    cost = (
        "nothing was trained"
        if diagnosis.seconds == 0
        else f"{duration(diagnosis.seconds)}, {max(0.01, diagnosis.reference_runs):.2f} reference runs of training"
    )
    return f"{of} ({cost})"


def reused_sentence(diagnosis: Diagnosis) -> str:
    """Return what was not measured again, and how to do so."""
    n = len(diagnosis.reused)
    what = "1 finding rests" if n == 1 else f"{n} findings rest"
    return f"{what} on measurements of an earlier call: {', '.join(diagnosis.reused)}. To measure again: --fresh"


def left_out_sentence(diagnosis: Diagnosis) -> str:
    """Return what the budget did not allow."""
    return f"What the budget left out takes {diagnosis.left_out_runs:.2g} reference runs of training"


def _enough(diagnosis: Diagnosis) -> int:
    return math.ceil(diagnosis.left_out_runs + 0.1)


def measured(finding: Finding) -> str:
    """Return the figure of a finding with its interval; nothing where there is none.

    Example:
        >>> measured(Finding("a", "", "", "holds", "", 0.5, "(slope)", (0.4, 0.6)))
        '0.5 (slope), in 9 of 10 cases 0.4 to 0.6'
        >>> measured(Finding("a", "", "", "holds", "", 50.0, "% of runs", (None, 60.0)))
        '50 % of runs, in 9 of 10 cases below 60 %'
    """
    if finding.figure is None:
        return ""
    figure = (
        f"{finding.figure:,.3g} {finding.unit}"
        if abs(finding.figure) < 1000
        else f"{finding.figure:,.0f} {finding.unit}"
    )
    if finding.interval is None:
        return figure.strip()
    unit = " %" if finding.unit.startswith("%") else ""
    low, high = (None if each is None else f"{_short(each)}{unit}" for each in finding.interval)
    if low is None or high is None:
        return f"{figure}, in 9 of 10 cases {'below' if low is None else 'above'} {low or high or 'any'}"
    return f"{figure}, in 9 of 10 cases {low} to {high}"


def _short(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def _rows(finding: Finding, model: str = "MODEL") -> list[tuple[str, RenderableType]]:
    because = "because" if finding.verdict in ("cannot tell", "not applicable") else "found"
    unclear = finding.verdict == "cannot tell" and finding.interval is not None
    found = f"{finding.found}; that is too close, or too uncertain, to tell" if unclear else finding.found
    rows: list[tuple[str, RenderableType]] = [(because, said(_sentence(found)))]
    if figure := measured(finding):
        rows.append(("figure", said(figure)))
    if finding.advice:
        rows.append(("do", said(re.sub(r"(bstune \w+) MODEL\b", lambda line: f"{line[1]} {model}", finding.advice))))
    return rows


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def diagnosis_html(diagnosis: Diagnosis) -> str:
    """Return a diagnosis as a table for a notebook; all text is escaped."""
    heads = "".join(f"<th>{name}</th>" for name in ("claim", "verdict", "found here", "figure", "what to do"))
    order = sorted(diagnosis.findings, key=lambda finding: ORDER.index(finding.verdict))
    rows = "".join(
        "<tr>"
        + "".join(
            f'<td style="text-align:left;vertical-align:top">{_safe(text)}</td>'
            for text in (each.claim, each.verdict, _sentence(each.found), measured(each), each.advice)
        )
        + "</tr>"
        for each in order
    )
    table = f"<table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>"
    reused = f"<p>{_safe(reused_sentence(diagnosis))} (fresh=True).</p>" if diagnosis.reused else ""
    if diagnosis.left_out_runs:
        only = f"only={list(diagnosis.left_out)}, " if diagnosis.left_out else ""
        reused += f"<p>{_safe(f'{left_out_sentence(diagnosis)} ({only}budget={_enough(diagnosis)}).')}</p>"
    return f"<p><strong>{_safe(headline(diagnosis))}</strong></p>{table}{reused}"


def _safe(text: str) -> str:
    return escape(_plain(text))


def claims_text(costs: Costs, view: View | None = None, *, budget: float = 3.0) -> str:
    """Return the names and claims of findings, with what each of them costs, and what all do within a budget."""
    from .view import Column, tabled

    each = ["unknown" if spent is None else "0 s" if spent == 0 else duration(spent) for _, _, spent in costs.rows]
    columns = [
        Column("finding", [name for name, _, _ in costs.rows], 0, "left"),
        Column("cost", each, 1),
        Column("claim", [text for _, text, _ in costs.rows], 2, "left", wraps=True),
    ]
    if costs.seconds is None:
        total = "Unknown: name a MODEL that was probed. Looks made during one run share its training."
    elif costs.seconds == 0 and not costs.left_out:
        total = "Nothing would be measured."
    else:
        total = (
            f"Together {duration(costs.seconds)}, {costs.reference_runs:.2f} reference runs of training. Looks made "
            "during one run share its training."
        )
    if costs.left_out:
        total += f" Beyond a budget of {budget:g}: {', '.join(costs.left_out)}."
    return laid_out([tabled(columns, view or View()), said(""), said(total)], view or View())


def page_findings(findings: Sequence[Finding]) -> list[dict[str, str]]:
    """Return the rows of a page: what does not hold, then what does; what could not be told is left out."""
    known = [each for verdict in ("does not hold", "holds") for each in findings if each.verdict == verdict]
    return [
        {
            "claim": _plain(each.claim),
            "verdict": each.verdict,
            "found": _plain(_sentence(each.found)),
            "figure": _plain(measured(each)),
            "advice": _plain(each.advice),
        }
        for each in known
    ]


def _plain(text: str) -> str:
    return hide_secrets(one_line(text, 1000))

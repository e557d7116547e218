"""The pages of the service: plain HTML, everything escaped, kept fresh by server-sent events; nothing from outside."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any
from urllib.parse import quote

from ..core.plain_text import one_line
from ..core.results import SearchResult
from ..core.trial_record import TrialRecord
from ..report.brief import brief
from ..report.page_told import Told
from ..report.units import number, setting_text
from .curves import curves

STYLE = """\
:root { --ground: #ffffff; --ink: #1a1f27; --quiet: #555f6d; --line: #d9dee6; --link: #0550ae; --run: #0969da;
  --best: #1a7f37; --doubt: #8a4600; --doubt-ground: #fff4e5; color-scheme: light dark; }
@media (prefers-color-scheme: dark) { :root { --ground: #14171c; --ink: #e8ebf0; --quiet: #a8b1bd; --line: #343b45;
  --link: #79c0ff; --run: #79c0ff; --best: #56d364; --doubt: #ffb86b; --doubt-ground: #33261a; } }
body { font: 15px/1.5 system-ui, sans-serif; margin: 1rem auto; max-width: 70rem; padding: 0 1rem;
  color: var(--ink); background: var(--ground); overflow-wrap: anywhere; }
a { color: var(--link); } h1 { font-size: 1.5rem; margin: .5rem 0; } h2 { font-size: 1.1rem; margin: 1.5rem 0 .25rem; }
#away { padding: .5rem .8rem; color: var(--doubt); background: var(--doubt-ground); border-radius: 6px; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; overflow-wrap: normal; }
th, td { text-align: left; vertical-align: top; padding: .25rem .8rem .25rem 0; border-bottom: 1px solid var(--line); }
th { color: var(--quiet); font-weight: 600; white-space: nowrap; }
td.long { min-width: 12rem; overflow-wrap: anywhere; }
.n { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
svg { display: block; width: 100%; height: 15rem; } .quiet { color: var(--quiet); margin: .25rem 0; }
svg path { fill: none; stroke: var(--quiet); stroke-opacity: .5; stroke-linecap: round; stroke-linejoin: round;
  vector-effect: non-scaling-stroke; }
svg .axes { stroke: var(--line); stroke-opacity: 1; }
svg .runs { stroke: var(--run); stroke-opacity: 1; stroke-width: 2; }
svg .best { stroke: var(--best); stroke-opacity: 1; stroke-width: 3; }
svg path:hover { stroke: var(--ink); stroke-opacity: 1; stroke-width: 3; }
@media (max-width: 40rem) {
  svg { height: 10rem; } thead { display: none; }
  tr { display: block; padding: .4rem 0; border-bottom: 1px solid var(--line); }
  td, td.n, td.long { display: inline-block; min-width: 0; padding: 0 .8rem 0 0; border: 0; white-space: normal;
    text-align: left; }
  td:empty { display: none; } td:first-child { display: block; font-weight: 600; }
  td.n::before, td:not(:first-child)::before { content: attr(data-head) " "; color: var(--quiet); }
}
"""
SCRIPT = """\
"use strict";
const away = document.getElementById("away");
let timer = null;
function say(text) { away.textContent = text; away.hidden = !text; }
async function refresh() {
  timer = null;
  try {
    const answer = await fetch(location.href, { cache: "no-store" });
    if (answer.status === 404) { say("It was deleted. This is what it was."); return; }
    if (!answer.ok) throw new Error(answer.status);
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html").querySelector("main");
    if (fresh) document.querySelector("main").replaceWith(fresh);
    say("");
  } catch { say("The service does not answer. This is what it said last."); }
}
function soon() { if (timer === null) timer = setTimeout(refresh, 500); }
let source = null;
function listen() {
  source = new EventSource(document.body.dataset.events);
  for (const kind of ["created", "start", "report", "finish", "ended", "failed", "deleted", "error"])
    source.addEventListener(kind, soon);
}
listen();
setInterval(() => { if (source.readyState === EventSource.CLOSED) listen(); soon(); }, 15000);
"""


RELOAD = """\
"use strict";
const place = document.currentScript.dataset.events;
let timer = null;
function soon() { if (timer === null) timer = setTimeout(() => location.reload(), 3000); }
const source = new EventSource(place);
for (const kind of ["finish", "ended", "failed"]) source.addEventListener(kind, soon);
"""
REPORT_POLICY = (
    "default-src 'none'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'; img-src data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""The report has its scripts within, and draws by a library that makes functions; all its text is escaped."""
MOST_ROWS = 200
"""Trials of a study that its page lists: it is made anew with each report."""
NUMBERS = (
    *("trials", "running", "reference runs", "lowest loss"),
    *("trial", "batch size", "learning rate", "samples", "loss"),
)
CLASSES = dict.fromkeys(NUMBERS, "n") | dict.fromkeys(("state", "what it does", "more"), "long")
"""Of the columns of a table that are not plain text."""
NO_STUDIES = "There are no studies yet. The first worker of a model makes one: bstune worker URL MODEL"
NO_WORKERS = "No worker was heard of lately."


def report_page(told: Told) -> str:
    """Return the report of a study, as `bstune report` writes it, which loads itself anew when a trial has ended.

    Raises:
        BstuneError: The extra `report` is not installed.
    """
    from ..report.page import page

    html = page(told)
    # Its own policy allows no connection; the one of the answer does.
    html = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", html, count=1)
    events = escape(f"/v1/studies/{quote(told.study, safe='')}/events")
    head, body, rest = html.rpartition("</body>")
    return f'{head}<script src="/static/reload.js" data-events="{events}"></script>{body}{rest}'


def static(file: str) -> str | None:
    """Return the content of a file that the pages use, or None."""
    return {"live.js": SCRIPT, "page.css": STYLE, "reload.js": RELOAD}.get(file)


def index_page(studies: Sequence[Mapping[str, Any]]) -> str:
    """Return the list of the studies, each a summary as `app.summary` makes it."""
    rows = [
        [
            f'<a href="/studies/{quote(study["name"], safe="")}">{_text(study["name"])}</a>',
            _text(_state(study)),
            _text(study["goal"]),
            *_numbers(study["trials"], study["running"]),
            _text(_spent(study)),
            *_numbers(study["best_val_loss"]),
        ]
        for study in studies
    ]
    workers = [(study["name"], worker) for study in studies for worker in study["workers"]]
    if not studies:
        return _page("Studies", "/v1/events", f"<p>{_text(NO_STUDIES)}</p>")
    heads = ["study", "state", "goal", "trials", "running", "reference runs", "lowest loss"]
    return _page("Studies", "/v1/events", f"{_table(heads, rows)}<h2>Workers</h2>{_workers(workers, 'study')}")


def study_page(study: Mapping[str, Any], records: Sequence[TrialRecord], result: SearchResult | None = None) -> str:
    """Return the page of one study; with what it has found, once it has ended."""
    path = quote(study["name"], safe="")
    best = lowest(records)
    shown = list(reversed(records[-MOST_ROWS:]))
    said = [f"{_state(study)}: {_spent(study)} reference runs, goal {study['goal']}. {study['message']}"]
    if (learned := study["learned"]) is not None:
        said.append(
            f"It began at what study {learned['study']} has found: batch {learned['batch_size']}, "
            f"lr {learned['learning_rate']:.3g}."
        )
    if best is not None:
        said.append(f"Lowest loss so far: {number(best.val_loss)}, {setting_text(best)} (trial {best.number}).")
    body = "" if result is None else _answer(result)
    body += "".join(f"<p>{_text(line)}</p>" for line in said)
    what = "The answer and the report" if result is None else "The whole report"
    body += f'<p><a href="/studies/{path}/report">{what}</a></p>{curves(records, best)}'
    body += f"<h2>Workers</h2>{_workers([(study['name'], worker) for worker in study['workers']])}"
    heads = ["trial", "stage", "batch size", "learning rate", "samples", "loss", "state"]
    body += f"<h2>Trials</h2>{_table(heads, [_row(record) for record in shown])}"
    if len(records) > len(shown):
        body += f'<p>The newest {len(shown)} of {len(records)}; <a href="/v1/studies/{path}">all, for programs</a>.</p>'
    return _page(study["name"], f"/v1/studies/{path}/events", body)


def _answer(result: SearchResult) -> str:
    """Return what to train with, how sure that is, and why it is that."""
    said = brief(result)
    below = f"{said.badge}. {said.split}".rstrip()
    rows = [[_text(part.question), _text(f"{part.short}."), _text(part.detail)] for part in said.parts]
    warnings = "".join(f"<p>{_text(warning)}</p>" for warning in result.recommendation.warnings)
    return f"<h2>{_text(said.title)}</h2><p>{_text(below)}</p>{_table(['question', 'answer', 'more'], rows)}{warnings}"


def refusal_page(status: int, detail: str) -> str:
    """Return what a browser shows in place of a page that it cannot have."""
    title = "There is no such page" if status == 404 else f"This did not work ({status})"
    return _page(title, None, f'<p>{_text(detail)}</p><p><a href="/">All studies of this service</a></p>')


def lowest(records: Iterable[TrialRecord]) -> TrialRecord | None:
    """Return the trial that ended with the lowest loss, of those that came to their end where there are such."""
    told = [record for record in records if record.val_loss is not None and math.isfinite(record.val_loss)]
    ended = [record for record in told if record.state == "complete"]
    return min(ended or told, key=lambda record: record.val_loss or 0.0, default=None)


def _row(record: TrialRecord) -> list[str]:
    state = f"{record.state}: {record.reason}" if record.reason else record.state
    samples = f"{record.samples} of {record.end_samples}" if record.state == "running" else str(record.samples)
    loss = record.val_loss if record.state != "running" else record.values[-1][1] if record.values else None
    return [
        _text(record.number),
        _text(record.stage),
        *_numbers(record.global_batch_size, record.learning_rate),
        _text(samples),
        *_numbers(loss),
        _text(state),
    ]


def _state(study: Mapping[str, Any]) -> str:
    return f"{study['state']} ({study['stopped_by']})" if study["stopped_by"] else str(study["state"])


def _spent(study: Mapping[str, Any]) -> str:
    spent = f"{study['spent']:.3g}"
    return spent if study["budget_s"] else f"{spent} of {study['budget']:g}"  # Or it is of seconds.


def routes_page(openapi: Mapping[str, Any]) -> str:
    """Return what can be called, from the OpenAPI description."""
    rows = [
        [_text(method.upper()), f"<code>{_text(path)}</code>", _text(route.get("description", ""))]
        for path, methods in openapi["paths"].items()
        for method, route in methods.items()
    ]
    said = '<p>The whole description, for programs: <a href="/openapi.json">openapi.json</a>.</p>'
    return _page("Calls", None, said + _table(["method", "path", "what it does"], rows))


def _workers(workers: Iterable[tuple[str, Mapping[str, Any]]], *study: str) -> str:
    """Return who is there; with the head `study`, of which one."""
    rows = [
        [
            _text(worker["client"]),
            _text(worker["device"] or ""),
            *([f'<a href="/studies/{quote(name, safe="")}">{_text(name)}</a>'] if study else []),
            _text("waits" if worker["trial"] is None else f"trial {worker['trial']}"),
            _text(f"{worker['silent_s']:.0f} s ago"),
        ]
        for name, worker in workers
    ]
    if not rows:
        return f"<p>{_text(NO_WORKERS)}</p>"
    return _table(["worker", "device", *study, "does", "heard of"], rows)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table whose cells are HTML already."""
    marks = [f' class="{CLASSES[name]}"' if name in CLASSES else "" for name in heads]
    head = "".join(f"<th{mark}>{_text(name)}</th>" for mark, name in zip(marks, heads, strict=True))

    def line(cells: Sequence[str]) -> str:
        named = zip(marks, map(_text, heads), cells, strict=True)
        row = "".join(f'<td{mark} data-head="{name}">{cell}</td>' for mark, name, cell in named)
        return f"<tr>{row}</tr>"

    body = "".join(line(cells) for cells in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _numbers(*values: float | None) -> list[str]:
    return ["" if value is None else _text(f"{value:.6g}" if isinstance(value, float) else value) for value in values]


def _text(value: Any) -> str:
    return escape(one_line(str(value)))


def _page(title: str, events: str | None, body: str) -> str:
    live = "" if events is None else '<script src="/static/live.js" defer></script>'
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f'<title>{_text(title)} - bstune</title><link rel="stylesheet" href="/static/page.css">'
        f"{live}</head>"
        f'<body data-events="{escape(events or "")}"><p><a href="/">bstune</a> <a href="/docs">calls</a></p>'
        '<p id="away" role="status" hidden></p>'
        f"<main><h1>{_text(title)}</h1>{body}</main></body></html>"
    )

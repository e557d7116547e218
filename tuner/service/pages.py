"""The pages of the service: plain HTML, everything escaped, kept fresh by server-sent events; nothing from outside."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any
from urllib.parse import quote

from ..core.plain_text import one_line
from ..core.trial_record import TrialRecord
from ..report.page_told import Told

STYLE = """\
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem;
  color: #1b1f24; background: #fff; }
table { border-collapse: collapse; width: 100%; } th, td { text-align: left; padding: .25rem .7rem .25rem 0;
  border-bottom: 1px solid #d0d7de; } td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
a { color: #0550ae; }
@media (prefers-color-scheme: dark) { body { color: #e6edf3; background: #0d1117; } a { color: #79c0ff; }
  th, td { border-color: #30363d; } }
"""
SCRIPT = """\
"use strict";
const watched = document.body.dataset.events;
let timer = null;
async function refresh() {
  timer = null;
  const answer = await fetch(location.href, { cache: "no-store" });
  if (!answer.ok) return;
  const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
  const main = fresh.querySelector("main");
  if (main) document.querySelector("main").replaceWith(main);
}
function soon() { if (timer === null) timer = setTimeout(refresh, 500); }
const source = new EventSource(watched);
for (const kind of ["created", "start", "report", "finish", "ended", "failed", "deleted"])
  source.addEventListener(kind, soon);
setInterval(soon, 15000);
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
            _text(study["state"]),
            _text(study["goal"]),
            *_numbers(study["trials"], study["running"], study["spent"], study["best_val_loss"]),
        ]
        for study in studies
    ]
    workers = [(study["name"], worker) for study in studies for worker in study["workers"]]
    body = _table(["study", "state", "goal"], ["trials", "running", "reference runs", "best loss"], rows)
    return _page("Studies", "/v1/events", f"{body}<h2>Workers</h2>{_workers(workers)}")


def study_page(study: Mapping[str, Any], records: Iterable[TrialRecord]) -> str:
    """Return the page of one study."""
    name = study["name"]
    rows = [
        [
            _text(record.stage),
            _text(f"{record.state} {record.reason}"),
            *_numbers(record.number, record.global_batch_size, record.learning_rate, record.samples, record.val_loss),
        ]
        for record in reversed(list(records))
    ]
    said = f"<p>{_text(study['state'])} {_text(study['stopped_by'] or '')} {_text(study['message'])}</p>"
    trials = _table(["stage", "state"], ["trial", "batch size", "learning rate", "samples", "loss"], rows)
    workers = _workers([(name, worker) for worker in study["workers"]])
    path = quote(name, safe="")
    events = f"/v1/studies/{path}/events"
    said += f'<p><a href="/studies/{path}/report">The report, with pictures</a></p>'
    return _page(name, events, f"{said}<h2>Workers</h2>{workers}<h2>Trials</h2>{trials}")


def routes_page(openapi: Mapping[str, Any]) -> str:
    """Return what can be called, from the OpenAPI description."""
    rows = [
        [_text(method.upper()), f"<code>{_text(path)}</code>", _text(route.get("description", ""))]
        for path, methods in openapi["paths"].items()
        for method, route in methods.items()
    ]
    said = '<p>The whole description, for programs: <a href="/openapi.json">openapi.json</a>.</p>'
    return _page("Calls", "/v1/events", said + _table(["method", "path", "what it does"], [], rows))


def _workers(workers: Iterable[tuple[str, Mapping[str, Any]]]) -> str:
    rows = [
        [
            _text(worker["client"]),
            _text(worker["device"] or ""),
            _text(study),
            *_numbers(worker["trial"], worker["silent_s"]),
        ]
        for study, worker in workers
    ]
    return _table(["worker", "device", "study"], ["trial", "seconds since its last sign of life"], rows)


def _table(texts: Sequence[str], numbers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table whose cells are HTML already: first those of text, then those of numbers."""
    head = "".join(f"<th>{_text(name)}</th>" for name in texts)
    head += "".join(f'<th class="n">{_text(name)}</th>' for name in numbers)

    def row(cells: Sequence[str]) -> str:
        first, rest = cells[: len(texts)], cells[len(texts) :]
        said = "".join(f"<td>{cell}</td>" for cell in first) + "".join(f'<td class="n">{cell}</td>' for cell in rest)
        return f"<tr>{said}</tr>"

    body = "".join(row(cells) for cells in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _numbers(*values: float | None) -> list[str]:
    return ["" if value is None else _text(f"{value:.6g}" if isinstance(value, float) else value) for value in values]


def _text(value: Any) -> str:
    return escape(one_line(str(value)))


def _page(title: str, events: str, body: str) -> str:
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f'<title>{_text(title)} - bstune</title><link rel="stylesheet" href="/static/page.css">'
        '<script src="/static/live.js" defer></script></head>'
        f'<body data-events="{escape(events)}"><p><a href="/">bstune</a> <a href="/docs">calls</a></p>'
        f"<main><h1>{_text(title)}</h1>{body}</main></body></html>"
    )

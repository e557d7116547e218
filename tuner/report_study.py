"""Reports of studies: a page, a picture or a card of one, or two side by side; read as `show` reads them."""

from __future__ import annotations

import csv
import io
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import fields as dataclass_fields
from pathlib import Path
from typing import Any

from .core.arguments import SearchArguments
from .core.errors import ArgumentError
from .core.specs import Plan
from .core.trial_record import TRIAL_COLUMNS
from .diagnosis.kept import findings_of, kept_findings
from .diagnosis.known import Known
from .report.output_file import check_output, write_output
from .report.page_told import Told
from .show import show
from .studies.catalog import find_study, newest_study
from .studies.storage import read_storage
from .studies.study import Study, intact, stored_arguments

KINDS = ("html", "png", "svg", "md", "json", "csv")
TEXTS = ("md", "json", "csv")
"""Formats that are printed where no file is named."""


@dataclass(frozen=True)
class WrittenReport:
    """What was made of a study: a text to print, or a file that was written."""

    text: str | None
    path: Path | None


def report(
    studies: Sequence[str] = (), *, storage: str | None = None, output: Path | None = None, kind: str | None = None
) -> WrittenReport:
    """Write a report of a study, or of two side by side.

    Args:
        studies: Up to two names; without one, the study that was used last.
        storage: Where to look.
        output: The file to write; without one, texts are returned, and others written to `report.html`, `.png`, `.svg`.
        kind: One of `KINDS`; the suffix of `output` says it otherwise.

    Raises:
        ArgumentError: Too many studies, or a format that there is not for these.
        BstuneError: There is no such study, the extra `report` is missing, or the file cannot be written.
    """
    kind = kind or (output.suffix.lower().removeprefix(".") if output is not None else "html")
    if kind == "htm":
        kind = "html"
    if kind not in KINDS:
        raise ArgumentError(f"No report is written as {kind!r}. Formats: {', '.join(KINDS)}.")
    if len(studies) > 2 or (len(studies) == 2 and kind != "html"):
        raise ArgumentError("Two studies are compared in a page: bstune report ONE OTHER -o report.html")
    if output is None and kind not in TEXTS:
        output = Path(f"report.{kind}")
    if output is not None:
        check_output(output, (f".{kind}",), "--output", f"report.{kind}")
    if kind not in TEXTS:
        from .report.charts.frame import require_charts

        require_charts()
    told = [told_of(name, storage=storage) for name in (studies or (None,))]
    content = _content(told, kind)
    if output is None:
        return WrittenReport(content.decode(), None)
    write_output(output, content, "--output")
    return WrittenReport(None, output)


def told_of(name: str | None, *, storage: str | None = None) -> Told:
    """Return what a report tells of a study; by default the one that was searched last.

    Raises:
        StudyError: There is no such storage or study.
    """
    with read_storage(storage) as opened:
        study = newest_study(opened, searched=True) if name is None else find_study(opened, name)
        name = name if study is None else study.name
        url = opened.location.url
        with intact(name or ""):
            command = None if study is None else _command(study)
            kept = () if study is None else kept_findings(study)
            used = None if study is None else study.attributes.get("used")
    shown = show(name, storage=storage)
    date = used.replace("T", " ") if isinstance(used, str) else None
    result = shown.result
    known = Known(shown.facts, shown.probe, result, shown.records)
    findings = findings_of(known, kept) if shown.records else ()
    return Told(
        name or "", url, shown.headline, shown.records, shown.probe, result, shown.facts, command, date, findings
    )


def _command(study: Study) -> str | None:
    """Return the command that would start this search, by what the study stores; None where it was not a command."""
    target = study.attributes.get("objective")
    if not isinstance(target, str):
        return None
    path, _, name = target.rpartition(":")
    model = Path(path).name if name == "objective" else f"{Path(path).name}:{name}"
    asked = stored_arguments(study)
    defaults = {item.name: item.default for kind in (Plan, SearchArguments) for item in dataclass_fields(kind)}
    words = ["bstune", "search", model]
    for key, value in asked.items():
        if key in ("space", "probe") or key not in defaults or value in (None, defaults[key]):
            continue
        words += [
            f"--{key.replace('_', '-')}",
            ",".join(map(_word, value)) if isinstance(value, tuple) else _word(value),
        ]
    for key, raw in (asked.get("space") or {}).items():
        words += ["--space", f"{key}={_given(raw)}"]
    return " ".join(map(shlex.quote, words))


def _given(raw: Any) -> str:
    if isinstance(raw, tuple):
        return ":".join(map(str, raw))
    return ",".join(map(str, raw)) if isinstance(raw, list) else str(raw)


def _word(value: Any) -> str:
    """Return a value as a word of a command line: a whole number without what says that it could be another."""
    return f"{value:.0f}" if isinstance(value, float) and value.is_integer() and abs(value) < 1e15 else str(value)


def _content(told: Sequence[Told], kind: str) -> bytes:
    from .report import card
    from .report.comparison import comparison
    from .report.page import page

    first = told[0]
    if kind == "html":
        return (page(first) if len(told) == 1 else comparison(*told)).encode()
    if kind == "csv":
        return _csv(first).encode()
    if kind == "md":
        return card.markdown(first).encode()
    result = card.result_of(first)
    return result.to_json().encode() if kind == "json" else card.picture(result, kind)


def _csv(told: Told) -> str:
    """Return one line for each trial: fixed columns, then parameters and metrics."""
    own = list(dict.fromkeys(name for record in told.records for name in (*record.params, *record.metrics)))
    own = [name for name in own if name not in TRIAL_COLUMNS]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*TRIAL_COLUMNS, *own])
    for record in told.records:
        given = {**record.params, **record.metrics}
        writer.writerow([*(getattr(record, name) for name in TRIAL_COLUMNS), *(given.get(name) for name in own)])
    return text.getvalue()

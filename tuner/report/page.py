"""The page of a search: one HTML file with everything in it, from what `bstune show` knows."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..core.plain_text import hide_secrets, one_line
from ..core.trial_record import TrialRecord
from ..core.version import __version__, versions
from .brief import brief, not_tested
from .charts.frame import STATES, require_charts
from .diagnosis_text import page_findings
from .page_charts import Section, sections
from .page_told import Told, device_text
from .paste import paste_lines
from .reasons import no_advice
from .units import REFERENCE_RUN, duration, gib

HERE = Path(__file__).parent


def page(told: Told) -> str:
    """Return the page of a study.

    Raises:
        BstuneError: A package of the extra `report` is missing.
    """
    require_charts()
    shown, left_out = sections(told.records, told.probe, told.result)
    return rendered(
        "page.html",
        {
            **_answer(told),
            "title": f"{_title(told)} - bstune",
            "study": one_line(told.study, 200),
            "where": one_line(", ".join(filter(None, [device_text(told), told.date])), 300),
            "sections": shown,
            "left_out": left_out,
            "findings": page_findings(told.findings),
            "n_trials": len(told.records),
            "continued": any(record.start_samples for record in told.records),
            "not_tested": [] if told.result is None else not_tested(told.result, told.facts),
            "about": _about(told),
        },
        shown,
        told.records,
    )


def rendered(
    template: str, context: dict[str, Any], shown: Sequence[Section], records: Sequence[TrialRecord] = ()
) -> str:
    """Return a template filled in; all text is escaped, whatever it holds."""
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    charts = [chart for section in shown for chart in section.charts]
    columns, rows = _table(records)
    data = {
        "charts": [{"id": chart.id, "spec": chart.spec, "picks": chart.picks} for chart in charts],
        "columns": columns,
        "trials": rows,
    }
    return environment.get_template(template).render(
        context,
        version=__version__,
        data=data,
        style=Markup((HERE / "page.css").read_text(encoding="utf-8")),  # noqa: S704 RUF100  # A file of our own.
        script=Markup((HERE / "page.js").read_text(encoding="utf-8")),  # noqa: S704 RUF100
        bundle=Markup(bundle()),  # noqa: S704 RUF100
    )


@functools.cache
def bundle() -> str:
    """Return Vega, Vega-Lite and Vega-Embed as one script, so that the page needs no network."""
    import vl_convert

    return vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed").replace("</script", "<\\/script")


def _title(told: Told) -> str:
    return "No answer yet" if told.result is None else brief(told.result).title


def _answer(told: Told) -> dict[str, Any]:
    if told.result is None:
        failed = [record for record in told.records if record.state == "failed"]
        why = "No trial has a finite validation loss yet, so there is nothing to recommend."
        if not told.records:
            why = "No trial has been run yet, so there is nothing to recommend."
        reasons = dict.fromkeys(one_line(record.reason, 400) for record in failed if record.reason)
        return {
            "standing": "none",
            "badge": f"{len(failed)} of {len(told.records)} trials failed" if failed else "No answer",
            "answer": "No answer yet",
            "split": why,
            "parts": (),
            "warnings": [f"Why trials failed: {reason}" for reason in list(reasons)[:5]],
            "paste": None,
        }
    said, nothing = brief(told.result), no_advice(told.result.recommendation.warnings)
    finished = told.result.stopped_by != "interrupted"
    return {
        "standing": said.standing,
        "badge": f"{said.badge}{'' if finished else '; the search is not finished'}",
        "answer": said.title,
        "split": said.split,
        "parts": said.parts,
        "warnings": [one_line(warning) for warning in told.result.recommendation.warnings],
        "paste": None if nothing else "\n".join(paste_lines(told.result, told.facts)),
    }


def _about(told: Told) -> list[tuple[str, str]]:
    spent = None if told.result is None else told.result.spent
    made_with = versions() if told.result is None else told.result.versions
    found = [
        ("Command", told.command),
        ("Study", f"{told.study} in {told.storage}"),
        ("State", told.headline),
        ("Device", device_text(told)),
        ("Memory", None if told.probe is None else f"{gib(told.probe.usable_bytes)} usable"),
        ("Date", told.date),
        (
            "Training data",
            told.facts and f"{told.facts.n_samples:,} {told.facts.size_unit}, {told.facts.epochs:g} epochs",
        ),
        (
            "Cost",
            spent
            and f"{duration(spent.seconds)} of training (measured), {spent.samples:,} samples{_for_noise(told)}, "
            f"{spent.reference_runs:.2f} reference runs ({REFERENCE_RUN})",
        ),
        ("Versions", ", ".join(f"{name} {value}" for name, value in made_with.items())),
    ]
    return [(name, hide_secrets(one_line(value, 600))) for name, value in found if value]


def _for_noise(told: Told) -> str:
    """Return how many of the samples that a search has cost were drawn beside the training of its trials."""
    trained = sum(max(0, record.samples - record.start_samples) for record in told.records)
    drawn = 0 if told.result is None else told.result.spent.samples - trained
    return f" (of these {drawn:,} to measure gradient noise)" if drawn > 0 else ""


_COLUMNS: tuple[dict[str, Any], ...] = (
    {"title": "trial", "whole": True},
    {"title": "batch", "whole": True, "brief": True},
    {"title": "learning rate", "brief": True},
    {"title": "samples", "whole": True, "brief": True},
    {"title": "loss", "brief": True},
    {"title": "state", "text": True, "brief": True},
    {"title": "stage", "text": True, "brief": True},
    {"title": "seconds, measured"},
    {"title": "peak MiB", "whole": True},
    {"title": "micro-batch", "whole": True},
    {"title": "accumulation", "whole": True},
    {"title": "seed", "whole": True},
)


def _table(records: Sequence[TrialRecord]) -> tuple[list[dict[str, Any]], list[list[Any]]]:
    """Return the columns of the table of trials, the user's own among them, and its rows."""
    own = list(dict.fromkeys(name for record in records for name in (*record.params, *record.metrics)))[:12]
    continued = any(record.start_samples for record in records)
    itself = [{"title": "trained itself", "whole": True}] if continued else []
    columns = [*_COLUMNS[:4], *itself, *_COLUMNS[4:], *({"title": one_line(name, 60)} for name in own)]
    columns.append({"title": "what came of it", "text": True, "reason": True})
    rows = []
    for record in records:
        given = {**record.params, **record.metrics}
        rows.append(
            [
                record.number,
                record.global_batch_size,
                record.learning_rate,
                record.samples,
                *([record.samples - record.start_samples] if continued else []),
                record.val_loss,
                STATES.get(record.state, record.state),
                one_line(record.stage, 40),
                record.seconds,
                None if record.peak_bytes is None else round(record.peak_bytes / 2**20),
                record.micro_batch_size,
                record.accumulation_steps,
                record.seed,
                *(_plain(given.get(name)) for name in own),
                one_line(record.reason, 300),
            ]
        )
    return columns, rows


def _plain(value: Any) -> Any:
    return value if value is None or isinstance(value, (int, float)) else one_line(value, 120)

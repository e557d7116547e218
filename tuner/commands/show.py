"""`bstune show`: what a study knows."""

from __future__ import annotations

import click

from .group import print_answer, print_warnings
from .options import output_options, storage_option


@click.command("show", epilog="\b\nExample:\n  bstune show digits --json")
@click.argument("study", required=False)
@click.option("--log", type=int, metavar="TRIAL", help="Print what this trial of a command has printed.")
@storage_option
@output_options
def show_command(study: str | None, log: int | None, storage: str | None, as_json: bool) -> None:
    """Show what a study knows, also while a search runs.

    STUDY is its name; without one the newest is shown.
    """
    from ..report.text import probe_text, search_text, trials_text
    from ..show import show, show_log

    if log is not None:
        from ..core.plain_text import printable

        print_answer(printable(show_log(study, log, storage=storage)))
        return

    shown = show(study, storage=storage)
    if as_json:
        print_answer(shown.require_result().to_json(), as_json=True)
        return
    parts = [shown.headline]
    if shown.probe is not None:
        parts.append(probe_text(shown.probe))
    if shown.records:
        parts.append(trials_text(shown.records))
    if shown.result is not None:
        print_warnings(shown.result.recommendation.warnings)
        parts.append(f"\n{search_text(shown.result, shown.facts)}")
    print_answer("\n".join(parts))

"""`bstune show`: what a study knows."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from ..report.terminal import note
from .group import INTERRUPTED, print_answer
from .options import output_options, storage_option, verbose_option

if TYPE_CHECKING:
    from ..show import Shown


@click.command("show", epilog="\b\nExample:\n  bstune show digits --json")
@click.argument("study", required=False)
@click.option(
    "--watch",
    is_flag=True,
    help="Follow a search until it ends, then show what it found. Ctrl-C stops only the watching, with exit code 130.",
)
@click.option("--log", type=int, metavar="TRIAL", help="Print what this trial of a command has printed.")
@storage_option
@verbose_option
@output_options
@click.pass_context
def show_command(
    ctx: click.Context,
    study: str | None,
    watch: bool,
    log: int | None,
    storage: str | None,
    verbose: bool,
    as_json: bool,
) -> None:
    """Show what a study knows, also while a search runs.

    STUDY is its name; without one the newest is shown.
    """
    from ..show import show, show_log, watched

    if log is not None:
        from ..core.plain_text import printable

        print_answer(printable(show_log(study, log, storage=storage)))
        return

    shown = show(study, storage=storage)
    if watch:
        try:
            shown = watched(shown, lambda: show(shown.study, storage=storage))
        except KeyboardInterrupt:
            note("Stopped watching. The search goes on.")
            ctx.exit(INTERRUPTED)
    if as_json:
        print_answer(shown.require_result().to_json(), as_json=True)
    else:
        _print(shown, verbose=verbose)


def _print(shown: Shown, *, verbose: bool) -> None:
    from ..report.study_text import study_text
    from ..report.view import view_of

    view = view_of(sys.stdout)
    text = study_text(
        shown.headline,
        shown.records,
        shown.probe,
        shown.result,
        shown.facts,
        is_running=shown.is_running,
        view=view,
        verbose=verbose,
    )
    print_answer(text, styled=view.colour)

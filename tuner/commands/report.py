"""`bstune report`: a page, a picture or a card of a study, to look at and to share."""

from __future__ import annotations

from pathlib import Path

import click

from ..report.terminal import note
from .group import print_answer
from .options import debug_option, storage_option

_KINDS = ("html", "png", "svg", "md", "json", "csv")


@click.command(
    "report",
    epilog="\b\nExample:\n  bstune report digits -o report.html\n  bstune report digits -o card.png\n"
    "  bstune report digits --format md",
)
@click.argument("studies", nargs=-1, metavar="[STUDY [OTHER]]")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="The file to write.  [default: report.html; md, json and csv are printed]",
)
@click.option(
    "--format",
    "kind",
    type=click.Choice(_KINDS),
    help="A page (html), a picture (png, svg), a card of some 20 lines (md), the result (json), the trials (csv).  "
    "[default: as the suffix of the file says, else html]",
)
@storage_option
@debug_option
def report_command(studies: tuple[str, ...], output: Path | None, kind: str | None, storage: str | None) -> None:
    """Write a report of a study, to look at and to pass on, also while a search runs.

    STUDY is its name; without one the newest search is taken. With OTHER, one page shows both side by side. A page is
    one file that needs no network.
    """
    from ..report_study import report

    made = report(studies, storage=storage, output=output, kind=kind)
    if made.text is not None:
        print_answer(made.text.rstrip("\n"), as_json=kind == "json")
    else:
        note(f"Written: {made.path}")

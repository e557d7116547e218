"""`bstune list`: the studies of a storage."""

from __future__ import annotations

import click

from ..report.terminal import note
from .group import print_answer
from .options import output_options, storage_option


@click.command("list", epilog="\b\nExample:\n  bstune list --storage sqlite:///bstune.db")
@storage_option
@output_options
def list_command(storage: str | None, as_json: bool) -> None:
    """List the studies of a storage: when each was begun or gone on with last, its objective, device and answer.

    The answer is batch size and learning rate; a question mark says that it is not verified.
    """
    from ..core.record import json_text
    from ..list_studies import list_studies, unlisted
    from ..report.study_table import study_table

    listed = [each.to_dict() for each in list_studies(storage=storage)]
    print_answer(json_text(listed) if as_json else study_table(listed), as_json=as_json)
    if not listed and (said := unlisted(storage=storage)) is not None:
        note(said)

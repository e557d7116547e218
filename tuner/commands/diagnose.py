"""`bstune diagnose`: which claims about batch size and learning rate hold for a model."""

from __future__ import annotations

import shlex
import sys
from typing import Any

import click

from .group import is_kept, print_answer, terminable
from .options import (
    WithCommand,
    command_of,
    command_options,
    device_option,
    no_model,
    output_options,
    storage_option,
    study_option,
    threads_option,
)


class Names(click.ParamType):  # type: ignore[type-arg]  # Generic in newer releases of click only.
    """`NAME,...` of --only."""

    name = "NAME,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the names."""
        return tuple(part.strip() for part in value.split(",")) if isinstance(value, str) else value


@click.command(
    "diagnose",
    cls=WithCommand,
    epilog="\b\nExample:\n  bstune diagnose model.py --only coupling,largest-fastest\n  bstune diagnose --list",
)
@click.argument("model", required=False)
@click.option("--only", type=Names(), help="Findings to look at, by name.  [default: all]")
@click.option(
    "--budget",
    type=float,
    default=3.0,
    help="Training that may be spent on measurements, in reference runs; 0 for none.",
)
@click.option(
    "--list",
    "lists",
    is_flag=True,
    help="List all findings with the seconds that each costs (by the probe of MODEL); nothing is run.",
)
@device_option
@threads_option
@click.option("--seed", type=int, default=0, help="Seed of model and data.")
@click.option("--fresh", is_flag=True, help="Measure anew what an earlier call has measured.")
@command_options
@study_option
@storage_option
@output_options
@click.pass_context
def diagnose_command(ctx: click.Context, /, model: str | None, lists: bool, as_json: bool, **options: Any) -> None:
    """Say which claims about batch size and learning rate hold for your model, and what to do.

    MODEL is model.py, model.py:name or package.module:name; it defines `objective`. What a probe and a search have
    recorded is not run again: search first, and most findings cost nothing. What is left is measured on fresh models of
    yours, in worker processes. In place of MODEL a COMMAND after `--` runs a script as it is.
    """
    from ...objectives.load import load
    from ..diagnose import diagnose
    from ..report.diagnosis_text import diagnosis_text
    from ..report.live import make_progress
    from ..report.view import view_of

    command = command_of(ctx, model, options)
    if lists:
        _list(None if command or model is None else load(str(model)), options)
        return
    if model is None and command is None:
        raise no_model()
    progress = make_progress()
    with progress, terminable():
        result = diagnose(
            command or load(str(model)),
            **options,
            on_attempt=progress.tried,
            on_note=lambda text: progress.print(f"diagnose  {text}"),
        )
    kept = "What was found is stored: run the same command again." if is_kept(options["storage"]) else None
    named = "MODEL" if model is None else shlex.quote(model)
    view = view_of(sys.stdout)
    text = result.to_json() if as_json else diagnosis_text(result, view, model=named)
    print_answer(text, as_json=as_json, styled=view.colour, kept=kept)


def _list(objective: Any, options: dict[str, Any]) -> None:
    from ..diagnose import costs
    from ..report.diagnosis_text import claims_text
    from ..report.view import view_of

    view = view_of(sys.stdout)
    print_answer(claims_text(costs(objective, **options), view, budget=options["budget"]), styled=view.colour)

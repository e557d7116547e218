"""`bstune plan`: what fits a card that is not here."""

from __future__ import annotations

import sys
from typing import Any

import click

from .group import print_answer, terminable
from .options import device_option, output_options


@click.command("plan", epilog="\b\nExample:\n  bstune plan model.py --gpu 'H100 80GB' --gpu 'RTX 4090' --memory 16GiB")
@click.argument("model")
@click.option("--gpu", multiple=True, help="Name of a card, such as 'H100 80GB'; may be given several times.")
@click.option("--memory", multiple=True, help="Memory of another card, such as 24GiB; may be given several times.")
@click.option("--headroom", type=float, default=0.05, help="Share of the card's memory that is left free.")
@click.option("--multiple-of", type=int, default=1, help="The size is a multiple of this many samples.")
@device_option
@click.option("--seed", type=int, default=0, help="Seed of model and data in the traced steps.")
@output_options
def plan_command(model: str, as_json: bool, **options: Any) -> None:
    """Predict what fits on a card that is not here, from a few steps traced on the device that is.

    MODEL is model.py, model.py:name or package.module:name; it defines `objective`.
    """
    from ...objectives.load import load
    from ..plan import check_plan, plan
    from ..report.text import plan_text
    from ..report.view import view_of

    check_plan(**options)
    with terminable():
        result = plan(load(model), **options)
    view = view_of(sys.stdout)
    print_answer(result.to_json() if as_json else plan_text(result, view), as_json=as_json, styled=view.colour)

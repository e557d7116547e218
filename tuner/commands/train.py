"""`bstune train`: a full run with what a study recommends, and the model saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .group import print_answer, print_warnings, terminable
from .options import device_option, output_options, storage_option, threads_option


@click.command("train", epilog="\b\nExample:\n  bstune train model.py -o model.pt")
@click.argument("model")
@click.option(
    "--output",
    "-o",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("model.pt"),
    help="Where the model is saved; a file that bstune did not write for this study is left alone.",
)
@click.option("--study", help="Name of the study.  [default: the one of this objective]")
@click.option("--seed", type=int, default=0, help="Seed of initialisation, data order and dropout.")
@device_option
@threads_option
@storage_option
@output_options
def train_command(model: str, as_json: bool, **options: Any) -> None:
    """Train with what a study recommends, to the end of a full run, and save the model.

    MODEL is model.py, model.py:name or package.module:name; it defines `objective`, which `bstune search` has
    searched.
    """
    from ...objectives.load import load
    from ..report.live import make_progress
    from ..report.text import train_text
    from ..report.units import number
    from ..train import train

    progress = make_progress()
    with progress, terminable():
        result = train(
            load(model),
            **options,
            on_report=lambda report: progress.print(f"{report.samples:>12,} samples  loss {number(report.val_loss)}"),
        )
    print_warnings(result.warnings)
    kept = f"The model is saved in {result.path}."
    print_answer(result.to_json() if as_json else train_text(result), as_json=as_json, kept=kept)

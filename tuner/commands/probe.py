"""`bstune probe`: the largest size that fits."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from .group import is_kept, print_answer, print_warnings, terminable
from .options import (
    WithCommand,
    command_of,
    command_options,
    device_option,
    no_model,
    output_options,
    several,
    space_option,
    storage_option,
    study_option,
    threads_option,
)

# What may be used, and which answers are of use.
_bounds = several(
    device_option,
    click.option(
        "--memory",
        help="Most memory to use, such as 12GiB or 800MB.  [default: all that the device and the container leave]",
    ),
    click.option("--headroom", type=float, default=0.05, help="Share of the usable memory that is left free."),
    click.option("--min-batch", type=int, default=1, help="Smallest micro-batch that is useful to you, in samples."),
    threads_option,
    click.option("--max-batch", type=int, help="Largest micro-batch to try, in samples.  [default: the data set]"),
    click.option("--multiple-of", type=int, default=1, help="The answer is a multiple of this many samples."),
    click.option(
        "--timeout", type=float, help="Seconds after which the best size so far is returned.  [default: none]"
    ),
)
# How sizes are tried, and what becomes of the answer.
_trying = several(
    click.option("--seed", type=int, default=0, help="Seed of model and data in each attempt."),
    space_option,
    click.option(
        "--malloc",
        default="default",
        help="On CPU: default, or stable (memory use repeats from run to run, but steps are slower).",
    ),
    click.option("--fresh", is_flag=True, help="Probe again, even if the same probe is stored."),
    click.option(
        "--plot",
        type=click.Path(dir_okay=False, path_type=Path),
        help="Draw memory and throughput to this file, such as probe.png.",
    ),
    command_options,
    study_option,
    storage_option,
    output_options,
)


@click.command(
    "probe",
    cls=WithCommand,
    epilog="\b\nExample:\n  bstune probe model.py --memory 12GiB --multiple-of 8\n"
    "  bstune probe --max-batch 512 -- python train.py --batch-size {micro_batch_size}",
)
@click.argument("model", required=False)
@_bounds
@_trying
@click.pass_context
def probe_command(ctx: click.Context, /, model: str | None, as_json: bool, plot: Path | None, **options: Any) -> None:
    """Find the largest micro-batch that fits, and what a step costs.

    MODEL is model.py, model.py:name or package.module:name; it defines `objective`. In its place a COMMAND after `--`
    runs a script as it is, with {micro_batch_size} where the script takes its batch size. Dimensions of your own in
    --space are set to the middle of their values, as in the probe of a search.
    """
    from ...objectives.load import load
    from ..core.arguments import check_probe
    from ..probe import probe_checked
    from ..report.live import make_progress
    from ..report.text import probe_text
    from ..report.view import view_of

    command = command_of(ctx, model, options)
    if model is None and command is None:
        raise no_model()
    options["space"] = dict(options["space"])
    arguments = check_probe(**options)
    if plot is not None:
        from ..report.plot import check_picture, draw_probe

        check_picture(plot)
    progress = make_progress()
    with progress, terminable():
        result = probe_checked(
            command or load(str(model)),
            arguments,
            on_attempt=progress.tried,
            on_note=lambda text: progress.print(f"probe  {text}"),
        )
    print_warnings(result.warnings)
    kept = "What was probed is stored: run the same command again." if is_kept(arguments.storage) else None
    view = view_of(sys.stdout)
    text = result.to_json() if as_json else probe_text(result, view)
    print_answer(text, as_json=as_json, styled=view.colour, kept=kept)
    if plot is not None:
        draw_probe(result, plot)

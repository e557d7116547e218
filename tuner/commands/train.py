"""`bstune train`: a full run with what a study recommends, and the model saved."""

from __future__ import annotations

import os
import shlex
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import click

from ..core.errors import ArgumentError, BstuneError
from ..report.terminal import note
from .group import print_answer, print_warnings, terminable
from .options import WithCommand, device_option, no_model, output_options, storage_option, threads_option, words_after


@click.command(
    "train",
    cls=WithCommand,
    epilog="\b\nExample:\n  bstune train model.py -o model.pt\n"
    "  bstune train -- python train.py --batch-size {micro_batch_size} --lr {learning_rate}",
)
@click.argument("model", required=False)
@click.option(
    "--output",
    "-o",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Where the model is saved; a file that bstune did not write for this study is left alone.  "
    "[default: model.pt]",
)
@click.option("--study", help="Name of the study.  [default: the one of this objective that was searched last]")
@click.option("--seed", type=int, default=0, help="Seed of initialisation, data order and dropout.")
@device_option
@threads_option
@storage_option
@output_options
@click.pass_context
def train_command(ctx: click.Context, /, model: str | None, as_json: bool, output: Path | None, **options: Any) -> None:
    """Train with what a study recommends, to the end of a full run, and save the model.

    MODEL is model.py, model.py:name or package.module:name; it defines `objective`, which `bstune search` has
    searched. In its place a COMMAND after `--`, the one that was searched, is run with the recommended values in its
    places, as if you had called it: it replaces the process of bstune, and the exit code is the command's.
    """
    words = words_after(ctx, model)
    if words is not None:
        if as_json or output is not None:
            raise ArgumentError("--json, --output: not with a command, which prints and saves by itself.")
        _run(words, **options)
    if model is None:
        raise no_model()
    from ...objectives.load import load
    from ..report.live import make_progress
    from ..report.text import train_text
    from ..report.units import number
    from ..train import DEFAULT_OUTPUT, train

    progress = make_progress()
    with progress, terminable():
        result = train(
            load(model),
            **options,
            output=output or DEFAULT_OUTPUT,
            on_report=lambda report: progress.print(f"{report.samples:>12,} samples  loss {number(report.val_loss)}"),
        )
    print_warnings(result.warnings)
    kept = f"The model is saved in {result.path}."
    print_answer(result.to_json() if as_json else train_text(result), as_json=as_json, kept=kept)


def _run(words: Sequence[str], **options: Any) -> NoReturn:
    """Become the command, with the recommended values in its places."""
    from ...objectives.command import Command
    from ..train import recommended_command

    ready = recommended_command(Command(words, samples_per_epoch=1), **options)  # How many there are, the study knows.
    print_warnings(ready.warnings)
    note(f"Study {ready.study}: {shlex.join(ready.words)}")
    _become(ready.words, {**os.environ, **ready.environment})


def _become(words: Sequence[str], environment: Mapping[str, str]) -> NoReturn:
    for name in ("SIGPIPE", "SIGXFSZ"):  # Python ignores them, and a program that it becomes would as well.
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_DFL)
    try:
        os.execvpe(words[0], list(words), dict(environment))
    except OSError as error:
        raise BstuneError(f"The command cannot start: {words[0]}: {error.strerror}.") from error

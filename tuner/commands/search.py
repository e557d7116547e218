"""`bstune search`: find the setting, or go on with a stored study."""

from __future__ import annotations

import contextlib
import functools
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from ..core.errors import StudyError
from ..core.plain_text import one_line
from ..report.terminal import note
from .group import is_kept, print_answer, print_warnings, terminable
from .options import (
    AutoOrNumber,
    BatchAndRate,
    RunsOrTime,
    WithCommand,
    command_of,
    command_options,
    device_option,
    output_options,
    probe_file_option,
    several,
    space_option,
    storage_option,
    study_option,
    threads_option,
    token_option,
    verbose_option,
)

if TYPE_CHECKING:
    from ..core.arguments import SearchArguments
    from ..core.results import SearchResult
    from ..core.specs import Forecast
    from ..report.progress import PlainProgress


_EXAMPLES = (
    "\b\nExample:\n  bstune search model.py --budget 8\n"
    "  bstune search model.py --space batch_size=32,64,128 --space learning_rate=1e-4:1e-1\n"
    "  bstune search --samples-per-epoch 50000 -- python train.py --batch-size {micro_batch_size} --lr {learning_rate}"
)

# What the search is to find, and for how much.
_aims = several(
    click.option(
        "--budget",
        type=RunsOrTime(),
        default=12.0,
        help="Most that the study may train, confirmation included and the probe not: reference runs, such as 8, or a "
        "duration, such as 20min or 1.5h. How much of it is used is said before.",
    ),
    click.option("--n-trials", type=int, help="Largest number of trials in the study.  [default: none]"),
    click.option("--timeout", type=float, help="Seconds after which the best so far is returned.  [default: none]"),
    click.option(
        "--goal",
        default="time",
        help="time (fewest seconds to --target), loss (lowest at equal samples), or largest (the largest batch that "
        "costs no loss).",
    ),
    click.option(
        "--target", type=float, help="Validation loss to reach, with --goal time.  [default: chosen from the first run]"
    ),
    click.option("--tolerance", type=float, default=0.02, help="Share of the best loss that counts as equal."),
    space_option,
    click.option(
        "--baseline",
        type=BatchAndRate(),
        metavar="BATCH,LR",
        help="Your present setting, to be measured as well.  [default: none]",
    ),
    click.option("--confirm", type=int, default=3, help="Largest number of fresh seeds for each finalist."),
)
# How trials are run, and by whom.
_ways = several(
    click.option(
        "--jobs",
        type=AutoOrNumber(),
        default=1,
        help="Trials that run at the same time, or auto: on CPU as many as cores and memory allow, at most 8; "
        "elsewhere one.",
    ),
    click.option("--seed", type=int, default=0, help="Seed of all trials; confirmation runs use the seeds after it."),
    click.option("--pruner", default="auto", help="auto, or none to let every trial run to its end."),
    click.option("--sampler", default="auto", help="auto; for comparison, random or tpe."),
    click.option(
        "--trial-timeout",
        type=float,
        help="Seconds of silence after which a trial counts as hung.  [default: 20 times the expected time, "
        "or a day where nothing tells that]",
    ),
    click.option(
        "--engine",
        default="optuna",
        help="Who runs the trials: optuna (this machine), or ray (Ray Tune, here or on a cluster).",
    ),
    click.option(
        "--ray-address",
        help="With --engine ray: auto or HOST:PORT of a cluster to join.  [default: start Ray here, on loopback]",
    ),
    click.option(
        "--isolation", default="process", help="process, or none to run a cheap, trusted function in this process."
    ),
    probe_file_option,
)
# Where the search is led, and what it is of.
_places = several(
    click.option(
        "--server",
        metavar="URL",
        help="Have a service lead the search (`bstune serve`), and be its first worker.  [default: search here]",
    ),
    token_option,
    command_options,
    device_option,
    threads_option,
    study_option,
)
# What is taken over, kept and shown.
_keeping = several(
    click.option("--fresh", is_flag=True, help="Keep the old study and make a new one, NAME-2."),
    click.option(
        "--fresh-prior",
        is_flag=True,
        help="Begin a new study as if nothing were known about its model.  [default: begin at the best setting of an "
        "earlier study of the same model on other data]",
    ),
    click.option(
        "--save-model",
        metavar="FILE",
        help="Keep the best model of the confirmation runs, which are full runs.  [default: keep none]",
    ),
    click.option("--dry-run", is_flag=True, help="Print the forecast and train nothing."),
    click.option(
        "--yes",
        is_flag=True,
        help="Without MODEL: run the file that the study stores, even if bstune cannot be sure that you chose it.",
    ),
    storage_option,
    verbose_option,
    output_options,
)


@click.command(
    "search",
    cls=WithCommand,
    epilog=_EXAMPLES,
)
@click.argument("model", required=False)
@_aims
@_ways
@_places
@_keeping
@click.pass_context
def search_command(
    ctx: click.Context,
    /,
    model: str | None,
    as_json: bool,
    verbose: bool,
    dry_run: bool,
    yes: bool,
    server: str | None,
    token_file: Path | None,
    **options: Any,
) -> None:
    """Find the batch size and the learning rate to train with.

    MODEL is model.py, model.py:name or package.module:name; it defines `objective`. In its place a COMMAND after `--`
    runs a script as it is, with {micro_batch_size} and {learning_rate} where the script takes them, and, where it can,
    {accumulation_steps}, {global_batch_size}, {max_epochs}, {max_samples}, {seed} and {trial}. Without MODEL and
    COMMAND, the newest study that stores a file is continued, provided that you started it on this machine and the file
    has not changed; otherwise bstune says why not, and runs it only with --yes. Running the same command again resumes:
    nothing that was finished is run again.
    """
    from ...objectives.load import load
    from ..core.document import read_probe
    from ..report.live import make_progress
    from ..search import SearchInterrupted, run_forecast, run_search

    command = command_of(ctx, model, options)
    options["space"] = dict(options["space"])
    probe_file = options.pop("probe_file")
    options["probe"] = None if probe_file is None else read_probe(probe_file)
    given = {name for name in options if ctx.get_parameter_source(name) not in (ParameterSource.DEFAULT, None)}
    progress = make_progress()
    arguments = _arguments(options, progress)  # What is wrong on its face is said before the storage is looked at.
    if model is None and command is None:
        model, options = _stored(options, given, yes=yes)
        arguments = _arguments(options, progress)
    objective = command or load(str(model))
    show = functools.partial(_show, progress, as_json=as_json, verbose=verbose, storage=arguments.storage)
    if server is not None:
        from .worker import search_at_server

        asked = {name: options[name] for name in given}
        show(search_at_server(server, token_file, objective, asked, arguments, progress))
        return
    if dry_run:
        with _undisturbed(progress):
            forecast = run_forecast(objective, arguments)
        _show_forecast(forecast, as_json=as_json)
        return
    try:
        with _undisturbed(progress):
            result = run_search(objective, arguments)
    except SearchInterrupted as error:
        if error.result is not None:
            try:
                show(error.result)
            except click.ClickException as unprinted:
                note(unprinted.message)
        raise
    show(result)


@contextlib.contextmanager
def _undisturbed(progress: PlainProgress) -> Iterator[None]:
    """Show progress; with isolation="none" the user's prints are ours, and must not stand in the answer."""
    with progress, terminable(), contextlib.redirect_stdout(sys.stderr):
        yield


def _arguments(options: dict[str, Any], progress: PlainProgress) -> SearchArguments:
    from ..core.arguments import check_search

    return check_search(**options, callbacks=[progress])


def _show_forecast(forecast: Forecast, *, as_json: bool) -> None:
    from ..report.progress import forecast_line

    text = forecast.to_json() if as_json else forecast_line(forecast)
    print_answer(text, as_json=as_json)


def _show(progress: PlainProgress, result: SearchResult, *, as_json: bool, verbose: bool, storage: str | None) -> None:
    from ..report.text import search_text
    from ..report.view import view_of

    kept = (
        f"It is stored, and `bstune show {shlex.quote(one_line(result.study))}` shows it." if is_kept(storage) else None
    )
    if as_json:
        print_warnings(result.recommendation.warnings)
        print_answer(result.to_json(), as_json=True, kept=kept)
        return
    view = view_of(sys.stdout)
    print_answer(search_text(result, progress.facts, view=view, verbose=verbose), styled=view.colour, kept=kept)


def _stored(options: dict[str, Any], given: set[str], *, yes: bool) -> tuple[str, dict[str, Any]]:
    """Return file and arguments of the newest study that stores a file; what is given now replaces what is stored."""
    from ...objectives.seal import require_trusted, shown_target, stored_reference
    from ..core.plain_text import one_line
    from ..studies.catalog import newest_study
    from ..studies.storage import read_storage
    from ..studies.study import intact, stored_arguments

    try:
        with read_storage(options["storage"]) as storage:
            study = newest_study(storage, name=options["study"], with_file=True)
            with intact(study.name):
                stored = stored_arguments(study)
    except StudyError as error:
        raise StudyError(f"There is no search to continue. {error}") from error
    reference = stored_reference(study)
    if not yes:
        require_trusted(study, reference)
    # The study says how to search, never where it is kept.
    kept = {
        name: value for name, value in stored.items() if name in options and name not in {*given, "study", "storage"}
    }
    if "goal" in given and "target" not in given and options["goal"] != "time":
        kept.pop("target", None)  # It belonged to the goal that is given up.
    options = {**options, **kept, "study": study.name}
    where = f" on the Ray cluster at {one_line(options['ray_address'])}" if options["ray_address"] else ""
    note(f"Going on with study {one_line(study.name)}: runs {shown_target(reference)}{where}")
    return reference.target, options

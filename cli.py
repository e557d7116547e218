"""The command line: parse, call the front door, print. Up here only click and the standard library are imported."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import shlex
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from . import __version__
from .tuner.core.errors import ArgumentError, BstuneError, NothingFitsError, ObjectiveError, StudyError
from .tuner.core.plain_text import one_line
from .tuner.report.terminal import answer, harmless, keep_secret, note, ready

if TYPE_CHECKING:
    from .tuner.core.arguments import SearchArguments
    from .tuner.core.results import SearchResult
    from .tuner.core.trials import Facts
    from .tuner.report.progress import PlainProgress

NOTHING_FITS = 3
INTERRUPTED = 130

_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 110, "show_default": True}


class _Commands(click.Group):
    """Turns what can go wrong into one message and an exit code, in one place."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Run as a program, also where stdin, stdout or stderr is closed, full, or read by nobody."""

        def run() -> Any:
            return super(_Commands, self).main(args, prog_name, complete_var, standalone_mode=False, **extra)

        if not standalone_mode:
            return run()
        with ready():
            keep_secret(os.environ.get("BSTUNE_STORAGE"))
            sys.exit(_exit_code(run))

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except ArgumentError as error:
            _explain(ctx, error)
            raise click.UsageError(str(error)) from error
        except NothingFitsError as error:
            _explain(ctx, error)
            raise _NothingFits(str(error)) from error
        except BstuneError as error:
            _explain(ctx, error)
            raise _Failed(str(error)) from error
        except KeyboardInterrupt as error:
            _explain(ctx, error)
            note("Interrupted. What was finished is stored; the same command goes on from there.")
            ctx.exit(INTERRUPTED)


def _exit_code(run: Callable[[], int | None]) -> int:
    """Run, say what went wrong, and return the exit code."""
    try:
        return run() or 0
    except click.ClickException as error:
        said = io.StringIO()
        error.show(said)
        note(said.getvalue().rstrip("\n"))
        return error.exit_code
    except click.Abort:  # Ctrl-C before a command has begun.
        return INTERRUPTED
    except Exception as error:
        if (
            isinstance(error, OSError) and traceback.extract_tb(error.__traceback__)[-1].name == "echo"
        ):  # What click prints, such as --help.
            note(f"Error: {_unprinted(error)}")
        else:
            note(
                "".join(traceback.format_exception(error))
                + "This is a mistake in bstune. Please report it, with these lines."
            )
        return 1


class _Failed(click.ClickException):
    exit_code = 1


class _NothingFits(click.ClickException):
    exit_code = NOTHING_FITS


def _set_debug(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    ctx.find_root().ensure_object(dict)["debug"] = value


def _explain(ctx: click.Context, error: BaseException) -> None:
    """Show the user's own traceback and output; ours only when asked for."""
    if ctx.ensure_object(dict).get("debug"):
        note("".join(traceback.format_exception(error)))
    if isinstance(error, ObjectiveError):
        if error.traceback:
            note(error.traceback.rstrip())
        if error.output:
            note(f"The last lines that it printed:\n{error.output.rstrip()}")


def _unprinted(error: OSError, where: str = "") -> str:
    why = "stdout is closed" if error.errno == errno.EBADF else (error.strerror or str(error)).lower()
    return f"The answer could not be printed: {why}.{where}"


def _answer(text: str, *, as_json: bool = False, kept: str | None = None) -> None:
    """Print what was asked for, made harmless unless it is JSON, which is already; `kept` says how to see it later."""
    try:
        answer(text if as_json else harmless(text))
    except OSError as error:
        if error.errno == errno.EPIPE and kept is None:  # As `| head` does it on purpose.
            raise click.exceptions.Exit(1) from error
        raise _Failed(_unprinted(error, "" if kept is None else f" {kept}")) from error


def _options(*options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def decorate(function: Any) -> Any:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


def _check_storage(_: click.Context, __: click.Parameter, value: str | None) -> str | None:
    if value is not None:
        from .tuner.core.arguments import check_storage

        keep_secret(value)
        check_storage(value)
    return value


_storage_option = click.option(
    "--storage",
    callback=_check_storage,
    help="Where studies are kept: sqlite:///FILE, journal:///FILE, postgresql://... or mysql://...  "
    "[default: $BSTUNE_STORAGE, else sqlite:///bstune.db]",
)
_output_options = _options(
    click.option("--json", "as_json", is_flag=True, help="Print exactly one JSON document to stdout."),
    click.option(
        "--debug",
        is_flag=True,
        expose_value=False,
        callback=_set_debug,
        help="On an error, show bstune's own traceback too.",
    ),
)
_study_option = click.option("--study", help="Name of the study.  [default: the objective's name, else the file's]")
_device_option = click.option("--device", default="auto", help="auto (CUDA when it works), cpu, cuda or cuda:N.")


class _Auto(click.ParamType):  # type: ignore[type-arg]
    """`auto` or a number; what else may be is for the library to say."""

    name = "auto|N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return int(value) if isinstance(value, str) and value.isascii() and value.isdigit() else value


_threads_option = click.option(
    "--threads",
    type=_Auto(),
    default="auto",
    help="CPU threads of each process: auto (what OMP_NUM_THREADS says, else one or all, as is faster) or a number.",
)


@click.group(cls=_Commands, context_settings=_SETTINGS, epilog="\b\nExample:\n  bstune search model.py")
@click.version_option(__version__, prog_name="bstune")
def main() -> None:
    """Find the batch size and the learning rate to train a PyTorch model with."""


# --- probe --------------------------------------------------------------------------------------------------------


@main.command("probe", epilog="\b\nExample:\n  bstune probe model.py --memory 12GiB --multiple-of 8")
@click.argument("model")
@_device_option
@click.option(
    "--memory",
    help="Most memory to use, such as 12GiB or 800MB.  [default: all that the device and the container leave]",
)
@click.option("--headroom", type=float, default=0.05, help="Share of the usable memory that is left free.")
@click.option("--min-batch", type=int, default=1, help="Smallest micro-batch that is of use, in samples.")
@_threads_option
@click.option("--max-batch", type=int, help="Largest micro-batch to try, in samples.  [default: the data set]")
@click.option("--multiple-of", type=int, default=1, help="The answer is a multiple of this many samples.")
@click.option("--timeout", type=float, help="Seconds after which the best size so far is returned.  [default: none]")
@click.option("--seed", type=int, default=0, help="Seed of model and data in each attempt.")
@click.option(
    "--malloc",
    default="default",
    help="On CPU: default, or stable (resident memory that repeats, for slower steps; see the result).",
)
@click.option("--fresh", is_flag=True, help="Probe anew, also where the same probe is stored.")
@click.option(
    "--plot",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Draw memory and throughput to this file, such as probe.png.",
)
@_study_option
@_storage_option
@_output_options
def probe_command(model: str, as_json: bool, plot: Path | None, **options: Any) -> None:
    """Find the largest micro-batch that fits, and what a step costs.

    MODEL is model.py, model.py:name or package.module:name; it defines `objective`.
    """
    from .objectives.load import load
    from .tuner.core.arguments import check_probe
    from .tuner.probe import probe_checked
    from .tuner.report.progress import attempt_line, make_progress
    from .tuner.report.text import probe_text

    arguments = check_probe(**options)
    if plot is not None:
        from .tuner.report.plot import check_picture, draw_probe

        check_picture(plot)
    progress = make_progress()
    with progress, _terminable():
        result = probe_checked(
            load(model),
            arguments,
            on_attempt=lambda attempt: progress.print(attempt_line(attempt)),
            on_note=lambda text: progress.print(f"probe  {text}"),
        )
    _warn(result.warnings)
    kept = "What was probed is stored: run the same command again." if _is_kept(arguments.storage) else None
    _answer(result.to_json() if as_json else probe_text(result), as_json=as_json, kept=kept)
    if plot is not None:
        draw_probe(result, plot)


@main.command("plan", epilog="\b\nExample:\n  bstune plan model.py --gpu 'H100 80GB' --gpu 'RTX 4090' --memory 16GiB")
@click.argument("model")
@click.option("--gpu", multiple=True, help="Name of a card, such as 'H100 80GB'; may be given several times.")
@click.option("--memory", multiple=True, help="Memory of another card, such as 24GiB; may be given several times.")
@click.option("--headroom", type=float, default=0.05, help="Share of the card's memory that is left free.")
@click.option("--multiple-of", type=int, default=1, help="The size is a multiple of this many samples.")
@_device_option
@click.option("--seed", type=int, default=0, help="Seed of model and data in the traced steps.")
@_output_options
def plan_command(model: str, as_json: bool, **options: Any) -> None:
    """Predict what fits on a card that is not here, from a few steps traced on the device that is.

    MODEL is model.py, model.py:name or package.module:name; it defines `objective`.
    """
    from .objectives.load import load
    from .tuner.plan import check_plan, plan
    from .tuner.report.text import plan_text

    check_plan(**options)
    with _terminable():
        result = plan(load(model), **options)
    _answer(result.to_json() if as_json else plan_text(result), as_json=as_json)


# --- search -------------------------------------------------------------------------------------------------------


class _NamedValues(click.ParamType):  # type: ignore[type-arg]  # Generic in newer releases of click only.
    """One `NAME=VALUES` of --space, as `bstune.search` takes it; `check_search` looks at the values."""

    name = "NAME=VALUES"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, Any]:
        name, equals, values = value.partition("=")
        if not equals or not name or not values:
            raise ArgumentError(
                f"--space {value}: expected NAME=VALUES, such as batch_size=32,64 or learning_rate=1e-4:1e-1."
            )
        if ":" in values:
            return name, tuple(_value(part) for part in values.split(":"))
        return name, [_value(part) for part in values.split(",")] if "," in values else _value(values)


class _Budget(click.ParamType):  # type: ignore[type-arg]
    """`RUNS` or a duration, of --budget."""

    name = "RUNS|TIME"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return _value(value) if isinstance(value, str) else value


class _Baseline(click.ParamType):  # type: ignore[type-arg]
    """`BATCH,LR` of --baseline."""

    name = "BATCH,LR"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[Any, ...]:
        return tuple(_value(part) for part in value.split(","))


def _value(text: str) -> int | float | str:
    """Return a number where the text is one."""
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return text.strip()


@main.command(
    "search",
    epilog="\b\nExample:\n  bstune search model.py --budget 8\n"
    "  bstune search model.py --space batch_size=32,64,128 --space learning_rate=1e-4:1e-1",
)
@click.argument("model", required=False)
@click.option(
    "--budget",
    type=_Budget(),
    default=12.0,
    help="Total training of the study, confirmation included: reference runs, such as 8, or a duration, such as 20min "
    "or 1.5h.",
)
@click.option("--n-trials", type=int, help="Most trials of the study.  [default: none]")
@click.option("--timeout", type=float, help="Seconds after which the best so far is returned.  [default: none]")
@click.option(
    "--goal",
    default="time",
    help="time (fewest seconds to --target), loss (lowest at equal samples), or largest (batch without loss).",
)
@click.option(
    "--target", type=float, help="Validation loss to reach, with --goal time.  [default: chosen from the first run]"
)
@click.option("--tolerance", type=float, default=0.02, help="Share of the best loss that counts as equal.")
@click.option(
    "--space",
    type=_NamedValues(),
    multiple=True,
    metavar="NAME=VALUES",
    help="Fix a dimension (x), list it (x,y,z) or give its log range (lo:hi, of whole numbers if both are); "
    "repeatable.",
)
@click.option(
    "--baseline",
    type=_Baseline(),
    metavar="BATCH,LR",
    help="Your present setting; it is measured beside the rest.  [default: none]",
)
@click.option("--confirm", type=int, default=3, help="Most fresh seeds per finalist.")
@click.option(
    "--jobs",
    type=_Auto(),
    default=1,
    help="Trials that run side by side, or auto: on CPU as many as have cores and memory, at most 8; elsewhere one.",
)
@click.option("--seed", type=int, default=0, help="Seed of all trials; confirmation uses those that follow.")
@click.option("--pruner", default="auto", help="auto, or none to let every trial run to its end.")
@click.option("--sampler", default="auto", help="auto, or random and tpe for comparison.")
@click.option(
    "--trial-timeout",
    type=float,
    help="Seconds of silence after which a trial has hung.  [default: 20 times what it should take]",
)
@click.option(
    "--engine",
    default="optuna",
    help="Who runs the trials: optuna (this machine), or ray (Ray Tune, here or on a cluster).",
)
@click.option(
    "--ray-address",
    help="With --engine ray: auto or HOST:PORT of a cluster to join.  [default: start Ray here, on loopback]",
)
@click.option("--isolation", default="process", help="process, or none to run a cheap, trusted function without one.")
@click.option(
    "--probe",
    "probe_file",
    type=click.Path(path_type=Path),
    help="A file that `bstune probe --json` wrote.  [default: probe if needed]",
)
@_device_option
@_threads_option
@_study_option
@click.option("--fresh", is_flag=True, help="Keep the old study and make a new one, NAME-2.")
@click.option("--dry-run", is_flag=True, help="Print the forecast and train nothing.")
@click.option(
    "--yes",
    is_flag=True,
    help="Without MODEL: run what the study stores, also where it is not certain that you chose it.",
)
@_storage_option
@_output_options
@click.pass_context
def search_command(
    ctx: click.Context, /, model: str | None, as_json: bool, fresh: bool, dry_run: bool, yes: bool, **options: Any
) -> None:
    """Find the batch size and the learning rate to train with.

    MODEL is model.py, model.py:name or package.module:name; it defines `objective`. Without MODEL the newest study that
    stores a file goes on, if you started it, here, and the file is as it was; otherwise it says why not, and runs
    nothing without --yes. Running the same command again resumes: nothing that was finished is run again.
    """
    from .objectives.load import load
    from .tuner.core.document import read_probe
    from .tuner.report.progress import make_progress
    from .tuner.search import SearchInterrupted, run_forecast, run_search

    options["space"] = dict(options["space"])
    probe_file = options.pop("probe_file")
    options["probe"] = None if probe_file is None else read_probe(probe_file)
    given = {name for name in options if ctx.get_parameter_source(name) not in (ParameterSource.DEFAULT, None)}
    progress = make_progress()
    arguments = _arguments(options, progress)  # What is wrong on its face is said before the storage is looked at.
    if model is None:
        model, options = _stored(options, given, yes=yes)
        arguments = _arguments(options, progress)
    objective = load(model)
    try:
        with (
            progress,
            _terminable(),
            contextlib.redirect_stdout(sys.stderr),
        ):  # With isolation="none" the user's prints are ours.
            if dry_run:
                forecast = run_forecast(objective, arguments, fresh=fresh)
            else:
                result = run_search(objective, arguments, fresh=fresh)
    except SearchInterrupted as error:
        if error.result is not None:
            try:
                _show(error.result, progress.facts, as_json=as_json, storage=arguments.storage)
            except click.ClickException as unprinted:
                note(unprinted.message)
        raise
    if dry_run:
        from dataclasses import asdict

        from .tuner.core.record import json_text
        from .tuner.report.progress import forecast_line

        _answer(json_text(asdict(forecast)) if as_json else forecast_line(forecast), as_json=as_json)
    else:
        _show(result, progress.facts, as_json=as_json, storage=arguments.storage)


def _arguments(options: dict[str, Any], progress: PlainProgress) -> SearchArguments:
    from .tuner.core.arguments import check_search

    return check_search(**options, callbacks=[progress])


def _show(result: SearchResult, facts: Facts | None, *, as_json: bool, storage: str | None) -> None:
    from .tuner.report.text import search_text

    _warn(result.recommendation.warnings)
    kept = (
        f"It is stored, and `bstune show {shlex.quote(one_line(result.study))}` shows it."
        if _is_kept(storage)
        else None
    )
    _answer(result.to_json() if as_json else search_text(result, facts), as_json=as_json, kept=kept)


def _is_kept(storage: str | None) -> bool:
    """Tell whether what is found is kept after this command."""
    from .tuner.studies.location import locate

    return locate(storage).kind != "memory"


def _warn(warnings: tuple[str, ...]) -> None:
    for warning in warnings:
        note(f"Warning: {one_line(warning)}")


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """End on SIGTERM, and when the terminal goes, as on Ctrl-C: what was finished is shown, nothing is left behind."""

    def terminate(*_: object) -> None:
        for (
            number
        ) in numbers:  # To close a window sends it twice, and the second must not interrupt what the first began.
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    numbers = [signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # As `nohup` sets it.
        numbers.append(signal.SIGHUP)
    before = [signal.signal(number, terminate) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            if signal.getsignal(number) == terminate:
                signal.signal(number, handler)


def _stored(options: dict[str, Any], given: set[str], *, yes: bool) -> tuple[str, dict[str, Any]]:
    """Return file and arguments of the newest study that stores a file; what is given now replaces what is stored."""
    from .objectives.seal import require_trusted, shown_target, stored_reference
    from .tuner.core.plain_text import one_line
    from .tuner.studies.catalog import newest_study
    from .tuner.studies.storage import read_storage
    from .tuner.studies.study import intact, stored_arguments

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


# --- show, doctor -------------------------------------------------------------------------------------------------


@main.command("show", epilog="\b\nExample:\n  bstune show digits --json")
@click.argument("study", required=False)
@_storage_option
@_output_options
def show_command(study: str | None, storage: str | None, as_json: bool) -> None:
    """Show what a study knows, also while a search runs.

    STUDY is its name; without one the newest is shown.
    """
    from .tuner.report.text import probe_text, search_text, trials_text
    from .tuner.show import show

    shown = show(study, storage=storage)
    if as_json:
        _answer(shown.require_result().to_json(), as_json=True)
        return
    parts = [shown.headline]
    if shown.probe is not None:
        parts.append(probe_text(shown.probe))
    if shown.records:
        parts.append(trials_text(shown.records))
    if shown.result is not None:
        _warn(shown.result.recommendation.warnings)
        parts.append(f"\n{search_text(shown.result, shown.facts)}")
    _answer("\n".join(parts))


@main.command("doctor", epilog="\b\nExample:\n  bstune doctor --json")
@_device_option
@_storage_option
@_output_options
@click.pass_context
def doctor_command(ctx: click.Context, device: str, storage: str | None, as_json: bool) -> None:
    """Say what bstune sees on this machine; exit 1 when something will not work."""
    from .tuner.core.record import json_text
    from .tuner.doctor import examine

    findings = examine(device=device, storage=storage)
    _answer(json_text(findings.to_dict()) if as_json else findings.text(), as_json=as_json)
    if not findings.healthy:
        ctx.exit(1)


if __name__ == "__main__":
    main()

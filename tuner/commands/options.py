"""Options that several commands take, and the kinds of values that they read."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..core.errors import ArgumentError
from ..report.terminal import keep_secret

if TYPE_CHECKING:
    from ...objectives.command import Command


def several(*options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return one decorator in place of several options."""

    def decorate(function: Any) -> Any:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


def _check_storage(_: click.Context, __: click.Parameter, value: str | None) -> str | None:
    if value is not None:
        from ..core.arguments import check_storage

        keep_secret(value)
        check_storage(value)
    return value


def _set_debug(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    ctx.find_root().ensure_object(dict)["debug"] = value


storage_option = click.option(
    "--storage",
    callback=_check_storage,
    help="Where studies are kept: sqlite:///FILE, journal:///FILE, postgresql://... or mysql://...  "
    "[default: $BSTUNE_STORAGE, else sqlite:///bstune.db]",
)


debug_option = click.option(
    "--debug",
    is_flag=True,
    expose_value=False,
    callback=_set_debug,
    help="On an error, show bstune's own traceback too.",
)
output_options = several(
    click.option("--json", "as_json", is_flag=True, help="Print exactly one JSON document to stdout."),
    debug_option,
)


verbose_option = click.option(
    "-v", "--verbose", is_flag=True, help="Also show all trials, all limits and what was not tested."
)


study_option = click.option("--study", help="Name of the study.  [default: the objective's name, else the file's]")
token_option = click.option(
    "--token-file",
    type=click.Path(path_type=Path),
    help="A file that holds the token for the service.  [default: $BSTUNE_TOKEN]",
)
probe_file_option = click.option(
    "--probe",
    "probe_file",
    type=click.Path(path_type=Path),
    help="A file that `bstune probe --json` wrote.  [default: probe if needed]",
)
device_option = click.option("--device", default="auto", help="auto (CUDA if it works, else CPU), cpu, cuda or cuda:N.")


class AutoOrNumber(click.ParamType):  # type: ignore[type-arg]
    """`auto` or a number; what else may be is for the library to say."""

    name = "auto|N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the number, or the text as it is."""
        return int(value) if isinstance(value, str) and value.isascii() and value.isdigit() else value


threads_option = click.option(
    "--threads",
    type=AutoOrNumber(),
    default="auto",
    help="CPU threads of each process: a number, or auto (OMP_NUM_THREADS if it is set, else one or all, whichever is "
    "faster).",
)


_COMMAND = "bstune.command"


class WithCommand(click.Command):
    """Takes, in place of MODEL, a program with its arguments after `--`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Set aside what stands after the first `--`."""
        if "--" in args:
            at = args.index("--")
            ctx.meta[_COMMAND] = tuple(args[at + 1 :])
            args = args[:at]
            return super().parse_args(ctx, args)
        given = list(args)
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            if (line := _line_of_script(ctx.info_name, given)) is None:
                raise
            said = f"{error.format_message()}\nA script goes after --, with its own options:\n  {line}"
            raise click.UsageError(said, ctx) from error

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        """Return the parts of the line `Usage:`."""
        return [*super().collect_usage_pieces(ctx)[:-1], "[MODEL | -- COMMAND...]"]


_STARTERS = frozenset({"python", "python3", "torchrun", "accelerate", "deepspeed", "mpirun"})


def _line_of_script(verb: str | None, args: list[str]) -> str | None:
    """Return the line to use where the arguments name a script without `--`, as far as that can be told."""
    from ...objectives.script_flags import script_line

    at = next((index for index, arg in enumerate(args) if arg in _STARTERS or arg.endswith(".py")), None)
    if at is None:
        return None
    before, words = args[:at], args[at:]
    script = next((word for word in words if word.endswith(".py")), "")
    read = None
    with contextlib.suppress(OSError):
        read = script_line(Path(script).read_bytes(), "objective", script)
    own = shlex.join([*([] if words[0] in _STARTERS else ["python"]), *words])
    options = "--samples-per-epoch N"
    if read is not None:
        options = read.options
        own = own if "{" in own else read.words
    elif words[0] not in _STARTERS and "{" not in own:  # It may be an objective, and the mistake another one.
        return None
    if verb == "train" or any(arg.startswith("--samples-per-epoch") for arg in before):
        options = ""
    return " ".join(part for part in ("bstune", verb, shlex.join(before), options, "--", own) if part)


class SampleCount(click.ParamType):  # type: ignore[type-arg]  # Generic in newer releases of click only.
    """A number of samples; the N of a line that was pasted as it is gets a hint."""

    name = "N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the number."""
        try:
            return int(value)
        except ValueError:
            self.fail(f"{value!r} is no number: put the number of samples in the training data in its place.")


command_options = several(
    click.option(
        "--metric",
        help="With a COMMAND: how it prints its validation loss, as a regular expression with the value in "
        "parentheses, or the name of a ready-made one.  [default: the first ready-made one that matches]",
    ),
    click.option(
        "--samples-per-epoch",
        type=SampleCount(),
        metavar="N",
        help="With a COMMAND: samples in its training data; required.",
    ),
    click.option("--epochs", type=float, help="With a COMMAND: epochs of a full run.  [default: 10]"),
    click.option(
        "--world-size",
        type=int,
        metavar="N",
        help="With a COMMAND: processes that it starts and that train together.  [default: what its torchrun, "
        "accelerate, deepspeed or mpirun says, else 1]",
    ),
)


def flags_of(names: Iterable[str]) -> str:
    """Return the flags of options, by their names in Python."""
    return ", ".join(f"--{name.replace('_', '-')}" for name in names)


def no_model() -> click.UsageError:
    """Return the error of a call with neither MODEL nor COMMAND."""
    return click.UsageError("Missing argument 'MODEL': expected model.py, or -- COMMAND...")


def words_after(ctx: click.Context, model: str | None) -> tuple[str, ...] | None:
    """Return the program and its arguments after `--`, or None where there is none.

    Raises:
        ArgumentError: There is a MODEL as well.
    """
    words: tuple[str, ...] | None = ctx.meta.get(_COMMAND)
    if words is not None and model is not None:
        raise ArgumentError(f"Both {model} and a command after -- were given: expected one of them.")
    return words


def command_of(ctx: click.Context, model: str | None, options: dict[str, Any]) -> Command | None:
    """Return the command after `--`, or None where there is none; its options are taken out of `options`.

    Raises:
        ArgumentError: Command, model and options do not go together.
    """
    given = {name: options.pop(name) for name in ("metric", "samples_per_epoch", "epochs", "world_size")}
    given = {name: value for name, value in given.items() if value is not None}
    words = words_after(ctx, model)
    if words is None:
        if given:
            raise ArgumentError(
                f"{flags_of(given)}: only for a command after --, such as -- python train.py --lr {{learning_rate}}."
            )
        return None
    if options.get("max_batch") is not None:
        # A probe asks no more of the data than to be larger than what it tries.
        given.setdefault("samples_per_epoch", 2 * max(1, options["max_batch"]))
    if "samples_per_epoch" not in given:
        raise ArgumentError(
            "--samples-per-epoch is missing: expected the number of samples in the training data of the command, "
            "since settings are compared at equal samples."
        )
    from ...objectives.command import Command

    return Command(words, **given)


class NamedValues(click.ParamType):  # type: ignore[type-arg]  # Generic in newer releases of click only.
    """One `NAME=VALUES` of --space, as `bstune.search` takes it; `check_search` looks at the values."""

    name = "NAME=VALUES"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, Any]:
        """Return the name and what it is given."""
        name, equals, values = value.partition("=")
        if not equals or not name or not values:
            raise ArgumentError(
                f"--space {value}: expected NAME=VALUES, such as batch_size=32,64 or learning_rate=1e-4:1e-1."
            )
        values, condition, needed = values.partition(" if ")
        given = tuple(_value(part) for part in values.split(":")) if ":" in values else _listed(values)
        if not condition:
            return name, given
        from ..core.dimension import When

        conditions = {}
        for each in needed.split(" and "):
            other, equals, its_values = each.partition("=")
            if not equals or not its_values.strip():
                raise ArgumentError(
                    f"--space {value}: expected NAME=VALUES if OTHER=VALUE, such as momentum=0.5:0.99 if optimizer=sgd."
                )
            conditions[other.strip()] = _listed(its_values)
        return name, When(**{**conditions, "values": given})


space_option = click.option(
    "--space",
    type=NamedValues(),
    multiple=True,
    metavar="NAME=VALUES",
    help="One value (x), a list (x,y,z) or a range on a log scale (lo:hi; of whole numbers if both ends are); with "
    "` if OTHER=VALUE` after it, only where another dimension has that value. May be given several times.",
)


class RunsOrTime(click.ParamType):  # type: ignore[type-arg]
    """`RUNS` or a duration, of --budget."""

    name = "RUNS|TIME"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return a number of runs, or the text of a duration."""
        return _value(value) if isinstance(value, str) else value


class BatchAndRate(click.ParamType):  # type: ignore[type-arg]
    """`BATCH,LR` of --baseline."""

    name = "BATCH,LR"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[Any, ...]:
        """Return batch size and learning rate."""
        return tuple(_value(part) for part in value.split(","))


def _listed(text: str) -> Any:
    """Return a value, or a list of those between commas."""
    return [_value(part) for part in text.split(",")] if "," in text else _value(text)


def _value(text: str) -> int | float | str:
    """Return a number where the text is one."""
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return text.strip()

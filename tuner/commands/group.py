"""What all commands share: errors become one message and an exit code, answers are printed, signals end well."""

from __future__ import annotations

import contextlib
import errno
import importlib
import io
import os
import signal
import sys
import traceback
from collections import UserDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import click

from ..core.errors import ArgumentError, BstuneError, NothingFitsError, ObjectiveError
from ..core.plain_text import one_line
from ..report.terminal import answer, harmless, keep_secret, note, ready

NOTHING_FITS = 3
INTERRUPTED = 130


class _Loading(UserDict[str, Any]):
    """Commands by name; each is loaded when it is looked up."""

    def __getitem__(self, name: str) -> click.Command:
        if name not in self.data:
            raise KeyError(name)
        command: click.Command = getattr(importlib.import_module(f".{name}", __package__), f"{name}_command")
        return command


class Commands(click.Group):
    """Loads a command when it is used, and turns what can go wrong into one message and an exit code, in one place."""

    def __init__(self, *, lines: Mapping[str, str], **settings: Any) -> None:
        """Take the names of the commands, in the order in which they are listed, with one line of help each."""
        super().__init__(commands=_Loading(lines), **settings)
        self.lines = lines

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands, in order."""
        return list(self.lines)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without loading them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(self.lines.items()))

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
            return super(Commands, self).main(args, prog_name, complete_var, standalone_mode=False, **extra)

        if not standalone_mode:
            return run()
        with ready():
            keep_secret(os.environ.get("BSTUNE_STORAGE"))
            sys.exit(_exit_code(run))

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; what goes wrong becomes click's exception, with its exit code."""
        try:
            return super().invoke(ctx)
        except ArgumentError as error:
            _explain(ctx, error)
            raise click.UsageError(str(error)) from error
        except NothingFitsError as error:
            _explain(ctx, error)
            raise NothingFits(str(error)) from error
        except BstuneError as error:
            _explain(ctx, error)
            raise Failed(str(error)) from error
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
        # What click prints, such as --help.
        if isinstance(error, OSError) and traceback.extract_tb(error.__traceback__)[-1].name == "echo":
            note(f"Error: {_unprinted(error)}")
        else:
            note(
                "".join(traceback.format_exception(error))
                + "This is a mistake in bstune. Please report it, with these lines."
            )
        return 1


class Failed(click.ClickException):
    """One message and exit code 1."""

    exit_code = 1


class NothingFits(click.ClickException):
    """One message and the exit code of a probe in which nothing fits."""

    exit_code = NOTHING_FITS


def _explain(ctx: click.Context, error: BaseException) -> None:
    """Show the user's own traceback and output; ours only when asked for."""
    if ctx.ensure_object(dict).get("debug"):
        note("".join(traceback.format_exception(error)))
    if isinstance(error, ObjectiveError):
        if error.traceback:
            note(error.traceback.rstrip())
        if error.output:
            before, _, last = error.output.rstrip().rpartition("\n")
            # The error is said next, and often ends with the last of them.
            shown = before if str(error).endswith(last.strip()) else f"{before}\n{last}".lstrip("\n")
            if shown:
                note(f"The last lines that it printed:\n{shown}")


def _unprinted(error: OSError, where: str = "") -> str:
    why = "stdout is closed" if error.errno == errno.EBADF else (error.strerror or str(error)).lower()
    return f"The answer could not be printed: {why}.{where}"


def print_answer(text: str, *, as_json: bool = False, styled: bool = False, kept: str | None = None) -> None:
    """Print what was asked for, made harmless unless it is JSON or has colours, which is already.

    `kept` says how to see it later.
    """
    try:
        answer(text if as_json or styled else harmless(text))
    except OSError as error:
        if error.errno == errno.EPIPE and kept is None:  # As `| head` does it on purpose.
            raise click.exceptions.Exit(1) from error
        raise Failed(_unprinted(error, "" if kept is None else f" {kept}")) from error


def print_warnings(warnings: tuple[str, ...]) -> None:
    """Print warnings to stderr, one line each."""
    for warning in warnings:
        note(f"Warning: {one_line(warning)}")


def is_kept(storage: str | None) -> bool:
    """Tell whether what is found is kept after this command."""
    from ..studies.location import locate

    return locate(storage).kind != "memory"


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """End on SIGTERM, and when the terminal goes, as on Ctrl-C: what was finished is shown, nothing is left behind."""

    def terminate(*_: object) -> None:
        # To close a window sends it twice, and the second must not interrupt what the first began.
        for number in numbers:
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

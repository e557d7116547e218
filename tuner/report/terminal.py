"""What is printed to stdout and stderr: made harmless, and without failing where nobody reads it any more.

Answers go to stdout, and one that cannot be written is an error. All else goes to stderr, where a failed write stops
nothing.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator

from ..core.plain_text import hide_secrets, printable, secrets_in

_SECRETS: set[str] = set()
"""Of the storage of this command: a driver may repeat them in words of its own."""


def keep_secret(url: str | None) -> None:
    """Never show the passwords in this URL."""
    _SECRETS.update(secrets_in(url or ""))


def harmless(text: object) -> str:
    """Return text of several lines as it may be shown: safe on a terminal, and with every known secret hidden."""
    return printable(hide_secrets(str(text), _SECRETS))


def answer(text: str) -> None:
    """Print text to stdout as it is.

    Raises:
        OSError: It cannot be written.
    """
    print(text, flush=True)


def note(text: object) -> None:
    """Print text to stderr, made harmless; nobody may be there to read it."""
    with contextlib.suppress(OSError, ValueError):
        print(harmless(text), file=sys.stderr, flush=True)


def _arrived(stream: object) -> bool:
    """Tell whether what was written to a stream has arrived."""
    try:
        if isinstance(stream, io.TextIOBase):
            stream.flush()
    except (OSError, ValueError):
        return False
    return True


@contextlib.contextmanager
def ready() -> Iterator[None]:
    """Make the standard streams fit for a program, and stop Python from complaining at exit of failed writes."""
    _open_closed()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # A terminal that knows no × must not end the program.
    try:
        yield
    finally:
        for number, streams in ((1, (sys.stdout, sys.__stdout__)), (2, (sys.stderr, sys.__stderr__))):
            if not all(map(_arrived, streams)):
                os.dup2(os.open(os.devnull, os.O_WRONLY), number)
        _SECRETS.clear()


def _open_closed() -> None:
    """Open /dev/null in place of closed standard streams, so that no database gets the number of one.

    Stdin is empty, and stdout can only be read, so that an answer which nobody gets is noticed.
    """
    for number, name, flags, mode in (
        (0, "stdin", os.O_RDONLY, "r"),
        (1, "stdout", os.O_RDONLY, "w"),
        (2, "stderr", os.O_WRONLY, "w"),
    ):
        try:
            os.fstat(number)
            descriptor = None
        except OSError:
            descriptor = os.open(os.devnull, flags)
            if descriptor != number:
                os.dup2(descriptor, number)
                os.close(descriptor)
            os.set_inheritable(number, True)
            descriptor = number
        if getattr(sys, name) is None:
            # Where something else has got the number since Python started, nothing is written to that.
            opened = os.open(os.devnull, flags) if descriptor is None else descriptor
            stream = open(opened, mode, encoding="utf-8", closefd=False)  # noqa: SIM115  # Open as long as the program.
            setattr(sys, name, stream)

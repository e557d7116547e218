"""`bstune worker`: run what a service hands out."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..report.terminal import note
from .options import device_option, study_option, threads_option

if TYPE_CHECKING:
    from ..client.link import Link

token_option = click.option(
    "--token-file",
    type=click.Path(path_type=Path),
    help="A file that holds the token for the service.  [default: $BSTUNE_TOKEN]",
)


@click.command("worker", epilog="\b\nExample:\n  bstune worker http://127.0.0.1:8080 model.py")
@click.argument("url")
@click.argument("model")
@device_option
@threads_option
@study_option
@token_option
@click.option(
    "--probe",
    "probe_file",
    type=click.Path(path_type=Path),
    help="A file that `bstune probe --json` wrote.  [default: probe if needed]",
)
@click.option("--give-up", "give_up_s", type=float, default=3600.0, help="Seconds that the service may be away.")
def worker_command(url: str, model: str, token_file: Path | None, probe_file: Path | None, **options: Any) -> None:
    """Run trials of MODEL for the service at URL, until its study has ended.

    A service that does not know the study begins it. On SIGTERM the trial is handed back, for another worker to run.
    """
    from ...objectives.load import load
    from ..client.link import Link
    from ..core.document import read_probe
    from ..work import WorkArguments, work

    token = read_token(token_file)
    probe = None if probe_file is None else read_probe(probe_file)
    link = Link(url, token, give_up_s=options["give_up_s"], say=note)
    arguments = WorkArguments(**options, token=token, probe=probe)
    with drained(link), contextlib.redirect_stdout(sys.stderr):
        worked = work(url, load(model), arguments, say=note, link=link)
    note(
        f"Study {worked.study} has ended: {worked.ended_by}."
        if worked.ended_by != "drained"
        else f"This worker has left study {worked.study}."
    )


def read_token(path: Path | None) -> str | None:
    """Return the token in a file, without the blanks around it.

    Raises:
        BstuneError: The file cannot be read, or holds something else.
    """
    if path is None:
        return None
    from ..core.errors import BstuneError

    try:
        token = path.read_text("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise BstuneError(f"--token-file {path} cannot be read: {error}.") from error
    if not token or len(token) > 4096 or any(character.isspace() for character in token):
        raise BstuneError(f"--token-file {path}: expected one token and nothing else.")
    return token


@contextlib.contextmanager
def drained(link: Link) -> Iterator[None]:
    """Let SIGTERM end a worker in good order: its trial goes back to the service."""

    def stop(*_: object) -> None:
        link.stopped.set()

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)

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
from .options import device_option, flags_of, probe_file_option, study_option, threads_option, token_option

if TYPE_CHECKING:
    from ..client.link import Link
    from ..core.arguments import SearchArguments
    from ..core.results import SearchResult
    from ..report.progress import PlainProgress

HERE_ONLY = ("engine", "ray_address", "isolation", "jobs", "timeout", "save_model", "storage")
"""Options of `bstune search` that mean nothing to a service."""
OF_WORKER = ("device", "threads", "study", "fresh", "probe")


@click.command("worker", epilog="\b\nExample:\n  bstune worker http://127.0.0.1:8080 model.py")
@click.argument("url")
@click.argument("model")
@device_option
@threads_option
@study_option
@token_option
@probe_file_option
@click.option(
    "--give-up",
    "give_up_s",
    type=float,
    default=3600.0,
    help="Seconds to go on trying while the service does not answer.",
)
def worker_command(url: str, model: str, token_file: Path | None, probe_file: Path | None, **options: Any) -> None:
    """Run trials of MODEL for the service at URL, until its study has ended.

    If the service does not know the study, it begins one. On SIGTERM the trial is handed back, for another worker to
    run.
    """
    from ...objectives.load import load
    from ..client.link import Link
    from ..core.document import read_probe
    from ..work import WorkArguments, work

    token = read_token(token_file)
    probe = None if probe_file is None else read_probe(probe_file)
    link = Link(url, token, give_up_s=options.pop("give_up_s"), say=note)
    with drained(link), contextlib.redirect_stdout(sys.stderr), contextlib.closing(link):
        worked = work(load(model), WorkArguments(**options, probe=probe), say=note, link=link)
        if worked.ended_by == "drained":
            note(f"This worker has left study {worked.study}.")
        else:
            note(f"Study {worked.study} has ended: {worked.ended_by}.")
            _note_answer(link, worked.study)


def _note_answer(link: Link, study: str) -> None:
    """Print what a study that has ended has found, and where the rest of it stands."""
    from ..client.link import study_page
    from ..client.remote import result_of
    from ..core.errors import BstuneError
    from ..report.wording import confirmed, title

    # Nothing was learned, or the service is away: the worker is done all the same.
    with contextlib.suppress(BstuneError):
        best = result_of(link, study).recommendation
        note(f"{title(best)}, {confirmed(best)}.")
        note(f"All of it: {link.url}{study_page(study)}")


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


def search_at_server(
    url: str,
    token_file: Path | None,
    objective: Any,
    asked: dict[str, Any],
    arguments: SearchArguments,
    progress: PlainProgress,
) -> SearchResult:
    """Begin a study at a service, or go on with it, be a worker until it has ended, and return the result.

    Args:
        url: Of the service.
        token_file: Holds its token.
        objective: What to train.
        asked: What the user gave of the options of `bstune search`, by name.
        arguments: All of them, checked.
        progress: Where lines go, and the steps of the search at the service.

    Raises:
        ArgumentError: An option means nothing to a service.
        BstuneError: The objective, the device or the service is at fault.
    """
    from ..client.link import Link
    from ..client.remote import result_of
    from ..client.watch import Watcher
    from ..core.errors import ArgumentError, BstuneError
    from ..work import WorkArguments, work

    wrong = [name for name in HERE_ONLY if name in asked]
    if wrong:
        raise ArgumentError(f"{flags_of(wrong)}: not with --server, where the service leads the search.")
    token = read_token(token_file)
    link = Link(url, token, say=progress.print)
    search = {name: value for name, value in asked.items() if name not in OF_WORKER}
    how = WorkArguments(
        device=arguments.device,
        threads=arguments.threads,
        study=arguments.study,
        search=search or None,
        probe=arguments.probe,
        fresh=bool(asked.get("fresh")),
    )
    watcher = Watcher(Link(url, token, say=progress.print), progress)
    with progress, drained(link), contextlib.redirect_stdout(sys.stderr), contextlib.closing(link):
        with watcher:
            worked = work(objective, how, say=progress.print, link=link, joined=watcher.start)
            if worked.ended_by == "drained":
                raise BstuneError(f"This worker has left study {worked.study}, which goes on at {link.url}.")
        return result_of(link, worked.study)

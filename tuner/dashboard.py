"""A storage in optuna-dashboard, on this machine only, with our card as the note of each study."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable
from typing import Any

from .core.errors import ArgumentError, BstuneError
from .core.plain_text import one_line
from .report import card
from .report_study import told_of
from .studies.catalog import studies
from .studies.storage import open_storage, read_storage
from .studies.writer_lock import InUseError

HOST = "127.0.0.1"


def dashboard(*, storage: str | None = None, port: int = 8080, on_ready: Callable[[str], Any] = print) -> None:
    """Show the studies of a storage in a browser until Ctrl-C.

    Nothing is reachable from other machines. While a search writes to the storage, the notes stay as they are.

    Args:
        storage: Where studies are kept.
        port: On loopback.
        on_ready: Is told the address, and why notes were not written.

    Raises:
        BstuneError: The extra `dashboard` is missing, there is no such storage, or the port is taken.
    """
    try:
        import optuna_dashboard
    except ImportError as error:
        raise BstuneError(
            "The dashboard needs optuna-dashboard, which is not installed: pip install 'bstune[dashboard]'."
        ) from error
    if not 1 <= port <= 65535:
        raise ArgumentError(f"--port {port}: expected a number from 1 to 65535.")
    with read_storage(storage) as opened:
        names = [study.name for study in studies(opened, readable=True)]
    said = write_notes(names, storage)
    if said:
        on_ready(said)
    with read_storage(storage) as opened:
        on_ready(f"http://{HOST}:{port}/ shows {one_line(opened.location.url)}; Ctrl-C ends it.")
        try:
            with contextlib.suppress(KeyboardInterrupt):
                optuna_dashboard.run_server(opened.backend, host=HOST, port=port)
        except OSError as error:
            raise BstuneError(f"Port {port} cannot be used: {error}. Name another with --port.") from error


def write_notes(names: list[str], storage: str | None) -> str | None:
    """Make our card the note of each study that has an answer, and name its axis; return why not if a search writes."""
    import optuna
    from optuna_dashboard import save_note

    cards = {name: card.markdown(told) for name in names if (told := told_of(name, storage=storage)).result is not None}
    try:
        with open_storage(storage) as opened, opened.guard(), opened.quiet():
            for name, text in cards.items():
                study = optuna.load_study(study_name=name, storage=opened.backend)
                save_note(study, text.removeprefix(f"{card.MARK}\n"))
                with warnings.catch_warnings():  # An experimental feature, which keeps its place for years.
                    warnings.simplefilter("ignore")
                    study.set_metric_names(["validation loss"])  # Otherwise it is called "Objective 0" there.
    except InUseError as error:
        return f"The notes of the studies were left as they are: {error}"
    return None

"""`bstune dashboard`: a storage in optuna-dashboard."""

from __future__ import annotations

import click

from ..report.terminal import note
from .options import debug_option, storage_option


@click.command("dashboard", epilog="\b\nExample:\n  bstune dashboard --port 8080")
@storage_option
@click.option("--port", type=int, default=8080, help="Port on this machine; other machines cannot reach it.")
@debug_option
def dashboard_command(storage: str | None, port: int) -> None:
    """Show the studies of a storage in a browser, with optuna-dashboard, until Ctrl-C.

    The note of each study is the card that `bstune report --format md` prints. It needs bstune[dashboard].
    """
    from ..dashboard import dashboard

    dashboard(storage=storage, port=port, on_ready=note)

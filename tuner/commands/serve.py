"""`bstune serve`: one tuner for a team."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .options import storage_option


@click.command("serve", epilog="\b\nExample:\n  bstune serve --port 8080")
@click.option("--host", default="127.0.0.1", help="Address to listen on; any but a loopback address needs tokens.")
@click.option("--port", type=click.IntRange(0, 65535), default=8080, help="Port to listen on; 0 takes a free one.")
@click.option(
    "--token-file",
    type=click.Path(path_type=Path),
    help="A file that says who may call: one client per line, NAME read|write TOKEN.  "
    "[default: $BSTUNE_TOKENS, else everybody]",
)
@click.option(
    "--lease",
    "lease_s",
    type=click.FloatRange(1, 86400),
    default=60.0,
    help="Seconds of silence after which the trial of a worker is given to another one.",
)
@click.option("--max-studies", type=click.IntRange(1, 10_000), default=200, help="Largest number of studies.")
@click.option(
    "--rate",
    type=click.FloatRange(0, 1e6),
    default=200.0,
    help="Largest number of calls per second from one client; 0: no limit.",
)
@click.option("--tls-key", type=click.Path(path_type=Path), help="Private key for HTTPS.  [default: HTTP]")
@click.option("--tls-certificate", type=click.Path(path_type=Path), help="Its certificate, for HTTPS.")
@storage_option
def serve_command(**options: Any) -> None:
    """Lead studies for a team: workers on any machine ask for trials, run them and report.

    The service runs nobody's code. One that was killed continues where it was when it is started again.
    """
    from ..serve import ServeArguments, serve

    if (options["tls_key"] is None) != (options["tls_certificate"] is None):
        raise click.UsageError("--tls-key and --tls-certificate go together.")
    serve(ServeArguments(**options))

"""`bstune doctor`: what bstune sees here."""

from __future__ import annotations

import click

from .group import print_answer
from .options import device_option, output_options, storage_option


@click.command("doctor", epilog="\b\nExample:\n  bstune doctor --json")
@device_option
@storage_option
@output_options
@click.pass_context
def doctor_command(ctx: click.Context, device: str, storage: str | None, as_json: bool) -> None:
    """Say what bstune sees on this machine; exit 1 when something will not work."""
    from ..core.record import json_text
    from ..doctor import examine

    findings = examine(device=device, storage=storage)
    print_answer(json_text(findings.to_dict()) if as_json else findings.text(), as_json=as_json)
    if not findings.healthy:
        ctx.exit(1)

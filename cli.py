"""The command line: one group, with one file a command in `tuner/commands/`. It loads only click and light rooms."""

from __future__ import annotations

import click

from .tuner.commands.dashboard import dashboard_command
from .tuner.commands.doctor import doctor_command
from .tuner.commands.group import Commands
from .tuner.commands.list import list_command
from .tuner.commands.plan import plan_command
from .tuner.commands.probe import probe_command
from .tuner.commands.report import report_command
from .tuner.commands.search import search_command
from .tuner.commands.serve import serve_command
from .tuner.commands.show import show_command
from .tuner.commands.train import train_command
from .tuner.commands.worker import worker_command
from .tuner.core.version import __version__

_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 110, "show_default": True}


@click.group(cls=Commands, context_settings=_SETTINGS, epilog="\b\nExample:\n  bstune search model.py")
@click.version_option(__version__, prog_name="bstune")
def main() -> None:
    """Find the batch size and the learning rate to train a PyTorch model with."""


for _command in (
    probe_command,
    plan_command,
    search_command,
    train_command,
    show_command,
    report_command,
    list_command,
    dashboard_command,
    serve_command,
    worker_command,
    doctor_command,
):
    main.add_command(_command)


if __name__ == "__main__":
    main()

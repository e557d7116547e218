"""The command line: one group, with one file a command in `tuner/commands/`. Each is loaded when it is used."""

from __future__ import annotations

import click

from .tuner.commands.group import Commands
from .tuner.core.version import __version__

COMMANDS = {
    "probe": "Find the largest micro-batch that fits, and what a step costs.",
    "plan": "Predict what fits on a card that is not here.",
    "search": "Find the batch size and the learning rate to train with.",
    "train": "Train with what a study recommends, and keep the model.",
    "show": "Show what a study knows, also while a search runs.",
    "report": "Write a report to look at and pass on.",
    "list": "List the studies of a storage.",
    "dashboard": "Show the studies of a storage in a browser.",
    "serve": "Lead the studies of a team.",
    "worker": "Run trials for a service.",
    "diagnose": "Say which claims about batch size and learning rate hold here.",
    "doctor": "Say what bstune sees on this machine.",
}
"""What there is, in the order of the story, with its line in the list of commands."""
_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 110, "show_default": True}


@click.group(cls=Commands, lines=COMMANDS, context_settings=_SETTINGS, epilog="\b\nExample:\n  bstune search model.py")
@click.version_option(__version__, prog_name="bstune")
def main() -> None:
    """Find the batch size and the learning rate to train a PyTorch model with."""


if __name__ == "__main__":
    main()

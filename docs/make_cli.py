"""Write docs/cli.md from the `--help` texts: run it as `make docs`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click
from bstune import cli

WIDTH = 100
PAGE = Path(__file__).with_name("cli.md")
OPENING = """# Command line

Made from the `--help` texts by `make docs`; do not edit by hand.
"""


def commands(command: click.Command, name: str, parent: click.Context | None = None) -> Iterator[tuple[str, str]]:
    """Yield (full name, help text) of a command and of all below it."""
    context = command.make_context(name, [], parent=parent, resilient_parsing=True, terminal_width=WIDTH)
    yield context.command_path, context.get_help()
    if isinstance(command, click.Group):
        for below in command.list_commands(context):
            found = command.get_command(context, below)
            if found is not None and not found.hidden:
                yield from commands(found, below, context)


def page() -> str:
    """Return the whole page."""
    sections = [f"## `{name}`\n\n```text\n{text.rstrip()}\n```\n" for name, text in commands(cli.main, "bstune")]
    return "\n".join([OPENING, *sections])


if __name__ == "__main__":
    PAGE.write_text(page())

"""How wide text may be and whether in colours, and text that rich lays out for it.

There are no boxes and nothing that only some terminals draw. What comes from elsewhere is made harmless in `said`,
before rich sees it.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

from ..core.plain_text import one_line
from .terminal import harmless

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text

LEAST_WIDTH, MOST_WIDTH = 40, 120
"""Columns: text that is narrower or wider than this is hard to read."""

WRAPPED = 12
"""Least columns of text that wraps."""
_MARK = "> "
"""Before a row that is chosen, such as the answer."""


@dataclass(frozen=True)
class View:
    """What text is laid out for."""

    width: int = 80
    """Columns."""
    colour: bool = False


def view_of(stream: TextIO) -> View:
    """Return the width of a terminal and whether it wants colours; a pipe has 80 columns without any."""
    if not stream.isatty():
        return View()
    from rich.console import Console

    console = Console(file=stream)
    colour = console.color_system is not None and not os.environ.get("NO_COLOR")
    return View(min(max(console.width, LEAST_WIDTH), MOST_WIDTH), colour)


def said(text: object, most: int = 2000, style: str = "") -> Text:
    """Return text from anywhere as one line of rich text that is harmless and has no markup."""
    from rich.text import Text

    return Text(harmless(one_line(text, most)), style=style)


def laid_out(parts: Sequence[RenderableType], view: View) -> str:
    """Return rich text and tables as lines of at most the width, without spaces at their ends."""
    from rich.console import Console

    console = Console(
        file=io.StringIO(),
        width=view.width,
        force_terminal=view.colour,
        color_system="standard" if view.colour else None,
        no_color=not view.colour,
        highlight=False,
        emoji=False,
        markup=False,
        legacy_windows=False,
        _environ={},
    )
    with console.capture() as captured:
        for part in parts:
            console.print(part)
    return "\n".join(line.rstrip() for line in captured.get().rstrip("\n").split("\n"))


def labelled(rows: Sequence[tuple[str, RenderableType]], *, least: int = 7) -> Table:
    """Return rows with a label each; what they say is wrapped beside it."""
    from rich.table import Table

    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="cyan", no_wrap=True, min_width=least + 2)
    table.add_column(overflow="fold")
    for label, text in rows:
        table.add_row(f"  {label}", text)
    return table


@dataclass(frozen=True)
class Column:
    """A column of a table: cells below a header. Where the width is short, the highest rank is left out first."""

    header: str
    cells: Sequence[str]
    rank: int
    justify: str = "right"
    wraps: bool = False
    """Text that goes on below itself where there is no room."""

    @property
    def width(self) -> int:
        """Columns of the terminal that it needs."""
        from rich.cells import cell_len

        widest = max(cell_len(text) for text in (self.header, *self.cells))
        return min(widest, WRAPPED) if self.wraps else widest


def tabled(columns: Sequence[Column], view: View, *, chosen: Container[int] = ()) -> Table:
    """Return a table of the columns that fit, with a mark at chosen rows; a number is left out whole, never cut."""
    from rich.table import Table
    from rich.text import Text

    kept = list(columns)
    while len(kept) > 2 and len(_MARK) + sum(column.width + 2 for column in kept) - 2 > view.width:
        kept.remove(max(kept, key=lambda column: column.rank))
    table = Table.grid(padding=(0, 2, 0, 0))
    for column in kept:
        table.add_column(justify=column.justify, overflow="fold", no_wrap=not column.wraps)  # type: ignore[arg-type]
    rows = [
        [column.header for column in kept],
        *([column.cells[i] for column in kept] for i in range(len(kept[0].cells))),
    ]
    for i, row in enumerate(rows):
        is_chosen = i - 1 in chosen
        row[0] = (_MARK if is_chosen else " " * len(_MARK)) + row[0].rjust(kept[0].width)
        table.add_row(*(Text(text, style="dim" if i == 0 else "bold" if is_chosen else "") for text in row))
    return table


def even(values: Sequence[float | None], digits: int = 3) -> list[str]:
    """Return numbers of one column with the same decimals, as many as the smallest needs for so many digits.

    Example:
        >>> even([0.04425, 0.1, None]), even([1234.5, 20.0]), even([2.5e-7, 3.0])
        (['0.0442', '0.1000', '-'], ['1234.5', '20.0'], ['2.5e-07', '3'])
    """
    sizes = [abs(value) for value in values if value is not None and math.isfinite(value) and value != 0]
    if not sizes:
        return ["-" if value is None else f"{value:.{digits}g}" for value in values]
    low, high = math.floor(math.log10(min(sizes))), math.floor(math.log10(max(sizes)))
    decimals = max(0, digits - 1 - low)
    if decimals + max(high, 0) > 2 * digits + 1 or high > 9:
        return ["-" if value is None else f"{value:.{digits}g}" for value in values]
    return ["-" if value is None else f"{value:.{decimals}f}" for value in values]

"""What a terminal would show of a program's output at its end: lines that were drawn over, and colours, are gone."""

from __future__ import annotations

import re

_PARTS = re.compile(
    r"\x1b\[(?P<numbers>[0-?]*)[ -/]*(?P<does>[@-~])|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b[@-_]"
    r"|(?P<moves>\r\n|[\n\r\b])|(?P<text>[^\x1b\n\r\b]+)|\x1b"
)
_WIDEST = 10_000
"""Columns: a cursor goes no further."""


def as_shown(text: str) -> str:
    r"""Return the lines that stand on a terminal once all of a text was printed.

    Example:
        >>> as_shown("10%|#   |\r100%|####|\n\x1b[31mred\x1b[0m")
        '100%|####|\nred'
        >>> as_shown("a: 0%\nb: 0%\x1b[A\ra: 9%\n\rb: 9%")
        'a: 9%\nb: 9%'
    """
    rows: list[str] = [""]
    row = column = 0
    for part in _PARTS.finditer(text):
        moves, does = part["moves"], part["does"]
        if part["text"] is not None:
            old = rows[row].ljust(column)
            rows[row] = old[:column] + part["text"] + old[column + len(part["text"]) :]
            column += len(part["text"])
        elif moves in ("\n", "\r\n"):
            row, column = row + 1, 0
            if row == len(rows):
                rows.append("")
        elif moves is not None:
            column = 0 if moves == "\r" else max(0, column - 1)
        elif does in ("A", "B", "C", "D", "G", "K", "F"):
            number = int(numbers) if (numbers := part["numbers"]).isdigit() and len(numbers) < 6 else 0
            n = max(1, number)
            row = max(0, row - n) if does in "AF" else min(len(rows) - 1, row + n) if does == "B" else row
            column = {"C": min(column + n, _WIDEST), "D": max(0, column - n), "G": min(n - 1, _WIDEST), "F": 0}.get(
                does, column
            )
            if does == "K":
                rows[row] = ["", " " * column][number == 1] + rows[row][column:] if number else rows[row][:column]
    return "\n".join(line.rstrip() for line in rows)


def last_lines(text: str, most: int) -> str:
    r"""Return the last lines of a text, without empty ones and without a line that only says the one before again.

    Example:
        >>> last_lines("1\n2\n\n2\n3\n", 2)
        '2\n3'
    """
    kept: list[str] = []
    for line in filter(str.strip, text.split("\n")):
        if not kept or kept[-1] != line:
            kept.append(line)
    return "\n".join(kept[-most:])

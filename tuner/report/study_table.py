"""The studies of a storage as a table of at most 80 columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..core.plain_text import one_line
from .units import plain_rows


def study_table(listed: Sequence[Mapping[str, Any]]) -> str:
    """Return a line for each study, as `Listed.to_dict` has it.

    Example:
        >>> row = {"study": "digits", "date": "2026-11-28T19:02:05", "objective": "digits.py", "device": "cpu",
        ...        "n_trials": 45, "global_batch_size": 64, "learning_rate": 0.0707, "verified": True, "error": None}
        >>> print(study_table([row]))
        study           last begun       objective   device      trials answer
        digits          2026-11-28 19:02 digits.py   cpu             45 64, 0.0707
    """
    lines = [_line("study", "last begun", "objective", "device", "trials", "answer")]
    for row in listed:
        date = one_line(row["date"] or "-").replace("T", " ")[:16]
        objective, device = row["objective"] or "-", row["device"] or "-"
        lines.append(_line(row["study"], date, objective, device, str(row["n_trials"]), _answer(row)))
    return plain_rows(lines)


def _answer(row: Mapping[str, Any]) -> str:
    if row["error"] is not None:
        return "unreadable"
    if row["global_batch_size"] is None:
        return "none yet"
    return f"{row['global_batch_size']}, {row['learning_rate']:.3g}{'' if row['verified'] else ' ?'}"


def _line(study: str, begun: str, objective: str, device: str, trials: str, answer: str) -> str:
    first = f"{_short(study, 15):<15} {begun:<16} {_short(objective, 11):<11} {_short(device, 11):<11}"
    return f"{first} {trials:>6} {answer}".rstrip()


def _short(text: str, most: int) -> str:
    line = one_line(text)
    return line if len(line) <= most else f"{line[: most - 1]}…"

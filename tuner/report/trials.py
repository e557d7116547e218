"""Trials as people read them: a line or a row for each, which says how far it ran of what was planned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..core.plain_text import one_line
from ..core.trial_record import TrialRecord
from .units import duration, given_params, number, plain_row
from .view import Column, View, even, said, tabled

if TYPE_CHECKING:
    from rich.table import Table


MOST_SAID = 100
"""Characters of why a trial failed that stand in its line; the study keeps all, and an error that ends all says it."""


def reached(trial: TrialRecord) -> str:
    """Return how long a trial ran, in training samples: `768 of 20480`, or one number where it ran to its end."""
    if trial.end_samples is None or trial.samples >= trial.end_samples:
        return str(trial.samples)
    return f"{trial.samples} of {trial.end_samples}"


def outcome(trial: TrialRecord) -> str:
    """Return what came of a trial, in as few words as say it."""
    if trial.state == "pruned" and trial.reason.startswith("stopped at"):
        return "stopped"
    if not trial.reason:
        return one_line(trial.state)
    return f"{'failed: ' if trial.state == 'failed' else ''}{one_line(trial.reason)}"


def trial_line(trial: TrialRecord) -> str:
    """Return one trial: setting, run length in samples, loss, seconds, and what came of it."""
    extra = f" {given_params(trial.params, ' ')}" if trial.params else ""
    loss = "" if trial.val_loss is None else f"  loss {number(trial.val_loss)}"
    setting = f"batch {trial.global_batch_size:<5} lr {trial.learning_rate:<8.3g}{extra}"
    ran = f"{reached(trial)} samples{loss}  {duration(trial.seconds)}"
    came = outcome(trial)
    came = came if len(came) <= MOST_SAID else _beginning(came)
    return plain_row(f"trial {trial.number:<3} {one_line(trial.stage):<7} {setting} {ran}  {came}")


def _beginning(said: str) -> str:
    """Return the beginning of what is too long for a line: its first statement, or else whole words."""
    most = said[: MOST_SAID - 2]
    ends = [end for mark in (". ", "; ") if (end := most.rfind(mark)) > len("failed: ")]
    return f"{most[: max(ends)] if ends else most.rpartition(' ')[0] or most} …"


def trials_table(trials: Sequence[TrialRecord], view: View) -> list[Table]:
    """Return all trials as a table; nothing where there are none."""
    if not trials:
        return []
    columns = [
        Column("trial", [str(trial.number) for trial in trials], 0),
        Column("stage", [said(trial.stage, 8).plain for trial in trials], 4, "left"),
        Column("batch", [str(trial.global_batch_size) for trial in trials], 0),
        Column("lr", [f"{trial.learning_rate:.3g}" for trial in trials], 0),
        Column("samples", [reached(trial) for trial in trials], 2),
        Column("loss", [number(trial.val_loss) for trial in trials], 1),
        Column("s", even([trial.seconds for trial in trials], 2), 3),
    ]
    named = list(dict.fromkeys(name for trial in trials for name in (*trial.params, *trial.metrics)))
    for i, name in enumerate(named):
        cells = [(trial.metrics | trial.params).get(name, "-") for trial in trials]
        shown = [number(cell) if isinstance(cell, float) else said(cell, 20).plain for cell in cells]
        columns.append(Column(said(name, 14).plain, shown, 6 + i))
    columns = [column for column in columns if set(column.cells) != {"-"}]
    columns.append(Column("", [said(outcome(trial), 200).plain for trial in trials], 5, "left", wraps=True))
    return [tabled(columns, view)]

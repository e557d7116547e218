"""What a study knows, as text: the answer first, then what runs, then what it rests on where that is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..core.probe_results import ProbeResult
from ..core.results import SearchResult
from ..core.trial_record import TrialRecord
from .text import probe_text, search_text
from .trials import trials_table
from .view import View, laid_out, said

if TYPE_CHECKING:
    from ..core.trials import Facts

LAST = 10
"""Trials that are shown of a search which knows no answer yet."""


def study_text(
    headline: str,
    records: Sequence[TrialRecord],
    probe: ProbeResult | None,
    result: SearchResult | None,
    facts: Facts | None,
    *,
    is_running: bool,
    view: View | None = None,
    verbose: bool = False,
) -> str:
    """Return a study as text.

    Args:
        headline: One line: which study it is, where, and whether it is searched now.
        records: Its trials.
        probe: Its probe, if it has one.
        result: The best so far; None where nothing was learned yet.
        facts: Of the objective.
        is_running: A search writes to it now.
        view: Width and colours; by default those of a pipe.
        verbose: The probe and all trials as well.
    """
    view = view or View()
    running = [record for record in records if record.state == "running"] if is_running else []
    last = laid_out([said(headline, 400, "dim")], view)
    below = [last, laid_out(trials_table(running, view), view)] if running else [last]
    if result is not None:
        probed = [probe_text(probe, view)] if probe is not None and verbose else []
        return "\n\n".join([search_text(result, facts, view=view, verbose=verbose), *probed, *below])
    shown = records if verbose else records[-LAST:]
    if records:
        above = [_line("Nothing to train with yet: no trial has a finite validation loss.", view), last]
        above.append(laid_out(trials_table(shown, view), view))
    elif probe is not None:
        above = [probe_text(probe, view), last]
    else:
        above = [_line("Nothing is known yet: no trial was begun.", view), last]
    return "\n\n".join(above)


def _line(text: str, view: View) -> str:
    return laid_out([said(text, style="bold yellow")], view)

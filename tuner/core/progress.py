"""What has just happened in a search, as callbacks are told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from .arguments import SearchArguments
from .probe_results import Attempt
from .results import Recommendation
from .specs import Forecast
from .trial_record import TrialRecord
from .trials import Facts


@dataclass(frozen=True)
class Progress:
    """What has just happened in a search; each callback gets one of these."""

    kind: Literal["study", "warning", "note", "probe", "forecast", "start", "report", "finish"]
    study: str
    budget: float
    """Reference runs that the search plans to use of its budget."""
    spent: float = 0.0
    """Reference runs."""
    budget_s: float | None = None
    """The same in seconds, where the user gave a duration; how many reference runs that is, trials tell."""
    forecast: Forecast | None = None
    facts: Facts | None = None
    """Of the objective, with the forecast."""
    attempt: Attempt | None = None
    """Of the probe."""
    trial: TrialRecord | None = None
    """The trial that has started, reported or finished."""
    message: str = ""
    rungs: tuple[int, ...] = ()
    """Training samples at which trials are compared, with the forecast."""
    find_best: Callable[[], Recommendation | None] | None = None
    """Returns the best so far, with a trial; None where nothing was learned yet. It takes a moment."""


def tell(arguments: SearchArguments, progress: Progress) -> None:
    """Call every callback."""
    for callback in arguments.callbacks:
        callback(progress)

"""What runs that diverged say: that training goes no further, or that the answer cannot be verified."""

from __future__ import annotations

import math
from collections.abc import Iterable

from ..core.remarks import Caution
from .candidates import full_value
from .evidence import Evidence
from .ledger import Run

RUNS = 2
"""So many that diverged further on than any run came with a finite loss are no accident."""
FAR_SMALLER = 16.0
"""A learning rate so many times smaller that diverges as well shows that the rate is not why."""


def none_went_further(evidence: Evidence) -> Caution | None:
    """Return a caution where every run that went past some samples diverged, and none came to its end; else None."""
    ledger = evidence.ledger
    ends = (full_value(evidence, run) for run in ledger)
    if any(value is not None and math.isfinite(value) for value in ends):
        return None
    reach = max((max(run.values) for run in ledger if run.finite), default=math.inf)
    beyond = [run for run in ledger if run.diverged and max(run.values) > reach]
    if len(beyond) < RUNS:
        return None
    fresh = sum(run.stage == "confirm" for run in beyond)
    return Caution("none_went_further", {"reach": reach, "n": len(beyond), "fresh": fresh})


def confirmations_diverged(evidence: Evidence) -> Caution | None:
    """Return that full runs on fresh seeds diverged, with which no larger budget helps; None where none did."""
    ended = [run for run in evidence.ledger if run.stage == "confirm" and run.state != "running"]
    n = sum(run.diverged for run in ended)
    return Caution("confirmations_diverged", {"n": n, "of": len(ended)}) if n else None


def diverged_at_once(run: Run) -> bool:
    """Tell whether the first report of a run was no finite loss."""
    return bool(run.values) and not any(map(math.isfinite, run.values.values()))


def own_setting_diverged(runs: Iterable[Run]) -> bool:
    """Tell whether the present setting diverged at its first report, and another run at a far smaller rate as well.

    The user has trained with it, so what is not finite is then in the data, the model or the loss: no rate mends it.
    """
    at_once = [run for run in runs if diverged_at_once(run)]
    own = min((run.setting.learning_rate for run in at_once if run.stage == "baseline"), default=0.0)
    return any(run.setting.learning_rate * FAR_SMALLER <= own for run in at_once)

"""What runs that diverged say: that training goes no further, or that the answer cannot be verified."""

from __future__ import annotations

import math

from ..core.remarks import Caution
from .candidates import full_value
from .evidence import Evidence

RUNS = 2
"""So many that diverged further on than any run came with a finite loss are no accident."""


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

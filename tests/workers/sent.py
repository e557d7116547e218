"""Messages as a trial sends them."""

from __future__ import annotations

from bstune.tuner.core.trials import TrialReport, TrialSpec

SPEC = TrialSpec(
    3,
    "search",
    100,
    100,
    1,
    0.1,
    0,
    1000,
    (500, 1000),
    {"depth": 2, "kind": "a", "rate": None},
    checkpoint_to="/kept/3.pt",
)
REPORT = TrialReport(3, (500,), 500, 0.5, {"accuracy": 0.9}, 1.5)

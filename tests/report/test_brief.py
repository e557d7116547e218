"""The answer in short parts: what it says of larger batches never contradicts what stands beside it."""

from __future__ import annotations

import dataclasses

import pytest
from bstune.tests.report.test_answer import VERIFIED, candidate, changed, trial
from bstune.tuner.report.brief import brief


@pytest.mark.parametrize(
    ("full_s", "interval", "said"),
    [
        (9.0, (64,), "Larger batches reach the target later"),
        (9.0, (32, 64, 128), "Larger ones may be as good; none was sooner"),
        (0.1, (64,), "A larger batch may be sooner"),
    ],
)
def test_what_is_said_of_larger_batches(full_s: float, interval: tuple[int, ...], said: str) -> None:
    """They are later only where they were, and where they can be told apart."""
    larger = candidate(128, 0.2, 0.05, full_s)
    result = dataclasses.replace(
        changed(alternatives=(larger,), batch_interval=interval),
        records=(*VERIFIED.records, trial(90, 128, 0.2, 20480, 0.05), trial(91, 256, 0.4, 768, 2.0)),
    )

    assert next(part.short for part in brief(result).parts if part.question == "Why not larger?") == said

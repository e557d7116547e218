"""What a search left untried beside its answer: other batch sizes, and learning rates beyond it."""

from __future__ import annotations

from collections.abc import Iterator

from ..core.remarks import Caution
from ..core.results import Candidate
from .evidence import Evidence


def untried(evidence: Evidence, chosen: Candidate) -> Iterator[Caution]:
    """Yield that only one of several batch sizes was tried, and that nothing was tried beyond the rate of the answer.

    What the user has ruled out is no news: a single batch size, and rates beyond an end of a range.
    """
    space, batch, rate = evidence.context.space, chosen.global_batch_size, chosen.learning_rate
    if len(space.batches) > 1 and {run.setting.global_batch_size for run in evidence.ledger} == {batch}:
        yield Caution("one_batch", {"batch": batch, "low": space.batches[0], "high": space.batches[-1]})
    if rate in (space.learning_rates[0], space.learning_rates[-1]):
        return
    rates = {run.setting.learning_rate for run in evidence.ledger if run.setting.global_batch_size == batch}
    if rates == {rate}:
        yield Caution("one_rate", {"rate": rate, "batch": batch})
    elif rate == max(rates):
        yield Caution("highest_rate", {"rate": rate, "batch": batch})
    elif rate == min(rates):
        yield Caution("lowest_rate", {"rate": rate, "batch": batch})

"""How many trials run side by side on this machine with `jobs="auto"`: as many as have cores and memory."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

from ..core.probe_results import Attempt, ProbeResult
from ..device.memory import usable_cores
from ..probing.attempts import Attempts
from ..workers.fork_server import Host

MOST_JOBS = 8
LARGEST_TRIED, PLATEAUS = 64, 4
"""By default a search tries batches up to these: so many samples, and so many times the size where throughput stops
rising. A micro-batch that is smaller would slow some of them down, or with batch norm change them.
"""


def share(
    host: Host, probe: ProbeResult, *, seed: int, on_attempt: Callable[[Attempt], None]
) -> tuple[int, ProbeResult]:
    """Return how many trials run side by side, and the probe as it is right for each of them; the host is told.

    A trial may take its share of the memory. Where the micro-batch of the probe needs more, a smaller one is taken if
    it serves a search as well, after it has run once; where none does, fewer trials run.
    """
    most = min(MOST_JOBS, usable_cores() // host.threads) if host.device_info.kind == "cpu" else 1
    known = probe.settings.get("jobs")
    for jobs in range(min(most, known) if isinstance(known, int) else most, 1, -1):
        host.jobs = jobs
        found = _each(host, probe, seed, on_attempt)
        if found is not None:
            return jobs, dataclasses.replace(found, settings={**probe.settings, "jobs": jobs})
    host.jobs = 1
    return 1, probe


def _each(host: Host, probe: ProbeResult, seed: int, on_attempt: Callable[[Attempt], None]) -> ProbeResult | None:
    """Return the probe as it is right for one of the trials that share the host; None where they cannot."""
    usable_bytes, share_used = host.usable_bytes(), probe.budget_bytes / probe.usable_bytes
    budget_bytes = int(share_used * usable_bytes)
    if probe.peak_bytes <= budget_bytes:
        return dataclasses.replace(probe, usable_bytes=usable_bytes, budget_bytes=budget_bytes)
    size = smaller_size(probe, budget_bytes)
    if size is None:
        return None
    attempts = Attempts(host, headroom=1 - share_used, seed=seed, on_attempt=on_attempt)
    attempt, reading = attempts.run(size, final=True)
    if attempt.outcome != "ok" or reading is None or reading.peak_bytes is None:
        return None
    return dataclasses.replace(
        probe,
        micro_batch_size=size,
        eval_batch_size=probe.eval_batch_size and attempts.eval_sizes[size],
        limited_by="max_batch",
        proof="cap",
        usable_bytes=attempts.usable_bytes,
        budget_bytes=attempts.budget_bytes,
        peak_bytes=reading.peak_bytes,
        memory_line=None,
        memory_by_category=None,
        validation_s_per_sample=attempts.validation_s_per_sample(size),
        attempts=(*probe.attempts, *attempts.tried),
    )


def smaller_size(probe: ProbeResult, budget_bytes: int) -> int | None:
    """Return the largest power of two that should stay within a budget, if it serves a search as well."""
    line, knee = probe.memory_line, probe.knee_batch_size
    if line is None or line.bytes_per_sample <= 0 or knee is None or budget_bytes <= line.fixed_bytes:
        return None
    size = 2 ** int(math.log2(max(1.0, (budget_bytes - line.fixed_bytes) / line.bytes_per_sample)))
    return size if max(LARGEST_TRIED, PLATEAUS * knee) <= size < probe.micro_batch_size else None

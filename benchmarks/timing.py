"""Seconds of a training sample by batch size, timed in turns, so that other load is shared fairly."""

from __future__ import annotations

import statistics
import time

import bstune
from bstune.objectives.training import TrainingRun

TIMING_ROUNDS = 5
TIMED_S = 0.1


def seconds_per_sample(objective: bstune.Supervised, batch_sizes: list[int]) -> dict[int, float]:
    """Time training at all batch sizes in turns, and return the median of each."""
    runs: dict[int, TrainingRun] = {}
    seen: dict[int, list[float]] = {batch: [] for batch in batch_sizes}
    for batch in batch_sizes:
        runs[batch] = TrainingRun(objective, device="cpu", learning_rate=1e-6, seed=0, horizon_samples=None)
        runs[batch].open_stream(batch, 1)
        runs[batch].step()
    for _ in range(TIMING_ROUNDS):
        for batch, run in runs.items():
            start_s, before = time.perf_counter(), run.samples
            while time.perf_counter() - start_s < TIMED_S:
                run.step()
            seen[batch].append((time.perf_counter() - start_s) / (run.samples - before))
    return {batch: statistics.median(times) for batch, times in seen.items()}

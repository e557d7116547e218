"""Probes, trials and searches whose answers are known: step times on a line, losses by a formula."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Callable, Iterable

from bstune.tests.report.told import FACTS, demo_result
from bstune.tuner.core.diagnosis import Finding
from bstune.tuner.core.probe_results import ProbeResult, ThroughputRow
from bstune.tuner.core.trial_record import TrialRecord
from bstune.tuner.diagnosis.claims import chosen, judged
from bstune.tuner.diagnosis.known import Known
from bstune.tuner.theory.step_time import fit_step_time

FULL = int(FACTS.full_run_samples)
BATCHES = (8, 16, 32, 64, 128)
SEEDS = (0, 1)


def probe(seconds: Callable[[int], float], *, seed: int = 0, noise: float = 0.03, **changed: object) -> ProbeResult:
    """A probe whose step times follow a function, with a little noise."""
    chance = random.Random(seed)
    rows = []
    for batch in (4, 16, 64, 256, 1024):
        step_s = seconds(batch) * math.exp(chance.gauss(0, noise))
        rows.append(ThroughputRow(batch, batch / step_s, step_s, 2 * noise))
    found = demo_result().probe
    assert found is not None
    return dataclasses.replace(found, throughput=tuple(rows), step_time_line=fit_step_time(rows), **changed)  # type: ignore[arg-type]


def record(
    number: int, batch: int, rate: float, losses: Iterable[tuple[int, float]], *, seed: int = 0, stage: str = "search"
) -> TrialRecord:
    """A finished run with these losses by samples."""
    values = tuple(losses)
    last = values[-1][1]
    finite = [loss for _, loss in values if math.isfinite(loss)]
    return TrialRecord(
        number=number,
        stage=stage,
        state="complete" if values[-1][0] >= FULL else "pruned",
        reason="",
        global_batch_size=batch,
        micro_batch_size=batch,
        accumulation_steps=1,
        learning_rate=rate,
        seed=seed,
        samples=values[-1][0],
        val_loss=last,
        best_val_loss=min(finite, default=math.nan),
        seconds=1.0,
        samples_per_s=None,
        peak_bytes=None,
        values=values,
        end_samples=FULL,
    )


def grid(
    *, slope: float, worse: float = 0.0, sharp: float = 0.08, seed: int = 0, noise: float = 0.02
) -> tuple[TrialRecord, ...]:
    """Full runs of five batch sizes at rates an octave apart.

    Args:
        slope: The best rate is 0.01 * (batch / 8) ** slope.
        worse: ln of the loss for each doubling of the batch.
        sharp: ln of the loss at one octave from the best rate.
        seed: Of the noise.
        noise: Relative scatter of the losses.
    """
    chance = random.Random(seed)
    records: list[TrialRecord] = []
    for batch in BATCHES:
        octaves = math.log2(batch / BATCHES[0])
        middle = math.log2(0.01) + slope * octaves
        for step in range(-3, 4):
            rate = 2.0 ** (round(middle) + step)
            off = math.log2(rate) - middle
            last = 0.1 * math.exp(worse * octaves + sharp * off**2 + chance.gauss(0, noise))
            values = [(round(FULL * part), last * part**-0.5) for part in (1 / 27, 1 / 9, 1 / 3, 1.0)]
            records.append(record(len(records), batch, rate, values))
    return tuple(records)


def searched(
    records: tuple[TrialRecord, ...] = (), *, target: float | None = None, of: ProbeResult | None = None
) -> Known:
    """What is known after a search that left these trials."""
    result = dataclasses.replace(demo_result(), records=records, target=target)
    return Known(FACTS, of or result.probe, result, records)


def of_kind(
    kind: str, best: float, n: int, *, middle: float = 0.0, seed: int = 0, end: int = FULL
) -> list[TrialRecord]:
    """Runs of an optimizer at rates an octave apart, the best of them at 0.01 * 2 ** middle."""
    chance = random.Random(f"{kind} {seed}")
    made = []
    for i in range(n):
        octave = (i + 1) // 2 * (1 if i % 2 else -1)
        last = best * math.exp(0.2 * (octave - middle) ** 2 + chance.gauss(0, 0.01))
        values = [(at, last * (at / FULL) ** -0.5) for at in (FULL // 9, FULL // 3, FULL) if at <= end]
        made.append(dataclasses.replace(record(i, 32, 0.01 * 2.0**octave, values), params={"kind": kind}))
    return made


def known_of(*groups: list[TrialRecord]) -> Known:
    """What is known after a search that tried these in turns."""
    records = sorted((each for group in groups for each in group), key=lambda each: each.number)
    return searched(tuple(dataclasses.replace(each, number=i) for i, each in enumerate(records)))


OCTAVES_APART = tuple(1 - 2.0**-octave for octave in range(1, 6))


def momenta(
    slope: float, *, sharp: float = 0.3, seed: int = 0, name: str = "momentum", tried: tuple[float, ...] = OCTAVES_APART
) -> Known:
    """Full runs at these momenta; the best 1 / (1 - momentum) is at 2 + slope * log2(batch / 8) octaves."""
    chance = random.Random(seed)
    made: list[TrialRecord] = []
    for batch in BATCHES:
        for octave, momentum in ((-math.log2(1 - each), each) for each in tried):
            for step in (-1, 0, 1):
                off = octave - 2 - slope * math.log2(batch / 8)
                loss = 0.1 * math.exp(sharp * off**2 + 0.2 * step**2 + chance.gauss(0, 0.01))
                run = record(len(made), batch, 0.01 * 2.0 ** (step - octave), [(FULL // 3, 2 * loss), (FULL, loss)])
                made.append(dataclasses.replace(run, params={name: momentum}))
    return searched(tuple(made))


def finding(name: str, known: Known) -> Finding:
    """The one finding."""
    return judged(chosen([name]), known)[0]


def covers(found: Finding, truth: float) -> bool:
    """Whether the interval holds the true value."""
    assert found.interval is not None
    low, high = found.interval
    return (low is None or low <= truth) and (high is None or truth <= high)

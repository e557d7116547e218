"""Probes, trials and searches whose answers are known: step times on a line, losses by a formula."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Callable, Iterable, Mapping

from bstune.tests.report.told import FACTS, demo_result
from bstune.tuner.core.diagnosis import Finding
from bstune.tuner.core.examination import Look
from bstune.tuner.core.probe_results import ProbeResult, ThroughputRow
from bstune.tuner.core.trial_record import TrialRecord
from bstune.tuner.diagnosis.claims import chosen, judged
from bstune.tuner.diagnosis.known import Known
from bstune.tuner.diagnosis.measured import odd_sizes
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
    *, slope: float, worse: float = 0.0, sharp: float = 0.08, seed: int = 0, noise: float = 0.02, fresh: int = 0
) -> tuple[TrialRecord, ...]:
    """Full runs of five batch sizes at rates an octave apart.

    Args:
        slope: The best rate is 0.01 * (batch / 8) ** slope.
        worse: ln of the loss for each doubling of the batch.
        sharp: ln of the loss at one octave from the best rate.
        seed: Of the noise.
        noise: Relative scatter of the losses.
        fresh: So many of the best settings are run once more, with a fresh seed.
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
    for run in sorted(records, key=lambda run: run.val_loss or math.inf)[:fresh]:
        off = math.exp(chance.gauss(0, noise))
        values = [(at, (loss or math.inf) * off) for at, loss in run.values]
        again = record(len(records), run.global_batch_size, run.learning_rate, values, seed=1, stage="confirm")
        records.append(again)
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


def seen(measurement: str, *found: Mapping[str, tuple[float, ...]]) -> Known:
    """What is known after these looks, one a seed."""
    looks = [Look(measurement, 0, i, 1.0, values) for i, values in enumerate(found)]
    return dataclasses.replace(searched(), looks=tuple(looks))


def timed(seconds: Callable[[int], float], seed: int) -> Known:
    """Step times of odd sizes in turns; a load that comes and goes slows whole turns."""
    chance = random.Random(seed)
    known = searched()
    load = [1 + (chance.random() < 0.3) for _ in range(15)]
    values = {
        f"s_{n}": tuple(seconds(n) * slow * math.exp(chance.gauss(0, 0.005)) for slow in load) for n in odd_sizes(known)
    }
    return dataclasses.replace(known, looks=(Look("step_times", 0, seed, 1.0, values),))


def first_losses(peak: float, seed: int) -> dict[str, tuple[float, ...]]:
    """The first losses of a run: they rise to a peak, with a little noise, and fall."""
    chance = random.Random(seed)
    shape = [1 + (peak - 1) * math.exp(-(((i - 10) / 4) ** 2)) - 0.01 * i for i in range(30)]
    return {"loss": tuple(2.3 * x * math.exp(chance.gauss(0, 0.02)) for x in shape)}


def grown(ratio: float, seed: int) -> Known:
    """What is known after trainings whose batch grew ended at so many times the loss of a rate that decayed."""
    chance = random.Random(seed)
    found: list[dict[str, tuple[float, ...]]] = []
    for _ in range(3):
        decay = 0.1 * math.exp(chance.gauss(0, 0.1))
        its = decay * ratio * math.exp(chance.gauss(0, 0.005))
        found.append({"decay": (decay,), "grown": (its,), "decay_updates": (40.0,), "grown_updates": (26.0,)})
    return seen("grown_batch", *found)


def ghosts(ratio: float, seed: int) -> Known:
    """What is known after batches of 64, in parts for BatchNorm, ended at so many times the loss of whole ones."""
    chance = random.Random(seed)
    wholes = [0.1 * math.exp(chance.gauss(0, 0.1)) for _ in range(3)]
    found = [{"whole": (own,), "parts": (own * ratio * math.exp(chance.gauss(0, 0.005)),)} for own in wholes]
    known = seen("ghost_batches", *found)
    assert known.facts is not None
    known = dataclasses.replace(known, facts=dataclasses.replace(known.facts, batch_norm=True))
    return with_best(known, global_batch_size=64)


def ended(sharper: float, worse: float, seed: int) -> Known:
    """What is known after batches of 8 and 64 ended with curvatures of this ratio.

    At equal training loss the validation loss of the large one is higher by `worse`, in ln, for each doubling.
    """
    chance = random.Random(seed)
    found = []
    for _ in range(3):
        train = (2.0, 1.0, 0.5, 0.3, 0.2)
        val = tuple(1.1 * x**0.5 * math.exp(chance.gauss(0, 0.005)) for x in train)
        values = {f"{name}_train": train for name in ("small", "large")} | {"sizes": (8.0, 64.0), "small_val": val}
        values["large_val"] = tuple(x * math.exp(3 * worse + chance.gauss(0, 0.005)) for x in val)
        values["small_curvature"] = (10.0,)
        values["large_curvature"] = (10.0 * sharper * math.exp(chance.gauss(0, 0.05)),)
        found.append(values)
    return seen("side_by_side", *found)


def with_best(known: Known, **changed: object) -> Known:
    """The same, where the search recommends something else."""
    assert known.result is not None
    best = dataclasses.replace(known.result.recommendation, **changed)  # type: ignore[arg-type]
    return dataclasses.replace(known, result=dataclasses.replace(known.result, recommendation=best))


def confirmed(luck: float, seed: int) -> Known:
    """What is known after four settings ended at so many times their loss on three fresh seeds each."""
    chance = random.Random(seed)
    made: list[TrialRecord] = []
    for i, rate in enumerate((0.01, 0.02, 0.04, 0.08)):
        for fresh in range(4):
            loss = (1 + i / 10) * 0.1 * (luck if fresh else 1.0) * math.exp(chance.gauss(0, 0.005))
            stage = "confirm" if fresh else "search"
            made.append(record(len(made), 32, rate, [(FULL, loss)], seed=fresh, stage=stage))
    return searched(tuple(made))


def shaped(tells: bool, seed: int) -> Known:
    """What is known after runs of three batch sizes, whose shapes tell how far their rates are off, or do not."""
    chance = random.Random(seed)
    made: list[TrialRecord] = []
    for batch in (8, 32, 128):
        for octaves in (-3, -2, 0, 2, 3):
            level = 0.1 * math.exp(0.15 * octaves**2)
            if tells and octaves < 0:
                curve = [level * (2 - i / 8) for i in range(9)]
            elif tells and octaves > 0:
                curve = [level * (1.5 if i % 2 else 1.0) * 1.02**-i for i in range(9)]
            else:
                curve = [level * (1 + 2.0**-i) for i in range(9)]
            values = [(FULL * (i + 1) // 9, x * math.exp(chance.gauss(0, 0.002))) for i, x in enumerate(curve)]
            made.append(record(len(made), batch, 0.01 * batch / 8 * 2.0**octaves, values))
    return searched(tuple(made))


WAVES, FALLS, LATE = (1.0, 0.5, 0.7, 0.4, 0.3), (1.0, 0.8, 0.6, 0.5, 0.4), (1.0, 0.5, 0.4, 0.5, 0.6)
"""Losses that rise and fall again, that fall, and that rise in the end to half as much again as the lowest."""


def curves(losses: tuple[float, ...], seed: int) -> Known:
    """What is known after 12 full runs with this curve, and a little noise."""
    chance = random.Random(seed)
    points = [round(FULL * (i + 1) / len(losses)) for i in range(len(losses))]
    made = [
        record(
            i,
            32,
            0.01,
            [(at, x * math.exp(chance.gauss(0, 0.005))) for at, x in zip(points, losses, strict=True)],
            seed=i,
        )
        for i in range(12)
    ]
    return searched(tuple(made))


def crossing(seed: int) -> Known:
    """What is known after runs of which the best early on are the worst at the end."""
    chance = random.Random(seed)
    made = []
    for i in range(12):
        last = 0.1 * 1.2**i * math.exp(chance.gauss(0, 0.02))
        values = [
            (round(FULL * part), x) for part, x in ((1 / 27, 0.1 / last), (1 / 9, 0.1 / last), (1 / 3, 1), (1, last))
        ]
        made.append(record(i, 8 * 2 ** (i % 4), 0.01 * 2.0 ** (i // 4), values))
    return searched(tuple(made))


def finding(name: str, known: Known) -> Finding:
    """The one finding."""
    return judged(chosen([name]), known)[0]


def covers(found: Finding, truth: float) -> bool:
    """Whether the interval holds the true value."""
    assert found.interval is not None
    low, high = found.interval
    return (low is None or low <= truth) and (high is None or truth <= high)

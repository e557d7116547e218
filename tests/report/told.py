"""Studies to make reports of: the demo as it was really run, cut short, empty, failed, large, and hostile."""

from __future__ import annotations

import dataclasses
import json
import math
import random
from pathlib import Path
from typing import Any

from bstune.tuner.core.diagnosis import Finding
from bstune.tuner.core.probe_results import DeviceInfo
from bstune.tuner.core.results import SearchResult
from bstune.tuner.core.specs import Plan
from bstune.tuner.core.trial_record import TrialRecord
from bstune.tuner.core.trials import Facts
from bstune.tuner.report.page_told import Told
from bstune.tuner.strategy.strategy import Strategy
from bstune.tuner.testing.tables import synthetic

FACTS = Facts(
    None, "supervised", 1024, 20.0, n_val_samples=773, schedule="constant", optimizer="SGD", can_continue=True
)
"""Of examples/digits.py."""
TABLE = synthetic()
FOUND = Finding(
    "below-32",
    "A batch below 32 wastes what the hardware can do.",
    "answers on Q&A sites",
    "holds",
    "of its top speed this device reaches 37% at batch 8, 54% at batch 16, 71% at batch 32, 83% at batch 64",
    54.5,
    "% of top speed at batch 16",
    (34.9, 75.6),
    "Small batches are slow here; half of the top speed takes a batch of 13. They may still need fewer samples.",
)
EVIL = "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>"


def demo_result() -> SearchResult:
    """`bstune search examples/digits.py`, as it was printed by `--json` on two CPU cores."""
    return SearchResult.from_dict(json.loads((Path(__file__).parent / "demo_search.json").read_text()))


def told(result: SearchResult, facts: Facts | None = FACTS) -> Told:
    """What a report tells of a result."""
    headline = f"Study {result.study}: {len(result.records)} trials, ended by {result.stopped_by}"
    return Told(
        result.study,
        result.storage,
        headline,
        result.records,
        result.probe,
        result,
        facts,
        "bstune search digits.py",
        "2026-11-28 19:02:05",
    )


def demo() -> Told:
    """The demo, with a finding of a diagnosis."""
    return dataclasses.replace(told(demo_result()), findings=(FOUND,))


def after(n_trials: int) -> Told:
    """The demo, stopped after so many trials."""
    whole = demo_result()
    records = whole.records[:n_trials]
    strategy = Strategy(Plan(), FACTS, whole.probe, list(records))
    result = dataclasses.replace(
        whole,
        recommendation=strategy.recommend(),
        records=records,
        spent=strategy.spent(),
        stopped_by="interrupted",
        target=strategy.target,
        limits=strategy.limits(),
        batch_answer=strategy.batch_answer(),
    )
    return told(result)


def empty() -> Told:
    """A study in which nothing has been run, not even a probe."""
    return Told("new", "sqlite:///bstune.db", "Study new: 0 trials, no search", ())


def failed() -> Told:
    """A study in which every trial has failed."""
    lost: dict[str, Any] = {
        "state": "failed",
        "cause": "error",
        "reason": "ValueError: no such <layer>",
        "val_loss": None,
    }
    records = tuple(
        dataclasses.replace(record, **lost, best_val_loss=None, values=()) for record in demo_result().records[:4]
    )
    return Told("broken", "sqlite:///bstune.db", "Study broken: 4 trials, not finished", records, demo_result().probe)


def large(n_trials: int) -> Told:
    """A study of so many made-up trials, most of them stopped early, with a result by the real strategy."""
    rng = random.Random(0)
    plan = Plan(budget=1e6, space={"batch_size": [8, 16, 32, 64, 128, 256], "learning_rate": (1e-4, 1.0)})
    rungs = Strategy(plan, TABLE.facts(), None, []).rungs.samples
    records = [_made_up(number, rng, rungs) for number in range(n_trials)]
    strategy = Strategy(plan, TABLE.facts(), None, records)
    result = dataclasses.replace(
        demo_result(),
        recommendation=strategy.recommend(),
        probe=None,
        records=tuple(records),
        spent=strategy.spent(),
        target=strategy.target,
        limits=strategy.limits(),
        batch_answer=strategy.batch_answer(),
        study="large",
    )
    return told(result, TABLE.facts())


def _made_up(number: int, rng: random.Random, rungs: tuple[int, ...]) -> TrialRecord:
    batch, rate = 2 ** rng.randint(3, 8), 10 ** rng.uniform(-4, 0)
    octaves = math.log2(rate / 0.03) - 0.7 * math.log2(batch / 64)
    values = []
    for rung in rungs:
        bowl = (1 + 0.03 * octaves**2) * (0.1 + 0.2 * (1 - rung / rungs[-1]) ** 2)
        values.append((rung, bowl * (1 + 0.02 * rng.gauss(0, 1))))
        if rng.random() > 0.4:
            break
    losses = [loss for _, loss in values]
    state = "complete" if len(values) == len(rungs) else "pruned"
    return TrialRecord(
        number=number,
        stage="search",
        state=state,
        reason="" if state == "complete" else f"stopped at {values[-1][0]} of {rungs[-1]} samples",
        global_batch_size=batch,
        micro_batch_size=batch,
        accumulation_steps=1,
        learning_rate=rate,
        seed=0,
        samples=values[-1][0],
        val_loss=losses[-1],
        best_val_loss=min(losses),
        seconds=values[-1][0] / 5000,
        samples_per_s=5000.0,
        peak_bytes=1 << 28,
        values=tuple(values),
        end_samples=rungs[-1],
    )


def hostile() -> Told:
    """The demo with markup wherever a study, a device or the output of user code puts text."""
    whole = demo_result()
    assert whole.probe is not None
    best = dataclasses.replace(
        whole.recommendation, warnings=(EVIL,), reason=EVIL, params={EVIL: EVIL}, compared=whole.recommendation.compared
    )
    records = tuple(
        dataclasses.replace(record, reason=EVIL, stage=EVIL, params={EVIL: EVIL}, metrics={"</script>": 1.0})
        for record in whole.records
    )
    probe = dataclasses.replace(whole.probe, device=DeviceInfo("cpu", EVIL), warnings=(EVIL,))
    result = dataclasses.replace(
        whole,
        recommendation=best,
        records=records,
        probe=probe,
        study=EVIL,
        storage=f"sqlite:///{EVIL}",
        stopped_by=EVIL,
        versions={EVIL: EVIL},
    )
    facts = dataclasses.replace(FACTS, optimizer=EVIL, schedule=EVIL)
    return dataclasses.replace(told(result, facts), command=EVIL, date=EVIL, headline=EVIL)

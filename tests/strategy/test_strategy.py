"""The strategy on tables whose truth is known: seeds, rungs, confirmation, resuming, the answer."""

from __future__ import annotations

import dataclasses
import math
import random
import statistics
import time
from unittest import mock

import bstune
import pytest
from bstune.tests.strategy.replayed import KINDS, TABLE, make, settings_of
from bstune.tuner.core.results import Recommendation, Setting
from bstune.tuner.core.specs import Plan, Proposal
from bstune.tuner.core.trial_record import TrialRecord
from bstune.tuner.core.trials import NoisePoint, TrialReport
from bstune.tuner.strategy.race import Race
from bstune.tuner.strategy.strategy import Strategy
from bstune.tuner.testing.fake_device import known_probe
from bstune.tuner.testing.replay import replay
from bstune.tuner.testing.tables import Table, synthetic


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_recommendation_is_confirmed_on_a_fresh_seed_to_the_full_run(kind: str) -> None:
    """`verified` means: run to the end, on a seed that the search did not use; the reported mean comes from there."""
    strategy = make(kind=kind, budget=8)

    records = replay(strategy, TABLE)
    best = strategy.recommend()

    confirming = [
        r
        for r in records
        if r.stage == "confirm"
        and r.global_batch_size == best.global_batch_size
        and r.learning_rate == best.learning_rate
    ]
    assert best.verified
    assert [r.seed for r in confirming] == list(range(1, len(confirming) + 1))
    assert all(r.state == "complete" and r.samples == TABLE.n_samples * TABLE.epochs for r in confirming)
    assert best.val_loss.mean == pytest.approx(sum(r.val_loss or math.nan for r in confirming) / len(confirming))
    assert best.val_loss.n_seeds == len(confirming)
    assert best.micro_batch_size * best.accumulation_steps * best.world_size == best.global_batch_size


def test_search_trials_share_one_seed_and_finalists_share_the_next() -> None:
    """All search trials train on `seed`, so they are paired; every finalist is confirmed on the same fresh seeds."""
    finalists = []
    for luck in range(4):
        table = synthetic(noise=0.1, seed=luck)
        records = replay(make(table, budget=16, seed=5), table)

        assert {r.seed for r in records if r.stage != "confirm"} == {5}
        seeds: dict[tuple[int, float], list[int]] = {}
        for r in records:
            if r.stage == "confirm":
                seeds.setdefault((r.global_batch_size, r.learning_rate), []).append(r.seed)
        assert all(found == list(range(6, 6 + len(found))) for found in seeds.values())
        finalists.append(len(seeds))
    assert max(finalists) >= 2


@dataclasses.dataclass(frozen=True)
class Valley(Table):
    """Curves by a formula for any batch size and rate, on the default space: wider than any recorded table."""

    best_rate: float = 0.03
    """At a batch size of 64."""
    best_batch: int = 64

    def curve(self, batch: int, lr: float, seed: int) -> list[tuple[int, float]]:
        """Return the curve of any setting."""
        rng = random.Random(f"{batch} {lr} {seed}")
        octaves = math.log2(batch / 64)
        off = math.log2(lr / self.best_rate) - 0.7 * octaves
        gap = 0.03 * off**2 + 0.01 * math.log2(batch / self.best_batch) ** 2
        luck = 1 + 0.02 * rng.gauss(0, 1)
        return [(8192 * epoch, (1 + gap) * (0.1 + 0.2 * (1 - epoch / 16) ** 2) * luck) for epoch in range(1, 17)]


@pytest.mark.parametrize("seed", range(4))
def test_no_full_run_goes_where_nothing_is_known(seed: int) -> None:
    """On the default space no finalist ends more than 40 % above the best, whatever the corners may hide."""
    facts = Valley("valley", 8192, 16, {}).facts(**KINDS["continued"], optimizer_family="sgd")
    records = replay(
        Strategy(Plan(budget=12, seed=seed, goal="loss"), facts, known_probe(n_train_samples=8192)),
        Valley("valley", 8192, 16, {}),
    )
    ends = [record.val_loss or math.inf for record in records if record.stage == "confirm"]
    assert ends
    assert max(ends) <= 1.4 * min(ends)


def test_gradient_noise_lets_larger_batches_in() -> None:
    """With flat throughput, default batches end at 64, and at four times a known noise of 100; so also on resuming."""
    facts = dataclasses.replace(TABLE.facts(**KINDS["continued"]), n_samples=8192)
    probe = known_probe(step_s=(0.0, 0.001), n_train_samples=8192)
    first = replay(make(budget=2), TABLE)[0]
    noisy = dataclasses.replace(first, noise=tuple(NoisePoint(64 * i, 4, 8, 1.0, 100.0) for i in range(1, 9)))
    strategy = Strategy(Plan(budget=4), facts, probe)
    assert max(strategy.space.batches) == 64

    strategy.finish(noisy)

    assert max(strategy.space.batches) == 256
    assert Strategy(Plan(budget=4), facts, probe, [noisy]).space == strategy.space
    listed = Plan(budget=4, space={"learning_rate": [0.01, 0.03]})
    unsure = dataclasses.replace(
        noisy, number=1, noise=tuple(NoisePoint(64 * i, 4, 8, -1.0, 100.0) for i in range(1, 9))
    )
    for plan in (Plan(budget=4), listed):  # More measurements may say that the first were luck.
        strategy = Strategy(plan, facts, probe, [noisy])
        strategy.finish(unsure)
        assert Strategy(plan, facts, probe, [noisy, unsure]).space == strategy.space


@pytest.mark.parametrize("best", [1e-5, 30.0])
def test_the_default_range_of_rates_gives_way_where_the_best_is_at_its_edge(best: float) -> None:
    """A valley beyond either end of SGD's default range is found, also after a restart; a range asked for is kept."""
    valley = Valley("valley", 8192, 16, {}, best_rate=best)
    facts = valley.facts(**KINDS["continued"], optimizer_family="sgd")
    strategy = Strategy(Plan(budget=8), facts, None)
    usual = strategy.space.learning_rates
    records = replay(strategy, valley)

    assert any(abs(math.log2(record.learning_rate / best)) < 1 for record in records)
    assert set(usual) < set(strategy.space.learning_rates)
    assert Strategy(Plan(budget=8), facts, None, records).space == strategy.space
    outermost = min(records, key=lambda record: record.learning_rate * (1 if best < 1 else -1))
    edge = any("at the edge" in warning for warning in strategy.recommend().warnings)
    assert edge == (strategy.recommend().learning_rate == outermost.learning_rate)
    kept = Strategy(Plan(budget=8, space={"learning_rate": (1e-4, 3.0)}), facts, None, records)
    assert (kept.space.learning_rates[0], kept.space.learning_rates[-1]) == (usual[0], usual[-1])


def test_gradient_noise_does_not_start_the_race_again() -> None:
    """The race begins a search and is over then, also where the batch sizes are a list without the usual one."""
    table = dataclasses.replace(synthetic(), noise_scale=100.0)
    plan = Plan(budget=12, space={"batch_size": [256, 512], "learning_rate": table.learning_rates})
    facts = dataclasses.replace(table.facts(**KINDS["continued"]), optimizer_family="sgd")
    records = replay(Strategy(plan, facts, known_probe()), table)
    stages = [record.stage for record in records]
    assert any(record.noise for record in records)
    assert "anchor" not in stages[stages.index("search") :]


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_killed_search_goes_on_as_if_nothing_had_happened(kind: str) -> None:
    """A strategy rebuilt from the finished records of another asks for what the other asked next."""
    whole = replay(make(kind=kind, budget=6), TABLE)

    for cut in range(0, len(whole), 3):
        resumed = make(kind=kind, budget=6, history=whole[:cut])
        rest = replay(resumed, TABLE)
        assert settings_of(rest) == settings_of(whole[cut:])


@pytest.mark.parametrize("kind", ["loop", "continued"])
def test_no_cell_is_run_twice_to_the_same_depth(kind: str) -> None:
    """A cell comes again only to go deeper."""
    records = replay(make(kind=kind, budget=12), TABLE)

    deepest: dict[tuple[int, float, int], int] = {}
    for r in records:
        key = (r.global_batch_size, r.learning_rate, r.seed)
        assert r.samples > deepest.get(key, 0)
        deepest[key] = r.samples


def test_under_a_schedule_a_short_run_is_planned_short_and_not_continued() -> None:
    """With a cosine, a run that ends at a rung is planned to end there: a long cosine's start favours small rates."""
    records = replay(make(kind="cosine", budget=8), TABLE)

    full = TABLE.n_samples * TABLE.epochs
    searched = [r for r in records if r.stage != "confirm"]
    assert any((r.end_samples or full) < full for r in searched)
    assert all(r.samples == r.end_samples for r in searched if r.state == "complete")
    assert all(r.continues is None for r in records)


def test_a_recommendation_can_be_had_at_any_moment() -> None:
    """After every report there is a best so far; it is not verified before its confirmation has ended."""
    strategy = make(budget=4)
    seen: list[Recommendation] = []

    replay(strategy, TABLE, watch=lambda now: seen.append(now.recommend()))

    assert not seen[0].verified
    assert seen[0].warnings
    assert seen[-1].verified


@pytest.mark.parametrize("kind", list(KINDS))
def test_the_recommended_setting_is_good(kind: str) -> None:
    """Twelve full runs end within 14 % of the best, most within 5 %, though early rungs favour too high rates."""
    regrets = []
    tables = [(seed, *shape) for seed in range(3) for shape in ((64, 0.03, 0.7), (16, 0.01, 0.5), (256, 0.1, 1.0))]
    for seed, best_batch, best_lr, slope in tables:
        table = synthetic(best_batch, best_lr, slope=slope, seed=seed)
        strategy = make(table, kind=kind, budget=12, tolerance=0.0, goal="loss")
        replay(strategy, table)
        best = strategy.recommend()
        regrets.append(table.regret(best.global_batch_size, best.learning_rate))
    assert max(regrets) <= 0.14
    assert statistics.median(regrets) <= 0.05


def test_finalists_are_compared_on_the_same_seeds() -> None:
    """A second fresh seed comes for all finalists or for none, so no mean is compared with one over other seeds."""
    for seed in range(2):
        records = replay(make(budget=12, seed=seed), TABLE)
        seeds: dict[tuple[int, float], set[int]] = {}
        for r in records:
            if r.stage == "confirm" and r.state == "complete":
                seeds.setdefault((r.global_batch_size, r.learning_rate), set()).add(r.seed)
        assert len({frozenset(s) for s in seeds.values()}) == 1


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_the_samplers_for_comparison_run(sampler: str) -> None:
    """They keep the same budget and end in a verified recommendation."""
    strategy = make(budget=4, sampler=sampler)

    replay(strategy, TABLE)

    assert strategy.spent().full_runs <= 4 + 1 / 16
    assert strategy.recommend().verified


def test_without_a_pruner_every_trial_runs_to_its_end() -> None:
    """`pruner="none"` stops nothing but what diverges."""
    records = replay(make(budget=6, pruner="none"), TABLE)

    assert all(r.state == "complete" for r in records if r.val_loss is not None)


@pytest.mark.parametrize("n_before", [200, 2000])
def test_a_run_is_judged_by_what_it_reported_however_long_the_search(n_before: int) -> None:
    """A new setting with half the loss of all before it passes the first rung, though many have been further."""
    space = {**TABLE.space, "weight_decay": (1e-6, 1e-1)}
    rungs = make(space=space).rungs.samples
    rng = random.Random(0)
    history = [
        TrialRecord(
            number=i,
            stage="search",
            state="complete" if i % 2 else "pruned",
            reason="",
            global_batch_size=rng.choice(TABLE.batches),
            micro_batch_size=8,
            accumulation_steps=1,
            learning_rate=rate,
            seed=0,
            samples=reached[-1],
            val_loss=1.5,
            best_val_loss=None,
            seconds=0.01,  # Too short to say what training costs.
            samples_per_s=None,
            peak_bytes=None,
            values=tuple((rung, 1 + 0.1 * abs(math.log2(rate / 0.03)) + 0.05 * rng.random()) for rung in reached),
            end_samples=rungs[-1],
            params={"weight_decay": 10 ** rng.uniform(-6, -1)},
        )
        for i in range(n_before)
        for reached, rate in [(rungs if i % 2 else rungs[:1], rng.choice(TABLE.learning_rates))]
    ]
    strategy = make(space=space, history=history, budget=10_000)
    proposal = Proposal("search", Setting(64, 0.03, {"weight_decay": 1e-3}), 0, rungs[-1], rungs)
    strategy.started(n_before, proposal)

    with mock.patch.object(Race, "next", return_value=None):  # It is over in so long a search.
        assert strategy.report(TrialReport(n_before, rungs[:1], rungs[0], 0.5, {}, 1.0)) == "go"


@pytest.mark.usefixtures("formulas_take_no_time")
def test_a_function_through_the_front_door_finds_what_the_strategy_finds() -> None:
    """`bstune.search` on a function that looks losses up recommends the same cell, in 0.1 s of a core a trial."""
    objective = bstune.objective(n_samples=TABLE.n_samples, epochs=TABLE.epochs, name="looked_up")(TABLE.train)
    started, began_s = time.process_time(), time.monotonic()

    result = bstune.search(
        objective,
        space=TABLE.space,
        budget=8,
        tolerance=0.0,
        isolation="none",
        storage="sqlite:///:memory:",
        callbacks=[lambda now: None],
    )

    seconds, waited_s = time.process_time() - started, time.monotonic() - began_s
    strategy = make(budget=8, tolerance=0.0)
    replay(strategy, TABLE)
    expected = strategy.recommend()
    best = result.recommendation
    assert (best.global_batch_size, best.learning_rate) == (expected.global_batch_size, expected.learning_rate)
    assert best.val_loss == expected.val_loss
    assert seconds < 5 + 0.1 * len(result.trials)
    assert waited_s < 15  # Of some 17 trials: others may have the cores, but no trial waits for a second.


def test_a_larger_batch_brings_nothing_where_all_batches_are_equally_fast() -> None:
    """Then the soonest is the lowest loss."""
    facts = TABLE.facts(step_times=tuple((batch, batch * 1e-4) for batch in TABLE.batches))
    strategy = Strategy(Plan(budget=12, space=TABLE.space, goal="time"), facts, None)
    replay(strategy, TABLE)
    best = strategy.recommend()

    assert strategy.forecast().reference_batch == min(TABLE.batches)
    assert TABLE.regret(best.global_batch_size, best.learning_rate) <= 0.1


def test_a_steeper_clock_is_answered_with_larger_batches() -> None:
    """The dearer a step, the larger the soonest batch; the frontier is sorted, and the three answers have prices."""
    chosen = []
    for saturation in (4, 512):
        facts = TABLE.facts(step_times=tuple((batch, 1e-4 * (saturation + batch)) for batch in TABLE.batches))
        strategy = Strategy(Plan(budget=12, space=TABLE.space, goal="time"), facts, None)
        replay(strategy, TABLE)
        best = strategy.recommend()
        chosen.append(best.global_batch_size)
        seconds = [c.seconds_per_full_run or 0.0 for c in best.frontier]
        losses = [c.val_loss.mean or 0.0 for c in best.frontier]
        assert seconds == sorted(seconds)
        assert losses == sorted(losses, reverse=True)
        assert best.seconds_per_full_run == pytest.approx(
            TABLE.n_samples * TABLE.epochs / best.global_batch_size * 1e-4 * (saturation + best.global_batch_size)
        )
    assert chosen[0] < chosen[1]


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_search_that_ends_early_has_looked_at_the_rates_beside_its_answer(kind: str) -> None:
    """Half and twice the rate of the answer were run to a third, or diverged: short runs may favour the wrong rate."""
    step_times = tuple((batch, 1e-4 * (64 + batch)) for batch in TABLE.batches)
    facts = TABLE.facts(step_times=step_times, **KINDS[kind])
    strategy = Strategy(Plan(budget=40, space=TABLE.space, goal="time"), facts, None)
    records = replay(strategy, TABLE)
    best = strategy.recommend()
    rates = TABLE.learning_rates
    at = rates.index(best.learning_rate)

    assert strategy.stopped_by == "converged"
    for rate in {rates[max(at - 1, 0)], rates[min(at + 1, len(rates) - 1)]}:
        runs = [r for r in records if (r.global_batch_size, r.learning_rate) == (best.global_batch_size, rate)]
        deepest = max((r.samples for r in runs), default=0)
        lost = any(value is None or not math.isfinite(value) for r in runs for _, value in r.values)
        assert lost or deepest >= TABLE.n_samples * TABLE.epochs / 3 - best.global_batch_size

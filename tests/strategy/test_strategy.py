"""The strategy on tables whose truth is known: budget, seeds, rungs, confirmation, resuming."""

from __future__ import annotations

import dataclasses
import math
import random
import statistics
import time
from typing import Any
from unittest import mock

import bstune
import pytest
from bstune.tuner.core.errors import NoSignalError
from bstune.tuner.core.results import NoisePoint, Recommendation, Setting, TrialRecord
from bstune.tuner.core.specs import Plan, Proposal
from bstune.tuner.core.trials import TrialReport
from bstune.tuner.report.progress import forecast_line
from bstune.tuner.report.units import duration
from bstune.tuner.strategy.race import Race
from bstune.tuner.strategy.strategy import Strategy
from bstune.tuner.testing.fake_device import known_probe
from bstune.tuner.testing.replay import replay
from bstune.tuner.testing.tables import Table, synthetic

TABLE = synthetic()
KINDS: dict[str, dict[str, Any]] = {
    "loop": {},
    "continued": {"kind": "supervised", "schedule": "constant", "can_continue": True},
    "cosine": {"kind": "supervised", "schedule": "cosine"},
}


def make(table: Table = TABLE, kind: str = "loop", history: list[TrialRecord] | None = None, **plan: Any) -> Strategy:
    """Return a strategy for a table that searches just its cells."""
    plan = {"space": table.space, "goal": "loss", **plan}
    return Strategy(Plan(**plan), table.facts(**KINDS[kind]), None, history or ())


def settings_of(records: list[TrialRecord]) -> list[tuple[int, float, int, int]]:
    """Return what was run, how far and on which seed."""
    return [(r.global_batch_size, r.learning_rate, r.seed, r.samples) for r in records]


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize(("budget", "jobs"), [(2, 4), (4, 1), (4, 4), (7.5, 1)])
def test_the_budget_is_never_exceeded(kind: str, budget: float, jobs: int) -> None:
    """Training, with confirmation, stays within the budget; a loop may pass it by one report of each running trial."""
    strategy = make(kind=kind, budget=budget, jobs=jobs)
    slack = jobs * TABLE.n_samples if kind == "loop" else 0
    allowed = budget * TABLE.n_samples * TABLE.epochs + slack

    def watch(now: Strategy) -> None:
        assert now.spent().samples <= allowed

    records = replay(strategy, TABLE, slots=jobs, watch=watch)

    assert strategy.stopped_by in ("budget", "converged")
    assert sum(r.samples - r.start_samples for r in records) == strategy.spent().samples
    assert strategy.recommend().verified


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


def test_a_larger_budget_continues() -> None:
    """More budget adds to what was done; nothing finished is run again."""
    first = replay(make(budget=4), TABLE)
    strategy = make(budget=8, history=first)

    more = replay(strategy, TABLE)

    assert more
    assert strategy.spent().full_runs <= 8
    confirmed = [r for r in (*first, *more) if r.stage == "confirm"]
    assert len({(r.global_batch_size, r.learning_rate, r.seed) for r in confirmed}) == len(confirmed)


@pytest.mark.parametrize("kind", ["loop", "continued"])
def test_no_cell_is_run_twice_to_the_same_depth(kind: str) -> None:
    """A cell comes again only to go deeper."""
    records = replay(make(kind=kind, budget=12), TABLE)

    deepest: dict[tuple[int, float, int], int] = {}
    for r in records:
        key = (r.global_batch_size, r.learning_rate, r.seed)
        assert r.samples > deepest.get(key, 0)
        deepest[key] = r.samples


def test_a_continued_run_is_charged_for_what_it_adds() -> None:
    """A continued trial starts where the other stopped, carries its values, and only its own samples count."""
    strategy = make(kind="continued", budget=8)

    records = replay(strategy, TABLE)

    by_number = {r.number: r for r in records}
    continued = [r for r in records if r.continues is not None]
    assert continued
    for r in continued:
        before = by_number[r.continues or 0]
        assert r.start_samples == before.samples
        assert r.values[: len(before.values)] == before.values
    assert strategy.spent().samples == sum(r.samples - r.start_samples for r in records)


def test_under_a_schedule_a_short_run_is_planned_short_and_not_continued() -> None:
    """With a cosine, a run that ends at a rung is planned to end there: a long cosine's start favours small rates."""
    records = replay(make(kind="cosine", budget=8), TABLE)

    full = TABLE.n_samples * TABLE.epochs
    searched = [r for r in records if r.stage != "confirm"]
    assert any((r.end_samples or full) < full for r in searched)
    assert all(r.samples == r.end_samples for r in searched if r.state == "complete")
    assert all(r.continues is None for r in records)


def test_a_loss_that_is_not_finite_stops_the_trial_at_once() -> None:
    """A diverged trial is a result: it is stopped, and neither recommended nor run again."""
    strategy = make(budget=8, baseline=(64, max(TABLE.learning_rates)))

    records = replay(strategy, TABLE)

    bad = [r for r in records if r.val_loss is None]
    assert bad
    assert all(r.samples <= 2 * TABLE.n_samples for r in bad)
    assert strategy.recommend().learning_rate not in {
        r.learning_rate for r in bad if r.global_batch_size == strategy.recommend().global_batch_size
    }


def test_nothing_learned_is_said_so() -> None:
    """Without one finite loss there is no recommendation, and the search ends."""
    table = dataclasses.replace(TABLE, curves={cell: [[(1024, math.nan)]] for cell in TABLE.curves})
    strategy = make(table, budget=4)

    replay(strategy, table)

    with pytest.raises(bstune.NoSignalError, match="finite validation loss"):
        strategy.recommend()


def test_a_recommendation_can_be_had_at_any_moment() -> None:
    """After every report there is a best so far; it is not verified before its confirmation has ended."""
    strategy = make(budget=4)
    seen: list[Recommendation] = []

    replay(strategy, TABLE, watch=lambda now: seen.append(now.recommend()))

    assert not seen[0].verified
    assert seen[0].warnings
    assert seen[-1].verified


def test_a_setting_that_diverged_on_its_fresh_seed_is_not_recommended() -> None:
    """The next best is run and recommended instead; and where all has diverged, that is said."""
    curves = {
        cell: [
            seeds[0],
            *([[(at, math.nan) for at, _ in curve] for curve in seeds[1:]] if cell[0] <= 64 else seeds[1:]),
        ]
        for cell, seeds in TABLE.curves.items()
    }
    table = dataclasses.replace(TABLE, curves=curves)
    for all_of_them, space in ((False, table.space), (True, {"batch_size": [64], "learning_rate": [0.03]})):
        strategy = make(table, budget=3, space=space)
        replay(strategy, table)
        told = strategy.recommend()
        spoilt = {
            (run.setting.global_batch_size, run.setting.learning_rate)
            for run in strategy.ledger
            if run.stage == "confirm" and run.diverged
        }
        assert spoilt
        assert ((told.global_batch_size, told.learning_rate) in spoilt) == all_of_them
        assert any("diverged on a fresh seed" in warning for warning in told.warnings) == all_of_them


def test_what_failed_before_anything_was_learned_is_tried_again() -> None:
    """An error in the user's code ended the search and was repaired; later failures rule a setting out."""
    records = replay(make(budget=8), TABLE)
    failed: dict[str, Any] = {"state": "failed", "cause": "error", "val_loss": None}
    first = make(budget=8, history=[dataclasses.replace(records[0], **failed)]).ask()
    assert first is not None
    assert first.setting == Setting(records[0].global_batch_size, records[0].learning_rate, dict(records[0].params))
    late = next(r for r in records if r.stage == "search")
    history = [*records[: late.number], dataclasses.replace(late, **failed)]
    later = replay(make(budget=8, history=history), TABLE)
    assert (late.global_batch_size, late.learning_rate) not in {(r.global_batch_size, r.learning_rate) for r in later}


def test_a_lost_run_is_started_again_as_it_was() -> None:
    """To its own planned end, and from the checkpoint that it continued, if that is still there."""
    for kind in ("cosine", "continued"):
        strategy = make(kind=kind, budget=8)
        records = replay(strategy, TABLE)
        victim = next(
            r
            for r in records
            if r.stage == "search" and (r.continues is not None or kind == "cosine") and r.samples > 2048
        )
        lost = dataclasses.replace(
            victim, state="failed", cause="orphan", val_loss=None, values=(), samples=victim.start_samples
        )
        again = make(kind=kind, budget=8, history=[*records[: victim.number], lost]).ask()
        assert again is not None
        assert (again.setting, again.end_samples, again.continues) == (
            Setting(victim.global_batch_size, victim.learning_rate, dict(victim.params)),
            victim.end_samples,
            victim.continues,
        )


def test_n_trials_counts_confirmation_too() -> None:
    """`n_trials` is the total; one trial of it is kept for confirmation."""
    strategy = make(budget=12, n_trials=6)

    records = replay(strategy, TABLE)

    assert len(records) == 6
    assert strategy.stopped_by == "n_trials"
    assert records[-1].stage == "confirm"
    assert strategy.recommend().verified


def test_a_budget_below_two_may_end_unverified_and_says_what_would_help() -> None:
    """A budget of one full run is all for the search; the warning names the budget that verifies."""
    strategy = make(budget=1)

    replay(strategy, TABLE)
    best = strategy.recommend()

    assert not best.verified
    assert any("budget of 2" in warning for warning in best.warnings)


def test_an_orphan_is_started_again_and_a_setting_that_keeps_killing_is_not() -> None:
    """A run cut off by a crash comes again, twice at most."""
    strategy = make(budget=8)
    proposal = strategy.ask()
    assert proposal is not None
    lost = TrialRecord(
        number=0,
        stage=proposal.stage,
        state="failed",
        reason="the search was killed",
        global_batch_size=proposal.setting.global_batch_size,
        micro_batch_size=proposal.setting.global_batch_size,
        accumulation_steps=1,
        learning_rate=proposal.setting.learning_rate,
        seed=proposal.seed,
        samples=100,
        val_loss=None,
        best_val_loss=None,
        seconds=1.0,
        samples_per_s=None,
        peak_bytes=None,
        end_samples=proposal.end_samples,
        cause="orphan",
    )
    history = [lost]
    for _ in range(2):
        again = make(budget=8, history=history).ask()
        assert again is not None
        assert again.setting == proposal.setting
        history.append(dataclasses.replace(lost, number=len(history)))

    other = make(budget=8, history=history).ask()

    assert other is not None
    assert other.setting != proposal.setting


def test_out_of_memory_forbids_the_batch_and_all_larger_ones() -> None:
    """After a trial that ran out of memory without accumulation, nothing as large is proposed again."""
    strategy = make(budget=12)
    records = replay(strategy, TABLE)
    victim = next(r for r in records if r.global_batch_size == 64)
    history = [
        *records[: victim.number],
        dataclasses.replace(victim, state="failed", cause="oom", val_loss=None, values=()),
    ]

    later = replay(make(budget=12, history=history), TABLE)

    assert later
    assert max(r.global_batch_size for r in later) < 64


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


def test_the_baseline_is_measured_and_is_the_centre() -> None:
    """The user's own setting is the first that is tried."""
    records = replay(make(budget=6, baseline=(32, 0.0075)), TABLE)

    assert (records[0].global_batch_size, records[0].learning_rate) == (32, 0.0075)


def test_a_baseline_beyond_a_full_run_is_refused() -> None:
    """No step of it could be made."""
    with pytest.raises(bstune.ArgumentError, match=r"more than the .* samples of a full run"):
        make(budget=4, baseline=(10**6, 0.1))


def test_where_all_diverges_late_a_baseline_changes_nothing() -> None:
    """No setting can be recommended, and that is what is said."""
    curves = {
        cell: [[(at, loss if at < 3 * 1024 else math.nan) for at, loss in curve] for curve in seeds]
        for cell, seeds in TABLE.curves.items()
    }
    table = dataclasses.replace(TABLE, curves=curves)
    strategy = make(table, budget=12, baseline=(32, 0.0075), pruner="none")
    replay(strategy, table)

    with pytest.raises(NoSignalError):
        strategy.recommend()


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


def test_the_forecast_is_said_before_training() -> None:
    """It names trials, reference runs and the space; seconds are unknown without a step time."""
    forecast = make(budget=8).forecast()

    assert forecast.reference_runs == 8
    assert forecast.n_trials >= 8
    assert forecast.batch_range == (8, 512)
    assert forecast.seconds is None


def test_the_forecast_is_of_what_is_left_in_seconds() -> None:
    """Reference runs are full runs at the smallest batch of half the peak speed, and a duration says the same."""
    probe = known_probe(step_s=(0.01, 0.0001))
    forecast = Strategy(Plan(budget=8, space=TABLE.space), TABLE.facts(), probe).forecast()

    whole_s = TABLE.facts().full_run_samples / 128 * (0.01 + 0.0128)
    assert forecast.reference_batch == 128
    assert forecast.seconds == pytest.approx(8 * whole_s, rel=1e-3)
    assert f"at most 8 full runs at batch 128, about {duration(forecast.seconds)} of training" in forecast_line(
        forecast
    )
    same = Strategy(Plan(budget_s=8 * whole_s, space=TABLE.space), TABLE.facts(), probe).forecast()
    assert same.reference_runs == pytest.approx(8, rel=1e-3)


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("budget", [4, 12])
def test_the_forecast_is_about_right(kind: str, budget: int) -> None:
    """The number of trials that is announced is within a factor of two of what then runs."""
    strategy = make(kind=kind, budget=budget)
    said = strategy.forecast().n_trials

    assert 0.5 * said <= len(replay(strategy, TABLE)) <= 2 * said


def test_a_function_through_the_front_door_finds_what_the_strategy_finds() -> None:
    """`bstune.search` on a function that looks losses up recommends the same cell, in at most 0.1 s a trial."""
    objective = bstune.objective(n_samples=TABLE.n_samples, epochs=TABLE.epochs, name="looked_up")(TABLE.train)
    started = time.perf_counter()

    result = bstune.search(
        objective,
        space=TABLE.space,
        budget=8,
        tolerance=0.0,
        isolation="none",
        storage="sqlite:///:memory:",
        callbacks=[lambda now: None],
    )

    seconds = time.perf_counter() - started
    strategy = make(budget=8, tolerance=0.0)
    replay(strategy, TABLE)
    expected = strategy.recommend()
    best = result.recommendation
    assert (best.global_batch_size, best.learning_rate) == (expected.global_batch_size, expected.learning_rate)
    assert best.val_loss == expected.val_loss
    assert seconds < 5 + 0.1 * len(result.trials)


def test_a_run_that_lost_what_it_had_gained_is_not_trained_further() -> None:
    """A rate that leads at the first rung and then falls back to an untrained model's loss is not chosen."""
    curves = dict(TABLE.curves)
    for (batch, lr), seeds in TABLE.curves.items():
        if lr == 0.03 * 2**2:
            curves[batch, lr] = [[(1024 * epoch, 0.05 if epoch <= 2 else 0.9) for epoch in range(1, 17)] for _ in seeds]
    table = dataclasses.replace(TABLE, curves=curves)
    strategy = make(table, budget=6)

    records = replay(strategy, table)

    full = table.n_samples * table.epochs
    fallen = [r for r in records if r.learning_rate == 0.03 * 2**2]
    assert fallen
    assert all(r.samples < full / 2 for r in fallen)
    assert strategy.recommend().learning_rate != 0.03 * 2**2


def test_a_cliff_does_not_move_the_valley() -> None:
    """The largest of three rates diverges and the middle one leads at every rung: the middle one is recommended."""

    @bstune.objective(n_samples=320, epochs=4, evals=4, name="cliff")
    def cliff(trial: bstune.Trial) -> None:
        for samples in range(trial.global_batch_size, trial.max_samples + 1, trial.global_batch_size):
            if samples >= trial.next_report:
                loss = 0.1 + math.exp(-samples / 500) + 0.05 * math.log10(trial.learning_rate / 0.01) ** 2
                trial.report(
                    val_loss=math.nan if trial.learning_rate == 0.1 and samples > 64 else loss, samples=samples
                )

    space = {"batch_size": [16, 32], "learning_rate": [0.001, 0.01, 0.1]}
    result = bstune.search(cliff, isolation="none", storage="sqlite:///:memory:", budget=4, space=space)

    assert result.recommendation.learning_rate == 0.01


@pytest.mark.parametrize("baseline", [(32, 0.0075), (64, 0.00046875)])
def test_the_baseline_is_run_to_its_end_and_compared(baseline: tuple[int, float]) -> None:
    """However poor it is: it is the first run, sets the target, and the answer says how it compares."""
    probe = known_probe(step_s=(0.01, 0.0001))
    strategy = Strategy(Plan(budget=12, space=TABLE.space, baseline=baseline, goal="time"), TABLE.facts(), probe)
    records = replay(strategy, TABLE)
    best = strategy.recommend()

    first = records[0]
    assert (first.stage, first.state, first.global_batch_size, first.learning_rate) == (
        "baseline",
        "complete",
        *baseline,
    )
    assert first.samples == TABLE.n_samples * TABLE.epochs
    assert strategy.target == first.val_loss
    (own,) = [each for each in best.compared if each.name == "your present setting"]
    assert (own.setting.global_batch_size, own.setting.learning_rate) == baseline
    assert own.setting.note.startswith("your present setting")
    assert own.times_sooner is not None
    assert own.times_sooner > 1


def test_a_baseline_that_costs_more_than_half_the_budget_is_left_out() -> None:
    """A full run at batch 8 takes six times as long as at the reference batch."""
    probe = known_probe(step_s=(0.01, 0.0001))
    records = replay(
        Strategy(Plan(budget=8, space=TABLE.space, baseline=(8, 0.0075), goal="time"), TABLE.facts(), probe), TABLE
    )

    assert not [record for record in records if record.stage == "baseline"]


@pytest.mark.parametrize("saturation", [16, 128, 512])
@pytest.mark.parametrize("kind", list(KINDS))
def test_a_search_keeps_to_its_seconds_whatever_it_tries(kind: str, saturation: int) -> None:
    """On a line of any shape a search costs what was announced, in reference runs and in seconds, and is soon done."""
    probe = known_probe(step_s=(saturation * 1e-4, 1e-4))
    strategy = Strategy(Plan(budget=12, space=TABLE.space, goal="time"), TABLE.facts(**KINDS[kind]), probe)
    announced = strategy.forecast().seconds or 0.0

    records = replay(strategy, TABLE)

    seconds = sum(
        (r.samples - r.start_samples) / r.global_batch_size * 1e-4 * (saturation + r.global_batch_size) for r in records
    )
    assert seconds <= 1.05 * announced
    assert strategy.spent().predicted_seconds == pytest.approx(seconds, rel=0.05)
    best = strategy.recommend()
    assert best.verified
    tried = {r.global_batch_size for r in records}
    near = [b for b in tried if best.global_batch_size / 4 <= b <= best.global_batch_size * 4]
    assert len(near) >= 3


def test_a_duration_is_a_budget() -> None:
    """Both halves of a search that was cut off count towards it, and without a step time the trials' own seconds do."""
    probe = known_probe(step_s=(0.01, 0.0001))
    plan = Plan(budget_s=20.0, space=TABLE.space, goal="time")
    whole = replay(Strategy(plan, TABLE.facts(), probe), TABLE)
    again = Strategy(plan, TABLE.facts(), probe, whole[: len(whole) // 2])
    rest = replay(again, TABLE)

    assert settings_of([*whole[: len(whole) // 2], *rest]) == settings_of(whole)
    assert 10 < (again.spent().predicted_seconds or 0.0) <= 20 * 1.05


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

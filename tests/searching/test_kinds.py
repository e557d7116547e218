"""Several kinds of device in one cluster.

What each is told, what is remembered of it, and what is said of it at the end.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import bstune
import pytest
from bstune.tuner.core.arguments import check_search
from bstune.tuner.core.probe_results import DeviceInfo, ProbeResult
from bstune.tuner.core.progress import Progress
from bstune.tuner.core.specs import Plan
from bstune.tuner.core.trial_record import TrialRecord
from bstune.tuner.core.trials import Facts, Split, TrialSpec
from bstune.tuner.engines.base import Engine
from bstune.tuner.engines.ray_cluster import Cluster
from bstune.tuner.searching import probes
from bstune.tuner.searching.probes import corrected_probes
from bstune.tuner.strategy.ledger import Ledger
from bstune.tuner.strategy.strategy import Strategy
from bstune.tuner.studies.catalog import find_study, make_study
from bstune.tuner.studies.optuna_parameters import Axes
from bstune.tuner.studies.storage import Storage, open_storage
from bstune.tuner.studies.study import Study
from bstune.tuner.testing.fake_device import known_probe
from bstune.tuner.testing.replay import replay
from bstune.tuner.testing.tables import synthetic

FACTS = Facts(name=None, kind="supervised", n_samples=1000, epochs=2.0, source_hash="abc")
LARGE, SMALL = known_probe(64, step_s=(0.01, 0.0001)), known_probe(8, step_s=(0.02, 0.001))
PROBES = {"large": LARGE, "small": SMALL}
SPEC = TrialSpec(
    -1, "search", 64, 64, 1, 0.1, 0, 640, (320, 640), splits={"large": Split(64, 1, 64), "small": Split(8, 8, 16)}
)


def oom(device: str | None, micro_batch_size: int, **changes: Any) -> TrialRecord:
    """A trial that ran out of memory."""
    record = TrialRecord(
        0, "search", "failed", "", 64, micro_batch_size, 64 // micro_batch_size, 0.1, 0, 0, None, None, None, None, None
    )
    return dataclasses.replace(record, **({"cause": "oom", "device": device} | changes))


# --- the split ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("device", "split"), [("large", (64, 1, 64)), ("small", (8, 8, 16)), ("came later", (8, 8, 16))]
)
def test_a_run_is_split_as_the_device_that_it_lands_on_needs(device: str, split: tuple[int, int, int]) -> None:
    """The global batch stays; a kind that was not probed gets the smallest micro-batch of all."""
    placed = SPEC.on(device)

    assert (placed.micro_batch_size, placed.accumulation_steps, placed.eval_batch_size) == split
    assert placed == dataclasses.replace(
        SPEC, micro_batch_size=split[0], accumulation_steps=split[1], eval_batch_size=split[2], splits={}
    )


@pytest.mark.parametrize(
    ("record", "sizes"),
    [
        (oom("small", 8), {"large": 64, "small": 4}),
        (oom("large", 64), {"large": 32, "small": 8}),
        (oom("small", 8, cause="killed"), {"large": 64, "small": 8}),
        (oom(None, 8), {"large": 4, "small": 4}),
        (oom("came later", 8), {"large": 4, "small": 4}),
    ],
)
def test_memory_that_ends_on_one_kind_lowers_that_kind_alone(record: TrialRecord, sizes: dict[str, int]) -> None:
    """Where it is not known on which it ended, all are lowered; to look again at the same trials changes nothing."""
    first, after = corrected_probes(LARGE, PROBES, [record], FACTS)

    assert {device: probe.micro_batch_size for device, probe in after.items()} == sizes
    assert first == after["large"]
    assert corrected_probes(LARGE, after, [record], FACTS) == (first, after)


def test_with_one_kind_every_trial_counts() -> None:
    """As it was before there were several."""
    assert corrected_probes(None, {}, [], FACTS) == (None, {})
    first, after = corrected_probes(LARGE, {}, [oom("small", 64)], FACTS)
    assert first is not None
    assert (first.micro_batch_size, after) == (32, {})


def test_with_batch_norm_all_kinds_train_alike() -> None:
    """Its statistics are those of a micro-batch, so that losses of different ones could not be compared."""
    first, after = corrected_probes(LARGE, PROBES, [oom("small", 8)], dataclasses.replace(FACTS, batch_norm=True))

    assert first is not None
    assert first.micro_batch_size == 4
    assert {device: probe.micro_batch_size for device, probe in after.items()} == {"large": 4, "small": 4}


@pytest.mark.parametrize(("device", "given_up"), [(None, True), ("small", False)])
def test_a_loop_may_have_memory_elsewhere(device: str | None, given_up: bool) -> None:
    """With one device, out of memory in spite of accumulation means too large a batch; with several, not yet."""
    table = synthetic()
    strategy = Strategy(Plan(budget=4, space=table.space), dataclasses.replace(table.facts(), kind="loop"), LARGE)
    batch = strategy.space.batches[-1]
    strategy.ledger = Ledger([oom(device, 8, global_batch_size=batch)])

    assert (batch in strategy._context().banned_batches) is given_up


# --- what is stored -----------------------------------------------------------------------------------------------


@pytest.fixture
def storage() -> Iterator[Storage]:
    """A storage in memory."""
    with open_storage("sqlite:///:memory:") as storage:
        yield storage


def test_where_a_run_landed_is_stored_while_it_runs(storage: Storage) -> None:
    """So that also an orphan says where it ran, and as what."""
    study = make_study(storage, "s")
    record = study.begin(SPEC, Axes((4, 256), (1e-4, 1.0), {}))
    assert record.device is None

    study.place(record.number, device="small", micro_batch_size=8, accumulation_steps=8)

    again = find_study(storage, "s")
    assert again is not None
    assert again.records == study.records
    assert (again.records[0].device, again.records[0].micro_batch_size, again.records[0].accumulation_steps) == (
        "small",
        8,
        8,
    )
    (orphan,) = again.sweep()
    assert (orphan.cause, orphan.device) == ("orphan", "small")


class FakeCluster:
    """A cluster of some kinds of device, which counts what is probed."""

    device_info = DeviceInfo("cpu", "a node")
    chooses_threads = False

    def __init__(self, *kinds: str) -> None:
        """Have nodes of these kinds."""
        self.kinds = {kind: DeviceInfo("cpu", kind, threads=1) for kind in kinds}
        self.probed: list[str] = []

    def run_probe(self, kind: str | None, **_: Any) -> ProbeResult:
        """Return what is known of the kind; of the first where none is named."""
        kind = kind or next(iter(self.kinds))
        self.probed.append(kind)
        return PROBES.get(kind, SMALL)


def probe_on(study: Study, cluster: FakeCluster, **changes: Any) -> tuple[ProbeResult, list[Progress]]:
    """Probe as a search does."""
    said: list[Progress] = []
    arguments = dataclasses.replace(check_search(), callbacks=(said.append,), **changes)
    probe = probes.obtain_probe(study, arguments, FACTS, cast(Engine, cluster), float("inf"))
    study.set(probe=probe.to_dict())
    return probe, said


def test_each_kind_is_probed_once_and_the_fastest_is_first(storage: Storage) -> None:
    """Neither a second look nor another study of the same objective probes again; a new kind of device is probed."""
    study = make_study(storage, "s")
    assert probe_on(study, small_first := FakeCluster("small", "large"))[0] == LARGE
    assert small_first.probed == ["small", "large"]

    again = find_study(storage, "s")
    assert again is not None
    assert list(again.probes.items()) == [("large", LARGE), ("small", SMALL)]
    for study_, kinds in (
        (again, ("small", "large")),
        (again, ("small",)),
        (make_study(storage, "t"), ("large", "small")),
    ):
        cluster = FakeCluster(*kinds)
        assert probe_on(study_, cluster)[0] == LARGE
        assert cluster.probed == []
        assert study_.probes == PROBES
    assert probe_on(again, later := FakeCluster("small", "new"))[0] == LARGE
    assert later.probed == ["new"]
    assert list(again.probes) == ["large", "small", "new"]


def test_the_first_stays_the_first_once_trials_have_run(storage: Storage) -> None:
    """What was decided by one kind is not decided again by another."""
    study = make_study(storage, "s")
    assert probe_on(study, FakeCluster("small"))[1] == []
    assert study.attributes["probe_key"] is not None
    record = study.begin(SPEC, Axes((4, 256), (1e-4, 1.0), {}))  # While there was one kind, and nobody asked which.
    assert probe_on(study, FakeCluster("small", "new"))[0] == SMALL
    assert study.attributes["probe_key"] is None  # What is stored as the probe may be of another kind now.

    study.place(record.number, device="small", micro_batch_size=8, accumulation_steps=8)

    assert probe_on(study, FakeCluster("small", "large"))[0] == SMALL
    assert list(study.probes) == ["small", "new", "large"]


def test_one_kind_is_stored_as_ever(storage: Storage) -> None:
    """Nothing is added to what a study holds of a probe."""
    study = make_study(storage, "s")

    probe, said = probe_on(study, FakeCluster("large"))

    assert probe == LARGE
    assert "probes" not in study.attributes
    assert set(study.attributes) == {"bstune_schema", "bstune_version", "probe", "probe_key"}
    assert said == []


def test_a_probe_that_was_given_holds_for_all_kinds(storage: Storage) -> None:
    """Nothing is probed, what was stored by kind no longer counts, and it is said."""
    study = make_study(storage, "s")
    probe_on(study, FakeCluster("small", "large"))

    probe, said = probe_on(study, cluster := FakeCluster("small", "large"), probe=SMALL)

    assert (probe, cluster.probed, study.probes) == (SMALL, [], {})
    assert [progress.message for progress in said] == [
        "The probe that was given is used for all kinds of device of the cluster: small; large."
    ]


def test_a_kind_on_which_nothing_fits_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of several, the message says which; of one, it is as ever."""

    def fail(*_: Any) -> None:
        raise bstune.NothingFitsError("Nothing fits.", needed_bytes=3, budget_bytes=2)

    cluster = object.__new__(Cluster)
    cluster.node_of = {"small": "here", "large": "there"}
    cluster._surveyor, cluster._surveyed = SimpleNamespace(probe=SimpleNamespace(remote=lambda *_: None)), "here"
    monkeypatch.setattr(cluster, "_get", fail)

    with pytest.raises(
        bstune.NothingFitsError, match=r"^On small: Nothing fits\. Or search without the nodes of this kind\.$"
    ) as caught:
        cluster.run_probe("small", timeout=None, seed=0, on_attempt=lambda _: None, on_note=lambda _: None)
    assert caught.value.needed_bytes == 3
    del cluster.node_of["large"]
    with pytest.raises(bstune.NothingFitsError, match=r"^Nothing fits\.$"):
        cluster.run_probe("small", timeout=None, seed=0, on_attempt=lambda _: None, on_note=lambda _: None)


# --- what is said -------------------------------------------------------------------------------------------------


def test_a_recommendation_has_figures_for_each_kind() -> None:
    """The first is the one of the main figures; the global batch is the same on all, the seconds are each one's own."""
    table = synthetic()
    strategy = Strategy(Plan(budget=8, space=table.space), table.facts(), LARGE, probes=PROBES)
    replay(strategy, table)

    best = strategy.recommend()

    large, small = best.by_device
    assert (large.device, large.micro_batch_size, large.accumulation_steps) == (
        "large",
        best.micro_batch_size,
        best.accumulation_steps,
    )
    assert (large.samples_per_s, large.seconds_to_target) == (best.samples_per_s, best.seconds_to_target)
    assert small.micro_batch_size * small.accumulation_steps == best.global_batch_size
    assert small.micro_batch_size <= 8
    step_s = small.accumulation_steps * (0.02 + 0.001 * small.micro_batch_size)
    assert small.samples_per_s == pytest.approx(best.global_batch_size / step_s)
    assert small.seconds_per_full_run == pytest.approx(table.facts().full_run_steps(best.global_batch_size) * step_s)
    assert bstune.Recommendation.from_dict(best.to_dict()) == best
    assert Strategy(Plan(), table.facts(), LARGE).probes == {}

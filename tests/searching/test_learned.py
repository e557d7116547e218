"""A new study of a model that the storage knows begins where another one, of other data, has found its best."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bstune
import pytest
import torch
from bstune.tuner.core.arguments import SearchArguments, check_search
from bstune.tuner.core.probe_results import DeviceInfo, StepTimeLine
from bstune.tuner.core.progress import Progress
from bstune.tuner.core.specs import Learned, Plan
from bstune.tuner.report.progress import learned_line
from bstune.tuner.search import run_forecast, run_search
from bstune.tuner.searching.learned import known_of
from bstune.tuner.searching.loop import Drive
from bstune.tuner.searching.result import make_strategy
from bstune.tuner.strategy.strategy import Strategy
from bstune.tuner.studies.catalog import find_study, make_study
from bstune.tuner.studies.spec_json import decode_facts, decode_learned, decode_plan, encode_plan
from bstune.tuner.studies.storage import open_storage, read_storage
from bstune.tuner.studies.study import Study
from bstune.tuner.testing.fake_device import known_probe
from bstune.tuner.testing.replay import TablePool, replay
from bstune.tuner.testing.tables import Table, synthetic

FAR = 0.5
"""The best learning rate of the tables: nine octaves above the usual one of Adam."""
DEVICE = DeviceInfo("cpu", "a CPU", threads=1)
MODEL: dict[str, Any] = {
    "structure_hash": "a model",
    "source_hash": "a source",
    "optimizer": "SGD",
    "optimizer_family": "sgd",
}
LINE = StepTimeLine(0.01, 0.001, 10.0)


def bowl(n_samples: int, best_batch: int) -> Table:
    """Return a table whose loss rises with the octaves off the best batch size, and off the best rate of a batch."""
    curves = {}
    for batch, k in itertools.product((8, 16, 32, 64, 128, 256, 512), range(-10, 5)):
        b = math.log2(batch / best_batch)
        worse = 1 + 0.03 * (k - 0.7 * b) ** 2 + 0.02 * b**2
        curve = [(epoch * n_samples, worse * (0.1 + 0.2 * (1 - epoch / 16) ** 2)) for epoch in range(1, 17)]
        curves[batch, FAR * 2.0**k] = [curve]
    return Table("bowl", n_samples, 16, curves)


def searched(table: Table, budget: float, learned: Learned | None = None) -> tuple[float, Strategy]:
    """Return the reference runs that are trained before a good setting is tried, and the strategy at the end."""
    facts = table.facts(optimizer="Adam", optimizer_family="adam")
    strategy = Strategy(Plan(space=table.space, goal="loss", budget=budget), facts, None, learned=learned)
    spent = 0.0
    for record in sorted(replay(strategy, table), key=lambda record: record.number):
        if table.regret(record.global_batch_size, record.learning_rate) < 0.1:
            break
        spent += record.samples / facts.full_run_samples
    return spent, strategy


def test_what_was_learned_on_little_data_saves_training_on_much() -> None:
    """On eight times the data the first trial is a good one; from nothing, others are trained before that."""
    little, much = bowl(1024, 64), bowl(8192, 128)
    found = searched(little, budget=6)[1].recommend()
    learned = Learned("little", found.global_batch_size, found.learning_rate)

    from_nothing, before = searched(much, budget=3)
    with_memory, after = searched(much, budget=3, learned=learned)

    regrets = [much.regret(b.global_batch_size, b.learning_rate) for b in (before.recommend(), after.recommend())]
    assert with_memory == 0 < 0.2 < from_nothing
    assert regrets[1] <= regrets[0] + 0.02
    assert after.space.centre(found.global_batch_size) == found.learning_rate


@pytest.fixture
def known(tmp_path: Path) -> Iterator[Study]:
    """A study that has ended, of a small model on little data."""
    with open_storage(f"sqlite:///{tmp_path}/team.db") as storage:
        study, table = make_study(storage, "little"), synthetic()
        facts = dataclasses.replace(table.facts(name=None), **MODEL)
        plan = Plan(space=table.space, budget=3)
        study.set(facts=dataclasses.asdict(facts), plan=encode_plan(plan), device=DEVICE.to_dict(), used_s=1.0)
        Drive(study, Strategy(plan, facts, None), None, tell=lambda *_: None).run(TablePool(table))
        yield study


def test_only_the_same_model_is_known(known: Study) -> None:
    """By the structure, the optimizer, the schedule and the precision; the same training is no other data."""
    new = make_study(known.storage, "much")
    facts = decode_facts(known.attributes["facts"])
    much = dataclasses.replace(facts, n_samples=8192, source_hash="other")
    best = make_strategy(decode_plan(known.attributes["plan"]), facts, None, known).recommend()

    found = known_of(new, much, DEVICE)

    assert found is not None
    assert (found.study, found.batch_size, found.learning_rate) == (
        "little",
        best.global_batch_size,
        best.learning_rate,
    )
    assert found.slope_sd is not None
    assert found.slope == pytest.approx(best.lr_rule.alpha)  # type: ignore[union-attr]
    assert known_of(new, dataclasses.replace(facts, n_samples=8192), DEVICE) == found
    assert found.differs == "data"
    others: list[dict[str, Any]] = [
        {name: "other"} for name in ("structure_hash", "optimizer", "schedule", "precision")
    ]
    for changes in ({"structure_hash": None}, *others):
        assert known_of(new, dataclasses.replace(much, **changes), DEVICE) is None
    assert known_of(new, facts, DEVICE) is None


def test_what_differs_from_the_known_study_is_told(known: Study) -> None:
    """A file that was renamed begins at what is known too; the same objective by another study does not."""
    new, facts = make_study(known.storage, "renamed"), decode_facts(known.attributes["facts"])
    known.set(identity="/a/model.py:objective")

    def differs(identity: str, **changes: Any) -> str | None:
        new.set(identity=identity)
        found = known_of(new, dataclasses.replace(facts, **changes), DEVICE)
        return None if found is None else found.differs

    assert differs("/a/other.py:objective") == "name"
    assert differs("/a/model.py:objective") is None
    assert differs("/a/model.py:objective", source_hash="dropout of 0.2") == "code"
    assert differs("/a/model.py:objective", code_arguments=(("Focal(gamma=...)", "3"),)) == "code"
    assert differs("/a/model.py:objective", epochs=40) == "epochs"
    assert differs("/a/other.py:objective", n_samples=8192) == "data"
    assert "has this model in other code: the search" in learned_line("model", 32, 0.1, "code")


def test_what_was_learned_is_stored_and_read_back() -> None:
    """A search that is taken up goes on from the same centre, on the same clock."""
    learned = Learned("little", 64, 0.1, 0.5, 0.1, LINE)
    assert decode_learned(json.loads(json.dumps(dataclasses.asdict(learned)))) == learned
    assert decode_learned(None) is None

    strategy = Strategy(Plan(), synthetic().facts(), None, learned=learned)
    assert strategy.forecast().seconds is not None
    assert (strategy.space.centre_batch, strategy.space.centre_learning_rate, strategy.space.slope) == (64, 0.1, 0.5)
    assert Strategy(Plan(baseline=(32, 0.2)), synthetic().facts(), None, learned=learned).space.centre_batch == 32


def net() -> torch.nn.Module:
    """A model of one layer."""
    return torch.nn.Linear(4, 1)


def data(n: int) -> torch.utils.data.Dataset[Any]:
    """Samples of a line."""
    x = torch.randn(n, 4, generator=torch.Generator().manual_seed(0))
    return torch.utils.data.TensorDataset(x, x.sum(1, keepdim=True))


def test_a_search_says_where_it_begins(tmp_path: Path) -> None:
    """One line, with the way to switch it off; the study of the same storage is asked, whatever its name."""
    heard: list[Progress] = []

    def asked(n: int) -> tuple[Any, SearchArguments]:
        loss = torch.nn.functional.mse_loss
        objective = bstune.Supervised(net, data(n), data(64), loss=loss, epochs=2, evals=2, name=f"line-{n}")
        probe, space = known_probe(64, n_train_samples=n), {"batch_size": [8, 16]}
        common = {"probe": probe, "space": space, "n_trials": 3, "device": "cpu", "callbacks": [heard.append]}
        return objective, check_search(**common, storage=f"sqlite:///{tmp_path}/team.db")

    def said() -> list[str]:
        return [told.message for told in heard if told.kind == "note" and "begins at" in told.message]

    best = run_search(*asked(128)).recommendation
    assert said() == []
    run_forecast(*asked(256))
    assert said() == [
        f"Study line-128 has this model on other data: the search begins at what it has found, batch "
        f"{best.global_batch_size} at a learning rate of {best.learning_rate:.3g} (--fresh-prior: as if nothing was "
        "known)."
    ]
    with read_storage(f"sqlite:///{tmp_path}/team.db") as storage:
        study = find_study(storage, "line-256")
        assert study is not None
        assert study.attributes["learned"]["study"] == "line-128"

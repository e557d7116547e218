"""One worker of the service decides as a local search does, also over restarts of the service."""

from __future__ import annotations

import statistics
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from bstune.tuner.core.arguments import check_search
from bstune.tuner.core.trial_record import TrialRecord
from bstune.tuner.strategy.strategy import Strategy
from bstune.tuner.testing.replay import replay
from bstune.tuner.testing.tables import Table, synthetic

from .conftest import Service, new_study, train

TABLE = synthetic(n_samples=1024, epochs=16)


def locally(table: Table, *, facts: dict[str, Any] | None = None, **search: Any) -> list[TrialRecord]:
    """Return the trials of a local search of a table."""
    plan = check_search(space=table.space, **search).plan
    records = replay(Strategy(plan, table.facts(name=None, **(facts or {})), None), table)
    return sorted(records, key=lambda record: record.number)


def told(records: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    """Return what a search decided and saw, trial by trial."""
    names = ("number", "stage", "state", "global_batch_size", "learning_rate", "seed", "samples", "continues")
    return [(*(record[name] for name in names), [list(pair) for pair in record["values"]]) for record in records]


def trials_of(service: Service, study: str) -> list[dict[str, Any]]:
    """Return the trials of a study of the service."""
    answer = httpx.get(f"{service.url}/v1/studies/{study}", trust_env=False, timeout=30)
    found: list[dict[str, Any]] = answer.json()["trials"]
    return found


@pytest.mark.parametrize("can_continue", [False, True])
def test_one_worker_decides_as_a_local_search(service: Service, tmp_path: Path, can_continue: bool) -> None:
    """The same trials, to the last digit, and the same end."""
    study, facts = f"same-{can_continue}", {"can_continue": can_continue}
    body = new_study(TABLE, study, facts=facts, budget=4)
    assert httpx.post(f"{service.url}/v1/studies", json=body, trust_env=False).status_code == 200

    why = train(service.url, study, TABLE, tmp_path)

    assert why in ("budget", "converged")
    here = [record.to_dict() for record in locally(TABLE, facts=facts, budget=4)]
    assert told(trials_of(service, study)) == told(here)
    assert any(record["continues"] is not None for record in here) == can_continue


def test_a_new_study_begins_where_another_of_its_model_ended(service: Service, tmp_path: Path) -> None:
    """On other data: so says the answer, and the first trial is that setting; a flag switches it off."""
    known = {"structure_hash": "a model", "optimizer": "SGD", "optimizer_family": "sgd"}
    url = f"{service.url}/v1/studies"
    httpx.post(url, json=new_study(TABLE, "small", facts={**known, "source_hash": "a"}, budget=4), trust_env=False)
    train(service.url, "small", TABLE, tmp_path)
    best = httpx.get(f"{url}/small/recommendation", trust_env=False, timeout=30).json()["recommendation"]

    def begun(name: str, **search: Any) -> tuple[Any, Any]:
        body = new_study(TABLE, name, facts={**known, "source_hash": "b"}, budget=4, **search)
        answer = httpx.post(url, json=body, trust_env=False, timeout=30).json()
        asked = httpx.post(f"{url}/{name}/ask", json={"client_id": "one", "wait_s": 20}, trust_env=False, timeout=40)
        trial = asked.json()["trial"]
        return answer["learned"], (trial["global_batch_size"], trial["learning_rate"])

    setting = (best["global_batch_size"], best["learning_rate"])
    learned, first = begun("large")
    assert (learned["study"], learned["batch_size"], learned["learning_rate"]) == ("small", *setting)
    assert first == setting
    learned, first = begun("large-alone", fresh_prior=True)
    assert learned is None
    assert first == (64, 0.03)


def test_four_workers_find_as_good_an_answer(service: Service, tmp_path: Path) -> None:
    """Each trial is run by one of them, and what they find together is as good as what one finds alone."""
    regrets = []
    for study in ("four", "again", "third"):  # What it tries depends on who is faster: one answer may be unlucky.
        body = new_study(TABLE, study, budget=6)
        httpx.post(f"{service.url}/v1/studies", json=body, trust_env=False)
        names = ["one", "two", "three", "four"]
        workers = [threading.Thread(target=train, args=(service.url, study, TABLE, tmp_path, name)) for name in names]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(60)

        path = f"{service.url}/v1/studies/{study}/recommendation"
        best = httpx.get(path, trust_env=False, timeout=30).json()["recommendation"]
        regrets.append(TABLE.regret(best["global_batch_size"], best["learning_rate"]))
        assert all(trial["state"] in ("complete", "pruned") for trial in trials_of(service, study))
    assert statistics.median(regrets) < 0.05


def test_a_service_that_is_killed_loses_nothing(make_service: Any, tmp_path: Path) -> None:
    """Killed again and again in the middle of trials: the decisions are those of a search that nobody disturbed."""
    service = make_service().start()
    body = new_study(TABLE, "killed", facts={"can_continue": True}, budget=4)
    httpx.post(f"{service.url}/v1/studies", json=body, trust_env=False)
    ended: list[str] = []
    worker = threading.Thread(target=lambda: ended.append(train(service.url, "killed", TABLE, tmp_path)))
    worker.start()

    for _ in range(2):
        time.sleep(0.4)
        service.kill()
        service.start()
    worker.join(60)

    assert ended
    here = [record.to_dict() for record in locally(TABLE, facts={"can_continue": True}, budget=4)]
    assert told(trials_of(service, "killed")) == told(here)
    events = f"{service.url}/v1/events"
    with httpx.stream("GET", events, trust_env=False, timeout=60) as stream:
        assert next(stream.iter_lines()) == ": bstune"
        assert service.stop() == 0  # Nobody who watches holds it up.
    assert "Cancel" not in service.log()

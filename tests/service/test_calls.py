"""The life of a study by plain calls, and what comes of calls that are repeated, late or wrong."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from bstune.tuner.testing.fake_device import known_probe
from bstune.tuner.testing.tables import synthetic

from .conftest import Service, new_study

TABLE = synthetic()


@pytest.fixture
def study(calls: httpx.Client, request: pytest.FixtureRequest) -> str:
    """A new study of the table."""
    name = request.node.name[:60].replace("[", "-").replace("]", "").replace("/", "-").strip("-")
    assert calls.post("/v1/studies", json=new_study(TABLE, name, budget=4)).status_code == 200
    return str(name)


@pytest.fixture
def single(calls: httpx.Client, request: pytest.FixtureRequest) -> str:
    """A study of one trial, which is not stopped."""
    name = request.node.name[:60].strip("_")
    body = new_study(TABLE, name, budget=4, n_trials=1, confirm=0, pruner="none")
    assert calls.post("/v1/studies", json=body).status_code == 200
    return str(name)


def ask(calls: httpx.Client, study: str, client: str, wait_s: float = 5.0) -> dict[str, Any]:
    """Return the trial that a client gets."""
    answer = calls.post(f"/v1/studies/{study}/ask", json={"client_id": client, "wait_s": wait_s})
    assert answer.status_code == 200, answer.text
    trial: dict[str, Any] = answer.json()["trial"]
    return trial


def say(calls: httpx.Client, trial: dict[str, Any], what: str, client: str, **body: Any) -> httpx.Response:
    """Call about a trial."""
    return calls.post(f"/v1/trials/{trial['id']}/{what}", json={"client_id": client, **body})


def record_of(calls: httpx.Client, study: str, number: int) -> dict[str, Any]:
    """Return a trial as the study has it."""
    trials = calls.get(f"/v1/studies/{study}").json()["trials"]
    return next(trial for trial in trials if trial["number"] == number)


@pytest.fixture
def patient(make_service: Any) -> Iterator[httpx.Client]:
    """Calls to a service whose leases last: who has to wait for a core has not left the trial that was stopped."""
    with httpx.Client(base_url=make_service("--rate", "0").start().url, trust_env=False, timeout=60) as client:
        yield client


def test_a_study_lives_by_plain_calls(patient: httpx.Client) -> None:
    """Ask, report, finish, until the search has ended; then there is a recommendation, and it can be deleted."""
    calls, study, ended = patient, "plain", None
    assert calls.post("/v1/studies", json=new_study(TABLE, study, budget=4)).status_code == 200
    for _ in range(100):
        answer = calls.post(f"/v1/studies/{study}/ask", json={"client_id": "curl", "wait_s": 5}).json()
        if answer["state"] != "trial":
            ended = answer
            break
        trial, samples = answer["trial"], 0
        for point in trial["points"]:
            samples = min(point, trial["end_samples"])
            loss = TABLE.loss(trial["global_batch_size"], trial["learning_rate"], trial["seed"], samples)
            report = say(calls, trial, "report", "curl", samples=samples, val_loss=loss if loss == loss else None)
            if report.json()["verdict"] == "stop":
                break
        assert say(calls, trial, "finish", "curl", samples=samples, seconds=1.0).status_code == 200

    assert ended is not None
    assert ended["state"] == "ended"
    best = calls.get(f"/v1/studies/{study}/recommendation").json()
    assert best["state"] == "ended"
    assert TABLE.regret(best["recommendation"]["global_batch_size"], best["recommendation"]["learning_rate"]) < 0.3
    found = best["recommendation"]
    page = calls.get(f"/studies/{study}").text
    answer = f"batch {found['global_batch_size']} and learning rate {found['learning_rate']:.3g}"
    assert f"Train with {answer}" in page
    assert "Why not larger?" in page
    assert study in [each["name"] for each in calls.get("/v1/studies").json()]
    assert calls.delete(f"/v1/studies/{study}").status_code == 204
    assert calls.get(f"/v1/studies/{study}").status_code == 404


def test_each_call_may_be_repeated(calls: httpx.Client, single: str) -> None:
    """The same answer, and nothing is counted twice."""
    study = single
    trial = ask(calls, study, "one")
    assert ask(calls, study, "one") == trial
    point = trial["points"][0]
    for _ in range(3):
        assert say(calls, trial, "report", "one", samples=point, val_loss=0.5).json() == {"verdict": "go"}
    for _ in range(3):
        assert say(calls, trial, "finish", "one", samples=point, lost="crashed", message="by test").status_code == 200
    body = new_study(TABLE, study, budget=4, n_trials=1, confirm=0, pruner="none")
    again = [calls.post("/v1/studies", json=body).json() for _ in range(2)]

    record = record_of(calls, study, trial["number"])
    assert record["values"] == [[point, 0.5]]
    assert (record["state"], record["cause"]) == ("failed", "crashed")
    assert [each["name"] for each in again] == [study] * 2
    assert len(calls.get(f"/v1/studies/{study}").json()["trials"]) == 1


def test_a_fresh_study_is_made_once(calls: httpx.Client, study: str) -> None:
    """Also where the answer was lost and the call is repeated; another wish makes another study."""
    body = {**new_study(TABLE, study, budget=4), "fresh": True}

    names = [calls.post("/v1/studies", json={**body, "key": key}).json()["name"] for key in ("one", "one", "two")]

    assert names == [f"{study}-2", f"{study}-2", f"{study}-3"]


def test_a_lost_trial_goes_to_another_and_the_zombie_does_no_harm(calls: httpx.Client, single: str) -> None:
    """The same trial under the same number; what was reported already is answered and not counted again."""
    study = single
    trial = ask(calls, study, "lost")
    first, second = trial["points"][:2]
    say(calls, trial, "report", "lost", samples=first, val_loss=0.5)

    same = ask(calls, study, "heir", wait_s=10.0)  # It comes when the lease is over.
    assert {**same, "id": trial["id"]} == trial
    assert say(calls, same, "report", "heir", samples=first, val_loss=0.7).json() == {"verdict": "go"}
    for what, body in (
        ("report", {"samples": second, "val_loss": 0.1}),
        ("finish", {"samples": second}),
        ("heartbeat", {}),
        ("release", {}),
    ):
        refused = say(calls, trial, what, "lost", **body)
        assert refused.status_code == 409
        assert "with another client now. End this run and ask for the next." in refused.json()["detail"]
    say(calls, same, "finish", "heir", samples=first, lost="crashed", message="by test")
    late = say(calls, trial, "finish", "lost", samples=second)

    assert late.status_code == 409
    assert "has ended" in late.json()["detail"]
    assert record_of(calls, study, trial["number"])["values"] == [[first, 0.5]]
    assert len(calls.get(f"/v1/studies/{study}").json()["trials"]) == 1


def test_a_client_that_was_silent_goes_on_if_nobody_else_came(calls: httpx.Client, study: str) -> None:
    """Its lease is over, and renewed by its next call."""
    trial = ask(calls, study, "slow")
    time.sleep(1.8)

    assert say(calls, trial, "heartbeat", "slow").status_code == 200
    assert ask(calls, study, "slow") == trial


def test_a_trial_that_is_handed_back_goes_to_the_next(calls: httpx.Client, single: str) -> None:
    """At once, not after the lease."""
    study = single
    trial = ask(calls, study, "leaving")
    assert say(calls, trial, "release", "leaving").status_code == 200

    assert ask(calls, study, "next", wait_s=0.0)["number"] == trial["number"]


def test_events_stream_and_pages_escape(calls: httpx.Client, service: Service, study: str) -> None:
    """A watcher sees a trial begin; the page of the study says so, and carries the headers that keep others out."""
    seen: list[str] = []
    ready = threading.Event()

    def watch() -> None:
        with httpx.stream("GET", f"{service.url}/v1/studies/{study}/events", trust_env=False, timeout=20) as stream:
            for line in stream.iter_lines():
                ready.set()
                if line.startswith("event: "):
                    seen.append(line[7:])
                if "report" in seen:
                    return

    watcher = threading.Thread(target=watch)
    watcher.start()
    assert ready.wait(20)
    trial = ask(calls, study, "shown")
    say(calls, trial, "report", "shown", samples=trial["points"][0], val_loss=0.25)
    watcher.join(20)
    page = calls.get(f"/studies/{study}")

    assert "report" in seen
    assert page.status_code == 200
    assert "0.25" in page.text or "running" in page.text
    assert "frame-ancestors 'none'" in page.headers["content-security-policy"]
    assert page.headers["x-content-type-options"] == "nosniff"
    report = calls.get(f"/studies/{study}/report")
    assert report.status_code == 200
    assert 'data-events="/v1/studies/' in report.text
    assert "frame-ancestors 'none'" in report.headers["content-security-policy"]
    assert calls.get("/").status_code == calls.get("/docs").status_code == 200
    assert 'bstune_calls_total{route="/v1/studies/{name}/ask"' in calls.get("/metrics").text


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/v1/studies", "{", 422),
        ("POST", "/v1/studies", "[" * 100_000, 400),
        ("POST", "/v1/studies", '{"name": "x"}', 422),
        ("POST", "/v1/studies", '{"name": "../x", "facts": {}}', 422),
        ("POST", "/v1/studies", " " * (1 << 20) + "{}", 413),
        ("POST", "/v1/studies/none/ask", '{"client_id": "x"}', 404),
        ("POST", "/v1/studies/none/ask", '{"client_id": "x", "wait_s": 1e9}', 422),
        ("POST", "/v1/studies/none/ask", '{"client_id": "x", "more": 1}', 422),
        ("POST", "/v1/studies/none/ask", '{"client_id": "\\ud800"}', 422),
        ("POST", "/v1/trials/none:1/report", '{"client_id": "x", "samples": 1, "val_loss": NaN}', 422),
        ("POST", "/v1/trials/none:1/report", '{"client_id": "x", "samples": "1", "val_loss": 1}', 422),
        ("POST", "/v1/trials/none:1/report", '{"client_id": "x", "samples": 1, "val_loss": 1}', 404),
        ("POST", "/v1/trials/none/report", '{"client_id": "x", "samples": 1, "val_loss": 1}', 422),
        ("GET", "/v1/studies/..%2f..%2fetc%2fpasswd", None, 404),
        ("GET", "/static/..%2fserve.py", None, 404),
        ("GET", "/static/secret.js", None, 404),
        ("GET", "/v1/studies/none/events", None, 404),
        ("GET", "/v2/studies", None, 404),
        ("POST", "/v2/studies", "{}", 404),
        ("PUT", "/v1/studies", "{}", 405),
    ],
)
def test_wrong_calls_get_the_right_answer(
    calls: httpx.Client, method: str, path: str, body: str | None, status: int
) -> None:
    """A number of the 400s, and nothing is done."""
    before = calls.get("/v1/studies").json()

    answer = calls.request(method, path, content=body, headers={"content-type": "application/json"})

    assert answer.status_code == status, answer.text[:500]
    assert [each["name"] for each in calls.get("/v1/studies").json()] == [each["name"] for each in before]


@pytest.mark.parametrize("path", ["/studies/none", "/studies/none/report", "/studies/<b>none", "/nothing"])
def test_a_browser_gets_a_page_where_there_is_none(calls: httpx.Client, path: str) -> None:
    """With a way on; programs get JSON, and so does a browser that calls what is for programs."""
    browser = {"accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
    page, plain = calls.get(path, headers=browser), calls.get(path)
    assert page.headers["content-type"].startswith("text/html")
    assert page.status_code == 404
    assert "There is no such page" in page.text
    assert '<a href="/">' in page.text
    assert "<b>" not in page.text
    assert plain.headers["content-type"] == "application/json"
    assert plain.json()["detail"]
    assert calls.get("/v1/studies/none", headers=browser).headers["content-type"] == "application/json"


def test_settings_that_do_not_fit_are_refused(calls: httpx.Client, study: str) -> None:
    """Other settings under the same name, and arguments that are wrong on their face."""
    trial = ask(calls, study, "one")
    say(calls, trial, "report", "one", samples=trial["points"][0], val_loss=0.5)

    other = calls.post("/v1/studies", json=new_study(TABLE, study, budget=4, seed=7))
    wrong = calls.post("/v1/studies", json=new_study(TABLE, "wrong", goal="nothing", budget=-1))
    large = calls.post("/v1/studies", json=new_study(TABLE, "large", n_trials=10_001))
    beyond = say(calls, trial, "report", "one", samples=10**9, val_loss=0.5)
    past = say(calls, trial, "finish", "one", samples=10**9)

    assert other.status_code == 409
    assert "seed: was 0, now 7" in other.json()["detail"]
    assert wrong.status_code == 422
    assert "2 arguments are wrong" in wrong.json()["detail"]
    assert large.status_code == 422
    assert "takes at most 10000" in large.json()["detail"]
    assert beyond.status_code == past.status_code == 422
    assert "tokens only where n_samples counts these" in beyond.json()["detail"]
    assert record_of(calls, study, trial["number"])["state"] == "running"


def test_other_hosts_and_other_types_are_refused(calls: httpx.Client) -> None:
    """A page that somebody's browser shows cannot call the service behind their back."""
    rebound = calls.get("/v1/studies", headers={"host": "evil.example"})
    form = calls.post("/v1/studies", content="{}", headers={"content-type": "text/plain"})

    assert rebound.status_code == 421
    assert form.status_code == 422


def test_connections_that_send_nothing_are_harmless(service: Service, calls: httpx.Client) -> None:
    """A hundred of them, and one that sends half a request: the service answers all the same."""
    idle = [socket.create_connection(("127.0.0.1", service.port)) for _ in range(100)]
    idle[0].sendall(b"POST /v1/studies HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 10\r\n\r\n{")

    assert calls.get("/healthz").status_code == 200
    for connection in idle:
        connection.close()


def test_another_kind_of_device_joins_a_study(calls: httpx.Client) -> None:
    """Its probe comes later: the same global batch, split as it needs; the first kind's trials stay as they are."""
    facts = {"kind": "supervised", "n_samples": 1024, "epochs": 16}
    body = {**new_study(TABLE, "kinds", facts=facts, budget=6), "waits": True}
    large, small = known_probe(512, step_s=(0.01, 1e-5)), known_probe(8, step_s=(0.02, 1e-4))

    assert calls.post("/v1/studies", json=body).json()["state"] == "waiting"
    assert calls.post("/v1/studies/kinds/ask", json={"client_id": "a"}).json()["state"] == "wait"
    calls.post("/v1/studies", json={**body, "device": "large", "probe": large.to_dict()})
    path = "/v1/studies/kinds/ask"
    first = calls.post(path, json={"client_id": "a", "device": "large", "wait_s": 5}).json()["trial"]
    calls.post("/v1/studies", json={**body, "device": "small", "probe": small.to_dict()})
    second = calls.post("/v1/studies/kinds/ask", json={"client_id": "b", "device": "small", "wait_s": 5}).json()[
        "trial"
    ]
    again = calls.post("/v1/studies", json={**body, "device": "small"}).json()

    assert first["micro_batch_size"] == first["global_batch_size"]
    assert second["micro_batch_size"] <= 8 < second["global_batch_size"]
    assert second["micro_batch_size"] * second["accumulation_steps"] == second["global_batch_size"]
    assert again["probe"] == small.to_dict()
    assert calls.post(path, json={"client_id": "a", "device": "large"}).json()["trial"] == first

"""Whatever a client puts into a call that was right is taken or refused: the service has no error of its own."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from bstune.tuner.testing.tables import synthetic

from .conftest import new_study

DEEP: Any = json.loads("[" * 60 + "]" * 60)
ODD: tuple[Any, ...] = (
    *(None, True, -1, 0.5, 2**53 + 1, 1e308, math.nan, math.inf),
    *("", "x" * 30_000, "\ud800", "\x00", "../..", "'; DROP TABLE trials; --"),
    *([None], {}, {"range": [1]}, {"": 0}, DEEP),
)
ME = {"client_id": "me"}
LOST = {"samples": 1, "lost": "error", "message": "m", "error_type": "E", "traceback": "t", "output": "o"}
RIGHT: dict[str, dict[str, Any]] = {
    "ask": {**ME, "device": "a CPU", "wait_s": 0.0},
    "report": {**ME, "samples": 1, "val_loss": 1.0, "seconds": 1.0, "metrics": {"a": 1.0}, "interval": 1, "noise": []},
    "finish": {**ME, **LOST, "seconds": 1.0, "peak_bytes": 1, "checkpoint": False},
    "heartbeat": ME,
    "release": ME,
}


def changed(body: dict[str, Any]) -> Iterator[Any]:
    """Yield bodies of which one part is odd, or left out, or known to nobody."""
    yield from ({**body, "unknown": 1}, [], "", None)
    for name, right in body.items():
        yield {key: value for key, value in body.items() if key != name}
        yield from ({**body, name: odd} for odd in ODD)
        if isinstance(right, dict):
            yield from ({**body, name: part} for part in changed(right) if isinstance(part, dict))


def answered(calls: httpx.Client, path: str, right: dict[str, Any], step: int = 1) -> set[int]:
    """Return how the service answers odd bodies, or each second or third of them."""
    headers = {"content-type": "application/json"}
    bodies = itertools.islice(changed(right), 0, None, step)
    return {calls.post(path, content=json.dumps(body), headers=headers).status_code for body in bodies}


def test_no_study_makes_the_service_fail(calls: httpx.Client) -> None:
    """Also no space, no facts and no probe."""
    right = new_study(synthetic(), "odd", budget=2, tolerance=0.02, n_trials=1, seed=0, goal="time", confirm=0)
    right |= {"probe_key": {"a": 1}, "device_info": {"kind": "cpu", "name": "x"}, "key": "k", "waits": True}

    assert answered(calls, "/v1/studies", right, step=3) <= {200, 400, 409, 422}
    for study in calls.get("/v1/studies").json():
        assert calls.get(f"/v1/studies/{study['name']}").status_code == 200
        assert calls.get(f"/studies/{study['name']}").status_code == 200
        assert calls.delete(f"/v1/studies/{study['name']}").status_code == 204


@pytest.mark.parametrize("call", RIGHT)
def test_no_call_of_a_client_makes_the_service_fail(calls: httpx.Client, call: str) -> None:
    """And its study goes on."""
    body = new_study(synthetic(), f"odd-{call}", n_trials=1, confirm=0, pruner="none", budget=4)
    assert calls.post("/v1/studies", json=body).status_code == 200
    path = f"/v1/studies/odd-{call}/ask"
    trial = calls.post(path, json={**ME, "wait_s": 5}).json()["trial"]
    at = path if call == "ask" else f"/v1/trials/{trial['id']}/{call}"

    assert answered(calls, at, RIGHT[call]) <= {200, 400, 409, 422}
    assert calls.get(f"/v1/studies/odd-{call}").json()["state"] in ("running", "ended", "failed")

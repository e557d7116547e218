"""A study at a service that another program has damaged: what can still be told is."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import httpx
from bstune.tuner.service import app
from bstune.tuner.service.hub import Hub
from bstune.tuner.service.limits import Gate, Rates
from bstune.tuner.service.tokens import Tokens
from bstune.tuner.studies.catalog import find_study
from bstune.tuner.studies.storage import open_storage
from bstune.tuner.testing.tables import synthetic

from .conftest import new_study

ASK = {"client_id": "one", "wait_s": 20}


def in_process(hub: Hub) -> httpx.AsyncClient:
    """Return calls to a service of this process, without a socket."""
    gate = Gate(app.make_app(hub, stopping=lambda: False), tokens=Tokens(), hosts=None, rates=Rates(0))
    return httpx.AsyncClient(transport=httpx.ASGITransport(gate), base_url="http://x")


async def trained(hub: Hub) -> Any:
    """Run a search of one trial, and return the state of its study."""
    async with in_process(hub) as calls:
        body = new_study(synthetic(), "damaged", budget=4, n_trials=1, confirm=0, pruner="none")
        await calls.post("/v1/studies", json=body)
        trial = (await calls.post("/v1/studies/damaged/ask", json=ASK)).json()["trial"]
        said = {"client_id": "one", "samples": trial["end_samples"]}
        await calls.post(f"/v1/trials/{trial['id']}/report", json={**said, "val_loss": 0.4321})
        await calls.post(f"/v1/trials/{trial['id']}/finish", json=said)
        return (await calls.post("/v1/studies/damaged/ask", json=ASK)).json()["state"]


async def shown(hub: Hub) -> tuple[httpx.Response, httpx.Response]:
    """Return its answer for programs, and its page."""
    async with in_process(hub) as calls:
        return await calls.get("/v1/studies/damaged/recommendation"), await calls.get("/studies/damaged")


def test_a_page_is_shown_where_the_answer_cannot_be_read(tmp_path: Path) -> None:
    """What is damaged takes the answer away, and not the trials and their losses."""
    with open_storage(f"sqlite:///{tmp_path}/one.db") as storage:
        with contextlib.closing(Hub(storage, lease_s=5, broken=lambda error: None)) as hub:
            assert asyncio.run(trained(hub)) == "ended"
        study = find_study(storage, "damaged")
        assert study is not None
        study.set(facts={"n_samples": "many"})
        with contextlib.closing(Hub(storage, lease_s=5, broken=lambda error: None)) as hub:
            answer, page = asyncio.run(shown(hub))

    assert (answer.status_code, page.status_code) == (409, 200)
    assert "Train with" not in page.text
    assert "0.4321" in page.text

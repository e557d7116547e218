"""The pages of the service in a browser: they follow what happens, and run nothing that a client says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import httpx
from bstune.tuner.testing.tables import synthetic

from .conftest import Service, new_study

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext, Page

HOSTILE = "<script>window.hacked=1</script><img src=x onerror=window.hacked=1>"
WITHIN_MS = 60_000


class Watched:
    """A page of the service, with what it complained of, and what it asked of anybody else."""

    def __init__(self, browser: BrowserContext, service: Service, path: str) -> None:
        """Open it."""
        self.complaints: list[str] = []
        self.page: Page = browser.new_page()
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self._asked(service.url, request.url))
        self.page.goto(service.url + path)

    def _asked(self, ours: str, url: str) -> None:
        if not url.startswith((f"{ours}/", "data:")):
            self.complaints.append(url)

    def wait(self, text: str) -> None:
        """Wait until the page has a text, by itself."""
        self.page.get_by_text(text).first.wait_for(timeout=WITHIN_MS)

    def end(self) -> list[str]:
        """Close it, and return what it complained of; a script of a client's that has run is a complaint, too."""
        if self.page.evaluate("window.hacked") is not None:
            self.complaints.append("a script of a client has run")
        self.page.close()
        return self.complaints


def asked(calls: httpx.Client, study: str, **body: Any) -> dict[str, Any]:
    """Return the next trial of a study."""
    answer = calls.post(f"/v1/studies/{study}/ask", json={"client_id": "one", "wait_s": 20, **body})
    trial: dict[str, Any] = answer.json()["trial"]
    return trial


def test_pages_follow_what_happens(browser: BrowserContext, service: Service, calls: httpx.Client) -> None:
    """The list and the study show a trial that begins, reports and ends without being loaded again.

    They say so where the service is out of reach, or the study is no longer there.
    """
    calls.post("/v1/studies", json=new_study(synthetic(), "live", n_trials=2, confirm=0, pruner="none", budget=4))
    index, study = Watched(browser, service, "/"), Watched(browser, service, "/studies/live")
    for each in (index, study):
        each.page.evaluate("window.same = true")

    trial = asked(calls, "live")
    study.wait("running")
    calls.post(
        f"/v1/trials/{trial['id']}/report",
        json={"client_id": "one", "samples": trial["points"][0], "val_loss": 0.4321},
    )
    calls.post(
        f"/v1/trials/{trial['id']}/finish",
        json={"client_id": "one", "samples": trial["points"][0], "lost": "crashed", "message": "it went away"},
    )
    study.wait("failed: crashed: it went away")
    index.wait("live")
    study.page.locator("svg path title").first.wait_for(state="attached", timeout=WITHIN_MS)

    assert [each.page.evaluate("window.same") for each in (index, study)] == [True, True]
    assert (study.page.locator("svg path title").first.text_content() or "").startswith("Trial 0, batch ")
    assert index.end() == study.complaints == []

    browser.set_offline(True)
    study.page.evaluate("refresh()")
    study.wait("The service does not answer")
    browser.set_offline(False)
    study.page.evaluate("refresh()")
    study.page.locator("#away").wait_for(state="hidden", timeout=WITHIN_MS)
    calls.delete("/v1/studies/live")
    study.wait("It was deleted")
    study.page.close()


def test_nothing_that_a_client_says_runs(browser: BrowserContext, service: Service, calls: httpx.Client) -> None:
    """Names of devices and optimizers, reasons and traces are text; a study of such a name is refused."""
    body = new_study(synthetic(), "hostile", facts={"optimizer": HOSTILE}, budget=4)
    assert calls.post("/v1/studies", json={**body, "name": HOSTILE}).status_code == 422
    assert calls.post("/v1/studies", json={**body, "device": HOSTILE}).status_code == 200
    trial = asked(calls, "hostile", device=HOSTILE)
    report = {"client_id": "one", "samples": trial["points"][0], "val_loss": 0.5, "metrics": {HOSTILE: 1.0}}
    assert calls.post(f"/v1/trials/{trial['id']}/report", json=report).status_code == 200
    lost = {"lost": "killed", "message": HOSTILE, "error_type": HOSTILE, "traceback": HOSTILE, "output": HOSTILE}
    ended = calls.post(f"/v1/trials/{trial['id']}/finish", json={"client_id": "one", "samples": 1, **lost})
    assert ended.status_code == 200
    asked(calls, "hostile", device=HOSTILE)

    for path in ("/", "/studies/hostile", "/studies/hostile/report", "/docs"):
        opened = Watched(browser, service, path)
        if path != "/docs":
            opened.wait("hostile")
        assert opened.end() == []
    missing = calls.get(f"/studies/{quote(HOSTILE, safe='')}")
    assert (missing.status_code, missing.headers["content-type"]) == (404, "application/json")

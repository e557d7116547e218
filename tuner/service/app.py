"""The routes of the service: what is called how. What it means stands in `hub` and `served`."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from concurrent.futures import Future
from typing import Annotated, Any, TypeVar

from fastapi import Depends, FastAPI, Header, HTTPException, Path, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent
from starlette.exceptions import HTTPException as AnyHTTPException

from ..core.errors import BstuneError, NoSignalError, StudyError
from ..core.plain_text import one_line
from ..core.trial_record import TrialRecord
from ..core.version import __version__
from ..engines.base import Finished, Lost
from ..engines.http import checkpoint_of
from ..engines.leases import Lease, NotYoursError
from . import pages
from .hub import ANSWER_S, Hub, Offer
from .metrics import MeasuredCalls, Metrics
from .schemas import (
    NAME,
    Ask,
    AskAnswer,
    Beat,
    Done,
    Finish,
    NewStudy,
    Report,
    ReportAnswer,
    StudyAnswer,
    trial_json,
)
from .served import ServedStudy

T = TypeVar("T")
MOST_POLLS = 1000
"""Clients that may wait for a trial at once."""
LOOK_S = 1.0
"""Between two looks at whether a client that waits is still there."""
StudyName = Annotated[str, Path(pattern=NAME)]
TrialId = Annotated[str, Path(pattern=r"^.{1,100}:[0-9]{1,9}$", description="As in the answer to ask: STUDY:NUMBER.")]
REFUSALS: dict[int | str, dict[str, Any]] = {
    400: {"description": "No JSON."},
    401: {"description": "A token is needed."},
    403: {"description": "The token may only read."},
    404: {"description": "There is no such thing."},
    408: {"description": "The body came too slowly."},
    409: {"description": "It belongs to somebody else, or to other settings."},
    413: {"description": "The body is too large."},
    415: {"description": "The body is no JSON by its content type."},
    429: {"description": "Too many calls."},
    503: {"description": "Busy, or about to start again: call again."},
}
STATUS: dict[type[Exception], int] = {NotYoursError: 409, NoSignalError: 404, StudyError: 409, BstuneError: 422}
"""What an error answers, by the nearest of these classes that it is of."""


def make_app(hub: Hub, *, stopping: Callable[[], bool]) -> FastAPI:
    """Return the application, without the gate that stands before it; `stopping`: the server is about to end."""

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        hub.feed.attach(asyncio.get_running_loop())
        yield

    app = FastAPI(
        title="bstune",
        version=__version__,
        description="Finds batch sizes and learning rates for a team: see docs/service.md.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        responses=REFUSALS,
    )
    metrics = Metrics(hub)
    _add_errors(app)
    app.add_middleware(MeasuredCalls, metrics=metrics)
    _add_studies(app, hub)
    _add_trials(app, hub, stopping)
    _add_events(app, hub)
    _add_health(app, metrics, stopping)
    _add_pages(app, hub)
    return app


def _add_errors(app: FastAPI) -> None:
    def answered(status: int) -> Callable[[Request, Exception], Awaitable[Response]]:
        async def answer(request: Request, error: Exception) -> Response:  # In the event loop: it waits for no thread.
            return _refusal(request, str(error), status)

        return answer

    for kind, status in STATUS.items():
        app.add_exception_handler(kind, answered(status))

    @app.exception_handler(TimeoutError)
    async def busy(request: Request, _: TimeoutError) -> Response:
        return _refusal(request, "The study is busy: call again.", 503, {"retry-after": "2"})

    @app.exception_handler(RequestValidationError)
    async def malformed(request: Request, error: RequestValidationError) -> Response:
        # Without what was sent, which no JSON may be able to say.
        found = [
            {"loc": [_plain(str(part))[:100] for part in each["loc"]], "msg": _plain(each["msg"]), "type": each["type"]}
            for each in error.errors()[:20]
        ]
        if _is_page(request):
            return _refusal(request, "There is no page of this name.", 404)
        return JSONResponse({"detail": found}, 422)

    @app.exception_handler(AnyHTTPException)
    async def other(request: Request, error: AnyHTTPException) -> Response:
        return _refusal(request, error.detail, error.status_code, error.headers)


def _is_page(request: Request) -> bool:
    """Whether somebody asks for a page with a browser, which says that it shows HTML; programs get JSON."""
    return "text/html" in request.headers.get("accept", "") and not request.url.path.startswith("/v1/")


def _refusal(request: Request, detail: str, status: int, headers: Mapping[str, str] | None = None) -> Response:
    if _is_page(request):
        return HTMLResponse(pages.refusal_page(status, detail), status, headers=headers)
    return JSONResponse({"detail": detail}, status, headers=headers)


def _add_studies(app: FastAPI, hub: Hub) -> None:
    @app.post("/v1/studies")
    async def create_study(body: NewStudy) -> StudyAnswer:
        """Find or make a study; the same again changes nothing."""
        offer = Offer(
            name=body.name,
            named=body.named,
            fresh=body.fresh,
            key=body.key,
            facts=body.facts,
            search=body.search,
            kind=body.device,
            device=body.device_info,
            probe=body.probe,
            probe_key=body.probe_key,
            waits=body.waits,
        )
        answer = await run_in_threadpool(hub.offer, offer)
        served = answer.study
        return StudyAnswer(
            name=served.name,
            state=served.state,
            stopped_by=served.stopped_by,
            message=served.message,
            probe=answer.probe,
            probe_from=answer.probe_from,
            most_useful=answer.most_useful,
            learned=served.study.attributes.get("learned"),
        )

    @app.get("/v1/studies")
    def list_studies() -> list[dict[str, Any]]:
        """Return all studies in short."""  # In a thread: there may be many trials.
        return [summary(served) for served in hub.studies]

    @app.get("/v1/studies/{name}")
    def get_study(name: StudyName) -> dict[str, Any]:
        """Return a study with its trials, and what its search was expected to cost when it began."""
        served = _find(hub, name)
        return {**summary(served), **_foreseen(served), "trials": [record.to_dict() for record in served.records]}

    @app.get("/v1/studies/{name}/recommendation")
    async def get_recommendation(name: StudyName) -> dict[str, Any]:
        """Return what `bstune show --json` prints: the best so far, and the evidence for it."""
        served = _find(hub, name)
        result = await _soon(served.pool.call(served.result))
        return {**result.to_dict(), "state": served.state}

    @app.delete("/v1/studies/{name}", status_code=204)
    async def delete_study(name: StudyName) -> None:
        """Delete a study and all that is in it."""
        await run_in_threadpool(hub.delete, _find(hub, name))


def _add_trials(app: FastAPI, hub: Hub, stopping: Callable[[], bool]) -> None:
    polls = 0

    @app.post("/v1/studies/{name}/ask")
    async def ask(name: StudyName, body: Ask, request: Request) -> AskAnswer:
        """Return a trial to run: the one that this client has, else the next."""
        nonlocal polls
        served = _find(hub, name)
        if polls >= MOST_POLLS:
            raise HTTPException(503, "Too many clients wait already: call again later.", {"retry-after": "5"})
        client = _client(request, body.client_id)
        polls += 1
        try:
            lease = await _poll(served, client, body, request, stopping)
        finally:
            polls -= 1
        if lease is not None:
            trial = trial_json(served.name, lease, client, served.pool.book.lease_s)
            return AskAnswer(state="trial", trial=trial)
        if served.state in ("ended", "failed"):
            return AskAnswer(state=served.state, stopped_by=served.stopped_by, message=served.message)
        return AskAnswer(state="wait")

    @app.post("/v1/trials/{trial}/report")
    async def report(trial: TrialId, body: Report, request: Request) -> ReportAnswer:
        """Enter a validation loss, and return whether the trial goes on."""
        served, number, client = _called(hub, trial, request, body.client_id)
        said = body.said()
        verdict = await _soon(served.pool.call_for(lambda: served.pool.report(number, client, said)))
        return ReportAnswer(verdict=verdict)

    @app.post("/v1/trials/{trial}/finish")
    async def finish(trial: TrialId, body: Finish, request: Request) -> Done:
        """Enter how a trial has ended."""
        served, number, client = _called(hub, trial, request, body.client_id)
        event = _ending(number, body, client)
        await _soon(served.pool.call_for(lambda: served.pool.finish(event, client)))
        return Done(state=served.state)

    @app.post("/v1/trials/{trial}/heartbeat")
    async def heartbeat(trial: TrialId, body: Beat, request: Request) -> Done:
        """Renew the lease of a trial that is silent for long."""
        served, number, client = _called(hub, trial, request, body.client_id)
        await _soon(served.pool.call(lambda: served.pool.heartbeat(number, client)))
        return Done(state=served.state)

    @app.post("/v1/trials/{trial}/release")
    async def release(trial: TrialId, body: Beat, request: Request) -> Done:
        """Hand a trial back, for another client to run."""
        served, number, client = _called(hub, trial, request, body.client_id)
        await _soon(served.pool.call(lambda: served.pool.release(number, client)))
        return Done(state=served.state)


def _add_events(app: FastAPI, hub: Hub) -> None:
    async def there(name: StudyName) -> None:  # Refused before the stream begins.
        _find(hub, name)

    async def room() -> None:
        if hub.feed.full:
            raise HTTPException(503, "Too many watch already: come again later.", {"retry-after": "30"})

    refusals = [Depends(there), Depends(room)]

    @app.get("/v1/studies/{name}/events", response_class=EventSourceResponse, dependencies=refusals)
    async def events(
        name: StudyName, last_event_id: Annotated[str | None, Header(max_length=20)] = None
    ) -> AsyncIterator[ServerSentEvent]:
        """Stream what happens in a study, as server-sent events."""
        async for event in _stream(hub, name, last_event_id):
            yield event

    @app.get("/v1/events", response_class=EventSourceResponse, dependencies=[Depends(room)])
    async def all_events(
        last_event_id: Annotated[str | None, Header(max_length=20)] = None,
    ) -> AsyncIterator[ServerSentEvent]:
        """Stream what happens in all studies, as server-sent events."""
        async for event in _stream(hub, None, last_event_id):
            yield event


def _add_health(app: FastAPI, metrics: Metrics, stopping: Callable[[], bool]) -> None:
    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Tell whether the service is there."""
        if stopping():
            raise HTTPException(503, "It is about to end.")
        return {"status": "ok", "version": __version__}

    @app.get("/metrics", response_class=Response)
    async def get_metrics() -> Response:
        """Return what the service measures of itself, in Prometheus's format."""
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _add_pages(app: FastAPI, hub: Hub) -> None:
    @app.get("/docs", response_class=HTMLResponse, include_in_schema=False)
    async def docs() -> str:
        return pages.routes_page(app.openapi())

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    def index() -> str:
        return pages.index_page([summary(served) for served in hub.studies])

    @app.get("/studies/{name}", response_class=HTMLResponse, include_in_schema=False)
    async def study_page(name: StudyName) -> str:
        served, result = _find(hub, name), None
        if served.state == "ended":
            with contextlib.suppress(BstuneError, TimeoutError):  # What cannot be told, or takes long, is left out.
                result = await _soon(served.pool.call(served.result))
        return await run_in_threadpool(lambda: pages.study_page(summary(served), served.records, result))

    @app.get("/studies/{name}/report", response_class=HTMLResponse, include_in_schema=False)
    async def report_page(name: StudyName) -> Response:
        served = _find(hub, name)
        told = await _soon(served.pool.call(served.told))
        try:
            html = await run_in_threadpool(pages.report_page, told)
        except BstuneError as error:  # The extra `report` is not installed.
            raise HTTPException(501, str(error)) from error
        return HTMLResponse(html, headers={"content-security-policy": pages.REPORT_POLICY})

    @app.get("/static/{file}", include_in_schema=False)
    async def static(file: Annotated[str, Path(pattern=r"^[a-z]{1,20}\.(js|css)$")]) -> Response:
        content = pages.static(file)
        if content is None:
            raise HTTPException(404, "There is no such file.")
        return Response(content, media_type="text/javascript" if file.endswith(".js") else "text/css")


async def _stream(hub: Hub, study: str | None, last: str | None) -> AsyncIterator[ServerSentEvent]:
    yield ServerSentEvent(comment="bstune", retry=2000)
    after = int(last) if last and last.isascii() and last.isdigit() else None
    async for event in hub.feed.watch(study, after):
        yield ServerSentEvent(event=event.kind, id=str(event.number), data=event.data)


async def _poll(
    served: ServedStudy, client: str, body: Ask, request: Request, stopping: Callable[[], bool]
) -> Lease | None:
    """Wait for a trial; None when there is none in time, the search is over, or nobody is there any more."""
    if served.state in ("ended", "failed"):
        return None
    asked = await _soon(served.pool.call(lambda: served.pool.ask(client, body.device, body.wait_s)))
    waiting = asyncio.wrap_future(asked)
    while not waiting.done():
        await asyncio.wait([waiting], timeout=LOOK_S)
        if not waiting.done() and (stopping() or await request.is_disconnected()):
            waiting.cancel()
            return None
    if waiting.cancelled():
        raise TimeoutError
    return waiting.result()


async def _soon(future: Future[T]) -> T:
    """Return what a study answers.

    Raises:
        TimeoutError: It is busy for too long, or about to end.
    """
    try:
        return await asyncio.wait_for(asyncio.wrap_future(future), ANSWER_S)
    except asyncio.CancelledError:
        if future.cancelled():
            raise TimeoutError from None
        raise
    except asyncio.TimeoutError:
        raise TimeoutError from None


def _find(hub: Hub, name: str) -> ServedStudy:
    served = hub.find(name)
    if served is None:
        raise HTTPException(404, f"There is no study {name!r} here.")
    return served


def _called(hub: Hub, trial: str, request: Request, client_id: str) -> tuple[ServedStudy, int, str]:
    """Return study and number of a trial, and who calls for it."""
    name, _, number = trial.rpartition(":")
    return _find(hub, name), int(number), _client(request, client_id)


def _plain(text: str) -> str:
    return one_line(text)[:1000].encode("ascii", "backslashreplace").decode()


def _client(request: Request, client_id: str) -> str:
    """Return who calls: with tokens, nobody can speak for a client of another token."""
    caller = request.scope["state"]["caller"].name
    return f"{caller}/{client_id}" if caller else client_id


def _ending(number: int, body: Finish, client: str) -> Finished | Lost:
    if body.lost is None:
        checkpoint = checkpoint_of(client, f"trial-{number}.pt") if body.checkpoint else None
        return Finished(number, body.samples, body.seconds, body.peak_bytes, checkpoint)
    return Lost(
        number,
        body.lost,
        body.message,
        body.samples,
        body.seconds,
        body.peak_bytes,
        body.error_type,
        body.traceback,
        body.output,
    )


def summary(served: ServedStudy) -> dict[str, Any]:
    """Return a study in short."""
    records, plan = served.records, served.plan
    return {
        "name": served.name,
        "state": served.state,
        "stopped_by": served.stopped_by,
        "message": served.message,
        "goal": plan.goal,
        "budget": plan.budget,
        "budget_s": plan.budget_s,
        "spent": served.spent,
        "trials": len(records),
        "running": sum(record.state == "running" for record in records),
        "best_val_loss": _best(records),
        "learned": served.study.attributes.get("learned"),
        "workers": [
            {"client": seen.client, "device": seen.kind, "silent_s": round(seen.silent_s, 1), "trial": seen.number}
            for seen in served.pool.seen
        ],
    }


def _foreseen(served: ServedStudy) -> dict[str, Any]:
    forecast, strategy = served.forecast, served.strategy
    if forecast is None or strategy is None:
        return {"forecast": None, "rungs": []}
    return {"forecast": forecast.to_dict(), "rungs": list(strategy.rungs.samples)}


def _best(records: tuple[TrialRecord, ...]) -> float | None:
    best = pages.lowest(records)
    return None if best is None else best.val_loss

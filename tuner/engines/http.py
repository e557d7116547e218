"""Runs trials on the machines of clients that ask for them over HTTP; see `base.Pool`.

Everything here happens in the thread of the loop that drives the study. What others want is put before it as an errand,
a function that is called there, so nothing needs a lock. An answer goes out when what it says is stored.
"""

from __future__ import annotations

import contextlib
import queue
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from ..core.errors import ArgumentError
from ..core.trials import NoisePoint, TrialReport, TrialSpec, Verdict
from .base import Event, Finished, LossCause, Lost, Placed, Reported
from .leases import MOST_LOST, Lease, LeaseBook, NotYoursError, told

T = TypeVar("T")
POLL_S = 1.0


class SuspendedError(Exception):
    """The loop is to end; what runs goes on at the clients."""


@dataclass(frozen=True)
class SaidReport:
    """What a client says of a run: a report, checked in form only."""

    samples: int
    val_loss: float
    """Not a number where it was not finite."""
    metrics: Mapping[str, float]
    seconds: float
    noise: tuple[NoisePoint, ...] = ()
    interval: int = 0


@dataclass(frozen=True)
class Seen:
    """A client that was heard of lately."""

    client: str
    kind: str | None
    silent_s: float
    number: int | None
    """The trial that it has."""


@dataclass
class _Waiting:
    """A client that waits for a trial."""

    client: str
    kind: str | None
    deadline_s: float
    answer: Future[Lease | None] = field(default_factory=Future)


class HttpPool:
    """Hands out what the loop submits to the clients that ask."""

    places = True

    def __init__(
        self,
        book: LeaseBook,
        *,
        keep: Callable[..., None],
        ended: Mapping[int, str | None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Hand out trials.

        Args:
            book: Who has which trial; it may hold some already.
            keep: Stores attributes of a trial, given its number and them by name.
            ended: The trials that have ended, with the clients that ended them.
            clock: Of the waiting clients.
        """
        self.book = book
        self.patience: Callable[[int], float] = lambda number: float("inf")
        """Seconds of silence after which a trial counts as hung."""
        self.seen: tuple[Seen, ...] = ()
        """The clients that are there, as they were a moment ago; any thread may read it."""
        self._kinds: dict[str, str | None] = {}
        self._keep = keep
        self._ended = dict(ended)
        self._clock = clock
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._events: deque[tuple[Event, Callable[[], None]]] = deque()
        self._waiting: list[_Waiting] = []
        self._verdicts: dict[int, Future[Verdict]] = {}
        self._ends: dict[int, Future[None]] = {}
        self._over = False
        self._suspended = False

    # --- for other threads ---

    def call(self, errand: Callable[[], T]) -> Future[T]:
        """Have something done in the thread of the loop, and return what will come of it."""
        future: Future[T] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(errand())
            except Exception as error:
                future.set_exception(error)

        self._inbox.put(run)
        return future

    def call_for(self, errand: Callable[[], Future[T]]) -> Future[T]:
        """Have something done in the thread of the loop that answers later, and return what will come of it."""
        future: Future[T] = Future()

        def answered(answer: Future[T]) -> None:
            with contextlib.suppress(InvalidStateError):  # Who asked may have gone.
                if answer.cancelled():
                    future.cancel()
                elif (error := answer.exception()) is not None:
                    future.set_exception(error)
                else:
                    future.set_result(answer.result())

        def run() -> None:
            if future.cancelled():
                return
            try:
                errand().add_done_callback(answered)
            except Exception as error:
                with contextlib.suppress(InvalidStateError):
                    future.set_exception(error)

        self._inbox.put(run)
        return future

    # --- errands: for the thread of the loop ---

    def ask(self, client: str, kind: str | None, wait_s: float) -> Future[Lease | None]:
        """Return a trial for a client: its own, else the next; None when the wait or the search is over."""
        asked = _Waiting(client, kind, self._clock() + wait_s)
        for earlier in [each for each in self._waiting if each.client == client]:
            self._waiting.remove(earlier)  # Its connection was lost.
            _settle(earlier.answer, None)
        if self._over:
            _settle(asked.answer, None)
            return asked.answer
        self.book.see(client)
        self._kinds[client] = kind
        self._waiting.append(asked)
        self._match()
        return asked.answer

    def report(self, number: int, client: str, said: SaidReport) -> Future[Verdict]:
        """Return the verdict on a report; one that says nothing new gets the answer that was given before.

        Raises:
            NotYoursError: The trial is not this client's.
            ArgumentError: It cannot be a report of this trial.
        """
        lease = self._held(number, client)
        _check(said.samples, lease.spec)
        self.book.heard(lease)
        if number in self._verdicts:
            return self._verdicts[number]
        points, diverged = lease.due(said.samples), said.val_loss != said.val_loss
        again = not points and bool(lease.unjudged) and said.samples >= min(lease.unjudged[-1], lease.spec.end_samples)
        answer: Future[Verdict] = Future()
        if lease.stopped_at is not None or not (points or diverged or again):
            answer.set_result(told(lease))
            return answer
        points = lease.unjudged if again else points
        noise = tuple(point for point in said.noise if point.at_samples not in lease.measured)
        report = TrialReport(
            number, points, said.samples, said.val_loss, said.metrics, said.seconds, noise, said.interval
        )
        lease.known.update(points)
        lease.measured.update(point.at_samples for point in noise)
        lease.unjudged, lease.seconds = (), said.seconds
        self._verdicts[number] = answer
        self._events.append((Reported(report), _nothing))
        return answer

    def finish(self, event: Finished | Lost, client: str) -> Future[None]:
        """Enter how a run has ended; done when it is stored. Saying it again changes nothing.

        Raises:
            NotYoursError: The trial is not, or was not, this client's.
            ArgumentError: It cannot be the end of this trial.
        """
        if event.number not in self._ends and self._ended.get(event.number) == client:
            answer: Future[None] = Future()
            answer.set_result(None)
            return answer
        _check(event.samples, self._held(event.number, client).spec)
        if event.number in self._ends:
            return self._ends[event.number]
        return self._end(event, client)

    def heartbeat(self, number: int, client: str) -> Lease:
        """Renew a lease.

        Raises:
            NotYoursError: The trial is not this client's.
        """
        return self._held(number, client)

    def release(self, number: int, client: str) -> None:
        """Take a trial back from a client that leaves; without one, it was here for nothing.

        Raises:
            NotYoursError: The trial is not this client's.
        """
        lease = self._held(number, client)
        self._keep(number, client=None)
        self.book.release(lease)
        self.book.leave(client)
        self._freed(lease)
        self._match()

    def _held(self, number: int, client: str) -> Lease:
        if self._over and number not in self._ended:
            raise NotYoursError(f"Trial {number} was ended with its search. End this run.")
        return self.book.renew(number, client)

    # --- for the loop ---

    @property
    def slots(self) -> int:
        """Trials that the clients which are there can take; one where nobody is, so that the first need not wait."""
        return max(1, len(self.book.clients))

    def submit(self, spec: TrialSpec) -> None:
        """Hand out a run as soon as somebody asks."""
        self.book.add(Lease(spec))
        self._match()

    def events(self, timeout_s: float) -> Iterator[Event]:
        """Do errands until something has happened or the time is over.

        Raises:
            SuspendedError: The loop is to end.
        """
        deadline_s, slots, some = self._clock() + timeout_s, self.slots, False
        while True:
            if self._suspended:
                raise SuspendedError
            self._look_after()
            while self._events:
                event, after = self._events.popleft()
                some = True
                yield event
                after()
            left_s = deadline_s - self._clock()
            if some or left_s <= 0 or self.slots > slots:
                return
            self._next_errand(left_s)

    def begin(self, *, over: bool) -> None:
        """Be ready for a loop, or for `serve` where the search is over or has not begun."""
        self._over, self._suspended = over, False

    def serve(self) -> None:
        """Do errands while no loop runs, until `suspend`: what is asked is answered."""
        while not self._suspended:
            self._next_errand(POLL_S)
            self._look_after()

    def _next_errand(self, wait_s: float) -> None:
        due = [each.deadline_s - self._clock() for each in self._waiting]
        with contextlib.suppress(queue.Empty):
            self._inbox.get(timeout=max(0.0, min(wait_s, self.book.next_s(), POLL_S, *due)))()
            for _ in range(100):  # Others that have come meanwhile, but a loop that is asked a lot goes on as well.
                if self._events:
                    break
                self._inbox.get_nowait()()

    def _look_after(self) -> None:
        """Free what lost clients had, give up what nobody can run, and let clients go that waited in vain."""
        for lease in self.book.expire():
            self._freed(lease)
        for lease in self.book:
            if lease.expires_s is not None and self.book.silent_s(lease) > self.patience(lease.spec.number):
                self._lose(lease, "hung", f"nothing was heard of it for {self.book.silent_s(lease):.0f} s")
        now = self._clock()
        for asked in [each for each in self._waiting if each.deadline_s <= now or each.answer.cancelled()]:
            self._waiting.remove(asked)
            _settle(asked.answer, None)
        self._match()
        there = self.book.clients
        has = {lease.client: lease.spec.number for lease in self.book if lease.expires_s is not None}
        self._kinds = {client: self._kinds.get(client) for client in there}
        self.seen = tuple(Seen(name, self._kinds[name], silent_s, has.get(name)) for name, silent_s in there.items())

    def _freed(self, lease: Lease) -> None:
        """End a trial that its client has left, where nothing more is wanted of it or too many were lost over it."""
        if lease.done and lease.known:
            reached = lease.stopped_at if lease.stopped_at is not None else lease.spec.end_samples
            self._end(Finished(lease.spec.number, min(reached, lease.spec.end_samples), lease.seconds), None)
        elif lease.lost >= MOST_LOST:
            said = f"{MOST_LOST} clients that ran it fell silent for more than {self.book.lease_s:g} s"
            self._lose(lease, "killed", said)

    def _lose(self, lease: Lease, cause: LossCause, said: str) -> None:
        if not lease.ending:
            event = Lost(lease.spec.number, cause, said, max(lease.known, default=0), self.book.silent_s(lease))
            self._end(event, None)

    def _end(self, event: Finished | Lost, client: str | None) -> Future[None]:
        answer = self._ends[event.number] = Future()
        if (lease := self.book.get(event.number)) is not None:
            lease.ending = True
        self._events.append((event, lambda: self._finished(event.number, client)))
        return answer

    def _match(self) -> None:
        """Give trials to the clients that wait, the longest first; those that go on, to who has the checkpoint."""
        for own in (True, False):
            for asked in list(self._waiting):
                if not asked.answer.cancelled():
                    self._offer(asked, own=own)

    def _offer(self, asked: _Waiting, *, own: bool) -> None:
        def fits(lease: Lease) -> bool:
            resume_from = lease.spec.resume_from
            return not own or (resume_from is not None and holds(resume_from, asked.client))

        taken = self.book.take(asked.client, asked.kind, fits)
        if taken is None:
            return
        lease, begins = taken
        if begins:
            self._keep(lease.spec.number, client=asked.client, kind=asked.kind)
            if lease.spec.splits:
                spec = lease.spec.on(asked.kind or "")
                placed = Placed(spec.number, asked.kind, spec.micro_batch_size, spec.accumulation_steps)
                self._events.append((placed, _nothing))
        self._waiting.remove(asked)
        _settle(asked.answer, lease)

    def _finished(self, number: int, client: str | None) -> None:
        self.book.end(number)
        self._ended[number] = client
        if (answer := self._ends.pop(number, None)) is not None:
            _settle(answer, None)

    def reply(self, number: int, verdict: Verdict) -> None:
        """Let a reporting run go on, or stop it."""
        lease = self.book.get(number)
        if verdict == "stop" and lease is not None:
            lease.stopped_at = max(lease.known, default=0)
            self._keep(number, stopped_at=lease.stopped_at)
        if (answer := self._verdicts.pop(number, None)) is not None:
            _settle(answer, verdict)

    def cancel(self, number: int) -> None:
        """Take a run away from its client, which hears of it when it next calls."""
        self._finished(number, None)

    def end(self) -> None:
        """Let all clients go: the search is over."""
        self._over = True
        for asked in self._waiting:
            _settle(asked.answer, None)
        self._waiting.clear()
        for lease in self.book:
            self.book.end(lease.spec.number)
        for answer in self._verdicts.values():
            _settle(answer, "stop")
        for ending in self._ends.values():
            _settle(ending, None)
        self._verdicts.clear()
        self._ends.clear()

    def suspend(self) -> None:
        """End the loop; the clients go on, and find their trials again."""
        self._suspended = True
        self._inbox.put(_nothing)

    def close(self) -> None:
        """Let go of everybody who still waits for an answer: they call again."""
        self._suspended = True
        answers: list[Future[Any]] = [
            *self._verdicts.values(),
            *self._ends.values(),
            *(w.answer for w in self._waiting),
        ]
        for answer in answers:
            answer.cancel()
        with contextlib.suppress(queue.Empty):
            while True:
                self._inbox.get_nowait()()


def checkpoint_of(client: str, name: str) -> str:
    """Return how a study names a checkpoint that a client keeps."""
    return f"{client}|{name}"


def holds(checkpoint: str | None, client: str) -> bool:
    """Tell whether a client keeps this checkpoint; there is nothing to keep where there is none."""
    return checkpoint is None or checkpoint.rpartition("|")[0] == client


def checkpoint_file(checkpoint: str) -> str:
    """Return the name that a checkpoint has at its client."""
    return Path(checkpoint.rpartition("|")[2]).name


def adopted(spec: TrialSpec, reported: Mapping[int, float | None], notes: Mapping[str, Any], noise: Any = ()) -> Lease:
    """Return the lease of a trial that ran when the service was last there; `reported` is its curve."""
    own = {samples: loss for samples, loss in reported.items() if samples > spec.start_samples}
    last = max(own, default=None)
    unjudged = () if last is None else tuple(p for p in spec.points if p in own and own[p] == own[last])
    client, stopped = notes.get("client"), notes.get("stopped_at")
    return Lease(
        replace(spec),
        client=client if isinstance(client, str) else None,
        kind=notes.get("kind"),
        known=set(own),
        measured={point.at_samples for point in noise},
        unjudged=unjudged,
        stopped_at=stopped if isinstance(stopped, int) else None,
    )


def _check(samples: int, spec: TrialSpec) -> None:
    if samples > (spec.most_samples or 1 << 53):
        raise ArgumentError(
            f"samples={samples} in a trial that ends at {spec.end_samples}: expected the training samples that this "
            "trial has seen (tokens only where n_samples counts these), not steps."
        )


def _nothing() -> None:
    """Do nothing."""


def _settle(answer: Future[T], value: T) -> None:
    with contextlib.suppress(InvalidStateError):  # Who asked may have gone.
        answer.set_result(value)

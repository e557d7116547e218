"""Who has which trial, and until when, on a clock of the test's own."""

from __future__ import annotations

import pytest
from bstune.tuner.core.trials import Split, TrialSpec
from bstune.tuner.engines.base import Event, Finished, Lost, Placed, Reported
from bstune.tuner.engines.http import HttpPool, SaidReport
from bstune.tuner.engines.leases import LeaseBook, NotYoursError


class Clock:
    """Seconds that pass when the test says so."""

    now_s = 0.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now_s


class Loop:
    """A pool, and what the loop of a search would have heard of it; each report may go on."""

    def __init__(self) -> None:
        """Begin with nothing to run."""
        self.clock = Clock()
        self.kept: list[tuple[int, dict[str, object]]] = []
        self.pool = HttpPool(
            LeaseBook(60.0, self.clock),
            keep=lambda number, **attributes: self.kept.append((number, attributes)),
            ended={},
            clock=self.clock,
        )
        self.events: list[Event] = []

    def turn(self) -> None:
        """Let the pool look after its clients once."""
        for event in self.pool.events(0.0):
            self.events.append(event)
            if isinstance(event, Reported):
                self.pool.reply(event.report.number, "go")

    def ask(self, client: str, kind: str | None = None) -> int | None:
        """Return the number of the trial that a client gets at once."""
        answer = self.pool.ask(client, kind, 0.0)
        self.turn()
        lease = answer.result(0)
        return None if lease is None else lease.spec.number


def spec(number: int, **more: object) -> TrialSpec:
    """Return a run of 100 samples with three reports."""
    return TrialSpec(number, "search", 10, 10, 1, 0.1, 0, 100, (30, 60, 100), **more)  # type: ignore[arg-type]


def test_a_trial_over_which_three_clients_are_lost_is_lost() -> None:
    """It may be what ends them; the first two times it goes to the next."""
    loop = Loop()
    loop.pool.submit(spec(0))

    for client in ("a", "b", "c"):
        assert loop.ask(client) == 0
        loop.clock.now_s += 61
        loop.turn()

    [event] = loop.events
    assert isinstance(event, Lost)
    assert (event.number, event.cause) == (0, "killed")
    assert loop.ask("d") is None


def test_a_lost_client_whose_trial_had_nothing_more_to_do_has_finished_it() -> None:
    """All that was wanted of it was reported: it is not run again."""
    loop = Loop()
    loop.pool.submit(spec(0))
    loop.ask("a")
    answer = loop.pool.report(0, "a", SaidReport(100, 0.5, {}, 7.0))
    loop.turn()
    assert answer.result(0) == "go"

    loop.clock.now_s += 61
    loop.turn()

    assert loop.events[-1] == Finished(0, 100, 7.0)
    with pytest.raises(NotYoursError, match="has ended"):
        loop.pool.heartbeat(0, "a")


def test_heartbeats_keep_a_trial_but_do_not_hide_that_it_hangs() -> None:
    """A client that lives is not lost; a trial that never reports is, in the end."""
    loop = Loop()
    loop.pool.patience = lambda number: 600.0
    loop.pool.submit(spec(0))
    loop.ask("a")

    for _ in range(15):
        loop.clock.now_s += 50
        if loop.events:
            break
        loop.pool.heartbeat(0, "a")
        loop.turn()

    [event] = loop.events
    assert isinstance(event, Lost)
    assert event.cause == "hung"
    assert 600 < loop.clock.now_s <= 700


def test_who_has_the_checkpoint_goes_on_and_another_begins_anew() -> None:
    """The holder is served first; to another client the same run begins at zero, and wants the same reports."""
    goes_on = spec(1, start_samples=30, resume_from="a|trial-0.pt")
    loop = Loop()
    other, holder = loop.pool.ask("b", None, 5.0), loop.pool.ask("a", None, 5.0)
    loop.pool.submit(goes_on)
    loop.turn()
    assert holder.result(0) is not None
    assert not other.done()
    loop.clock.now_s += 61
    loop.turn()
    assert loop.ask("b") == 1

    lease = loop.pool.heartbeat(1, "b")

    taken = lease.for_client(lambda checkpoint: checkpoint.startswith("b|"))
    assert (taken.start_samples, taken.resume_from, taken.points) == (0, None, goes_on.points)
    assert lease.for_client(lambda checkpoint: checkpoint.startswith("a|")) == goes_on


def test_a_run_is_split_as_the_kind_of_its_client_needs() -> None:
    """Where several kinds were probed, the loop hears where it runs."""
    loop = Loop()
    loop.pool.submit(spec(0, splits={"large": Split(10, 1, 10), "small": Split(5, 2, 5)}))

    assert loop.ask("a", "small") == 0

    assert loop.events == [Placed(0, "small", 5, 2)]
    assert loop.kept == [(0, {"client": "a", "kind": "small"})]
    lease = loop.pool.heartbeat(0, "a")
    assert lease.for_client(lambda _: True).micro_batch_size == 5


def test_as_many_trials_as_clients_are_wanted() -> None:
    """One where nobody is there; a client that went away counts no more after some seconds."""
    loop = Loop()
    assert loop.pool.slots == 1
    loop.ask("a")
    loop.ask("b")
    assert loop.pool.slots == 2

    loop.clock.now_s += 20

    assert loop.pool.slots == 1

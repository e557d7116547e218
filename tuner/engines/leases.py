"""Who has which trial, and until when: the books of trials that run on machines of others.

A trial belongs to the client that took it, for as long as that is heard of. A lease that runs out frees the trial for
others; until one of them takes it, the client that had it may go on as if nothing had happened. Pure bookkeeping, on a
clock that never goes back.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from ..core.errors import BstuneError
from ..core.trials import TrialSpec, Verdict

LEASE_S = 60.0
"""A client that is silent for so long has lost its trial."""
MOST_LOST = 3
"""So many clients may be lost over one trial before it counts as lost itself."""
LIVE_S = 15.0
"""A client counts as there for so long after its last question."""


class NotYoursError(BstuneError):
    """The trial of a report is not, or no longer, that of the client."""


@dataclass
class Lease:
    """One trial that has not ended."""

    spec: TrialSpec
    client: str | None = None
    """Who has it, or had it last."""
    expires_s: float | None = None
    """None while nobody has it."""
    kind: str | None = None
    """Of the client's device."""
    heard_s: float = 0.0
    """When it began or last reported; a heartbeat says only that the client lives."""
    lost: int = 0
    """Clients that took it and fell silent."""
    known: set[int] = field(default_factory=set)
    """The wanted points that were reported."""
    measured: set[int] = field(default_factory=set)
    """Where gradient noise was reported."""
    unjudged: tuple[int, ...] = ()
    """Points whose verdict was not sent for certain: the service was started again."""
    stopped_at: int | None = None
    """Samples at which it was told to stop."""
    seconds: float = 0.0
    """Of its last report."""
    ending: bool = False
    """Its end is about to be stored."""

    @property
    def done(self) -> bool:
        """Whether nothing more is wanted of it."""
        return self.stopped_at is not None or not self.due(self.spec.end_samples)

    def due(self, samples: int) -> tuple[int, ...]:
        """Return the wanted points that a report at so many samples is the first to reach."""
        return tuple(
            point
            for point in self.spec.points
            if point not in self.known and samples >= min(point, self.spec.end_samples)
        )

    def for_client(self, holds: Callable[[str], bool]) -> TrialSpec:
        """Return the run as the client is to do it: from a checkpoint only if that is its own.

        Another client trains it from the beginning, and reports what is new.
        """
        spec = self.spec if not self.spec.splits else self.spec.on(self.kind or "")
        if spec.resume_from is not None and not holds(spec.resume_from):
            spec = replace(spec, resume_from=None, start_samples=0)
        return spec


class LeaseBook:
    """The leases of one study, by number of the trial."""

    def __init__(self, lease_s: float = LEASE_S, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin with none."""
        self.lease_s = lease_s
        self._clock = clock
        self._leases: dict[int, Lease] = {}
        self._seen: dict[str, float] = {}
        self.n_expired = 0

    def __iter__(self) -> Iterator[Lease]:
        return iter([self._leases[number] for number in sorted(self._leases)])

    def get(self, number: int) -> Lease | None:
        """Return the lease of a trial; None where it has ended or never was."""
        return self._leases.get(number)

    def add(self, lease: Lease) -> None:
        """Enter a trial. One that a client had before the service was started again is its own anew."""
        self._leases[lease.spec.number] = lease
        if lease.client is not None:
            self._hold(lease)
            lease.heard_s = self._clock()

    def take(self, client: str, kind: str | None, fits: Callable[[Lease], bool]) -> tuple[Lease, bool] | None:
        """Return the trial that a client has, else the first that fits and True; None where there is nothing to do."""
        mine = [lease for lease in self if lease.client == client and not lease.ending]
        if mine:
            self._hold(mine[0])
            return mine[0], False
        lease = next((each for each in self if each.expires_s is None and not each.ending and fits(each)), None)
        if lease is None:
            return None
        lease.client, lease.kind, lease.heard_s = client, kind, self._clock()
        self._hold(lease)
        return lease, True

    def renew(self, number: int, client: str) -> Lease:
        """Return the lease of a client that is heard of.

        Raises:
            NotYoursError: The trial is somebody else's by now, or has ended.
        """
        self.see(client)
        lease = self._leases.get(number)
        if lease is None:
            raise NotYoursError(f"Trial {number} has ended. End this run and ask for the next.")
        if lease.client != client:
            raise NotYoursError(
                f"Trial {number} is not yours: after {self.lease_s:g} s of silence it was free, and it is with another "
                "client now. End this run and ask for the next."
            )
        self._hold(lease)
        return lease

    def release(self, lease: Lease) -> None:
        """Let others have a trial at once."""
        lease.client = lease.expires_s = None

    def end(self, number: int) -> None:
        """Forget a trial that has ended."""
        self._leases.pop(number, None)

    def expire(self) -> list[Lease]:
        """Free the trials whose clients have been silent for too long, and return them."""
        now = self._clock()
        gone = [lease for lease in self if lease.expires_s is not None and lease.expires_s < now]
        for lease in gone:
            lease.expires_s = None
            lease.lost += 1
            self.n_expired += 1
        return gone

    def see(self, client: str) -> None:
        """Note that a client is there."""
        self._seen[client] = self._clock()

    def leave(self, client: str) -> None:
        """Note that a client has gone."""
        self._seen.pop(client, None)

    @property
    def clients(self) -> dict[str, float]:
        """The clients that are there, and how many seconds ago each was heard of."""
        now = self._clock()
        holding = {lease.client for lease in self if lease.expires_s is not None}
        self._seen = {name: at for name, at in self._seen.items() if name in holding or now - at < LIVE_S}
        return {name: now - at for name, at in self._seen.items()}

    def silent_s(self, lease: Lease) -> float:
        """Return for how long a running trial has reported nothing."""
        return self._clock() - lease.heard_s

    def heard(self, lease: Lease) -> None:
        """Note that a trial has reported."""
        lease.heard_s = self._clock()

    def next_s(self) -> float:
        """Return the seconds until the next lease runs out."""
        return min((lease.expires_s - self._clock() for lease in self if lease.expires_s is not None), default=3600.0)

    def _hold(self, lease: Lease) -> None:
        lease.expires_s = self._clock() + self.lease_s
        assert lease.client is not None
        self.see(lease.client)


def told(lease: Lease) -> Verdict:
    """Return the answer to a report that says nothing new."""
    return "go" if lease.stopped_at is None else "stop"

"""The studies of the service by name: made, found, taken up after a restart, and deleted."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Callable
from typing import Any

from ..core.arguments import SearchArguments, check_search
from ..core.dimension import When
from ..core.errors import ArgumentError, StudyError
from ..core.probe_results import DeviceInfo, ProbeResult
from ..core.specs import Plan
from ..core.trial_record import TrialRecord
from ..core.trials import Facts
from ..searching.learned import remember
from ..searching.probes import most_useful
from ..studies.catalog import (
    choose_study,
    differences_of,
    fingerprint,
    forget_study,
    next_name,
    reaches,
    studies,
    touch,
)
from ..studies.naming import same_object
from ..studies.spec_json import encode_plan
from ..studies.storage import Storage
from .events import Feed
from .served import OURS, ServedStudy, begin

OBJECTIVE = "objective_name"
"""The study attribute that says which objective of its file a study is of, as its first client has named it."""
MOST_STUDIES = 200
ASKED = frozenset(
    {item.name for item in dataclasses.fields(Plan)} - {"jobs", "budget_s"} | {"trial_timeout", "fresh_prior"}
)
"""The arguments of `bstune.search` that a service can act upon."""
MOST_TRIALS = 10_000
"""Trials, and reference runs of budget, of one study."""
MOST_DIMENSIONS, MOST_VALUES = 8, 200
"""Of a space: what a strategy can think about in a moment."""
ANSWER_S = 60.0
"""So long a study may be busy before who asks is told to come again."""


@dataclasses.dataclass(frozen=True)
class Offer:
    """What a client wants searched.

    Attributes:
        name: The study.
        named: The user gave the name; otherwise `name-2`, `name-3` ... are looked at too.
        fresh: Make a new study beside the old one.
        key: What a client calls this one wish for a fresh study, so that a repeated call makes no second.
        facts: What the objective is.
        search: Arguments of `bstune.search` by name; None: whatever the study says, else the defaults.
        kind: The client's kind of device.
        device: The same in figures.
        probe: What was measured there.
        probe_key: What that depends on, and in `objective` which one of its file it is.
        waits: A probe will follow.
    """

    name: str
    named: bool
    fresh: bool
    key: str | None
    facts: Facts
    search: dict[str, Any] | None
    kind: str
    device: DeviceInfo
    probe: ProbeResult | None
    probe_key: dict[str, Any] | None
    waits: bool


@dataclasses.dataclass(frozen=True)
class OfferAnswer:
    """What has become of a request.

    Attributes:
        study: The study.
        probe: The probe of the client's kind of device, if there is one.
        probe_from: The study that it was taken from, where it is another.
        most_useful: The largest micro-batch that is worth probing for the search; None: all that fit.
    """

    study: ServedStudy
    probe: dict[str, Any] | None
    probe_from: str | None
    most_useful: int | None


class Hub:
    """All studies that the service leads."""

    def __init__(
        self, storage: Storage, *, lease_s: float, most_studies: int = MOST_STUDIES, broken: Callable[[Any], None]
    ) -> None:
        """Take up the studies of a storage that the service began; `broken` is called when the storage is lost."""
        self.storage = storage
        self.feed = Feed()
        self.most_studies = most_studies
        self._lease_s = lease_s
        self._broken = broken
        self._lock = threading.Lock()
        self._studies: dict[str, ServedStudy] = {}
        for study in list(studies(storage, readable=True)):
            if isinstance(study.attributes.get(OURS), dict):
                self._serve(ServedStudy(study, lease_s=lease_s, publish=self._publish, broken=broken))

    def _serve(self, served: ServedStudy) -> ServedStudy:
        self._studies[served.name] = served
        served.start()
        return served

    @property
    def studies(self) -> list[ServedStudy]:
        """The studies, in the order of their names."""
        found = dict(self._studies)
        return [found[name] for name in sorted(found)]

    def find(self, name: str) -> ServedStudy | None:
        """Return the study of this name, or None."""
        return self._studies.get(name)

    def offer(self, request: Offer) -> OfferAnswer:
        """Find or make the study that a client is about to search; the same request again changes nothing.

        Raises:
            ArgumentError: An argument of the search is wrong.
            StudyError: The study holds trials of other settings, or there are too many studies.
        """
        arguments = None if request.search is None else check_search(**_decoded(request.search))
        if arguments is not None:
            _check_size(arguments.plan)
        with self._lock:
            served = self._chosen(request, arguments)
            probe, source, most = request.probe, None, _most_useful(served.plan, request.facts)
            key = None if request.probe_key is None else _without_name(request.probe_key)
            if probe is None and key is not None:
                stored, source = self._stored_probe(served, {**key, "max_batch": most}, _name_of(request))
                probe = None if stored is None else ProbeResult.from_dict(stored)
            plan = None if arguments is None else arguments.plan
            offer = served.pool.call(lambda: served.offer(request.kind, probe, key, plan, go=not request.waits))
            offer.result(ANSWER_S)
            known = {kind: its for kind, _, its in served.known_probes()}
        return OfferAnswer(served, known.get(request.kind), source, most)

    def _stored_probe(
        self, served: ServedStudy, key: dict[str, Any], name: str | None
    ) -> tuple[dict[str, Any] | None, str | None]:
        """Return what some study knows of the same objective on the same device, and which one, if it is another.

        A file may have several objectives, and of a loop nothing but its `name` tells one from another.
        """
        others = [other for other in self.studies if same_object(other.study.attributes.get(OBJECTIVE), name)]
        for other in [served, *others]:
            for _, its_key, probe in other.known_probes():
                if reaches(its_key, key) and probe.get("limited_by") != "timeout":
                    return probe, None if other is served else other.name
        return None, None

    def _chosen(self, request: Offer, arguments: SearchArguments | None) -> ServedStudy:
        name, served = request.name, self._studies.get(request.name)
        if request.fresh and request.key is not None:
            for made in self.studies:
                if made.study.attributes.get("made_for") == request.key:
                    return made
        if served is None or request.fresh:
            if request.fresh and name in self.storage.names():
                name = next_name(self.storage, name)
            return self._made(name, request, arguments)
        wanted = self._wanted(served, request, arguments)
        differences = differences_of(served.study, wanted)
        if not differences:
            return served
        if not served.study.learned and not any(True for _ in served.pool.book):
            self._forget(served)
            return self._made(name, request, arguments)
        if not request.named:
            for other in self.studies:
                tail = other.name.removeprefix(f"{name}-")
                if tail.isdigit() and not differences_of(other.study, self._wanted(other, request, arguments)):
                    return other
        raise StudyError(
            "\n".join(
                [
                    f"The study {name!r} of this service was made with other settings:",
                    *differences,
                    "Its trials cannot be compared with new ones. Undo the change, or ask for a fresh study, or name "
                    "another.",
                ]
            )
        )

    def _wanted(self, served: ServedStudy, request: Offer, arguments: SearchArguments | None) -> dict[str, Any]:
        """Return the fingerprint of a request; several kinds of device may search one study."""
        plan = served.plan if arguments is None else arguments.plan
        stored = served.study.attributes.get("fingerprint") or {}
        return {**fingerprint(request.facts, plan, request.device), "device": stored.get("device")}

    def _made(self, name: str, request: Offer, arguments: SearchArguments | None) -> ServedStudy:
        if len(self._studies) >= self.most_studies:
            raise StudyError(
                f"This service has {self.most_studies} studies already, and takes no more: delete one, or start it "
                "with a larger --max-studies."
            )
        arguments = arguments or check_search()
        plan = arguments.plan
        wanted = fingerprint(request.facts, plan, request.device)
        study = choose_study(self.storage, name, wanted, named=request.named, fresh=request.fresh)
        begin(
            study,
            fingerprint=wanted,
            plan=encode_plan(plan),
            device=request.device.to_dict(),
            facts=dataclasses.asdict(request.facts),
            objective=None,
            asked={"trial_timeout": arguments.trial_timeout},
            made_for=request.key,
            **{OBJECTIVE: _name_of(request)},
        )
        if not arguments.fresh_prior and plan.baseline is None:
            remember(study, request.facts, request.device)
        touch(study)
        served = self._serve(ServedStudy(study, lease_s=self._lease_s, publish=self._publish, broken=self._broken))
        self._publish(served, "created", None)
        return served

    def delete(self, served: ServedStudy) -> None:
        """Delete a study and all that is in it."""
        with self._lock:
            if self._studies.get(served.name) is served:
                self._forget(served)
                self._publish(served, "deleted", None)

    def _forget(self, served: ServedStudy) -> None:
        del self._studies[served.name]
        served.close()
        forget_study(served.study)

    def _publish(self, served: ServedStudy, kind: str, record: TrialRecord | None) -> None:
        self.feed.publish(served.name, kind, served.spent, record)

    def close(self) -> None:
        """End all threads; what runs at clients is taken up at the next start."""
        self.feed.close()
        for served in self.studies:
            served.close()


def _most_useful(plan: Plan, facts: Facts) -> int | None:
    # What is wrong with space or facts, the search itself says.
    with contextlib.suppress(ArgumentError, ValueError, ArithmeticError):
        return most_useful(plan, facts)[1]
    return None


def _name_of(request: Offer) -> str | None:
    """Return which objective of its file a client has, as far as it says so."""
    name = (request.probe_key or {}).get("objective")
    return name if isinstance(name, str) else None


def _without_name(key: dict[str, Any]) -> dict[str, Any]:
    """Return what a probe depends on without the name of the objective, which may be another in a copy."""
    return {name: value for name, value in key.items() if name != "objective"}


def _decoded(search: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a search as `check_search` takes them; what else they may be is for it to say."""
    unknown = sorted(set(search) - ASKED)
    if unknown:
        raise ArgumentError(f"Unknown to a service: {', '.join(unknown)}. Known are {', '.join(sorted(ASKED))}.")
    space = search.get("space")
    if not isinstance(space, dict):
        return search
    return {**search, "space": {name: _conditional(given) for name, given in space.items()}}


def _conditional(given: Any) -> Any:
    when = given.get("when") if isinstance(given, dict) else None
    if not isinstance(when, dict) or "values" in when or "values" not in given:
        return _plain(given)
    return When(values=_plain(given["values"]), **when)


def _plain(given: Any) -> Any:
    ranged = isinstance(given, dict) and isinstance(given.get("range"), list)
    return tuple(given["range"]) if ranged else given


def _check_size(plan: Plan) -> None:
    if (plan.n_trials or 0) > MOST_TRIALS or plan.budget > MOST_TRIALS:
        raise ArgumentError(
            f"budget={plan.budget:g}, n_trials={plan.n_trials}: this service takes at most {MOST_TRIALS} of each."
        )
    if len(plan.space) > MOST_DIMENSIONS or any(len(each.values) > MOST_VALUES for each in plan.space.values()):
        raise ArgumentError(
            f"space: this service takes at most {MOST_DIMENSIONS} dimensions, of at most {MOST_VALUES} values each."
        )

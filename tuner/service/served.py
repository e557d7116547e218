"""One study of the service: its search runs in a thread of its own, and takes up where an earlier one was cut off.

Whatever is asked of the study is done in that thread, between two events of the search.
"""

from __future__ import annotations

import dataclasses
import math
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..core.errors import BstuneError, NoSignalError, StudyError
from ..core.plain_text import one_line
from ..core.probe_results import ProbeResult
from ..core.results import SearchResult
from ..core.specs import Forecast, Plan, Proposal
from ..core.trial_record import TrialRecord
from ..engines.http import HttpPool, SuspendedError, adopted
from ..engines.leases import LeaseBook
from ..report.page_told import Told
from ..report.terminal import note
from ..searching.loop import Drive
from ..searching.probes import with_probed_optimizer, with_stored_step_times
from ..searching.result import make_result, make_strategy
from ..searching.taken_up import take_up
from ..studies.checkpoints import checkpoint_name
from ..studies.spec_json import decode_facts, decode_plan, decode_spec, encode_plan
from ..studies.study import Study, intact

if TYPE_CHECKING:
    from ..core.trials import TrialSpec
    from ..strategy.strategy import Strategy

State = Literal["waiting", "running", "ended", "failed"]
CHECKPOINTS = Path("client")
"""Stands for the folder that each client has for its own."""
SPENT_S = 0.5
"""What was spent is counted no more often for reports alone."""
OURS = "service"
"""The study attribute that says that the service leads a study; it holds the state where that is not in the trials."""


class ServedStudy:
    """A study that the service leads.

    Attributes:
        study: What is stored.
        state: `waiting` for a probe, `running`, `ended`, or `failed` by a mistake in the user's code.
        pool: Who hands out its trials.
    """

    def __init__(
        self,
        study: Study,
        *,
        lease_s: float,
        publish: Callable[[ServedStudy, str, TrialRecord | None], None],
        broken: Callable[[BaseException], None],
    ) -> None:
        """Take up a study; `start` lets it run.

        Args:
            study: One that has the attribute `service`.
            lease_s: Seconds of silence after which a client has lost its trial.
            publish: Called with what has happened.
            broken: Called when the storage is lost, or bstune has a mistake.
        """
        self.study = study
        self.state: State = "waiting"
        self.message = ""
        self.spent = 0.0
        self._counted_s = -math.inf
        self.strategy: Strategy | None = None
        self.forecast: Forecast | None = None
        """What the search was expected to cost when its loop began; None before."""
        self._publish = publish
        self._broken = broken
        self._closing = False
        self._known_result: tuple[int, SearchResult] | None = None
        study.keeps_specs = True
        notes = study.adopt()
        ended = {r.number: study.noted("client").get(r.number) for r in study.finished}
        self.pool = HttpPool(LeaseBook(lease_s), keep=study.note, ended=ended)
        self._unadopted = notes
        self._settle()
        self._thread = threading.Thread(target=self._run, name=f"bstune-{study.name}", daemon=True)

    def _settle(self) -> None:
        """Derive the state from what is stored."""
        attributes = self.study.attributes
        ours: dict[str, Any] = attributes.get(OURS) or {}
        self.message = str(ours.get("failed") or "")
        if self.message:
            self.state = "failed"
        elif attributes.get("stopped_by"):
            self.state = "ended"
        else:
            self.state = "running" if ours.get("ready") else "waiting"

    @property
    def records(self) -> tuple[TrialRecord, ...]:
        """Its trials as they are now; for any thread."""
        return self.study.records

    @property
    def name(self) -> str:
        """Its name."""
        return self.study.name

    @property
    def plan(self) -> Plan:
        """What is searched for."""
        return decode_plan(self.study.attributes["plan"])

    @property
    def stopped_by(self) -> str | None:
        """By what the search has ended."""
        found = self.study.attributes.get("stopped_by")
        return found if isinstance(found, str) else None

    def start(self) -> None:
        """Let it run."""
        self._thread.start()

    def close(self) -> None:
        """End the thread; trials that run at clients are taken up at the next start."""
        self._closing = True
        self.pool.suspend()
        if self._thread.is_alive():
            self._thread.join()
        self.pool.close()

    # --- errands: in the thread of the study ---

    def offer(
        self, device: str, probe: ProbeResult | None, key: dict[str, Any] | None, plan: Plan | None, *, go: bool
    ) -> None:
        """Take what a client says of its kind of device and of the search; the search goes on with it.

        Args:
            device: The kind of device.
            probe: What was measured there, or None.
            key: What that answer depends on; see `catalog.probe_key`.
            plan: What is searched for; None: as before.
            go: Begin, also without a probe.
        """
        study, changed = self.study, False
        if probe is not None and self._enter_probe(device, probe, key):
            changed = True
        if plan is not None and encode_plan(plan) != study.attributes.get("plan"):
            study.set(stopped_by=take_up(study, plan).ended_by)
            study.set(plan=encode_plan(plan))
            self.strategy = self._known_result = None
            changed = True
        ours = dict(study.attributes.get(OURS) or {})
        ready = bool(ours.get("ready")) or probe is not None or go
        if ready != bool(ours.get("ready")) or (ours.get("failed") and go):
            study.set(**{OURS: {"ready": ready}})
            changed = True
        if changed:
            self.pool.suspend()  # The loop begins again with what is known now.

    def _enter_probe(self, device: str, probe: ProbeResult, key: dict[str, Any] | None) -> bool:
        """Store the probe of a kind of device; return whether it is news."""
        study, entry = self.study, {"device": device, "key": key, "probe": probe.to_dict()}
        first = study.attributes.get("first_kind")
        if study.probe is None:
            if any(record.samples > 0 for record in study.records):
                return False  # What was decided without step times is not decided anew.
            study.set(probe=probe.to_dict(), probe_key=key, first_kind=device)
            return True
        entries = {each["device"]: each for each in study.attributes.get("probes", ())}
        if device == first or device in entries:
            return False
        if not entries:
            entries[str(first)] = {
                "device": first,
                "key": study.attributes.get("probe_key"),
                "probe": study.attributes["probe"],
            }
        study.set(probes=[*entries.values(), entry])
        return True

    def known_probes(self) -> list[tuple[str, Any, dict[str, Any]]]:
        """Return the probes that are stored: kind of device, what each depends on, and what it says."""
        attributes = self.study.attributes
        found = [(each["device"], each["key"], each["probe"]) for each in attributes.get("probes", ())]
        first = attributes.get("first_kind")
        if attributes.get("probe") is not None and first not in {device for device, *_ in found}:
            found.append((str(first), attributes.get("probe_key"), attributes["probe"]))
        return found

    def result(self) -> SearchResult:
        """Return the best so far.

        Raises:
            NoSignalError: Nothing was learned yet.
        """
        if self.strategy is None and ("facts" not in self.study.attributes or not self.records):
            raise NoSignalError(f"The study {self.name!r} has no trials yet.")
        if self.strategy is not None or self._known_result is None:
            strategy = self.strategy or self._make_strategy()
            version = strategy.ledger.version
            if self._known_result is None or self._known_result[0] != version:
                stopped_by = self.stopped_by or "interrupted"
                self._known_result = version, make_result(self.study, strategy, self.study.probe, stopped_by)
        return dataclasses.replace(self._known_result[1], stopped_by=self.stopped_by or "interrupted")

    def told(self) -> Told:
        """Return what a report tells of the study now."""
        try:
            result = self.result()
        except NoSignalError:
            result = None
        attributes, records = self.study.attributes, self.study.records
        facts = decode_facts(attributes["facts"])
        url, used = self.study.storage.location.url, attributes.get("used")
        headline = f"Study {self.name} in {url}: {len(self.study.finished)} trials, {self.stopped_by or self.state}"
        date = used.replace("T", " ") if isinstance(used, str) else None
        return Told(self.name, url, headline, records, self.study.probe, result, facts, None, date)

    # --- the thread ---

    def _run(self) -> None:
        try:
            while not self._closing:
                self._settle()
                self.pool.begin(over=self.state in ("ended", "failed"))
                if self.state == "running":
                    self._search()
                else:
                    self.pool.serve()
        except BaseException as error:
            self._broken(error)

    def _search(self) -> None:
        try:
            why = self._drive().run(self.pool)
        except SuspendedError:
            return
        except StudyError:
            raise
        except Exception as error:  # Such as a space in which nothing is left; the other studies go on.
            if not isinstance(error, BstuneError):
                note("".join(traceback.format_exception(error)))
            text = str(error) if isinstance(error, BstuneError) else f"A mistake in bstune: {error!r}"
            self.study.set(**{OURS: {"ready": True, "failed": one_line(text)[:2000]}})
            said = "failed"
        else:
            self.study.set(stopped_by=why)
            said = "ended"
        self._settle()
        self.pool.end()
        # What has ended is asked for its result at most, and a strategy with its models is large.
        self.strategy, self._known_result, self.pool.patience = None, None, lambda number: math.inf
        self._publish(self, said, None)

    def _make_strategy(self) -> Strategy:
        study = self.study
        with intact(study.name):
            plan, facts = decode_plan(study.attributes["plan"]), decode_facts(study.attributes["facts"])
        facts = with_stored_step_times(with_probed_optimizer(facts, study.probe), study)
        return make_strategy(plan, facts, study.probe, study)

    def _drive(self) -> Drive:
        """Return a loop that goes on from what is stored, with the trials that run at clients."""
        self.strategy, self._known_result = self._make_strategy(), None
        strategy = self.strategy
        self.forecast = strategy.forecast()
        timeout_s = (self.study.attributes.get("asked") or {}).get("trial_timeout")
        drive = Drive(
            self.study,
            strategy,
            self.study.probe,
            tell=self._tell,
            checkpoint_dir=CHECKPOINTS if strategy.facts.can_continue else None,
            trial_timeout_s=timeout_s,
            lasting=True,
        )
        self.pool.patience = drive.patience_s
        for number, notes in self._unadopted.items():
            record = self.study.record(number)
            self.pool.book.add(adopted(self._spec(number, notes["spec"]), dict(record.values), notes, record.noise))
        self._unadopted = {}
        for lease in self.pool.book:
            record = self.study.record(lease.spec.number)
            strategy.adopt(_proposal(lease.spec, record), record)
            drive.adopt(record.number, stopped=lease.stopped_at is not None)
        self.spent = strategy.spent().reference_runs
        return drive

    def _spec(self, number: int, stored: Mapping[str, Any]) -> TrialSpec:
        with intact(self.name):
            spec = decode_spec(stored)
            can_continue = decode_facts(self.study.attributes["facts"]).can_continue
        to = str(CHECKPOINTS / checkpoint_name(number)) if can_continue else None
        return dataclasses.replace(spec, number=number, checkpoint_to=to)

    def _tell(self, kind: str, record: TrialRecord) -> None:
        assert self.strategy is not None
        now_s = time.monotonic()
        if kind != "report" or now_s - self._counted_s > SPENT_S:  # It is a sum over all trials.
            self.spent, self._counted_s = self.strategy.spent().reference_runs, now_s
        self._publish(self, kind, record)


def begin(study: Study, **attributes: Any) -> None:
    """Store that the service leads a study, and what it is about."""
    study.set(**attributes, stopped_by=None, used_s=time.time(), **{OURS: {"ready": False}})


def _proposal(spec: TrialSpec, record: TrialRecord) -> Proposal:
    return dataclasses.replace(Proposal.of(record), points=spec.points, noise_samples=spec.noise_samples)

"""The probes of a search: found or made, of each kind of device, and as trials have corrected them."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

from ..core.arguments import SearchArguments
from ..core.probe_results import Attempt, ProbeResult
from ..core.progress import Progress, tell
from ..core.specs import Plan
from ..core.trial_record import TrialRecord
from ..core.trials import Facts
from ..engines.base import Engine
from ..report.progress import probe_line
from ..studies.catalog import probe_key, reaches, studies
from ..studies.naming import same_object
from ..studies.spec_json import decode_facts
from ..studies.study import Study, intact


def corrected(probe: ProbeResult | None, records: Sequence[TrialRecord]) -> ProbeResult | None:
    """Return the probe as trials have corrected it: each that ran out of memory at its micro-batch halves it.

    What fitted for the probe's few steps may not fit later: allocators fragment, and others take memory of the same
    device.
    """
    if probe is None:
        return None
    micro, evaluation = probe.micro_batch_size, probe.eval_batch_size
    for record in records:
        if record.cause == "oom" and 1 < record.micro_batch_size <= micro:
            micro = record.micro_batch_size // 2
            evaluation = None if evaluation is None else max(1, evaluation // 2)
    return dataclasses.replace(probe, micro_batch_size=micro, eval_batch_size=evaluation)


def corrected_probes(
    probe: ProbeResult | None, probes: Mapping[str, ProbeResult], records: Sequence[TrialRecord], facts: Facts
) -> tuple[ProbeResult | None, dict[str, ProbeResult]]:
    """Return the probe to decide by, and those of all kinds of device if several, as trials have corrected them.

    A kind is corrected by what ran out of memory on it, or on one that was not probed. With batch norm, whose
    statistics are those of a micro-batch, all kinds train with the smallest one, so that their losses can be compared.
    """
    if probe is None or not probes:
        return corrected(probe, records), {}
    found = {}
    for device, its_probe in probes.items():
        after = corrected(
            its_probe, [record for record in records if record.device == device or record.device not in probes]
        )
        assert after is not None
        found[device] = after
    if facts.batch_norm:
        least = min(each.micro_batch_size for each in found.values())
        found = {device: dataclasses.replace(each, micro_batch_size=least) for device, each in found.items()}
    return next(iter(found.values())), found


PROBE_SHARE = 0.5
"""Share of a timeout that the probe may take."""


def obtain_probe(
    study: Study, arguments: SearchArguments, facts: Facts, engine: Engine, deadline_s: float
) -> ProbeResult:
    """Return the probe that was given, else a stored one of the same objective, device and settings, else a new one.

    Where a cluster has several kinds of device, each is probed, and the fastest is the one to decide by.
    """
    kinds = engine.kinds
    if arguments.probe is None and len({*kinds, *study.probes}) > 1 and kinds:
        return _probe_kinds(study, arguments, facts, engine, deadline_s)
    if study.probes:  # It is of a cluster that the search no longer uses.
        study.set(probes=[])
    if arguments.probe is not None:
        if len(kinds) > 1:
            said = f"The probe that was given is used for all kinds of device of the cluster: {'; '.join(kinds)}."
            tell(arguments, Progress("warning", study.name, arguments.plan.budget, message=said))
        _use_threads_of(arguments.probe, engine, lambda said: _say(study, arguments, "warning", said))
        return arguments.probe
    largest, most = most_useful(arguments.plan, facts)
    key = probe_key(
        facts,
        engine.device_info,
        jobs=arguments.plan.jobs,
        seed=arguments.plan.seed,
        settings={"max_batch": most},
        chooses_threads=engine.chooses_threads,
        params=arguments.plan.middle_params,
    )
    # One that was made for trials side by side says for how many; see `Engine.share`.
    for wanted in [{**key, "jobs": "auto"}, key] if arguments.jobs == "auto" else [key]:
        for other in _of_the_same(study):
            its_key = other.attributes.get("probe_key")
            stored = other.probe if reaches(its_key, wanted) else None
            if its_key is not None and stored is not None and stored.limited_by != "timeout":
                study.set(probe_key=as_far(wanted, stored, its_key.get("max_batch")))
                _use_threads_of(stored, engine)
                return stored
    if facts.kind == "command":
        _say(study, arguments, "note", probe_line(arguments.plan.budget_s))
    left_s = deadline_s - time.monotonic()
    probe = engine.run_probe(
        None,
        timeout=None if left_s == math.inf else max(1.0, PROBE_SHARE * left_s),
        seed=arguments.plan.seed,
        on_attempt=lambda attempt: _tell_attempt(study, arguments, attempt),
        on_note=lambda said: _say(study, arguments, "note", f"probe  {said}"),
        max_batch=most,
    )
    study.set(probe=probe.to_dict(), probe_key=as_far(key, probe, most))
    _say_if_cut(study, arguments, probe, largest)
    if facts.kind != "supervised":  # What the user's own code has shown, or has not.
        for said in probe.warnings:
            _say(study, arguments, "warning", said)
    return probe


def most_useful(plan: Plan, facts: Facts) -> tuple[int, int]:
    """Return the largest batch size of a search, and the largest micro-batch worth probing for it.

    None is tried that neither a trial would use nor the line of step times needs. That one needs none of a command:
    each size of it is a start, and its epochs are timed.
    """
    from ..probing.timing import enough_to_time
    from ..strategy.space import make_space

    largest = make_space(plan, facts, None).batches[-1]
    least = 1 if facts.kind == "command" else enough_to_time(facts.longest)
    return largest, max(least, largest // facts.world_size)


def as_far(key: Mapping[str, Any], probe: ProbeResult, most: int | None) -> dict[str, Any]:
    """Return the key to store a probe with, by how far it went.

    `most` is the size at which it was told to stop, if any. Only where it stopped there does the key name that size:
    what memory or the data set ended before is as good as a probe without a limit.
    """
    whole = {name: value for name, value in key.items() if name != "max_batch"}
    return {**whole, "max_batch": most} if most is not None and probe.limited_by == "max_batch" else whole


def _say_if_cut(study: Study, arguments: SearchArguments, probe: ProbeResult, largest: int) -> None:
    if probe.limited_by == "max_batch":
        _say(study, arguments, "note", f"probe  larger sizes were not tried: the search uses at most {largest}")


def _probe_kinds(
    study: Study, arguments: SearchArguments, facts: Facts, engine: Engine, deadline_s: float
) -> ProbeResult:
    """Store a probe of each kind of device and return the first: the fastest kind, at the first trial on it."""
    largest, most = most_useful(arguments.plan, facts)
    entries: dict[str, dict[str, Any]] = {entry["device"]: entry for entry in study.attributes.get("probes", ())}
    for kind, device in engine.kinds.items():
        seed, settings = arguments.plan.seed, {"max_batch": most}
        key = probe_key(facts, device, seed=seed, settings=settings, params=arguments.plan.middle_params)
        known = (entry for other in _of_the_same(study) for entry in other.attributes.get("probes", ()))
        stored = next(
            (entry for entry in known if reaches(entry["key"], key) and entry["probe"]["limited_by"] != "timeout"),
            None,
        )
        if stored is None:
            tell(arguments, Progress("probe", study.name, arguments.plan.budget, message=kind))
            left_s = deadline_s - time.monotonic()
            probe = engine.run_probe(
                kind,
                timeout=None if left_s == math.inf else max(1.0, PROBE_SHARE / len(engine.kinds) * left_s),
                seed=seed,
                on_attempt=lambda attempt: _tell_attempt(study, arguments, attempt),
                on_note=lambda said: _say(study, arguments, "note", f"probe  {said}"),
                max_batch=most,
            )
            stored = {"device": kind, "key": as_far(key, probe, most), "probe": probe.to_dict()}
            _say_if_cut(study, arguments, probe, largest)
        entries[kind] = stored
        study.set(probes=list(entries.values()), probe_key=None)  # What was stored of one kind is about to be replaced.
    if not any(record.device for record in study.records):
        study.set(
            probes=sorted(
                entries.values(),
                key=lambda entry: -max((r["samples_per_s"] for r in entry["probe"]["throughput"]), default=0),
            )
        )
    return next(iter(study.probes.values()))


def _of_the_same(study: Study) -> Iterator[Study]:
    """Yield a study and all others whose probe may be of the same objective: a file may have several."""
    yield study
    for other in studies(study.storage, readable=True):
        if same_object(other.attributes.get("identity"), study.attributes.get("identity")):
            yield other


def _tell_attempt(study: Study, arguments: SearchArguments, attempt: Attempt) -> None:
    tell(arguments, Progress("probe", study.name, arguments.plan.budget, attempt=attempt))


def _say(study: Study, arguments: SearchArguments, kind: Literal["warning", "note"], message: str) -> None:
    tell(arguments, Progress(kind, study.name, arguments.plan.budget, message=message))


def _use_threads_of(probe: ProbeResult, engine: Engine, warn: Callable[[str], None] = lambda _: None) -> None:
    """Train with the threads of a probe that is taken as it is, or warn that its step times are of others."""
    threads, ours = probe.device.threads, engine.device_info.threads
    if engine.device_info.kind != "cpu" or threads is None or ours is None or threads == ours:
        return
    if engine.chooses_threads and probe.device.kind == "cpu" and threads < ours:
        engine.use_threads(threads)
    else:
        warn(
            f"The probe was made with {threads} threads, and trials have {ours}: they may be faster or slower than it "
            f"says. Probe again, or use --threads {threads}."
        )


def with_probed_optimizer(facts: Facts, probe: ProbeResult | None) -> Facts:
    """Fill in the optimizer of a user's own loop, which is seen when it steps in the probe."""
    seen = None if probe is None else probe.optimizer
    if facts.optimizer is not None or not seen:
        return facts
    from ...objectives.fingerprint import optimizer_family

    return dataclasses.replace(facts, optimizer=seen, optimizer_family=optimizer_family(seen))


def with_stored_step_times(facts: Facts, study: Study) -> Facts:
    """Return the facts with the step times that a study began with: elsewhere an objective may state others.

    All that a search has decided rests on them. What is new, such as the batch of another baseline, is added.
    """
    with intact(study.name):
        stored = decode_facts(study.attributes["facts"]).step_times if "facts" in study.attributes else ()
    times = dict(facts.step_times) | dict(stored)
    return dataclasses.replace(facts, step_times=tuple(sorted(times.items())))

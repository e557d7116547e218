"""`bstune diagnose`: which claims about batch size and learning rate hold for the user's own model, data and device."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from .core.arguments import MOST_SEED, MOST_THREADS
from .core.checks import Checks
from .core.diagnosis import Diagnosis
from .core.errors import NoSignalError
from .core.probe_results import Attempt, ProbeResult
from .diagnosis.claims import chosen, judged
from .diagnosis.kept import keep
from .diagnosis.known import Known
from .probing.run import run_probe
from .studies.catalog import make_study, own_study, probe_key, touch
from .studies.naming import objective_identity, study_name
from .studies.spec_json import decode_facts, decode_plan
from .studies.storage import open_storage
from .studies.study import Study, intact
from .workers.fork_server import Host
from .workers.resolve import check_objective

if TYPE_CHECKING:
    from .core.trials import Facts


def diagnose(
    objective: Any,
    *,
    only: Iterable[str] | None = None,
    study: str | None = None,
    storage: str | None = None,
    device: str = "auto",
    threads: int | Literal["auto"] = "auto",
    seed: int = 0,
    on_attempt: Callable[[Attempt], None] | None = None,
    on_note: Callable[[str], None] | None = None,
) -> Diagnosis:
    """Say which claims about batch size and learning rate hold for a model, and what to do.

    What a probe and a search have recorded is not run again. Without a probe one is made first.

    Args:
        objective: A `Supervised`, a function under `@bstune.objective`, a `Command`, or what `bstune.load` returns.
        only: Names of findings; by default all. `bstune diagnose --list` shows them.
        study: Name of the study; by default the objective's own.
        storage: Where it is kept; by default `$BSTUNE_STORAGE`, else `sqlite:///bstune.db`.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        threads: CPU threads; by default those of the study's probe.
        seed: Of model and data in a probe.
        on_attempt: Called with each attempt of a probe.
        on_note: Called with what was decided on the way, in words.

    Returns:
        A finding for each claim: its verdict, figure, 90 % interval and advice.

    Raises:
        ArgumentError: An argument is wrong on its face.
        ObjectiveError: The user's code or file is at fault.
        NothingFitsError: Even a single sample needs more memory than there is.
        StudyError: The study cannot be read or written.
    """
    checks = Checks()
    checks.study(study)
    for name, text in (("device", device), ("storage", storage)):
        checks.text(name, text)
    checks.integer("seed", seed, 0, MOST_SEED)
    n_threads = checks.integer_or_auto("threads", threads, MOST_THREADS)
    checks.done()
    claims = chosen(only)
    objective = check_objective(objective)
    began_s = time.monotonic()
    with (
        open_storage(storage) as opened,
        Host(objective, device=device, threads=None if n_threads == "auto" else n_threads) as host,
    ):
        name = study_name(study, objective, host.facts)
        identity = objective_identity(objective)
        name, found = own_study(opened, name, identity, named=study is not None)
        kept = found or make_study(opened, name)
        known = stored(kept, host.facts)
        warnings = list(_warnings(kept, host.facts, known))
        probed_s = 0.0
        if known.probe is None and host.facts.kind != "command" and any("probe" in claim.needs for claim in claims):
            known = replace(known, probe=_probe(host, kept, seed, on_attempt, on_note))
            probed_s = time.monotonic() - began_s
        result = Diagnosis(
            findings=judged(claims, known),
            study=name,
            device=host.device_info.name,
            seconds=probed_s,
            warnings=tuple(warnings),
        )
        keep(kept, result.findings)
        kept.set(identity=identity)
        touch(kept)
    return result


def stored(study: Study, facts: Facts | None = None) -> Known:
    """Return what a study knows, for findings to rest on; `facts` where the study has none."""
    if not {"plan", "facts"} <= study.attributes.keys():
        return Known(facts, study.probe, None, study.records)
    from .searching.result import make_result, make_strategy

    with intact(study.name):
        told = decode_facts(study.attributes["facts"])
        strategy = make_strategy(decode_plan(study.attributes["plan"]), told, study.probe, study)
        try:
            result = make_result(study, strategy, study.probe, "interrupted")
        except NoSignalError:
            result = None
    return Known(told, study.probe, result, study.records)


def _warnings(study: Study, facts: Facts, known: Known) -> Iterable[str]:
    fingerprint = study.attributes.get("fingerprint")
    if known.result is None or not isinstance(fingerprint, dict):
        return
    same_text = fingerprint.get("source") == facts.source_hash
    if not same_text and not (facts.code_hash is not None and fingerprint.get("code") == facts.code_hash):
        yield "The objective has changed since it was searched: what rests on its trials may no longer hold."


def _probe(
    host: Host,
    study: Study,
    seed: int,
    on_attempt: Callable[[Attempt], None] | None,
    on_note: Callable[[str], None] | None,
) -> ProbeResult:
    key = probe_key(host.facts, host.device_info, seed=seed, chooses_threads=host.chooses_threads)
    probe = run_probe(host, seed=seed, on_attempt=on_attempt, on_note=on_note)
    study.set(probe=probe.to_dict(), probe_key=key)
    return probe

"""`bstune diagnose`: which claims about batch size and learning rate hold for the user's own model, data and device."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from .core.checks import Checks
from .core.diagnosis import Costs, Diagnosis
from .core.probe_results import Attempt, ProbeResult
from .core.specs import Plan
from .core.version import __version__
from .diagnosis.claims import Claim, chosen, judged, measurements_of, untold
from .diagnosis.kept import MeasuredClaims, keep
from .diagnosis.known import Known
from .diagnosis.measured import cost_of, foreseen, measure
from .probing.run import run_probe
from .searching.probes import as_far, most_useful
from .studies.catalog import has_changed, make_study, probe_key, searched_study, touch
from .studies.naming import objective_identity
from .studies.storage import NoStudiesError, open_storage, read_storage
from .studies.study import Study, has_search, intact
from .workers.fork_server import Host
from .workers.resolve import check_objective

if TYPE_CHECKING:
    from .core.trials import Facts

BEYOND = 4
"""A probe that is made for a diagnosis goes to so many times what a search would use."""


def diagnose(
    objective: Any,
    *,
    only: Iterable[str] | None = None,
    budget: float = 3.0,
    study: str | None = None,
    storage: str | None = None,
    device: str = "auto",
    threads: int | Literal["auto"] = "auto",
    seed: int = 0,
    fresh: bool = False,
    on_attempt: Callable[[Attempt], None] | None = None,
    on_note: Callable[[str], None] | None = None,
) -> Diagnosis:
    """Say which claims about batch size and learning rate hold for a model, and what to do.

    What a probe and a search have recorded is not run again. Without a probe one is made first. What must be measured
    on the model is, in worker processes, on fresh models that are then forgotten. An earlier call's measurements are
    used again where they would be made alike: of the same source, setting and seed, on the same device, by the same
    versions of bstune and torch.

    Args:
        objective: A `Supervised`, a function under `@bstune.objective`, a `Command`, or what `bstune.load` returns.
        only: Names of findings; by default all. `bstune diagnose --list` shows them.
        budget: Reference runs of training that may be spent (a full run at the smallest batch of half the top speed);
            0 for none. The probe, and looks at the model beside its training, do not count.
        study: Name of the study; by default the objective's own, of several the one that was searched last.
        storage: Where it is kept; by default `$BSTUNE_STORAGE`, else `sqlite:///bstune.db`.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        threads: CPU threads; by default those of the study's probe.
        seed: Of model and data.
        fresh: Measure anew what an earlier call has measured.
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
    n_threads = _checked_threads(study, storage, device, threads, seed, budget)
    claims = chosen(only)
    objective = check_objective(objective)
    began_s = time.monotonic()
    with open_storage(storage) as opened, Host(objective, device=device, threads=n_threads) as host:
        name, found = searched_study(opened, objective, host.facts, given=study)
        kept = found or make_study(opened, name)
        known = stored(kept, host.facts)
        by = _measured_by(host, known, seed)
        warnings = (*host.warnings, *_warnings(kept, host.facts, known, objective))
        if known.probe is None and _needs_probe(claims, host.facts):
            known = replace(known, probe=_probe(host, kept, seed, on_attempt, on_note))
            by["setting"] = _setting_of(known)
        measured = MeasuredClaims(kept, untold(claims, known), by, fresh=fresh)
        trained = 0.0
        if measured.wanted:
            if host.chooses_threads and known.probe is not None and known.probe.device.threads:
                host.use_threads(known.probe.device.threads)
            known, trained = measure(
                measured.wanted,
                known,
                host,
                budget=budget,
                seed=seed,
                on_note=on_note or (lambda text: None),
                on_known=measured.save,
            )
        result = Diagnosis(
            findings=measured.among(judged(claims, known)),
            study=name,
            device=host.device_info.name,
            seconds=time.monotonic() - began_s if measured.wanted else 0.0,
            reference_runs=trained,
            warnings=warnings,
            reused=tuple(measured.reused),
            left_out_runs=known.left_out_runs,
            left_out=measured.left_out(known),
        )
        keep(kept, [finding for finding in result.findings if finding.name not in measured.reused])
        measured.save(known)
        kept.set(identity=objective_identity(objective))
        touch(kept)
    return result


def _checked_threads(
    study: str | None, storage: str | None, device: str, threads: int | Literal["auto"], seed: int, budget: float
) -> int | None:
    """Check the arguments, and return the threads; None where they are chosen.

    Raises:
        ArgumentError: One is wrong on its face; all that are get named.
    """
    checks = Checks()
    checks.place(device=device, study=study, storage=storage)
    checks.seed(seed, following=10)
    checks.real("budget", budget, lambda x: 0 <= x <= 1e9, "reference runs, 0 or more")
    n_threads = checks.threads(threads)
    checks.done()
    return None if n_threads == "auto" else n_threads


def _needs_probe(claims: Iterable[Claim], facts: Facts) -> bool:
    """Tell whether a probe is of use: for claims about the device, and to know what fits and what it costs."""
    measured = facts.can_be_looked_at
    return facts.kind != "command" and any(
        "probe" in claim.needs or (measured and claim.measurement is not None) for claim in claims
    )


def _setting_of(known: Known) -> list[Any]:
    """Return the setting that is looked at, as JSON."""
    setting = known.setting
    return [setting.global_batch_size, setting.learning_rate, json.loads(json.dumps(dict(setting.params)))]


def costs(
    objective: Any = None,
    *,
    only: Iterable[str] | None = None,
    budget: float = 3.0,
    study: str | None = None,
    storage: str | None = None,
    device: str = "auto",
    threads: int | Literal["auto"] = "auto",
    seed: int = 0,
    fresh: bool = False,
) -> Costs:
    """Return what `diagnose` would cost with the same arguments; nothing is run.

    Args:
        objective: Whose study has a probe, by which seconds are known; None: what is measured has no known cost.
        only: Names of findings; by default all.
        budget: Reference runs of training that may be spent.
        study: Name of the study; by default the objective's own, of several the one that was searched last.
        storage: Where it is kept.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        threads: CPU threads; by default those of the study's probe.
        seed: Of model and data.
        fresh: What an earlier call has measured counts as well.

    Raises:
        ArgumentError: An argument is wrong on its face.
        ObjectiveError: The objective cannot be loaded.
        StudyError: The study cannot be read.
    """
    n_threads = _checked_threads(study, storage, device, threads, seed, budget)
    claims, known, reused = chosen(only), Known(), frozenset[str]()
    if objective is not None:
        objective = check_objective(objective)
        with Host(objective, device=device, threads=n_threads) as host:
            known = Known(host.facts)
            with contextlib.suppress(NoStudiesError), read_storage(storage) as opened:
                _, found = searched_study(opened, objective, host.facts, given=study)
                if found is not None:
                    known = stored(found, host.facts)
                    by = _measured_by(host, known, seed)
                    reused = frozenset(MeasuredClaims(found, untold(claims, known), by, fresh=fresh).reused)
    unknown = [claim for claim in untold(claims, known) if claim.name not in reused]
    wanted = measurements_of(unknown)
    priced = {name: cost_of(name, known) for name in wanted}
    asked = {claim.name for claim in unknown}
    rows = tuple(
        (claim.name, claim.text, priced[str(claim.measurement)] if claim.name in asked else 0.0) for claim in claims
    )
    if None in priced.values():
        return Costs(rows)
    seconds, runs, left_out = foreseen(wanted, known, budget) if wanted else (0.0, 0.0, ())
    return Costs(rows, seconds, runs, tuple(claim.name for claim in unknown if claim.measurement in left_out))


def _measured_by(host: Host, known: Known, seed: int) -> dict[str, Any]:
    """Return what measurements depend on. Before a probe, which may choose the threads."""
    key = probe_key(host.facts, host.device_info, seed=seed, chooses_threads=host.chooses_threads)
    return {**key, "bstune": __version__, "setting": _setting_of(known)}


def stored(study: Study, facts: Facts | None = None) -> Known:
    """Return what a study knows, for findings to rest on; `facts` where the study has none."""
    if not has_search(study):
        return Known(facts, study.probe, None, study.records)
    from .searching.result import result_so_far, stored_strategy

    with intact(study.name):
        strategy = stored_strategy(study)
        result = result_so_far(study, strategy)
    return Known(strategy.facts, study.probe, result, study.records)


def _warnings(study: Study, facts: Facts, known: Known, objective: Any) -> Iterable[str]:
    if known.result is None or known.facts is None or not isinstance(study.attributes.get("fingerprint"), dict):
        return
    if has_changed(study, known.facts, facts, objective):
        yield "The objective has changed since it was searched: what rests on its trials may no longer hold."


def _probe(
    host: Host,
    study: Study,
    seed: int,
    on_attempt: Callable[[Attempt], None] | None,
    on_note: Callable[[str], None] | None,
) -> ProbeResult:
    # A little further than a search needs: it is asked what larger batches would take, too. Only sizes matter here: an
    # optimizer whose rates are fixed, which a search refuses, can be probed and looked at.
    most = BEYOND * most_useful(Plan(), replace(host.facts, ignores_rate=False))[1]
    key = probe_key(host.facts, host.device_info, seed=seed, chooses_threads=host.chooses_threads)
    probe = run_probe(host, max_batch=most, seed=seed, on_attempt=on_attempt, on_note=on_note, for_search=True)
    study.set(probe=probe.to_dict(), probe_key=as_far(key, probe, most))
    return probe

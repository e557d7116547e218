"""Everything that a search needs before it trains: the objective's facts, a study, a probe, a pool."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...objectives.command import Command
from ...objectives.seal import make_seal
from ..core.arguments import SearchArguments
from ..core.errors import ArgumentError, NoSignalError
from ..core.probe_results import DeviceInfo, ProbeResult
from ..core.progress import Progress, tell
from ..core.results import Recommendation
from ..core.trials import Facts
from ..engines.base import Engine, Pool
from ..engines.choose import make_engine
from ..report.progress import learned_line
from ..report.units import gib
from ..strategy.budget import BASELINE_SHARE
from ..studies.catalog import choose_study, fingerprint, touch
from ..studies.checkpoints import forget_checkpoints
from ..studies.naming import objective_identity, study_name
from ..studies.spec_json import encode_plan
from ..studies.storage import Storage, open_storage
from ..studies.study import Study
from ..workers.resolve import check_objective, with_places
from .learned import remember
from .loop import Drive
from .probes import obtain_probe, with_probed_optimizer, with_stored_step_times
from .result import make_strategy
from .taken_up import TakenUp, take_up

if TYPE_CHECKING:
    from ..strategy.strategy import Strategy


@dataclass(frozen=True)
class Prepared:
    """Everything that a search needs before it trains."""

    objective: Any
    arguments: SearchArguments
    facts: Facts
    study: Study
    probe: ProbeResult | None
    strategy: Strategy
    engine: Engine
    probe_s: float = 0.0
    """Seconds that it took to have a probe."""

    def tell(self, kind: Any, **details: Any) -> None:
        """Tell those who listen what has happened, and what is spent."""
        strategy = self.strategy
        spent, end, end_s = strategy.spent().reference_runs, strategy.planned_end, strategy.planned_end_s
        tell(self.arguments, Progress(kind, self.study.name, end, spent, budget_s=end_s, **details))

    def best(self) -> Recommendation | None:
        """Return the best so far; None where nothing was learned yet."""
        with contextlib.suppress(NoSignalError):
            return self.strategy.recommend()
        return None


@contextlib.contextmanager
def prepared(objective: Any, arguments: SearchArguments, deadline_s: float, *, dry: bool = False) -> Iterator[Prepared]:
    """Open the storage, describe the objective, find its study, probe, and take up the search where it stands.

    `dry`: nothing is to be trained, and a study that has trials keeps what it says of its search.
    """
    objective = check_objective(objective, isolation=arguments.isolation)
    rate = arguments.plan.space.get("learning_rate")
    objective = with_places(objective, arguments.plan.space, rate_is_fixed=rate is not None and len(rate.values) == 1)
    _check_nearby(getattr(objective, "kind", None), arguments)
    arguments, present = _with_present_setting(objective, arguments)
    with (
        open_storage(arguments.storage) as storage,
        contextlib.closing(make_engine(objective, arguments)) as engine,
    ):
        facts, path = engine.facts, storage.location.path
        _check_nearby(facts.kind, arguments)
        can_continue = facts.can_continue and engine.shares(None if path is None else path.parent)
        facts = dataclasses.replace(facts, can_continue=can_continue)
        if engine.jobs != arguments.plan.jobs:
            arguments = dataclasses.replace(arguments, plan=dataclasses.replace(arguments.plan, jobs=engine.jobs))
        study, taken_up = _study(storage, objective, arguments, facts, engine.device_info, dry=dry)
        n = len(study.finished)
        said = f"{n} trial{'' if n == 1 else 's'} so far" + (
            f", {len(study.orphans)} of them cut off when the last search was killed" if study.orphans else ""
        )
        said = f"{said}; {taken_up.said}" if taken_up.said else said
        tell(arguments, Progress("study", study.name, arguments.plan.budget, message=said if study.finished else "new"))
        if not study.records:
            anew = arguments.fresh_prior or arguments.plan.baseline is not None  # It knows better.
            learned = None if anew else remember(study, facts, engine.device_info)
            if learned is None:
                study.set(learned=None)
            else:
                said = learned_line(learned.study, learned.batch_size, learned.learning_rate, learned.differs)
                tell(arguments, Progress("note", study.name, arguments.plan.budget, message=said))
        for warning in engine.warnings:
            tell(arguments, Progress("warning", study.name, arguments.plan.budget, message=warning))
        began_s = time.monotonic()
        probe = obtain_probe(study, arguments, facts, engine, deadline_s) if engine.can_probe else None
        probe_s = time.monotonic() - began_s
        if probe is not None and arguments.jobs == "auto":
            arguments, probe = _shared(study, arguments, probe, engine)
        facts = with_stored_step_times(with_probed_optimizer(facts, probe), study)
        if not (dry and study.finished):
            study.set(
                facts=dataclasses.asdict(facts),
                probe=None if probe is None else probe.to_dict(),
                plan=encode_plan(arguments.plan),
            )
            forget_checkpoints(study)
        strategy = make_strategy(arguments.plan, facts, probe, study)
        strategy.stopped_by = taken_up.ended_by
        if present:
            said = f"{present} {whether_run(strategy)}"
            tell(arguments, Progress("note", study.name, arguments.plan.budget, message=said))
        yield Prepared(objective, arguments, facts, study, probe, strategy, engine, probe_s)


def _with_present_setting(objective: Any, arguments: SearchArguments) -> tuple[SearchArguments, str]:
    """Return the arguments with the defaults of a script as the user's present setting, and what to say of it.

    What the user says of the baseline and of the space counts more.
    """
    plan = arguments.plan
    if plan.baseline is not None or not isinstance(objective, Command):
        return arguments, ""
    present = objective.present_setting()
    asked = (plan.space.get("batch_size"), plan.space.get("learning_rate"))
    if present is None or not all(d is None or d.allows(x) for d, x in zip(asked, present, strict=True)):
        return arguments, ""
    batch, rate = present
    note = f"Your present setting, by the defaults of the script: batch {batch}, learning rate {rate:.3g}."
    return dataclasses.replace(arguments, plan=dataclasses.replace(plan, baseline=present)), note


def whether_run(strategy: Strategy) -> str:
    """Return whether the present setting is run in full, which takes part of the budget."""
    share = strategy.baseline_share()
    if strategy.plan.baseline is not None and strategy.plan.baseline[0] not in strategy.space.batches:
        return "It is not run: that is none of the batch sizes that are searched."
    if share is None:
        return f"It is run too, if that takes at most {BASELINE_SHARE:.0%} of the budget."
    if share <= BASELINE_SHARE or any(run.stage == "baseline" for run in strategy.ledger):
        return "It is run too."
    return (
        f"It is not run, unless it turns out cheaper: a full run seems to take {share:.0%} of the budget, and at most "
        f"{BASELINE_SHARE:.0%} go to it. The search begins there."
    )


def _check_nearby(kind: str | None, arguments: SearchArguments) -> None:
    """Refuse to run a command on the machines of a cluster, which need not have its program, script and data.

    Raises:
        ArgumentError: That was asked for.
    """
    if kind == "command" and arguments.ray_address is not None:
        raise ArgumentError(
            f"ray_address={arguments.ray_address!r}: a command runs on this machine only, since its program and files "
            "are here. Leave ray_address out, or search a function under @bstune.objective."
        )


def _study(
    storage: Storage,
    objective: Any,
    arguments: SearchArguments,
    facts: Facts,
    device: DeviceInfo,
    *,
    dry: bool,
) -> tuple[Study, TakenUp]:
    """Find or make the study and store its settings; return also whether anything is left to run."""
    from ...objectives.load import ObjectiveRef

    reference: ObjectiveRef | None = objective if isinstance(objective, ObjectiveRef) else None
    name = study_name(arguments.study, objective, facts)
    wanted = fingerprint(facts, arguments.plan, device)
    identity = objective_identity(objective)
    study = choose_study(
        storage,
        name,
        wanted,
        named=arguments.study is not None,
        fresh=arguments.fresh,
        identity=identity,
        in_python=reference is None and not isinstance(objective, Command),
    )
    taken_up = take_up(study, arguments.plan)
    if dry and study.finished:
        return study, taken_up
    target = (
        None
        if reference is None
        else reference.target
        if reference.path is None
        else f"{reference.path}:{reference.name}"
    )
    asked = {
        "device": arguments.device,
        "threads": arguments.threads,
        **({"jobs": "auto"} if arguments.jobs == "auto" else {}),
        "isolation": arguments.isolation,
        "engine": arguments.engine,
        "ray_address": arguments.ray_address,
        "trial_timeout": arguments.trial_timeout,
        "probe_given": arguments.probe is not None,
    }
    study.set(
        fingerprint=wanted,
        identity=identity,
        plan=encode_plan(arguments.plan),
        device=device.to_dict(),
        objective=target,
        objective_seal=make_seal(study, objective=target, source=facts.source_hash, asked=asked),
        asked=asked,
        stopped_by=None,
    )
    touch(study)
    return study, taken_up


def _shared(
    study: Study, arguments: SearchArguments, probe: ProbeResult, engine: Engine
) -> tuple[SearchArguments, ProbeResult]:
    """Return arguments and probe with as many trials side by side as the engine has room for."""
    budget = arguments.plan.budget
    shared = engine.share(
        probe,
        seed=arguments.plan.seed,
        on_attempt=lambda attempt: tell(arguments, Progress("probe", study.name, budget, attempt=attempt)),
    )
    if shared is None:
        return arguments, probe
    jobs, probe = shared
    n = engine.device_info.threads
    threads = f"{n} thread{'' if n == 1 else 's'}"
    said = f"jobs {jobs}: each trial has {threads} and {gib(probe.usable_bytes)} of memory"
    tell(arguments, Progress("note", study.name, budget, message=said))
    key = study.attributes.get("probe_key")
    if jobs > 1 and arguments.probe is None and key is not None:
        study.set(probe=probe.to_dict(), probe_key={**key, "jobs": "auto"})
    return dataclasses.replace(arguments, plan=dataclasses.replace(arguments.plan, jobs=jobs)), probe


def make_pool(ready: Prepared, drive: Drive) -> Pool:
    """Return who runs the trials of this search."""
    return ready.engine.make_pool(drive.decide, ready.probe, ready.study.probes)

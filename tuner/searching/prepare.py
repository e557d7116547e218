"""Everything that a search needs before it trains: the objective's facts, a study, a probe, a pool."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...objectives.seal import make_seal
from ..core.arguments import SearchArguments
from ..core.progress import Progress, tell
from ..core.results import DeviceInfo, ProbeResult
from ..core.trials import Facts
from ..engines.base import Pool
from ..studies.catalog import choose_study, fingerprint, touch
from ..studies.checkpoints import forget_checkpoints
from ..studies.naming import study_name
from ..studies.spec_json import encode_plan
from ..studies.storage import Storage, open_storage
from ..studies.study import Study
from ..workers.resolve import check_objective
from .loop import Drive
from .probes import obtain_probe, with_probed_optimizer, with_stored_step_times
from .result import make_strategy
from .taken_up import TakenUp, take_up

if TYPE_CHECKING:
    from ..engines.ray_cluster import Cluster
    from ..strategy.strategy import Strategy
    from ..workers.fork_server import Host


@dataclass(frozen=True)
class Ready:
    """Everything that a search needs before it trains."""

    objective: Any
    arguments: SearchArguments
    facts: Facts
    study: Study
    probe: ProbeResult | None
    strategy: Strategy
    host: Host | Cluster | None

    def tell(self, kind: Any, **details: Any) -> None:
        """Tell those who listen what has happened, and what is spent."""
        spent = self.strategy.spent().full_runs
        tell(self.arguments, Progress(kind, self.study.name, self.arguments.plan.budget, spent, **details))


@contextlib.contextmanager
def prepared(
    objective: Any, arguments: SearchArguments, deadline_s: float, *, fresh: bool, dry: bool = False
) -> Iterator[Ready]:
    """Open the storage, describe the objective, find its study, probe, and take up the search where it stands.

    `dry`: nothing is to be trained, and a study that has trials keeps what it says of its search.
    """
    objective = check_objective(objective, isolation=arguments.isolation)
    with open_storage(arguments.storage) as storage, _described(objective, arguments, storage) as (facts, device, host):
        if host is not None and host.jobs != arguments.plan.jobs:
            arguments = dataclasses.replace(arguments, plan=dataclasses.replace(arguments.plan, jobs=host.jobs))
        study, taken_up = _study(storage, objective, arguments, facts, device, fresh=fresh, dry=dry)
        said = f"{len(study.finished)} trials so far" + (
            f", {len(study.orphans)} of them cut off when the last search was killed" if study.orphans else ""
        )
        said = f"{said}; {taken_up.said}" if taken_up.said else said
        tell(arguments, Progress("study", study.name, arguments.plan.budget, message=said if study.finished else "new"))
        for warning in () if host is None else host.warnings:
            tell(arguments, Progress("warning", study.name, arguments.plan.budget, message=warning))
        probe = None if host is None else obtain_probe(study, arguments, facts, host, deadline_s)
        facts = with_stored_step_times(with_probed_optimizer(facts, probe), study)
        if not (dry and study.finished):
            study.set(facts=dataclasses.asdict(facts), probe=None if probe is None else probe.to_dict())
            forget_checkpoints(study)
        strategy = make_strategy(arguments.plan, facts, probe, study)
        strategy.stopped_by = taken_up.ended_by
        yield Ready(objective, arguments, facts, study, probe, strategy, host)


@contextlib.contextmanager
def _described(
    objective: Any, arguments: SearchArguments, storage: Storage
) -> Iterator[tuple[Facts, DeviceInfo, Host | Cluster | None]]:
    named = arguments.plan.named_batches
    if arguments.isolation == "none":
        yield objective.describe(named), DeviceInfo("cpu", "the calling process"), None
        return
    if arguments.engine == "ray":
        from ..engines.ray_cluster import Cluster

        with Cluster(
            objective,
            device=arguments.device,
            jobs=arguments.plan.jobs,
            address=arguments.ray_address,
            batch_sizes=named,
        ) as cluster:
            path = storage.location.path
            shared = cluster.facts.can_continue and path is not None and cluster.shares(path.parent)
            yield dataclasses.replace(cluster.facts, can_continue=shared), cluster.device_info, cluster
        return
    from ..workers.fork_server import Host

    with Host(objective, device=arguments.device, jobs=arguments.plan.jobs, batch_sizes=named) as host:
        yield host.facts, host.device_info, host


def _study(
    storage: Storage,
    objective: Any,
    arguments: SearchArguments,
    facts: Facts,
    device: DeviceInfo,
    *,
    fresh: bool,
    dry: bool,
) -> tuple[Study, TakenUp]:
    """Find or make the study, and write down what it is about; return also what is to come of it."""
    from ...objectives.load import ObjectiveRef

    reference: ObjectiveRef | None = objective if isinstance(objective, ObjectiveRef) else None
    name = study_name(arguments.study, objective, facts)
    wanted = fingerprint(facts, arguments.plan, device)
    study = choose_study(storage, name, wanted, named=arguments.study is not None, fresh=fresh)
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
        "isolation": arguments.isolation,
        "engine": arguments.engine,
        "ray_address": arguments.ray_address,
        "trial_timeout": arguments.trial_timeout,
        "probe_given": arguments.probe is not None,
    }
    study.set(
        fingerprint=wanted,
        plan=encode_plan(arguments.plan),
        device=device.to_dict(),
        objective=target,
        objective_seal=make_seal(study, objective=target, source=facts.source_hash, asked=asked),
        asked=asked,
        stopped_by=None,
    )
    touch(study)
    return study, taken_up


def make_pool(ready: Ready, drive: Drive) -> Pool:
    """Return who runs the trials of this search."""
    if ready.host is None:
        from ..engines.inline import InlinePool

        return InlinePool(ready.objective, drive.judge)
    from ..workers.fork_server import Host

    assert ready.probe is not None
    if isinstance(ready.host, Host):
        from ..engines.local import LocalPool

        return LocalPool(ready.host, slots=ready.arguments.plan.jobs, fence_bytes=ready.probe.usable_bytes)
    from ..engines.ray_pool import RayPool

    probes = ready.study.probes or dict.fromkeys(ready.host.kinds, ready.probe)
    return RayPool(ready.host, fences={kind: probe.usable_bytes for kind, probe in probes.items()})

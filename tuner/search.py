"""The whole story on one page: describe the objective, probe what fits, try settings, confirm, recommend.

`search` is the library's front door, `run_search` the story, and `drive.Drive` its loop.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

from ..objectives.base import Facts
from ..objectives.load import check_objective
from .arguments import SearchArguments, check_search
from .checkpoints import checkpoint_folder, forget_checkpoints
from .codec import encode_plan
from .drive import Drive, Progress, corrected_probes
from .errors import BstuneError, NoSignalError
from .jobs import LOADING
from .naming import study_name
from .plan import Forecast, Plan
from .pool import Pool
from .results import Attempt, DeviceInfo, ProbeResult, SearchResult
from .seal import make_seal
from .storage import Storage, open_storage
from .study import Study, choose_study, fingerprint, forget_study, probe_key, studies, touch

if TYPE_CHECKING:
    from ..objectives.load import ObjectiveRef
    from .host import Host
    from .ray_cluster import Cluster
    from .strategy import Strategy

PROBE_SHARE = 0.5
"""Share of a timeout that the probe may take."""


class SearchInterrupted(KeyboardInterrupt):
    """Ctrl-C in the middle of a search; everything that was finished is stored.

    Attributes:
        result: The best so far, or None when nothing was learned yet.
    """

    def __init__(self, result: SearchResult | None) -> None:
        """Keep the best so far."""
        super().__init__("the search was interrupted")
        self.result = result


def search(
    objective: Any,
    *,
    probe: ProbeResult | None = None,
    goal: Literal["loss", "time", "largest"] = "loss",
    target: float | None = None,
    tolerance: float = 0.02,
    budget: float | None = None,
    n_trials: int | None = None,
    timeout: float | None = None,
    trial_timeout: float | None = None,
    space: Mapping[str, Any] | None = None,
    engine: str = "optuna",
    jobs: int = 1,
    ray_address: str | None = None,
    pruner: str = "auto",
    sampler: str = "auto",
    confirm: int = 3,
    device: str = "auto",
    baseline: tuple[int, float] | None = None,
    isolation: Literal["process", "none"] = "process",
    seed: int = 0,
    study: str | None = None,
    storage: str | None = None,
    callbacks: Sequence[Callable[[Progress], None]] = (),
) -> SearchResult:
    """Return the batch size and learning rate to train with, and everything that the answer rests on.

    Running the same search again resumes it: nothing that was finished is run again.

    Args:
        objective: What to train: `bstune.Supervised`, a function under `@bstune.objective`, or `bstune.load("model.py")`.
        probe: What `bstune.probe` returned; by default a stored one of the same objective and device, else a new one.
        goal: `loss`: the fastest setting within `tolerance` of the lowest loss. `time`: the fewest seconds to `target`.
            `largest`: the largest batch without measurable loss.
        target: Validation loss to reach, with `goal="time"`; by default chosen from the first run.
        tolerance: Share of the best loss that counts as equal.
        budget: Total training of the study in full runs, confirmation included and the probe not; 12 by default.
        n_trials: Most trials of the study.
        timeout: Most seconds of this call.
        trial_timeout: Seconds of silence after which a trial counts as hung; by default many times what it should take.
        space: Dimensions to fix or add, by name (`batch_size`, `learning_rate`, or your own): a scalar fixes, a list means
            exactly these, `(lo, hi)` a log range, an Optuna distribution itself.
        engine: Who runs the trials: `optuna` on this machine, `ray` by Ray Tune, here or on a cluster.
        jobs: Trials that run side by side; with `ray` and GPUs, 1 means one per GPU of the cluster.
        ray_address: With `ray`: `auto` or `HOST:PORT` of a cluster to join; by default Ray is started here, on loopback.
        pruner: `auto`, or `none` to let every trial run to its end.
        sampler: `auto`, or `random` and `tpe` for comparison.
        confirm: Most fresh seeds per finalist.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        baseline: Your present (batch size, learning rate); it is measured beside the rest and centres the search.
        isolation: `process`, or `none` to run a cheap, trusted function in this process, without a probe.
        seed: Seed of all trials of the search; confirmation uses the seeds that follow.
        study: Name of the study.
        storage: Where it is kept: `sqlite:///FILE`; by default `$BSTUNE_STORAGE`, else `sqlite:///bstune.db`.
        callbacks: Functions that are called with a `Progress` whenever something has happened.

    Raises:
        ArgumentError: An argument is wrong on its face.
        ObjectiveError: Your code or file is at fault.
        NothingFitsError: Even the smallest micro-batch does not fit.
        DeviceError: The device is absent or does not work.
        StudyError: The storage cannot be used, or holds a study of other settings.
        NoSignalError: No trial has a finite validation loss.
    """
    arguments = check_search(
        probe=probe,
        goal=goal,
        target=target,
        tolerance=tolerance,
        budget=budget,
        n_trials=n_trials,
        timeout=timeout,
        trial_timeout=trial_timeout,
        space=space,
        engine=engine,
        jobs=jobs,
        ray_address=ray_address,
        pruner=pruner,
        sampler=sampler,
        confirm=confirm,
        device=device,
        baseline=baseline,
        isolation=isolation,
        seed=seed,
        study=study,
        storage=storage,
        callbacks=(_print_forecast, *callbacks),
    )
    return run_search(objective, arguments)


def run_search(objective: Any, arguments: SearchArguments, *, fresh: bool = False) -> SearchResult:
    """Search with checked arguments; `fresh` makes a new study beside the old one."""
    if os.environ.get(LOADING) == str(os.getpid()):
        raise BstuneError(
            'bstune.search() was called by a file that bstune was loading. Put the call under `if __name__ == "__main__":`, or run the '
            "file with Python."
        )
    deadline_s = math.inf if arguments.timeout is None else time.monotonic() + arguments.timeout
    with _prepared(objective, arguments, deadline_s, fresh=fresh) as ready:
        ready.tell("forecast", forecast=ready.strategy.forecast(), facts=ready.facts)
        with checkpoint_folder(ready.study) as checkpoint_dir:
            drive = Drive(
                ready.study,
                ready.strategy,
                ready.probe,
                tell=lambda kind, trial: ready.tell(kind, trial=trial),
                deadline_s=deadline_s,
                checkpoint_dir=checkpoint_dir,
                trial_timeout_s=arguments.trial_timeout,
            )
            with contextlib.closing(_pool(ready, drive)) as pool:
                try:
                    stopped_by = drive.run(pool)
                except KeyboardInterrupt:
                    raise SearchInterrupted(_best_so_far(ready)) from None
        ready.study.set(stopped_by=stopped_by)
        if stopped_by == "timeout" and not any(record.values for record in ready.study.records):
            raise NoSignalError(
                f"The timeout of {arguments.timeout:g} s was over before any trial had a validation loss. Run the same command again: "
                "it goes on from here, and what was probed is kept."
            )
        return make_result(ready.study, ready.strategy, ready.probe, stopped_by)


def run_forecast(objective: Any, arguments: SearchArguments, *, fresh: bool = False) -> Forecast:
    """Return what a search would cost, training nothing; it probes if no probe is stored."""
    deadline_s = math.inf if arguments.timeout is None else time.monotonic() + arguments.timeout
    with _prepared(objective, arguments, deadline_s, fresh=fresh, dry=True) as ready:
        forecast = ready.strategy.forecast()
        if fresh:
            forget_study(ready.study)
        return forecast


# --- getting ready ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Ready:
    """Everything that a search needs before it trains."""

    objective: Any
    arguments: SearchArguments
    facts: Facts
    study: Study
    probe: ProbeResult | None
    strategy: Strategy
    host: Host | Cluster | None

    def tell(self, kind: Any, **details: Any) -> None:
        spent = self.strategy.spent().full_runs
        _tell(self.arguments, Progress(kind, self.study.name, self.arguments.plan.budget, spent, **details))


def _tell(arguments: SearchArguments, progress: Progress) -> None:
    for callback in arguments.callbacks:
        callback(progress)


@contextlib.contextmanager
def _prepared(objective: Any, arguments: SearchArguments, deadline_s: float, *, fresh: bool, dry: bool = False) -> Iterator[_Ready]:
    """Open the storage, describe the objective, find its study, probe, and take up the search where it stands.

    `dry`: nothing is to be trained, and a study that has trials keeps what it says of its search.
    """
    objective = check_objective(objective, isolation=arguments.isolation)
    with open_storage(arguments.storage) as storage, _described(objective, arguments, storage) as (facts, device, host):
        if host is not None and host.jobs != arguments.plan.jobs:
            arguments = dataclasses.replace(arguments, plan=dataclasses.replace(arguments.plan, jobs=host.jobs))
        study = _study(storage, objective, arguments, facts, device, fresh=fresh, dry=dry)
        said = f"{len(study.finished)} trials so far" + (
            f", {len(study.orphans)} of them cut off when the last search was killed" if study.orphans else ""
        )
        _tell(arguments, Progress("study", study.name, arguments.plan.budget, message=said if study.finished else "new"))
        for warning in () if host is None else host.warnings:
            _tell(arguments, Progress("warning", study.name, arguments.plan.budget, message=warning))
        probe = None if host is None else _probe(study, arguments, facts, host, deadline_s)
        facts = _with_probed_optimizer(facts, probe)
        if not (dry and study.finished):
            study.set(facts=dataclasses.asdict(facts), probe=None if probe is None else probe.to_dict())
            forget_checkpoints(study)
        yield _Ready(objective, arguments, facts, study, probe, make_strategy(arguments.plan, facts, probe, study), host)


def make_strategy(plan: Plan, facts: Facts, probe: ProbeResult | None, study: Study) -> Strategy:
    """Return a strategy that goes on from the finished trials of the study."""
    from .strategy import Strategy

    current, probes = corrected_probes(probe, study.probes, study.finished, facts)
    return Strategy(plan, facts, current, study.finished, probes)


@contextlib.contextmanager
def _described(objective: Any, arguments: SearchArguments, storage: Storage) -> Iterator[tuple[Facts, DeviceInfo, Host | Cluster | None]]:
    if arguments.isolation == "none":
        yield objective.facts, DeviceInfo("cpu", "the calling process"), None
        return
    if arguments.engine == "ray":
        from .ray_cluster import Cluster

        with Cluster(objective, device=arguments.device, jobs=arguments.plan.jobs, address=arguments.ray_address) as cluster:
            path = storage.location.path
            shared = cluster.facts.can_continue and path is not None and cluster.shares(path.parent)
            yield dataclasses.replace(cluster.facts, can_continue=shared), cluster.device_info, cluster
        return
    from .host import Host

    with Host(objective, device=arguments.device, jobs=arguments.plan.jobs) as host:
        yield host.facts, host.device_info, host


def _study(
    storage: Storage, objective: Any, arguments: SearchArguments, facts: Facts, device: DeviceInfo, *, fresh: bool, dry: bool
) -> Study:
    """Find or make the study, and write down what it is about."""
    from ..objectives.load import ObjectiveRef

    reference: ObjectiveRef | None = objective if isinstance(objective, ObjectiveRef) else None
    name = study_name(arguments.study, objective, facts)
    wanted = fingerprint(facts, arguments.plan, device)
    study = choose_study(storage, name, wanted, named=arguments.study is not None, fresh=fresh)
    if dry and study.finished:
        return study
    target = None if reference is None else reference.target if reference.path is None else f"{reference.path}:{reference.name}"
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
    return study


def _probe(study: Study, arguments: SearchArguments, facts: Facts, host: Host | Cluster, deadline_s: float) -> ProbeResult:
    """Return the probe that was given, else a stored one of the same objective, device and settings, else a new one.

    Where a cluster has several kinds of device, each is probed, and the fastest is the one to decide by.
    """
    kinds = getattr(host, "kinds", {})
    if arguments.probe is None and len({*kinds, *study.probes}) > 1 and kinds:
        return _probe_kinds(study, arguments, facts, cast("Cluster", host), deadline_s)
    if study.probes:  # Of a cluster that the search has left.
        study.set(probes=[])
    if arguments.probe is not None:
        if len(kinds) > 1:
            said = f"The probe that was given holds for all kinds of device of the cluster: {'; '.join(kinds)}."
            _tell(arguments, Progress("warning", study.name, arguments.plan.budget, message=said))
        return arguments.probe
    key = probe_key(facts, host.device_info, jobs=arguments.plan.jobs, seed=arguments.plan.seed)
    for other in itertools.chain([study], studies(study.storage, readable=True)):
        if other.probe is not None and other.probe.limited_by != "timeout" and other.attributes.get("probe_key") == key:
            study.set(probe_key=key)
            return other.probe
    left_s = deadline_s - time.monotonic()
    probe = _run_probe(
        host,
        timeout=None if left_s == math.inf else max(1.0, PROBE_SHARE * left_s),
        seed=arguments.plan.seed,
        on_attempt=lambda attempt: _tell(arguments, Progress("probe", study.name, arguments.plan.budget, attempt=attempt)),
    )
    study.set(probe=probe.to_dict(), probe_key=key)
    return probe


def _probe_kinds(study: Study, arguments: SearchArguments, facts: Facts, cluster: Cluster, deadline_s: float) -> ProbeResult:
    """Store a probe of each kind of device and return the first: that of the fastest, when the first trial lands on one of them."""
    entries: dict[str, dict[str, Any]] = {entry["device"]: entry for entry in study.attributes.get("probes", ())}
    for kind in cluster.kinds:
        device = DeviceInfo(cluster.device_info.kind, kind, threads=cluster.slots.cpus)
        key = probe_key(facts, device, seed=arguments.plan.seed)
        others = itertools.chain([study], studies(study.storage, readable=True))
        known = (entry for other in others for entry in other.attributes.get("probes", ()))
        stored = next((entry for entry in known if entry["key"] == key and entry["probe"]["limited_by"] != "timeout"), None)
        if stored is None:
            _tell(arguments, Progress("probe", study.name, arguments.plan.budget, message=kind))
            left_s = deadline_s - time.monotonic()
            probe = cluster.run_probe(
                kind,
                timeout=None if left_s == math.inf else max(1.0, PROBE_SHARE / len(cluster.kinds) * left_s),
                seed=arguments.plan.seed,
            )
            for attempt in probe.attempts:
                _tell(arguments, Progress("probe", study.name, arguments.plan.budget, attempt=attempt))
            stored = {"device": kind, "key": key, "probe": probe.to_dict()}
        entries[kind] = stored
        study.set(probes=list(entries.values()), probe_key=None)  # What was stored of one kind is about to be replaced.
    if not any(record.device for record in study.records):
        study.set(
            probes=sorted(entries.values(), key=lambda entry: -max((r["samples_per_s"] for r in entry["probe"]["throughput"]), default=0))
        )
    return next(iter(study.probes.values()))


def _run_probe(host: Host | Cluster, *, timeout: float | None, seed: int, on_attempt: Callable[[Attempt], None]) -> ProbeResult:
    """Probe where the trials will run."""
    from .host import Host

    if isinstance(host, Host):
        from .probe import run_probe

        return run_probe(host, timeout=timeout, seed=seed, on_attempt=on_attempt)
    probe = host.run_probe(next(iter(host.kinds)), timeout=timeout, seed=seed)
    for attempt in probe.attempts:
        on_attempt(attempt)
    return probe


def _with_probed_optimizer(facts: Facts, probe: ProbeResult | None) -> Facts:
    """Fill in the optimizer of a user's own loop, which is seen when it steps in the probe."""
    seen = None if probe is None else probe.optimizer
    if facts.optimizer is not None or not seen:
        return facts
    from ..objectives.source import optimizer_family

    return dataclasses.replace(facts, optimizer=seen, optimizer_family=optimizer_family(seen))


def _pool(ready: _Ready, drive: Drive) -> Pool:
    if ready.host is None:
        from .inline import InlinePool

        return InlinePool(ready.objective, drive.judge)
    from .host import Host

    assert ready.probe is not None
    if isinstance(ready.host, Host):
        from .pool_local import LocalPool

        return LocalPool(ready.host, slots=ready.arguments.plan.jobs, fence_bytes=ready.probe.usable_bytes)
    from .pool_ray import RayPool

    probes = ready.study.probes or dict.fromkeys(ready.host.kinds, ready.probe)
    return RayPool(ready.host, fences={kind: probe.usable_bytes for kind, probe in probes.items()})


# --- the result ---------------------------------------------------------------------------------------------------


def make_result(study: Study, strategy: Strategy, probe: ProbeResult | None, stopped_by: str) -> SearchResult:
    """Return what a study amounts to now.

    Raises:
        NoSignalError: No trial has a finite validation loss.
    """
    return SearchResult(
        recommendation=strategy.recommend(),
        probe=probe,
        records=study.records,
        spent=strategy.spent(),
        stopped_by=stopped_by,
        target=strategy.target,
        limits=strategy.limits(),
        study=study.name,
        storage=study.storage.location.url,
        versions=versions(),
        goal=strategy.plan.goal,
        batch_answer=strategy.batch_answer(),
        probes=study.probes,
    )


def _best_so_far(ready: _Ready) -> SearchResult | None:
    with contextlib.suppress(NoSignalError):
        return make_result(ready.study, ready.strategy, ready.probe, "interrupted")
    return None


def versions() -> dict[str, str]:
    """Return the versions that an answer may depend on, without importing anything heavy."""
    from importlib import metadata

    from .. import __version__

    found = {"bstune": __version__, "python": ".".join(map(str, sys.version_info[:3]))}
    for name in ("torch", "optuna", "numpy", "ray"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def _print_forecast(progress: Progress) -> None:
    if progress.kind == "forecast":
        from .report import progress_line

        with contextlib.suppress(OSError):  # Nobody may be there to read it any more.
            print(progress_line(progress), file=sys.stderr)

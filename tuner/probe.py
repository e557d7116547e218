"""`bstune probe`: the largest micro-batch that fits, found or taken from the study, and stored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from .core.arguments import ProbeArguments, check_probe
from .core.probe_results import ProbeResult
from .core.specs import Plan
from .probing.attempts import OnAttempt, OnNote
from .probing.run import run_probe, verified_again
from .workers.fork_server import Host

STABLE_MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536"}
"""glibc returns every block of 64 KiB or more to the system when it is freed. By default it raises that threshold as
blocks are freed, tensors come to live in a heap full of holes, and resident memory is larger and differs from run to
run.
"""


def probe(
    objective: Any,
    *,
    device: str = "auto",
    memory: str | int | None = None,
    headroom: float = 0.05,
    min_batch: int = 1,
    max_batch: int | None = None,
    multiple_of: int = 1,
    timeout: float | None = None,
    seed: int = 0,
    space: Mapping[str, Any] | None = None,
    threads: int | Literal["auto"] = "auto",
    malloc: str = "default",
    fresh: bool = False,
    study: str | None = None,
    storage: str | None = None,
    on_attempt: OnAttempt | None = None,
) -> ProbeResult:
    """Find the largest micro-batch that fits the device, and what a step costs.

    Args:
        objective: A `Supervised`, a function under `@bstune.objective`, or what `bstune.load` returns.
        device: `auto` (CUDA when it works), `cpu`, `cuda` or `cuda:N`.
        memory: Most memory to use, as bytes or text such as `12GiB`; default: all that the device and the container
            leave.
        headroom: Share of the usable memory that is left free.
        min_batch: Smallest micro-batch that is of use.
        max_batch: Largest micro-batch to try; default: the data set.
        multiple_of: The answer is a multiple of this.
        timeout: Seconds after which the best size so far is returned.
        seed: Seed of model and data in each attempt.
        space: Your own dimensions, as in `bstune.search`: each has the middle of its values.
        threads: CPU threads; by default what `OMP_NUM_THREADS` says, else the faster of one and all cores.
        malloc: On CPU: `default`, or `stable`, which makes resident memory smaller and the same from run to run, for
            slower steps. The answer is then right where the variables of `result.environment` are set.
        fresh: Probe again, also where a result of the same objective, device and settings is stored.
        study: Study to store the result in; default: named after the objective or its file.
        storage: Optuna storage URL; default: `$BSTUNE_STORAGE`, else `sqlite:///bstune.db`.
        on_attempt: Called with each `Attempt` when it has ended, to show progress.

    Returns:
        The size, how it is known that no larger one fits, peak memory, throughput, and every attempt.

    Raises:
        ArgumentError: An argument is wrong on its face.
        ObjectiveError: The user's code or file is at fault.
        NothingFitsError: Even the smallest size needs more than there is.
        DeviceError: The device does not work.
        StudyError: The result cannot be stored.
    """
    arguments = check_probe(
        device=device,
        memory=memory,
        headroom=headroom,
        min_batch=min_batch,
        max_batch=max_batch,
        multiple_of=multiple_of,
        timeout=timeout,
        seed=seed,
        space=space,
        threads=threads,
        malloc=malloc,
        fresh=fresh,
        study=study,
        storage=storage,
    )
    return probe_checked(objective, arguments, on_attempt=on_attempt)


def probe_checked(
    objective: Any, arguments: ProbeArguments, *, on_attempt: OnAttempt | None = None, on_note: OnNote | None = None
) -> ProbeResult:
    """Probe with checked arguments; `on_note` hears what was decided on the way, in words."""
    from .studies.catalog import make_study, probe_key, same_probe, study_of, touch
    from .studies.naming import objective_identity
    from .studies.storage import open_storage
    from .workers.resolve import check_objective, with_places

    environment = STABLE_MALLOC if arguments.malloc == "stable" else {}
    objective = with_places(check_objective(objective), arguments.space, rate_is_fixed=True)
    params = Plan(space=arguments.space).tried_params[:1]
    # The storage is opened first: what could not be kept is better known before the work than after it.
    with (
        open_storage(arguments.storage) as opened,
        Host(
            objective,
            device=arguments.device,
            threads=None if arguments.threads == "auto" else arguments.threads,
            memory_bytes=arguments.memory,
            environment=environment,
            params=params,
        ) as host,
    ):
        name, found = study_of(opened, objective, host.facts, given=arguments.study)
        kept = found or make_study(opened, name)
        key = probe_key(
            host.facts,
            host.device_info,
            seed=arguments.seed,
            settings=arguments.settings(),
            chooses_threads=host.chooses_threads,
            params=host.params,
        )
        known = not arguments.fresh and same_probe(kept.attributes.get("probe_key"), key)
        stored = kept.probe if known else None
        headroom, seed = arguments.headroom, arguments.seed
        result = verified_again(host, stored, headroom=headroom, seed=seed, on_attempt=on_attempt) if stored else None
        result = result or run_probe(
            host,
            headroom=headroom,
            min_batch=arguments.min_batch,
            max_batch=arguments.max_batch,
            multiple_of=arguments.multiple_of,
            timeout=arguments.timeout,
            seed=seed,
            on_attempt=on_attempt,
            on_note=on_note,
        )
        if arguments.max_batch is not None and not result.settings:
            result = replace(result, settings={"max_batch": arguments.max_batch})
        kept.set(probe=result.to_dict(), probe_key=key, identity=objective_identity(objective))
        touch(kept)
    return result

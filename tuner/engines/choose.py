"""Which engine a search asks for: the one place that knows them all."""

from __future__ import annotations

from typing import Any

from ..core.arguments import SearchArguments
from .base import Engine


def make_engine(objective: Any, arguments: SearchArguments) -> Engine:
    """Return the place where the trials of an objective are to run; close it in the end.

    Raises:
        BstuneError: It cannot be had, or the objective cannot be loaded there.
    """
    device, jobs, named = arguments.device, arguments.plan.jobs, arguments.plan.named_batches
    threads = None if arguments.threads == "auto" else arguments.threads
    if arguments.isolation == "none":
        from .inline import InlineEngine

        return InlineEngine(objective, batch_sizes=named)
    tried = arguments.plan.tried_params
    if arguments.engine == "ray":
        from .ray_engine import RayEngine

        return RayEngine(
            objective,
            device=device,
            jobs=jobs,
            threads=threads,
            address=arguments.ray_address,
            batch_sizes=named,
            params=tried,
        )
    from .local import LocalEngine

    return LocalEngine(objective, device=device, jobs=jobs, threads=threads, batch_sizes=named, params=tried)

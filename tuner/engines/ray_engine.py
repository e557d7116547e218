"""A Ray cluster as a search asks of it; see `base.Engine`."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ..core.probe_results import Attempt, ProbeResult
from ..core.trials import TrialReport, Verdict
from .base import Pool
from .ray_cluster import Cluster


class RayEngine(Cluster):
    """An objective on a Ray cluster, whose trials Ray Tune runs."""

    can_probe = True
    chooses_threads = False

    def use_threads(self, threads: int) -> None:
        """Refuse: a trial has the cores that Ray gives it."""
        raise AssertionError("threads of a trial on Ray are not for a probe to choose")

    def share(
        self, probe: ProbeResult, *, seed: int, on_attempt: Callable[[Attempt], None]
    ) -> tuple[int, ProbeResult] | None:
        """Return None: how many trials run side by side is settled when Ray starts."""
        return None

    def make_pool(
        self, decide: Callable[[TrialReport], Verdict], probe: ProbeResult | None, probes: Mapping[str, ProbeResult]
    ) -> Pool:
        """Return who runs the trials."""
        from .ray_pool import RayPool  # It imports Ray, which may be missing: that is said when the cluster is made.

        assert probe is not None
        of_kinds = probes or dict.fromkeys(self.kinds, probe)
        return RayPool(self, fences={kind: its_probe.usable_bytes for kind, its_probe in of_kinds.items()})

"""How trials are laid out over the nodes of a Ray cluster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..core.errors import DeviceError


@dataclass(frozen=True)
class Slots:
    """How trials are laid out over the nodes."""

    n: int
    cpus: int
    """Per trial."""
    gpus: int

    @property
    def need(self) -> dict[str, int]:
        """What a trial takes of a node."""
        return {"CPU": self.cpus, "GPU": self.gpus}


def living_nodes() -> list[Mapping[str, Any]]:
    """Return what Ray knows of each node that is alive."""
    import ray

    return [node for node in ray.nodes() if node["Alive"]]


def on_node(node: str) -> Any:
    """Return what tells Ray to run something on this node."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(node, soft=False)


def how_many_fit(node: Mapping[str, float], need: Mapping[str, float]) -> int:
    """Return how many trials with this need fit a node."""
    return min(int(node.get(name, 0) // amount) for name, amount in need.items() if amount)


def ranks_with_gpus(objective: Any) -> int:
    """Return how many processes of a trial have a GPU each: those of a command, where bstune's own train on CPU.

    A file is loaded only where it runs, and says nothing of it here.
    """
    return int(objective.world_size) if getattr(objective, "kind", None) == "command" else 1


def lay_out(nodes: Sequence[Mapping[str, float]], device: str, jobs: int, ranks: int = 1) -> Slots:
    """Return how many trials run side by side and what each of them gets.

    A GPU takes one trial, because the probe's bytes are those of a whole card; a trial of several processes takes as
    many of one node. Without GPUs `jobs` trials share the cores.

    Args:
        nodes: Resources of each node.
        device: `auto`, `cpu` or `cuda`.
        jobs: Trials side by side; with GPUs and 1, as many as there are GPUs.
        ranks: Processes of a trial that have a GPU each.

    Raises:
        DeviceError: The cluster does not have what is asked for.

    Example:
        >>> lay_out([{"CPU": 8.0}, {"CPU": 4.0}], "auto", 3)
        Slots(n=3, cpus=4, gpus=0)
    """
    n_gpus = int(sum(node.get("GPU", 0) for node in nodes))
    if device == "cuda" and not n_gpus:
        raise DeviceError(
            "device='cuda': the Ray cluster has no GPU. Use device='cpu', or start its nodes with --num-gpus."
        )
    if n_gpus and device != "cpu":
        most = sum(how_many_fit(node, {"GPU": ranks}) for node in nodes)
        if not most:
            raise DeviceError(
                f"A trial has {ranks} processes with a GPU each, and no node of the Ray cluster has as many. Start a "
                f"node with --num-gpus {ranks}, or train with fewer processes."
            )
        if jobs > most:
            each = "a GPU takes one trial" if ranks == 1 else f"a trial takes {ranks} of a node"
            raise DeviceError(f"jobs={jobs}: the Ray cluster has {n_gpus} GPUs, and {each}. Use jobs={most} or fewer.")
        fit = sum(how_many_fit(node, {"CPU": ranks, "GPU": ranks}) for node in nodes)
        if not fit:
            raise DeviceError(
                f"A trial needs {ranks} CPU{'s' * (ranks > 1)} beside as many GPUs, and no node of the Ray cluster has "
                f"both. Start a node with --num-cpus {ranks} --num-gpus {ranks} or more."
            )
        cores = min(int(node.get("CPU", 0) // node["GPU"]) for node in nodes if node.get("GPU", 0) >= ranks)
        return Slots(fit if jobs == 1 else jobs, ranks * max(1, cores), ranks)
    largest = int(max((node.get("CPU", 0) for node in nodes), default=0))
    cpus = next((c for c in range(largest, 0, -1) if sum(how_many_fit(node, {"CPU": c}) for node in nodes) >= jobs), 0)
    if not cpus:
        n_cpus = int(sum(node.get("CPU", 0) for node in nodes))
        raise DeviceError(
            f"jobs={jobs}: the Ray cluster has {n_cpus} CPUs, and a trial needs one at least. Use "
            f"jobs={max(1, n_cpus)} or fewer."
        )
    return Slots(jobs, cpus, 0)

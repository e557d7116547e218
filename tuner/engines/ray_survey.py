"""What a search asks of the nodes of a Ray cluster before its trials: their kind of device, the objective, a probe.

It stands apart from `ray_actor`, which needs Ray Tune: that takes a second to import in each process.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...objectives.load import after_standard_library
from ..core import errors
from ..core.errors import BstuneError
from ..core.probe_results import DeviceInfo, ProbeResult
from ..core.trials import Facts
from ..device.memory import cpu_info
from ..device.nvml import nvml_devices
from ..workers.fork_server import Host
from ..workers.messages import Pickled

KIND_LABEL = "bstune/kind"
"""Label of a node that names its kind of device, where what can be seen of it does not tell."""


@dataclass(frozen=True)
class ActorTask:
    """What every actor of a search is told."""

    objective: Pickled
    device: str
    cpus: int
    """That Ray gives a trial."""
    threads: int | None
    """Per trial; None: the node's cores shared by its trials."""
    like_driver: tuple[str, tuple[str, ...]] | None
    """Working directory of the driver and where it finds the user's modules, where it is the same machine."""
    source: str | None = None
    """Elsewhere: the folder in Ray's `working_dir` with the user's code."""
    batch_sizes: tuple[int, ...] = ()
    """Global batch sizes that the search names, for the facts."""
    params: tuple[dict[str, Any], ...] = ()
    """Values of extra dimensions to try; the first are those that sizes are probed with."""

    def host(self) -> Host:
        """Start the template process on this node, where it finds the user's code; the actor itself runs none of it."""
        folder, path = self.like_driver or self._unpacked()
        host = Host(
            self.objective,
            device=self.device,
            jobs=self.sharing(this_node()),
            threads=self.threads,
            folder=folder,
            sys_path=path,
            batch_sizes=self.batch_sizes,
            params=self.params,
        )
        host.chooses_threads = False  # What one actor found out, the others would not know.
        return host

    def _unpacked(self) -> tuple[str | None, Sequence[str]]:
        here = os.getcwd()
        path = [folder for folder in sys.path if folder and os.path.abspath(folder) != here]
        if self.source is None:
            return None, path
        source = os.path.join(here, self.source)
        return source, after_standard_library(source, path)

    def sharing(self, node: Mapping[str, Any]) -> int:
        """Return how many trials share a node's memory; a card takes one."""
        return 1 if self.device == "cuda" else max(1, int(node["Resources"].get("CPU", 0)) // self.cpus)

    def kind(self) -> str:
        """Return what kind of device a trial gets on this node: its label, else the name and the memory of the device.

        All cards of a node are assumed to be of one kind, as Ray assumes.
        """
        node = this_node()
        if label := node.get("Labels", {}).get(KIND_LABEL):
            return str(label)
        if self.device == "cpu":
            cpu = cpu_info(self.cpus)
            return _named(cpu.name, (cpu.total_bytes or 0) // self.sharing(node))
        for card in nvml_devices():
            return _named(card["name"], card["total_bytes"])
        prefix = "accelerator_type:"  # What Ray found, which says nothing of the memory.
        return next((name.removeprefix(prefix) for name in sorted(node["Resources"]) if name.startswith(prefix)), "GPU")


def this_node() -> Mapping[str, Any]:
    """Return what Ray knows of the node that this process is on."""
    import ray

    here = ray.get_runtime_context().get_node_id()
    return next(node for node in ray.nodes() if node["NodeID"] == here)


def kind_here(task: ActorTask) -> str:
    """Return the kind of device of this node."""
    return task.kind()


def text_here(path: str) -> str:
    """Return what is in a file, as this node sees it."""
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def _named(name: str, n_bytes: int | None) -> str:
    gib = (n_bytes or 0) / 2**30
    return f"{name}, {gib:.0f} GiB" if gib >= 10 else f"{name}, {gib:.2g} GiB" if gib else name


@dataclass(frozen=True)
class Carried:
    """A BstuneError on its way through Ray, as plain data: errors with arguments of their own cannot be pickled."""

    kind: str
    message: str
    details: Mapping[str, Any]

    @classmethod
    def of(cls, error: BstuneError) -> Carried:
        """Pack an error."""
        known = next(base.__name__ for base in type(error).__mro__ if vars(errors).get(base.__name__) is base)
        return cls(known, str(error), dict(vars(error)))

    def error(self) -> BstuneError:
        """Return the error again."""
        kind: type[BstuneError] = getattr(errors, self.kind)
        error = kind.__new__(kind, self.message)
        error.args = (self.message,)
        vars(error).update(self.details)
        return error


class Surveyor:
    """An actor that describes the objective and probes it where the trials will run."""

    def __init__(self, task: ActorTask) -> None:
        """Take a task; nothing is started yet."""
        self._task = task
        self._host: Host | None = None

    def look(self) -> tuple[Facts, DeviceInfo, tuple[str, ...]] | Carried:
        """Return what the objective is, the device, and what the user should know of how it was chosen."""
        try:
            self._host = self._task.host()
            return self._host.facts, self._host.device_info, tuple(self._host.warnings)
        except BstuneError as error:
            return Carried.of(error)

    def ready(self) -> None:
        """Return at once: an answer means that the actor has started."""

    def probe(self, timeout_s: float | None, seed: int, max_batch: int | None) -> ProbeResult | Carried:
        """Return the probe of the objective on this node's device."""
        from ..probing.run import run_probe

        assert self._host is not None, "look first"
        try:
            return run_probe(self._host, timeout=timeout_s, seed=seed, max_batch=max_batch, for_search=True)
        except BstuneError as error:
            return Carried.of(error)

    def close(self) -> None:
        """End the template process."""
        if self._host is not None:
            self._host.close()

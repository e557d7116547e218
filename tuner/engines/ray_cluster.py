"""A Ray cluster as the place where trials run: what its nodes are, and how the objective and the probe go there.

Source code travels to the nodes of a cluster that is joined; data does not.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import random
import secrets
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import DeviceError, NothingFitsError, ObjectiveError
from ..core.probe_results import Attempt, DeviceInfo, ProbeResult
from ..core.trials import Facts
from ..device.cuda import check_device_name
from ..workers.launch import path_of_caller, safe_environment
from ..workers.messages import Pickled
from .ray_layout import how_many_fit, lay_out, living_nodes, on_node, ranks_with_gpus
from .ray_source import last_line, pickled, portable
from .ray_start import (
    OWN_RAY,
    QUIET,
    changed_environment,
    connected,
    guarded,
    replaced,
    require_ray,
    short_folder,
    silenced,
    token,
)

if TYPE_CHECKING:
    from .ray_survey import ActorTask

PLACE_S = 120.0
"""The first look at an objective waits this long for a place on a cluster where others work too."""
TEMPORARY = "bstune-ray-"


class Cluster:
    """An objective on a Ray cluster; what `fork_server.Host` is on this machine.

    Attributes:
        facts: What the objective is.
        device_info: The device that trials run on.
        warnings: What the user should know of how it was chosen.
        slots: How many trials run side by side, and what each gets.
        kinds: The kinds of device that can take a trial, by name.
        node_of: A node of each kind.
        jobs: The same number.
        task: What every actor of the search is told.
        folder: Where Tune keeps what it must write; it goes when the cluster is closed.
    """

    def __init__(
        self,
        objective: Any,
        *,
        device: str = "auto",
        jobs: int = 1,
        threads: int | None = None,
        address: str | None = None,
        batch_sizes: tuple[int, ...] = (),
        params: tuple[dict[str, Any], ...] = (),
    ) -> None:
        """Start or join Ray and look at the objective where trials will run.

        Args:
            objective: A Supervised, a LoopObjective, or a reference to one in a file.
            device: `auto`, `cpu` or `cuda`.
            jobs: Trials side by side; with GPUs and 1, as many as there are GPUs.
            threads: Of each trial; None: the cores that it gets.
            address: None starts Ray here, on the loopback device; `auto` or `HOST:PORT` joins a cluster.
            batch_sizes: Global batch sizes that the search names, for the facts.
            params: Values of extra dimensions to try; the first are those that sizes are probed with.

        Raises:
            BstuneError: Ray is not installed.
            DeviceError: There is no such cluster, or it does not have what is asked for.
            ObjectiveError: The objective cannot be sent or loaded.
        """
        check_device_name(device)
        if device.startswith("cuda:"):
            raise DeviceError(f"device={device!r}: with engine='ray' Ray chooses the card. Use device='cuda'.")
        self._exit = contextlib.ExitStack()
        self._surveyor: Any = None
        try:
            self.folder = Path(tempfile.mkdtemp(prefix=TEMPORARY, dir=short_folder()))
            self._enter_environment(own={} if address else OWN_RAY | {"RAY_AUTH_TOKEN": token()})
            if address is None:
                self._exit.enter_context(replaced("ray._private.ray_constants", "ENABLE_RAY_CLUSTER", False))
            objective, source = portable(objective, self.folder, travels=address is not None)
            self._exit.enter_context(connected(address, jobs, self.folder, source))
            nodes = [node["Resources"] for node in living_nodes()]
            self.slots = lay_out(nodes, device, jobs, ranks_with_gpus(objective))
            self.jobs = self.slots.n
            self.task = self._task(objective, source, address, threads, batch_sizes, params)
            self.node_of = self._nodes_by_kind()
            self.kinds = {name: DeviceInfo(self.task.device, name, threads=self.slots.cpus) for name in self.node_of}
            self._look(next(iter(self.node_of.values())))
        except BaseException:
            self.close()
            raise

    def _enter_environment(self, own: dict[str, str]) -> None:
        """Set what Ray reads when it is imported and started, until the cluster is closed."""
        self._exit.enter_context(guarded(self.folder))
        self._exit.callback(random.setstate, random.getstate())  # Ray draws from the global generator all along.
        # An empty entry in it is the current folder to Python, and Ray's programs must not import what lies there.
        path = {"PYTHONPATH": safe_environment(os.environ).get("PYTHONPATH", "")} if "PYTHONPATH" in os.environ else {}
        self._exit.enter_context(changed_environment({**QUIET, **own, **path}))
        require_ray()
        self._exit.enter_context(silenced())

    def _task(
        self,
        objective: Any,
        source: Path | None,
        address: str | None,
        threads: int | None,
        batch_sizes: tuple[int, ...],
        params: tuple[dict[str, Any], ...],
    ) -> ActorTask:
        """Return what each node needs to know of the objective and of its share of the cores."""
        from .ray_survey import ActorTask

        like_driver = None if address else (os.getcwd(), path_of_caller())
        # The cores of this machine are the driver's to share; elsewhere a trial has those that Ray gives it.
        if threads is None and (like_driver is None or self.slots.gpus):
            threads = self.slots.cpus
        data = pickled(objective, source, travels=like_driver is None)
        kind = "cuda" if self.slots.gpus else "cpu"
        unpacked = None if source is None else source.name
        return ActorTask(data, kind, self.slots.cpus, threads, like_driver, unpacked, batch_sizes, params)

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _nodes_by_kind(self) -> dict[str, str]:
        """Ask each node that can take a trial what kind of device it has."""
        import ray

        from .ray_survey import kind_here

        nodes = self._places()
        if not nodes:
            raise DeviceError(
                "No node of the Ray cluster has both a GPU and a CPU, and a trial needs one of each. Check `ray "
                "status`."
            )
        if self.task.like_driver is not None:  # This machine: no process need start to look at it.
            return {self.task.kind(): nodes[0]}
        ask = ray.remote(num_cpus=0)(kind_here)
        task = dataclasses.replace(self.task, objective=Pickled(b""))  # The data need not travel for this.
        found = self._get([ask.options(scheduling_strategy=on_node(node)).remote(task) for node in nodes])
        node_of: dict[str, str] = {}
        for kind, node in zip(found, nodes, strict=True):
            node_of.setdefault(kind, node)
        return node_of

    def _places(self) -> list[str]:
        """Return the nodes that can take a trial."""
        return [node["NodeID"] for node in living_nodes() if how_many_fit(node["Resources"], self.slots.need)]

    def _look(self, node: str) -> None:
        """Describe the objective in an actor that gets what a trial gets, on this node."""
        import ray

        from .ray_survey import Surveyor

        remote = ray.remote(
            num_cpus=self.slots.cpus, num_gpus=self.slots.gpus, max_restarts=0, scheduling_strategy=on_node(node)
        )(Surveyor)
        self._surveyor, self._surveyed = remote.remote(self.task), node
        self.facts: Facts
        self.device_info: DeviceInfo
        if not ray.wait([self._surveyor.ready.remote()], timeout=PLACE_S)[0]:
            need = " and ".join(f"{amount} {name}" for name, amount in self.slots.need.items() if amount)
            raise DeviceError(
                f"A node of the Ray cluster has had no {need} free for {PLACE_S:.0f} s: others use them. Check `ray "
                "status`, and try again."
            )
        self.facts, self.device_info, self.warnings = self._get(self._surveyor.look.remote())

    def run_probe(
        self,
        kind: str | None,
        *,
        timeout: float | None,
        seed: int,
        on_attempt: Callable[[Attempt], None],
        on_note: Callable[[str], None],
        max_batch: int | None = None,
    ) -> ProbeResult:
        """Probe the objective where its trials will run, on a node of this kind; the attempts are told at its end."""
        kind = kind or next(iter(self.node_of))
        if self._surveyor is None or self._surveyed != self.node_of[kind]:
            self.end_survey()
            self._look(self.node_of[kind])
        try:
            probe: ProbeResult = self._get(self._surveyor.probe.remote(timeout, seed, max_batch))
        except NothingFitsError as error:
            if len(self.node_of) > 1:
                error.args = (f"On {kind}: {error} Or search without the nodes of this kind.",)
            raise
        for attempt in probe.attempts:
            on_attempt(attempt)
        return probe

    def shares(self, folder: Path | None) -> bool:
        """Tell whether all nodes that can take a trial see a folder of this machine: checkpoints can then lie there."""
        import ray

        from .ray_survey import text_here

        if folder is None:
            return False
        if len(living_nodes()) == 1:
            return True
        ask, word = ray.remote(num_cpus=0)(text_here), secrets.token_hex(8)
        with contextlib.suppress(OSError), tempfile.NamedTemporaryFile("w", dir=folder, prefix=".bstune-") as file:
            file.write(word)
            file.flush()
            return set(
                self._get([ask.options(scheduling_strategy=on_node(node)).remote(file.name) for node in self._places()])
            ) == {word}
        return False

    def end_survey(self) -> None:
        """Free what the survey uses, for the trials."""
        if self._surveyor is not None:
            import ray

            with contextlib.suppress(Exception):
                ray.get(self._surveyor.close.remote(), timeout=5)
            ray.kill(self._surveyor)
            self._surveyor = None

    def slots_left(self) -> int:
        """Return how many trials the nodes that are alive can take, at most as many as were asked for."""
        return min(self.slots.n, sum(how_many_fit(node["Resources"], self.slots.need) for node in living_nodes()))

    def _get(self, reference: Any) -> Any:
        """Wait for an answer of the surveyor and raise what it carries."""
        import ray

        from .ray_survey import Carried

        try:
            answer = ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            raise ObjectiveError(
                f"The objective could not be loaded on the cluster: {last_line(error)}", traceback=str(error)
            ) from None
        except ray.exceptions.RayError as error:
            raise DeviceError(
                f"The Ray worker that looked at the objective was lost: {last_line(error)}. Check `ray status` and "
                "try again."
            ) from None
        if isinstance(answer, Carried):
            raise answer.error()
        return answer

    def close(self) -> None:
        """Leave the cluster; one that was started here ends, and its files go."""
        with contextlib.suppress(Exception):
            self.end_survey()
        self._exit.close()

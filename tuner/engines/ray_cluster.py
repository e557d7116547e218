"""A Ray cluster as the place where trials run: started here or joined, looked over, and left as it was.

Ray that bstune starts itself listens on the loopback device only, sends no telemetry, kills nothing for memory (the kernel does, and
knows better whom), and keeps its files in a folder that goes with it. Source code travels to the nodes of a cluster that is joined;
data does not.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import logging
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from ..core.errors import BstuneError, DeviceError, NothingFitsError, ObjectiveError
from ..core.results import DeviceInfo, ProbeResult
from ..core.trials import Facts
from ..device.cuda import check_device_name
from ..device.memory import usable_cores
from ..workers.launch import command, path_of_caller, safe_environment
from ..workers.messages import Pickled
from .ray_source import last_line, pickled, portable

OWN_RAY = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_memory_monitor_refresh_ms": "0"}
"""Ray on this machine only: every socket binds 127.0.0.1 (also on Linux, whatever the name says), and nothing is killed for memory but
by the kernel."""
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "0",
}
OBJECT_STORE_BYTES = 128 << 20
CONNECT_S = 5.0
CLOSE_S = 20.0
PLACE_S = 120.0
"""The first look at an objective waits this long for a place on a cluster where others work too."""
TEMPORARY = "bstune-ray-"


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


def require_ray() -> None:
    """Raise a BstuneError unless Ray Tune can be imported."""
    try:
        import ray.tune  # noqa: F401
    except ImportError as error:
        raise BstuneError(
            f"engine='ray' needs Ray Tune, which cannot be imported ({error}): pip install 'bstune[ray]'."
        ) from error


class Cluster:
    """An objective on a Ray cluster; what `fork_server.Host` is on this machine.

    Attributes:
        facts: What the objective is.
        device_info: The device that trials run on.
        warnings: What the user should know of how it was chosen.
        slots: How many trials run side by side, and what each gets.
        kinds: A node of each kind of device that can hold a trial, by the name of the kind.
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
        address: str | None = None,
        batch_sizes: tuple[int, ...] = (),
    ) -> None:
        """Start or join Ray and look at the objective where trials will run.

        Args:
            objective: A Supervised, a LoopObjective, or a reference to one in a file.
            device: `auto`, `cpu` or `cuda`.
            jobs: Trials side by side; with GPUs and 1, as many as there are GPUs.
            address: None starts Ray here, on the loopback device; `auto` or `HOST:PORT` joins a cluster.
            batch_sizes: Global batch sizes that the search names, for the facts.

        Raises:
            BstuneError: Ray is not installed.
            DeviceError: There is no such cluster, or it has not what is asked for.
            ObjectiveError: The objective cannot be sent or loaded.
        """
        check_device_name(device)
        if device.startswith("cuda:"):
            raise DeviceError(f"device={device!r}: with engine='ray' Ray chooses the card. Use device='cuda'.")
        self._exit = contextlib.ExitStack()
        self._surveyor: Any = None
        try:
            self.folder = Path(tempfile.mkdtemp(prefix=TEMPORARY, dir=_short_folder()))
            self._exit.enter_context(_guarded(self.folder))
            self._exit.callback(random.setstate, random.getstate())  # Ray draws from the global generator all along.
            own = {} if address else OWN_RAY | {"RAY_AUTH_TOKEN": token()}
            # An empty entry in it is the current folder to Python, and Ray's programs are no place for what lies there.
            path = (
                {"PYTHONPATH": safe_environment(os.environ).get("PYTHONPATH", "")} if "PYTHONPATH" in os.environ else {}
            )
            self._exit.enter_context(_environment({**QUIET, **own, **path}))
            require_ray()
            from .ray_actor import Task

            self._exit.enter_context(_silenced())
            if address is None:
                self._exit.enter_context(_replaced("ray._private.ray_constants", "ENABLE_RAY_CLUSTER", False))
            objective, source = portable(objective, self.folder, travels=address is not None)
            self._exit.enter_context(_connected(address, jobs, self.folder, source))
            self.slots = lay_out([node["Resources"] for node in _nodes()], device, jobs)
            self.jobs = self.slots.n
            like_driver = None if address else (os.getcwd(), path_of_caller())
            kind = "cuda" if self.slots.gpus else "cpu"
            # The cores of this machine are the driver's to share; elsewhere a trial has those that Ray gives it.
            threads = None if like_driver is not None and not self.slots.gpus else self.slots.cpus
            data = pickled(objective, source, travels=like_driver is None)
            unpacked = None if source is None else source.name
            self.task = Task(data, kind, self.slots.cpus, threads, like_driver, unpacked, batch_sizes)
            self.kinds = self._kinds()
            self._look(next(iter(self.kinds.values())))
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Cluster:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _kinds(self) -> dict[str, str]:
        """Ask each node that can hold a trial what kind of device it has."""
        import ray

        from .ray_actor import kind_here

        nodes = self._places()
        if not nodes:
            raise DeviceError(
                "No node of the Ray cluster has both a GPU and a CPU, and a trial needs one of each. Check `ray status`."
            )
        ask = ray.remote(num_cpus=0)(kind_here)
        task = dataclasses.replace(self.task, objective=Pickled(b""))  # The data need not travel for this.
        found = self._get([ask.options(scheduling_strategy=_on(node)).remote(task) for node in nodes])
        kinds: dict[str, str] = {}
        for kind, node in zip(found, nodes, strict=True):
            kinds.setdefault(kind, node)
        return kinds

    def _places(self) -> list[str]:
        """Return the nodes that can hold a trial."""
        return [node["NodeID"] for node in _nodes() if _fit(node["Resources"], self.slots.need)]

    def _look(self, node: str) -> None:
        """Describe the objective in an actor that gets what a trial gets, on this node."""
        import ray

        from .ray_actor import Surveyor

        remote = ray.remote(
            num_cpus=self.slots.cpus, num_gpus=self.slots.gpus, max_restarts=0, scheduling_strategy=_on(node)
        )(Surveyor)
        self._surveyor, self._surveyed = remote.remote(self.task), node
        self.facts: Facts
        self.device_info: DeviceInfo
        if not ray.wait([self._surveyor.ready.remote()], timeout=PLACE_S)[0]:
            need = " and ".join(f"{amount} {name}" for name, amount in self.slots.need.items() if amount)
            raise DeviceError(
                f"A node of the Ray cluster has had no {need} free for {PLACE_S:.0f} s: others use them. Check `ray status`, and try again."
            )
        self.facts, self.device_info, self.warnings = self._get(self._surveyor.look.remote())

    def run_probe(self, kind: str, *, timeout: float | None, seed: int) -> ProbeResult:
        """Probe the objective where its trials will run, on a node of this kind."""
        if self._surveyor is None or self._surveyed != self.kinds[kind]:
            self.end_survey()
            self._look(self.kinds[kind])
        try:
            probe: ProbeResult = self._get(self._surveyor.probe.remote(timeout, seed))
        except NothingFitsError as error:
            if len(self.kinds) > 1:
                error.args = (f"On {kind}: {error} Or search without the nodes of this kind.",)
            raise
        return probe

    def shares(self, folder: Path) -> bool:
        """Tell whether all nodes that can hold a trial see a folder of this machine, so that checkpoints can lie there."""
        import ray

        from .ray_actor import text_here

        if len(_nodes()) == 1:
            return True
        ask, word = ray.remote(num_cpus=0)(text_here), secrets.token_hex(8)
        with contextlib.suppress(OSError), tempfile.NamedTemporaryFile("w", dir=folder, prefix=".bstune-") as file:
            file.write(word)
            file.flush()
            return set(
                self._get([ask.options(scheduling_strategy=_on(node)).remote(file.name) for node in self._places()])
            ) == {word}
        return False

    def end_survey(self) -> None:
        """Free what the survey holds, for the trials."""
        if self._surveyor is not None:
            import ray

            with contextlib.suppress(Exception):
                ray.get(self._surveyor.close.remote(), timeout=5)
            ray.kill(self._surveyor)
            self._surveyor = None

    def slots_left(self) -> int:
        """Return how many trials the nodes that are alive can hold, at most as many as were asked for."""
        return min(self.slots.n, sum(_fit(node["Resources"], self.slots.need) for node in _nodes()))

    def _get(self, reference: Any) -> Any:
        """Wait for an answer of the surveyor and raise what it carries."""
        import ray

        from .ray_actor import Carried

        try:
            answer = ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            raise ObjectiveError(
                f"The objective could not be loaded on the cluster: {last_line(error)}", traceback=str(error)
            ) from None
        except ray.exceptions.RayError as error:
            raise DeviceError(
                f"The Ray worker that looked at the objective was lost: {last_line(error)}. Check `ray status` and try again."
            ) from None
        if isinstance(answer, Carried):
            raise answer.error()
        return answer

    def close(self) -> None:
        """Leave the cluster; one that was started here ends, and its files go."""
        with contextlib.suppress(Exception):
            self.end_survey()
        self._exit.close()


# --- what there is ------------------------------------------------------------------------------------------------


def _nodes() -> list[Mapping[str, Any]]:
    """Return what Ray knows of each node that is alive."""
    import ray

    return [node for node in ray.nodes() if node["Alive"]]


def _on(node: str) -> Any:
    """Return the word to Ray that something is to run on this node."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(node, soft=False)


def _fit(node: Mapping[str, float], need: Mapping[str, float]) -> int:
    return min(int(node.get(name, 0) // amount) for name, amount in need.items() if amount)


def lay_out(nodes: Sequence[Mapping[str, float]], device: str, jobs: int) -> Slots:
    """Return how many trials run side by side and what each of them gets.

    A GPU holds one trial, because the probe's bytes are those of a whole card. Without GPUs `jobs` trials share the cores.

    Args:
        nodes: Resources of each node.
        device: `auto`, `cpu` or `cuda`.
        jobs: Trials side by side; with GPUs and 1, as many as there are GPUs.

    Raises:
        DeviceError: The cluster has not what is asked for.

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
        if jobs > n_gpus:
            raise DeviceError(
                f"jobs={jobs}: the Ray cluster has {n_gpus} GPUs, and a GPU holds one trial. Use jobs={n_gpus} or fewer."
            )
        cpus = max(1, min(int(node.get("CPU", 0) // node["GPU"]) for node in nodes if node.get("GPU", 0) >= 1))
        n = sum(_fit(node, {"CPU": 1, "GPU": 1}) for node in nodes) if jobs == 1 else jobs
        return Slots(n, cpus, 1)
    largest = int(max((node.get("CPU", 0) for node in nodes), default=0))
    cpus = next((c for c in range(largest, 0, -1) if sum(_fit(node, {"CPU": c}) for node in nodes) >= jobs), 0)
    if not cpus:
        n_cpus = int(sum(node.get("CPU", 0) for node in nodes))
        raise DeviceError(
            f"jobs={jobs}: the Ray cluster has {n_cpus} CPUs, and a trial needs one at least. Use jobs={max(1, n_cpus)} or fewer."
        )
    return Slots(jobs, cpus, 0)


# --- starting and joining -----------------------------------------------------------------------------------------


@contextlib.contextmanager
def _connected(address: str | None, jobs: int, folder: Path, source: Path | None) -> Iterator[None]:
    import ray

    if ray.is_initialized():
        raise BstuneError(
            "Ray is already started in this process. End it with ray.shutdown() before the search, or let the search join its cluster "
            "from a process of its own."
        )
    handler = signal.getsignal(signal.SIGTERM)
    if address not in (None, "auto"):
        _check_reachable(str(address))
    environment = {"env_vars": {name: QUIET[name] for name in ("RAY_CHDIR_TO_TRIAL_DIR", "RAY_USAGE_STATS_ENABLED")}}
    options: dict[str, Any] = {
        "address": address,
        "runtime_env": environment | ({"working_dir": str(source.parent)} if source else {}),
    }
    if address is None:
        n_cpus = max(usable_cores(), jobs)
        options = {
            "num_cpus": n_cpus,
            "include_dashboard": False,
            "object_store_memory": OBJECT_STORE_BYTES,
            "_temp_dir": str(folder),
        }
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ray.init(
                log_to_driver=False,
                logging_level=logging.CRITICAL,
                configure_logging=False,
                job_config=_job_config(),
                **options,
            )
    except Exception as error:
        where = (
            "Ray could not be started here"
            if address is None
            else f"The Ray cluster at {address!r} could not be joined"
        )
        raise DeviceError(
            f"{where}: {last_line(error)}. Check `ray status`; --ray-address takes auto or HOST:PORT."
        ) from error
    finally:
        with contextlib.suppress(ValueError):  # Not in the main thread, where Ray did not set it either.
            signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        ray.shutdown()
        with contextlib.suppress(ValueError):
            signal.signal(signal.SIGTERM, handler)


def _job_config() -> Any:
    """Return a configuration with which Ray puts neither the current folder nor the script's in front of the path of its workers.

    They run bstune only: the processes that run the user's code are told where it is.
    """
    from ray.job_config import JobConfig

    class BareJobConfig(JobConfig):  # type: ignore[misc]  # Ray is not followed by the type checker.
        def _runtime_env_has_working_dir(self) -> bool:
            return True

    return BareJobConfig()


def _check_reachable(address: str) -> None:
    """Find out within seconds what Ray would try for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if address.startswith("ray://"):
        raise DeviceError(
            f"ray_address={address!r}: Ray's client mode will not do. Give the cluster's own HOST:PORT, such as HOST:6379."
        )
    if not colon or not host or not port.isdigit():
        raise DeviceError(f"ray_address={address!r}: expected auto or HOST:PORT, such as 10.0.0.1:6379.")
    try:
        socket.create_connection((host, int(port)), CONNECT_S).close()
    except (OSError, OverflowError) as error:
        raise DeviceError(
            f"There is no Ray cluster at {address}: {error}. Start one with `ray start --head`."
        ) from error


@contextlib.contextmanager
def _environment(changes: Mapping[str, str]) -> Iterator[None]:
    """Set variables for a while, and take back at the end what Ray has set beside them."""
    before = dict(os.environ)
    os.environ.update(changes)
    try:
        yield
    finally:
        for name in set(os.environ) | set(before):
            if name in changes or name.startswith(("RAY_", "TUNE_", "PYTHONBREAKPOINT")):
                if name in before:
                    os.environ[name] = before[name]
                else:
                    os.environ.pop(name, None)


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    """Keep Ray from talking: what matters of it is said by bstune."""
    with _replaced("ray._private.worker", "print_to_stdstream", lambda *_, **__: None), _quiet_loggers():
        yield


@contextlib.contextmanager
def _replaced(module_name: str, name: str, value: Any) -> Iterator[None]:
    """Replace a name in one of Ray's modules for a while, if it is there: where an environment variable is read at import only."""
    module = importlib.import_module(module_name)
    missing = object()
    before = getattr(module, name, missing)
    if before is missing:
        yield
        return
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


@contextlib.contextmanager
def _quiet_loggers() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in ("ray", "ray.tune", "ray.train", "ray.air")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _short_folder() -> str:
    """Return a folder for temporary files whose path is short enough for the names of Ray's sockets."""
    folder = tempfile.gettempdir()
    return folder if len(folder) <= 20 or not os.path.isdir("/tmp") else "/tmp"


@contextlib.contextmanager
def _guarded(folder: Path) -> Iterator[None]:
    """Remove the folder and whoever uses it at the end, also if this process is killed."""
    guard = subprocess.Popen(
        command("bstune.tuner.engines.ray_guard", str(folder)),
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=safe_environment(os.environ),
        start_new_session=True,
    )
    assert guard.stdin is not None
    try:
        yield
    finally:
        shutil.rmtree(
            folder, ignore_errors=True
        )  # First: a folder that is there still is the sign that the driver was killed.
        guard.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            guard.wait(CLOSE_S)


@functools.cache
def token() -> str:
    """Return the password of Ray that this process starts, so that no other user of the machine can send it work.

    Without one Ray makes its own and leaves it in the home folder. One per process: Ray's library keeps the first.
    """
    return secrets.token_hex(32)

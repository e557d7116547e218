"""Starts Ray on this machine, or joins a cluster, and leaves the process as it was.

Ray that bstune starts itself listens on the loopback device only, sends no telemetry, kills nothing for memory (the
kernel does that, and chooses better), and keeps its files in a folder that is removed with it.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import pkgutil
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..core.errors import BstuneError, DeviceError
from ..device.memory import usable_cores
from ..workers.launch import command, safe_environment
from .ray_source import last_line

OWN_RAY = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_memory_monitor_refresh_ms": "0"}
"""Ray on this machine only: every socket binds 127.0.0.1 (also on Linux, whatever the name says), and nothing is killed
for memory but by the kernel.
"""
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
NOT_NEEDED = ("start_api_server", "start_monitor", "start_log_monitor")
"""Programs beside Ray itself: its dashboard, which it starts without pages where none is wanted, what asks a cloud for
machines, and what carries printed lines to the driver. Each takes a second of processor time and some 80 MB.
"""
OBJECT_STORE_BYTES = 128 << 20
CONNECT_S = 5.0
CLOSE_S = 20.0


def require_ray() -> None:
    """Raise a BstuneError unless Ray Tune can be imported."""
    try:
        import ray.tune  # noqa: F401
    except ImportError as error:
        raise BstuneError(
            f"engine='ray' needs Ray Tune, which cannot be imported ({error}): pip install 'bstune[ray]'."
        ) from error


@contextlib.contextmanager
def connected(address: str | None, jobs: int, folder: Path, source: Path | None) -> Iterator[None]:
    """Start Ray here, or join the cluster at an address, until the block is over."""
    import ray

    if ray.is_initialized():
        raise BstuneError(
            "Ray is already started in this process. End it with ray.shutdown() before the search, or let the search "
            "join its cluster from another process."
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
        with warnings.catch_warnings(), alone() if address is None else contextlib.nullcontext():
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


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Keep Ray from starting more than is needed here."""
    with contextlib.ExitStack() as stack:
        for program in NOT_NEEDED:
            stack.enter_context(replaced("ray._private.node:Node", program, lambda *_, **__: None))
        yield


def _job_config() -> Any:
    """Return a configuration that keeps the current folder and the script's out of the front of the workers' path.

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
            f"ray_address={address!r}: Ray's client mode is not supported. Give the cluster's own HOST:PORT, such as "
            "HOST:6379."
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
def changed_environment(changes: Mapping[str, str]) -> Iterator[None]:
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
def silenced() -> Iterator[None]:
    """Keep Ray quiet: bstune says what matters."""
    with replaced("ray._private.worker", "print_to_stdstream", lambda *_, **__: None), _quiet_loggers():
        yield


@contextlib.contextmanager
def replaced(owner: str, name: str, value: Any) -> Iterator[None]:
    """Replace a name in one of Ray's modules or classes (`module:class`) for a while, if it is there.

    It is for environment variables that Ray reads at import only.
    """
    changed = pkgutil.resolve_name(owner)
    missing = object()
    before = getattr(changed, name, missing)
    if before is missing:
        yield
        return
    setattr(changed, name, value)
    try:
        yield
    finally:
        setattr(changed, name, before)


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


def short_folder() -> str:
    """Return a folder for temporary files whose path is short enough for the names of Ray's sockets."""
    folder = tempfile.gettempdir()
    return folder if len(folder) <= 20 or not os.path.isdir("/tmp") else "/tmp"


@contextlib.contextmanager
def guarded(folder: Path) -> Iterator[None]:
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
        # First: a folder that is still there is the sign that the driver was killed.
        shutil.rmtree(folder, ignore_errors=True)
        guard.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            guard.wait(CLOSE_S)


@functools.cache
def token() -> str:
    """Return the password of Ray that this process starts, so that no other user of the machine can send it work.

    Without one Ray makes its own and leaves it in the home folder. One per process: Ray's library keeps the first.
    """
    return secrets.token_hex(32)

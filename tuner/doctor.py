"""What bstune sees on this machine, and what will not work."""

from __future__ import annotations

import os
import platform
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from .core.errors import BstuneError
from .core.symptoms import Examination, Standing, Symptom
from .report.units import gib

if TYPE_CHECKING:
    from .studies.location import Location

STORAGE_S = 15.0
"""So long a storage may take to answer; a server gets ten seconds to connect."""


def examine(*, device: str = "auto", storage: str | None = None) -> Examination:
    """Look at Python, packages, device, memory and storage; nothing is changed and nothing is left behind."""
    items: list[Symptom] = []
    looks = {"python": _python, "packages": _packages, "device": lambda: _devices(device), "memory": _memory}
    for name, look in looks.items():
        items += _safely(name, look)
    items += _within(STORAGE_S, "storage", lambda: _storage(storage))
    return Examination(tuple(items))


def _safely(name: str, look: Callable[[], list[Symptom]]) -> list[Symptom]:
    """Return what a look found; a look that fails is a finding too."""
    try:
        return look()
    except BstuneError as error:
        return [Symptom(name, "wrong", str(error))]
    except Exception as error:
        return [Symptom(name, "wrong", f"{type(error).__name__}: {error}")]


def _within(limit_s: float, name: str, look: Callable[[], list[Symptom]]) -> list[Symptom]:
    """Return what a look found, but wait for it only so long: a server may never answer."""
    found: list[Symptom] = []
    thread = threading.Thread(
        target=lambda: found.extend(_safely(name, look)), daemon=True
    )  # Not waited for at the end, either.
    thread.start()
    thread.join(limit_s)
    return found[:] or [
        Symptom(name, "wrong", f"does not answer within {limit_s:.0f} s", "Check that it is what you mean.")
    ]


def _python() -> list[Symptom]:
    supported = sys.version_info >= (3, 10)
    found = f"{platform.python_version()} at {sys.executable}"
    system = f"{platform.system()} {platform.release()} {platform.machine()}"
    on_linux = platform.system() == "Linux"
    return [
        Symptom(
            "python", "ok" if supported else "wrong", found, "" if supported else "bstune needs Python 3.10 or newer."
        ),
        Symptom("system", "ok" if on_linux else "note", system, "" if on_linux else "Tested on Linux only."),
    ]


def _packages() -> list[Symptom]:
    from .core.version import __version__

    items = [Symptom("bstune", "ok", __version__)]
    for name in ("torch", "optuna", "sqlalchemy", "numpy", "pandas", "cloudpickle", "psutil", "rich", "nvidia-ml-py"):
        items.append(_package(name) or Symptom(name, "wrong", "not installed", f"Install it: pip install {name}"))
    for extra, name in (("ray", "ray"), ("examples", "scikit-learn")):
        found = _package(name)
        items.append(
            Symptom(f"extra {extra}", "ok", "not installed (optional)" if found is None else f"{name} {found.found}")
        )
    return items


def _package(name: str) -> Symptom | None:
    """Return the version of a package, or None where it is not installed."""
    from importlib import metadata

    try:
        return Symptom(name, "ok", metadata.version(name) + "")  # Which is None where the metadata have none.
    except metadata.PackageNotFoundError:
        return None
    except Exception as error:  # Its metadata are damaged, and Python says so in many ways.
        return Symptom(
            name, "note", f"its version cannot be read ({type(error).__name__})", f"Reinstall it: pip install {name}"
        )


def _devices(wanted: str) -> list[Symptom]:
    import torch

    from .device.cuda import check_device_name, try_cuda
    from .device.memory import cpu_info, usable_cores
    from .device.nvml import nvml_devices

    check_device_name(wanted)
    cpu = cpu_info(usable_cores())
    items = [Symptom("cpu", "ok", f"{cpu.name}, {usable_cores()} cores for this process")]
    cards = nvml_devices()
    for card in cards:
        total = gib(card["total_bytes"])
        free = gib(card["free_bytes"])
        items.append(
            Symptom("card", "ok", f"{card['name']}, driver {card['driver']}, {free} free of {total}, {card['uuid']}")
        )
    cuda = wanted.startswith("cuda")
    if not cards and not cuda:
        items.append(Symptom("cuda", "ok", "no card: bstune will use the CPU"))
    elif torch.version.cuda is None:
        verdict: Standing = "wrong" if cuda else "note"
        items.append(
            Symptom("cuda", verdict, f"torch {torch.__version__} has no CUDA in it", "Install a torch build with CUDA.")
        )
    else:
        try:
            facts = try_cuda(wanted)
            items.append(Symptom("cuda", "ok", f"{facts.device} works: {facts.name}, {gib(facts.total_bytes)}"))
        except BstuneError as error:
            items.append(Symptom("cuda", "wrong" if cuda else "note", str(error)))
    return items


def _memory() -> list[Symptom]:
    from .device.memory import cgroup_limits, cpu_memory

    memory = cpu_memory()
    verdict: Standing = "ok" if memory.available_bytes > 1 << 30 else "note"
    items = [
        Symptom(
            "memory",
            verdict,
            f"{gib(memory.available_bytes)} available of {gib(memory.total_bytes)} (by {memory.source})",
        )
    ]
    for limit, used in cgroup_limits():
        items.append(Symptom("container", "ok", f"limited to {gib(limit)}, {gib(used)} of it used"))
    return items


def _storage(url: str | None) -> list[Symptom]:
    """Look at the storage without changing it: nothing is written, locked or made."""
    from .studies.location import locate
    from .studies.storage import read_storage

    location = locate(url)
    if location.kind == "memory":
        return [Symptom("storage", "ok", f"{location.url}: kept in memory, and gone when the search ends")]
    path = location.path
    if path is None:
        return [_server(location, url)]
    if not os.path.lexists(path):
        usable = path.parent.is_dir() and os.access(path.parent, os.W_OK | os.X_OK)
        if usable:
            return [Symptom("storage", "ok", f"{path}: can be made")]
        why = "cannot be written to" if path.parent.is_dir() else "does not exist"
        return [
            Symptom(
                "storage", "wrong", f"{path}: cannot be made, its folder {why}", "Name another file with --storage."
            )
        ]
    with read_storage(url) as storage:
        found, writer = f"{path}: {_studies(len(storage.names()))}", storage.writer()
    if writer is not None:
        return [Symptom("storage", "note", f"{found}; {writer}", "A second search would be refused.")]
    if not os.access(path, os.W_OK) or not os.access(path.parent, os.W_OK | os.X_OK):
        return [
            Symptom(
                "storage",
                "wrong",
                f"{found}, but it cannot be written to",
                "`bstune show` works; to search, name another file.",
            )
        ]
    return [Symptom("storage", "ok", found)]


def _server(location: Location, url: str | None) -> Symptom:
    """Connect to a database server and say what is in it."""
    from .studies.storage import NoStudiesError, read_storage

    try:
        with read_storage(url) as storage:
            return Symptom("storage", "ok", f"{location.url}: {_studies(len(storage.names()))}")
    except NoStudiesError:
        return Symptom("storage", "ok", f"{location.url}: answers; the first search makes the tables")


def _studies(n: int) -> str:
    return f"{n} stud{'y' if n == 1 else 'ies'}"

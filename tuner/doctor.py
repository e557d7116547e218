"""What bstune sees on this machine, and what will not work."""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from .errors import BstuneError
from .report import gib

Verdict = Literal["ok", "note", "wrong"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    name: str
    verdict: Verdict
    """`wrong` when something will not work; `note` when it will, less well."""
    found: str
    advice: str = ""


@dataclass(frozen=True)
class Findings:
    """Everything that was looked at."""

    items: tuple[Finding, ...]

    @property
    def healthy(self) -> bool:
        """Whether everything will work."""
        return all(item.verdict != "wrong" for item in self.items)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return {"healthy": self.healthy, "findings": [asdict(item) for item in self.items]}

    def text(self) -> str:
        """Return one line for each finding, and what to do about those that are wrong."""
        width = max(len(item.name) for item in self.items)
        lines = []
        for item in self.items:
            advice = f"  {item.advice}" if item.advice else ""
            lines.append(f"{item.verdict:<6}{item.name:<{width}}  {item.found}{advice}")
        last = "Everything that bstune needs works." if self.healthy else "Something will not work: see the lines that begin with `wrong`."
        return "\n".join([*lines, last])


def examine(*, device: str = "auto", storage: str | None = None) -> Findings:
    """Look at Python, packages, device, memory and storage; nothing is changed and nothing is left behind."""
    items: list[Finding] = []
    for look in (_python, _packages, lambda: _devices(device), _memory, lambda: _storage(storage)):
        items += _safely(look)
    return Findings(tuple(items))


def _safely(look: Callable[[], list[Finding]]) -> list[Finding]:
    """Return what a look found; a look that fails is a finding too, because a doctor must not fall ill."""
    try:
        return look()
    except BstuneError as error:
        return [Finding("check", "wrong", str(error))]
    except Exception as error:
        return [Finding("check", "wrong", f"{type(error).__name__}: {error}")]


def _python() -> list[Finding]:
    supported = sys.version_info >= (3, 10)
    found = f"{platform.python_version()} at {sys.executable}"
    system = f"{platform.system()} {platform.release()} {platform.machine()}"
    on_linux = platform.system() == "Linux"
    return [
        Finding("python", "ok" if supported else "wrong", found, "" if supported else "bstune needs Python 3.10 or newer."),
        Finding("system", "ok" if on_linux else "note", system, "" if on_linux else "Tested on Linux only."),
    ]


def _packages() -> list[Finding]:
    from importlib import metadata

    from .. import __version__

    items = [Finding("bstune", "ok", __version__)]
    for name in ("torch", "optuna", "sqlalchemy", "numpy", "pandas", "cloudpickle", "psutil", "rich", "nvidia-ml-py"):
        try:
            items.append(Finding(name, "ok", metadata.version(name)))
        except metadata.PackageNotFoundError:
            items.append(Finding(name, "wrong", "not installed", f"Install it: pip install {name}"))
    for extra, name in (("ray", "ray"), ("examples", "scikit-learn")):
        try:
            items.append(Finding(f"extra {extra}", "ok", f"{name} {metadata.version(name)}"))
        except metadata.PackageNotFoundError:
            items.append(Finding(f"extra {extra}", "ok", "not installed (optional)"))
    return items


def _devices(wanted: str) -> list[Finding]:
    import torch

    from .device import check_device_name, cpu_info, nvml_devices, try_cuda, usable_cores

    check_device_name(wanted)
    cpu = cpu_info(usable_cores())
    items = [Finding("cpu", "ok", f"{cpu.name}, {usable_cores()} cores for this process")]
    cards = nvml_devices()
    for card in cards:
        total = gib(card["total_bytes"])
        free = gib(card["free_bytes"])
        items.append(Finding("card", "ok", f"{card['name']}, driver {card['driver']}, {free} free of {total}, {card['uuid']}"))
    cuda = wanted.startswith("cuda")
    if not cards and not cuda:
        items.append(Finding("cuda", "ok", "no card: bstune will use the CPU"))
    elif torch.version.cuda is None:
        verdict: Verdict = "wrong" if cuda else "note"
        items.append(Finding("cuda", verdict, f"torch {torch.__version__} has no CUDA in it", "Install a torch build with CUDA."))
    else:
        try:
            facts = try_cuda(wanted)
            items.append(Finding("cuda", "ok", f"{facts.device} works: {facts.name}, {gib(facts.total_bytes)}"))
        except BstuneError as error:
            items.append(Finding("cuda", "wrong" if cuda else "note", str(error)))
    return items


def _memory() -> list[Finding]:
    from .device import cgroup_limits, cpu_memory

    memory = cpu_memory()
    verdict: Verdict = "ok" if memory.available_bytes > 1 << 30 else "note"
    items = [Finding("memory", verdict, f"{gib(memory.available_bytes)} available of {gib(memory.total_bytes)} (by {memory.source})")]
    for limit, used in cgroup_limits():
        items.append(Finding("container", "ok", f"limited to {gib(limit)}, {gib(used)} of it used"))
    return items


def _storage(url: str | None) -> list[Finding]:
    from .location import locate
    from .storage import open_storage, read_storage
    from .writer_lock import InUseError

    location = locate(url)
    if location.path is None:
        return [Finding("storage", "ok", f"{location.url} (kept in memory)")]
    existed = location.path.exists()
    try:
        if existed:
            with read_storage(url) as storage:
                n_studies = len(storage.names())
        with open_storage(url) as storage:
            n_studies = len(storage.names())
        return [Finding("storage", "ok", f"{location.path}: {f'{n_studies} studies' if existed else 'can be made'}")]
    except InUseError as error:
        return [Finding("storage", "note", str(error))]
    except BstuneError as error:
        return [Finding("storage", "wrong", str(error))]

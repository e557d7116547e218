"""A model that tests search with Ray, and what they ask of the processes of Ray."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import bstune
import psutil
from bstune.tuner.core.progress import Progress

MODEL = """
import mmap, os, psutil, time
import bstune, torch
from shape import bowl, meet  # A neighbour of this file, which has to travel with it.

held = []

# What nearly nothing takes would be a matter of luck.
@bstune.objective(n_samples=320, epochs=4, evals=4, step_time_s={16: 0.01, 32: 0.01})
def objective(trial):
    hoard = []
    held.append(torch.ones(1 << 20))  # Nothing that a trial keeps is there in the next.
    assert len(held) == 1
    if trial.number >= 0 and "MEET" in os.environ:
        meet(os.environ["MEET"], f"{trial.number} {os.environ['NODE']}", "* 0", "* 1")
    mark = os.environ.get("HOARD")  # Takes host memory without end, once, and says who does.
    if trial.number >= 0 and mark and not os.path.exists(mark):
        with open(mark, "w") as file:
            file.write(str(os.getpid()))
        while True:
            hoard.append(mmap.mmap(-1, 200 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE))
            # A moment for Ray to look. It may have to wait for a core, and what else runs needs memory meanwhile.
            much = psutil.virtual_memory().percent / 100 > float(os.environ["RAY_memory_usage_threshold"])
            time.sleep(0.5 if much else 0.02)
    weight = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=trial.learning_rate)  # The probe counts its steps.
    for samples in range(trial.global_batch_size, trial.max_samples + 1, trial.global_batch_size):
        weight.grad = torch.zeros(1)
        optimizer.step()
        if samples >= trial.next_report:
            time.sleep(0.02)
            trial.report(val_loss=bowl(samples, trial.learning_rate) + 0.001 * trial.seed, samples=samples)
            while trial.number >= 0 and os.environ.get("NODE") == "1":  # Until its node is lost.
                time.sleep(0.02)
            if os.environ.get("MISBEHAVE") and trial.number == 1:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            if os.environ.get("MISBEHAVE") and trial.number == 2:
                raise RuntimeError("mat1 and mat2 shapes cannot be multiplied (64x10 and 20x30)")
"""
SHAPE = '''
import math, time
from pathlib import Path

def bowl(samples, lr):
    return 0.1 + math.exp(-samples / 500) + 0.05 * math.log10(lr / 0.01) ** 2

def meet(folder, name, *others):
    """Leave a mark that says where a trial runs, and wait for marks like these."""
    Path(folder, name).touch()
    while not all(any(Path(folder).glob(other)) for other in others):
        time.sleep(0.02)
'''
SPACE = {"batch_size": [16, 32], "learning_rate": [0.001, 0.01, 0.1]}
TRAP = "open({mark!r}, 'w').close()\nraise ImportError('a trap')\n"
TRAPS = ("socket", "json", "base64", "numpy", "cloudpickle", "psutil", "torch", "optuna", "bstune", "sitecustomize")


def lay_traps(folder: Path) -> Path:
    """Make a folder of modules that leave a mark when they are run, with names of Python's, of others', and bstune's.

    Ray would put the current folder first in the path of its workers, and these would hide those of the same name.
    """
    folder.mkdir()
    for name in TRAPS:
        (folder / f"{name}.py").write_text(TRAP.format(mark=str(folder / f"executed-{name}")))
    return folder


def executed(folder: Path) -> list[Path]:
    """Return the marks of those that were run."""
    return list(folder.glob("executed-*"))


def search(model: Path, url: str, **changes: Any) -> bstune.SearchResult:
    """Search the formula, by Ray unless changed."""
    arguments: dict[str, Any] = {"engine": "ray", "device": "cpu", "space": SPACE, "budget": 3, "storage": url}
    return bstune.search(bstune.load(model), **(arguments | changes))


def asked(result: bstune.SearchResult, n: int) -> list[tuple[Any, ...]]:
    """What the first trials were asked to do."""
    return [
        (record.global_batch_size, record.learning_rate, record.seed, record.end_samples)
        for record in result.records[:n]
    ]


def ray_processes() -> list[psutil.Process]:
    """The processes of this test's Ray."""
    return [child for child in psutil.Process().children(recursive=True) if "ray" in " ".join(child.cmdline()[:2])]


def trial_actors() -> list[psutil.Process]:
    """The Ray workers with a template process."""
    return [
        child
        for child in psutil.Process().children(recursive=True)
        if child.name().startswith("ray::") and child.children()
    ]


class Once:
    """Does something at the first progress that it is asked for."""

    def __init__(self, act: Callable[[], None], when: Callable[[Progress], bool]) -> None:
        """Act once."""
        self._act: Callable[[], None] | None = act
        self._when = when

    def __call__(self, progress: Progress) -> None:
        """Hear one progress."""
        if self._act is not None and self._when(progress):
            act, self._act = self._act, None
            act()


def reported(n: int) -> Callable[[Progress], bool]:
    """Tell the first report of a trial with this number or a higher one."""
    return lambda progress: progress.kind == "report" and progress.trial is not None and progress.trial.number >= n


def gone(processes: Callable[[], Sequence[object]], within_s: float = 30.0) -> bool:
    """Tell whether the processes are gone within a time."""
    deadline_s = time.monotonic() + within_s
    while processes() and time.monotonic() < deadline_s:
        time.sleep(0.1)
    return not processes()


def users_of(folder: Path) -> list[int]:
    """Return the processes of a Ray started in a folder: those that name it or have one of its files open."""
    users = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            names = [*process.cmdline(), *(os.readlink(link) for link in Path(f"/proc/{process.pid}/fd").iterdir())]
            if process.pid != os.getpid() and any(f"{folder}/" in name for name in names):
                users.append(process.pid)
    return users


def node_arguments(n_cpus: int) -> dict[str, Any]:
    """A small node."""
    return {"num_cpus": n_cpus, "object_store_memory": 100 << 20, "include_dashboard": False}


def watchful() -> dict[str, str]:
    """Have Ray kill when 8 GiB more are used than now, or most of what is free: far from what other programs need."""
    memory = psutil.virtual_memory()
    more = min(8 << 30, memory.available * 3 / 4)
    threshold = (memory.total - memory.available + more) / memory.total
    return {"RAY_memory_usage_threshold": f"{threshold:.4f}", "RAY_memory_monitor_refresh_ms": "100"}

"""Processes that user code leaves behind, found and ended: nothing of a trial, and nothing of a search, survives it.

A process can leave its group and its session, and have its parent end before it. Two things lead to it all the same. On
Linux a process may ask to be the parent of all orphans below it (a subreaper): each process of bstune in which user
code runs does, and so does one above them in which none runs. And each of them inherits an environment with a word in
it that nobody else has.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import NoReturn

MARK = "BSTUNE_PROCESSES"
"""Variable with the word; several where one search runs inside another."""
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
WITHIN_S = 4.0
"""The kernel takes a moment to end a process that holds much memory; one that waits for a device it may never end."""
KEEPERS = (b"torch_shm_manager", b"multiprocessing.resource_tracker import main")
"""Programs, by their command lines, that remove shared memory when those who used it have ended, and then end too."""
KEEPER_S = 2.5

Process = tuple[int, str]
"""A process ID and when the process began: a number alone may be given to another process later."""


def _prctl(option: int, value: int) -> None:
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def adopt_orphans() -> None:
    """Have this process be the parent of what its descendants leave behind."""
    _prctl(PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent(parent: int, signal_number: int) -> None:
    """Ask the kernel to send this process a signal when its parent ends."""
    _prctl(PR_SET_PDEATHSIG, signal_number)
    if sys.platform.startswith("linux") and os.getppid() != parent:
        os._exit(1)


# --- below this process -----------------------------------------------------------------------------------------------


def children(pid: int | None = None) -> list[Process]:
    """Return the children of a process, by default this one; also those that have ended and were not reaped."""
    found = []
    for tasks in Path(f"/proc/{pid or os.getpid()}/task").glob("*/children"):
        try:
            found += [(int(child), _began(int(child))) for child in tasks.read_text().split()]
        except OSError:  # It has ended since.
            continue
    return found


def _began(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""


def descendants() -> list[Process]:
    """Return all processes below this one."""
    found = children()
    for pid, _ in found:
        found += children(pid)  # Read on while it grows.
    return found


def end_children(keep: Collection[Process] = (), *, keepers: bool = True) -> None:
    """End the children of this process and all below them, but for those to keep.

    What a child leaves behind becomes a child of this process, which has asked for it. Nothing else is ever sent a
    signal: a process that was not reaped yet cannot have given its number to another.

    Args:
        keep: Children that stay.
        keepers: Also wait for the end of programs that clear shared memory away, a few seconds; else they stay, and end
            by themselves.
    """
    started_s = time.monotonic()
    while left := [child for child in children() if child not in keep and (keepers or not _is_keeper(child[0]))]:
        age_s = time.monotonic() - started_s
        for pid, _ in left:
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                if age_s > KEEPER_S or not _is_keeper(pid):
                    os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, os.WNOHANG)
        if age_s > WITHIN_S:
            return
        time.sleep(0.001 if age_s < 0.1 else 0.02)


def _is_keeper(pid: int) -> bool:
    try:
        line = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
    return any(keeper in line for keeper in KEEPERS)


def can_adopt() -> bool:
    """Tell whether this system lets a process be the parent of orphans: Linux does."""
    return sys.platform.startswith("linux") and Path("/proc/self/task").exists()


def stay_above(*to_close: int) -> None:
    """Fork, and return in the child; the parent stays to end all below it when the child or its own parent ends.

    It does nothing else, and no user code runs in it, so there is nothing for it to fail at.
    """
    if not can_adopt():
        return
    above = os.getpid()
    adopt_orphans()
    below, starter = os.fork(), os.getppid()
    if below == 0:
        die_with_parent(above, signal.SIGTERM)
        return
    for fd in to_close:
        os.close(fd)
    signal.signal(signal.SIGTERM, lambda *_: _end_like(-signal.SIGTERM))
    die_with_parent(starter, signal.SIGTERM)
    while True:
        pid, status = os.waitpid(-1, 0)
        if pid == below:
            _end_like(os.waitstatus_to_exitcode(status))


def _end_like(code: int) -> NoReturn:
    """End all below this process, and then this process with an exit code, or by the signal of a negative one."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    end_children()
    if code < 0 and -code != signal.SIGKILL:
        signal.signal(-code, signal.SIG_DFL)
    if code < 0:
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.kill(os.getpid(), -code)
    os._exit(code if code >= 0 else 1)


# --- by the word in their environment ---------------------------------------------------------------------------------


def marked(environment: dict[str, str], word: str) -> dict[str, str]:
    """Return an environment for processes that can be found by this word."""
    return environment | {MARK: " ".join(filter(None, (environment.get(MARK), word)))}


def end_marked(word: str, *, within_s: float = WITHIN_S) -> None:
    """End all processes of this user that were started with this word in their environment, wherever they are."""
    deadline_s = time.monotonic() + within_s
    while (left := [pid for pid in running() if _is_marked(pid, word)]) and time.monotonic() < deadline_s:
        for pid in left:
            end_if(pid, lambda pid: _is_marked(pid, word))
        time.sleep(0.005)


def running() -> list[int]:
    """Return the numbers of all processes that can be seen, where there is /proc."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit()] if Path("/proc/self/environ").exists() else []


def _is_marked(pid: int, word: str) -> bool:
    try:
        return word.encode() in Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:  # It has ended, or is another user's.
        return False


def end_if(pid: int, is_it: Callable[[int], bool]) -> None:
    """End a process that is what it should be, and none that has taken its number meanwhile."""
    with contextlib.suppress(OSError):
        process = ending_of(pid)
        try:
            if is_it(pid) and process is not None:
                signal.pidfd_send_signal(process, signal.SIGKILL)
            elif process is None and is_it(pid):
                os.kill(pid, signal.SIGKILL)
        finally:
            if process is not None:
                os.close(process)


def ending_of(pid: int) -> int | None:
    """Return a descriptor that is readable once a process has ended; None where the kernel has none (before Linux 5.3).

    Raises:
        ProcessLookupError: There is no such process.
    """
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        raise
    except (AttributeError, OSError):
        return None

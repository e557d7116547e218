"""Waits for the end of a search that started Ray, and clears away what is left of it.

When the driver is killed, most of Ray ends with it within a second, but two of its agents stay for minutes, and so do
its files. This process, which loads next to nothing, notices the end by its standard input.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from pathlib import Path

from ..workers.leftovers import end_if, running

PATIENCE_S = 15.0
PARTING_S = 3.0
QUIET_S = 1.0
"""After so long without any process of Ray, none will come."""


def main() -> None:
    """Wait for the driver, which has the other end of stdin; then clear the folder and end its users."""
    folder, driver = Path(sys.argv[1]), os.getppid()
    sys.stdin.buffer.read()
    deadline_s = time.monotonic() + PARTING_S
    while folder.exists() and os.getppid() == driver and time.monotonic() < deadline_s:
        time.sleep(0.05)  # Its files are closed before it is gone.
    if folder.exists() and os.getppid() != driver:  # A driver that ended by itself has removed it.
        clear(folder)


def clear(folder: Path, patience_s: float = PATIENCE_S) -> None:
    """End the processes that have a file of the folder open, and remove it."""
    deadline_s = time.monotonic() + patience_s
    quiet_since_s = time.monotonic()
    while time.monotonic() < deadline_s and time.monotonic() - quiet_since_s < QUIET_S:
        users = users_of(folder)
        if users:
            quiet_since_s = time.monotonic()
        for pid in users:
            end_if(pid, lambda pid: _uses(pid, folder))
        time.sleep(0.2)
    shutil.rmtree(folder, ignore_errors=True)


def users_of(folder: Path) -> list[int]:
    """Return the processes of this user that have a file of the folder open."""
    return [pid for pid in running() if pid != os.getpid() and _uses(pid, folder)]


def _uses(pid: int, folder: Path) -> bool:
    try:
        return any(os.readlink(link).startswith(f"{folder}/") for link in Path(f"/proc/{pid}/fd").iterdir())
    except OSError:  # It has ended since, or is another user's.
        return False

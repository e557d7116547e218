"""The threads of this process that a process forked from it would miss."""

from __future__ import annotations

import threading
from pathlib import Path

FORK_SAFE_THREADS = {"jemalloc_bg_thd"}
"""Pyarrow's allocator starts this thread when it is imported, as scikit-learn and pandas do where it is installed.
jemalloc prepares for a fork and starts the thread again in the child (`background_thread_postfork_child` in its
sources).
"""


def threads_that_fork_loses() -> int:
    """Return how many threads of this process, the main one counted, a forked child would miss or be."""
    try:
        names = [(task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]
    except OSError:  # Not Linux; or a thread ended while we looked.
        return threading.active_count()
    return sum(name not in FORK_SAFE_THREADS for name in names)

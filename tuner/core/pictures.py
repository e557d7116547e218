"""What results show of themselves, in a notebook for example, is drawn by a room further up.

`core` imports no other room, so the front door says here which module draws; it is imported when it is first needed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

_DRAWERS: list[Callable[[], Any]] = []


def drawn_by(drawer: Callable[[], Any]) -> None:
    """Note what returns the module that draws."""
    _DRAWERS[:] = [drawer]


def drawn(name: str, result: Any) -> Any:
    """Return what the function of this name in the module that draws makes of a result."""
    return getattr(_DRAWERS[0](), name)(result)


def in_notebook() -> bool:
    """Tell whether this process runs the cells of a notebook."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and getattr(ipython.get_ipython(), "kernel", None) is not None

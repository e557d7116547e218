"""The picture of a search while it runs in a notebook: one output that is drawn in place."""

from __future__ import annotations

import html
import io
import threading
import time
from collections.abc import Callable
from typing import Any

from .live import LiveProgress
from .scene import Scene, drawn

COLUMNS, LINES = 80, 24
LEAST_S = 0.5
"""Between two pictures: each is a message to the browser."""


class NotebookScreen:
    """An output of the running cell, on which a scene is drawn again and again; see `live.Screen`."""

    def __init__(self, scene: Callable[[], Scene]) -> None:
        """Draw what `scene` returns; it is asked anew for each picture."""
        self._scene = scene
        self.lock = threading.RLock()
        self._output: Any = None
        self._drawn_s = 0.0

    @property
    def is_open(self) -> bool:
        """Whether it is shown now."""
        return self._output is not None

    def open(self) -> None:
        """Show it below the cell."""
        from IPython.display import HTML, display

        self._output = display(HTML(self._picture()), display_id=True)

    def draw(self) -> None:
        """Draw the scene as it is now, unless that was done just now."""
        if time.monotonic() - self._drawn_s >= LEAST_S:
            self._draw()

    def close(self) -> None:
        """Draw the scene once more; it stays."""
        self._draw()
        self._output = None

    def _draw(self) -> None:
        if self._output is not None:
            from IPython.display import HTML

            self._output.update(HTML(self._picture()))
            self._drawn_s = time.monotonic()

    def _picture(self) -> str:
        from rich.console import Console, Group

        with self.lock:
            text = io.StringIO()
            console = Console(
                file=text,
                width=COLUMNS,
                highlight=False,
                emoji=False,
                markup=False,
                color_system=None,
                force_jupyter=False,
            )
            console.print(Group(*drawn(self._scene(), COLUMNS, LINES)))
        style = "line-height: 1.2; white-space: pre; overflow-x: auto"  # Notebooks would wrap its lines.
        return f'<pre style="{style}">{html.escape(text.getvalue())}</pre>'


class NotebookProgress(LiveProgress):
    """Shows a search below the running cell."""

    screen = NotebookScreen

"""The screen of a search while it runs on a terminal: drawn in place, on a screen of its own, which is left at the end.

On the terminal's other screen nothing is left behind when the window changes its size, and what stood there before the
search stands there again after it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import FrameType
from typing import TYPE_CHECKING, Protocol

from ..core.interrupts import uninterrupted
from ..core.probe_results import Attempt
from ..core.progress import Progress
from ..core.specs import STEPS_AT_LEAST, Forecast
from .progress import PlainProgress, progress_line
from .scene import BLOCKS, PLAIN_BLOCKS, Scene, drawn

if TYPE_CHECKING:
    from rich.console import Console, Group
    from rich.live import Live

TICK_S = 0.5
"""The clock on the screen goes on by itself."""
POLL_S = 0.1
"""So soon Ctrl-Z is noticed."""
DUMB = ("", "dumb", "unknown")
"""Kinds of terminal that cannot move the cursor."""


class Canvas(Protocol):
    """Something on which a scene is drawn again and again."""

    lock: threading.RLock

    @property
    def is_open(self) -> bool:
        """Whether it is shown now."""

    def open(self) -> None:
        """Show it."""

    def draw(self) -> None:
        """Draw the scene as it is now."""

    def close(self) -> None:
        """Draw no more."""


class Screen:
    """A terminal's other screen, on which a scene is drawn again and again.

    Ctrl-Z leaves it and stops the program; in the foreground again (`fg`), it is drawn anew.
    """

    def __init__(self, scene: Callable[[], Scene]) -> None:
        """Draw what `scene` returns; it is asked anew for each picture."""
        self._scene = scene
        self.lock = threading.RLock()
        """Held while a picture is drawn: what the scene holds does not change then."""
        self._ended = threading.Event()
        self._live: Live | None = None
        self._asked_to_stop = False
        self._away = False
        """Left by Ctrl-Z, until the program is in the foreground again."""

    @property
    def is_open(self) -> bool:
        """Whether it is shown now, or will be when the program is in the foreground again."""
        return self._live is not None or self._away

    def open(self) -> None:
        """Show it, and keep its clock going."""
        with suppress(AttributeError, ValueError):  # Not on Windows, and not in another thread than the main one.
            if signal.getsignal(signal.SIGTSTP) is signal.SIG_DFL:
                signal.signal(signal.SIGTSTP, self._on_stop)
        self._show()
        threading.Thread(target=self._tick, daemon=True, name="bstune-screen").start()

    def _show(self) -> None:
        from rich.console import Console
        from rich.live import Live

        console = Console(
            stderr=True,
            highlight=False,
            emoji=False,
            markup=False,
            soft_wrap=False,
            no_color=bool(os.environ.get("NO_COLOR")) or None,
        )
        self._live = Live(
            get_renderable=lambda: self._picture(console),
            console=console,
            screen=True,
            auto_refresh=False,
            # Our own stdout and stderr stay as they are: stdout gets the result only.
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._live.start()

    def _on_stop(self, number: int, frame: FrameType | None) -> None:
        # In the middle of anything, a picture perhaps: what takes a lock is left to the thread of the clock.
        self._asked_to_stop = True

    def draw(self) -> None:
        """Draw the scene as it is now; when nobody can see it any more, the search matters more."""
        with self.lock, suppress(OSError, ValueError):
            if self._live is not None:
                self._live.refresh()

    def close(self) -> None:
        """Leave the screen: the terminal is as it was, also when Ctrl-C comes in the middle of this."""
        self._ended.set()
        with uninterrupted(), self.lock:
            self._away = False
            self._leave()
            with suppress(AttributeError, ValueError):
                if signal.getsignal(signal.SIGTSTP) == self._on_stop:
                    signal.signal(signal.SIGTSTP, signal.SIG_DFL)

    def _leave(self) -> None:
        live, self._live = self._live, None
        if live is not None:
            with suppress(OSError, ValueError):
                live.stop()

    def _tick(self) -> None:
        drawn_s = 0.0
        while not self._ended.wait(POLL_S):
            if self._asked_to_stop:
                self._stop()
            if self._away and _in_foreground():
                with self.lock, suppress(OSError, ValueError):
                    if self._away:
                        self._away = False
                        self._show()
            if time.monotonic() - drawn_s >= TICK_S:
                self.draw()
                drawn_s = time.monotonic()

    def _stop(self) -> None:
        """Leave the screen, and stop the program until it is continued."""
        with self.lock:
            self._asked_to_stop = False
            if self._live is not None:
                self._away = True
                self._leave()
            # To this thread: it does nothing more before the program has stopped.
            signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)

    def _picture(self, console: Console) -> Group:
        from rich.console import Group

        blocks = BLOCKS if console.encoding.startswith("utf") else PLAIN_BLOCKS
        return Group(*drawn(self._scene(), console.width, console.height, blocks=blocks))


class LiveProgress(PlainProgress):
    """Shows a search on a screen of its own; what is to be kept of it is printed when that is left."""

    screen: Callable[[Callable[[], Scene]], Canvas] = Screen

    def __init__(self) -> None:
        """Prepare the screen; it shows from the first attempt of a probe, or the first trial, on."""
        self._state = Scene()
        self._screen = type(self).screen(self._now)
        self._kept: list[str] = []
        self._began_s = time.monotonic()
        self._foreseen: tuple[float, float] | None = None
        """Reference runs that were left when the search began, and their seconds."""

    def __exit__(self, *exception: object) -> None:
        self._screen.close()
        kept, self._kept = self._kept, []
        for line in kept:
            super().print(line)

    def __call__(self, progress: Progress) -> None:
        """Take a step of a search."""
        self.facts = progress.facts or self.facts
        line = progress_line(progress)
        told = progress.forecast is not None and self._screen.is_open  # It stands on the screen, and is old after it.
        if line is not None and progress.attempt is None and progress.trial is None and not told:
            self._keep(line, is_shown=progress.kind == "warning")
        with self._screen.lock:
            self._take(progress)
        self._screen.draw()

    def print(self, line: str) -> None:
        """Print one line, or keep it until the screen is left."""
        self._keep(line, is_shown=False)

    def _keep(self, line: str, *, is_shown: bool) -> None:
        if not self._screen.is_open:
            super().print(line)
        else:
            self._kept.append(line)
        if is_shown:
            with self._screen.lock:
                self._state.notes.append(line)

    def tried(self, attempt: Attempt) -> None:
        """Show an attempt of a probe."""
        with self._screen.lock:
            self._state.attempts.append(attempt)
        self._open()
        self._screen.draw()

    def _open(self) -> None:
        if not self._screen.is_open:
            with suppress(OSError, ValueError):
                self._screen.open()

    def _take(self, progress: Progress) -> None:
        state = self._state
        state.study, state.budget, state.spent = progress.study, progress.budget, max(state.spent, progress.spent)
        state.rungs = progress.rungs or state.rungs
        if progress.forecast is not None:
            state.plan = _plan(progress.forecast)
            runs, seconds = progress.forecast.most_reference_runs, progress.forecast.most_seconds
            if runs is not None and seconds is not None:
                self._foreseen = runs, seconds
        if self._foreseen is not None and self._foreseen[0] > 0:
            left = max(progress.budget - progress.spent, 0.0)
            state.left_s = min(left / self._foreseen[0], 1.0) * self._foreseen[1]
        if progress.attempt is not None:
            self.tried(progress.attempt)
        if progress.trial is not None:
            self._open()
            number = progress.trial.number
            if progress.kind == "finish":
                state.running.pop(number, None)
                state.ended.append(progress.trial)
                if progress.find_best is not None:
                    state.best = progress.find_best()
            else:
                state.running[number] = progress.trial

    def _now(self) -> Scene:
        self._state.elapsed_s = time.monotonic() - self._began_s
        return self._state


def _plan(forecast: Forecast) -> str:
    """Return what is searched among, in one short line."""
    batches, rates = forecast.batch_range, forecast.learning_rate_range
    sizes = f"batch {batches[0]} to {batches[1]}" if batches[0] < batches[1] else f"batch {batches[0]}"
    limits = {"steps": f"{STEPS_AT_LEAST} steps"}  # The others are words already.
    end = forecast.sizes_end_by
    sizes += "" if end is None else f" (limit {limits.get(end, end)})"
    tried = f"lr {rates[0]:.3g} to {rates[1]:.3g}" if rates[0] < rates[1] else f"lr {rates[0]:.3g}"
    about = "" if forecast.n_trials is None else f"; about {forecast.n_trials} trials"
    return f"searched: {sizes}, {tried}{about}"


def _in_foreground() -> bool:
    """Tell whether this program is the one that its terminal belongs to now."""
    try:
        return os.tcgetpgrp(2) == os.getpgrp()
    except OSError:
        return True


def is_live() -> bool:
    """Tell whether stderr is a terminal that can move its cursor."""
    return sys.stderr.isatty() and os.environ.get("TERM", "") not in DUMB


def make_progress() -> PlainProgress:
    """Return a screen on a terminal, else plain lines."""
    return LiveProgress() if is_live() else PlainProgress()


@contextlib.contextmanager
def shown_live(scene: Callable[[], Scene]) -> Iterator[Screen]:
    """Show a scene on a screen of its own while the block runs."""
    screen = Screen(scene)
    try:
        with suppress(OSError, ValueError):
            screen.open()
        yield screen
    finally:
        screen.close()

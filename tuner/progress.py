"""What is shown on stderr while bstune works: a line for what deserves it, and on a terminal a bar of the budget."""

from __future__ import annotations

import sys
from contextlib import ExitStack, suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any

from .drive import Progress
from .report import number, progress_line
from .results import TrialRecord
from .terminal import harmless, note

if TYPE_CHECKING:
    from ..objectives.base import Facts


class PlainProgress:
    """Prints one line to stderr for what deserves it."""

    facts: Facts | None = None

    def __enter__(self) -> PlainProgress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        return None

    def __call__(self, progress: Progress) -> None:
        """Take a step of a search."""
        self.facts = progress.facts or self.facts
        line = progress_line(progress)
        if line is not None:
            self.print(line)

    def print(self, line: str) -> None:
        """Print one line; when nobody can read it any more, the search matters more."""
        note(line)


class LiveProgress(PlainProgress):
    """Shows a bar of the budget and the running trials on a terminal; finished trials scroll above it."""

    def __init__(self) -> None:
        """Prepare the display; it shows from the first step of a search on."""
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bars

        self._console = Console(stderr=True, highlight=False, emoji=False)
        columns = (
            BarColumn(),
            TextColumn("{task.completed:.1f} of {task.total:g} full runs"),
            TimeElapsedColumn(),
            TextColumn("{task.description}"),
        )
        # Our own stdout and stderr stay as they are: stdout holds the result only.
        self._bars = Bars(*columns, console=self._console, transient=True, redirect_stdout=False, redirect_stderr=False)
        self._task: Any = None
        self._running: dict[int, TrialRecord] = {}
        self._stack = ExitStack()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with suppress(OSError, ValueError):  # The terminal may have gone.
            self._stack.close()

    def __call__(self, progress: Progress) -> None:
        """Take a step of a search."""
        super().__call__(progress)
        with suppress(OSError, ValueError):
            self._show(progress)

    def _show(self, progress: Progress) -> None:
        if progress.trial is not None:
            if self._task is None:
                self._stack.enter_context(self._bars)
                self._task = self._bars.add_task("", total=progress.budget)
            if progress.kind == "finish":
                self._running.pop(progress.trial.number, None)
            else:
                self._running[progress.trial.number] = progress.trial
            self._bars.update(self._task, completed=progress.spent, description="; ".join(map(_running, self._running.values())))

    def print(self, line: str) -> None:
        """Print one line above the bar."""
        with suppress(OSError, ValueError):
            self._console.print(harmless(line), markup=False, soft_wrap=True)


def _running(trial: TrialRecord) -> str:
    last = trial.values[-1][1] if trial.values else None
    share = 100 * trial.samples / trial.end_samples if trial.end_samples else 0.0
    return f"trial {trial.number} batch {trial.global_batch_size} lr {trial.learning_rate:.3g} {share:.0f} % loss {number(last)}"


def make_progress() -> PlainProgress:
    """Return a live display on a terminal, plain lines on a pipe."""
    return LiveProgress() if sys.stderr.isatty() else PlainProgress()

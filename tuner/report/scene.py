"""A search as one screen shows it: what is spent and left, the best so far, what runs, and what has ended.

A scene is filled by the steps of a search, or by what its study holds, and knows no terminal.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..core.probe_results import Attempt
from ..core.results import Recommendation
from ..core.trial_record import TrialRecord
from . import wording
from .answer import interval_text, param_columns
from .trials import outcome, reached
from .units import duration, gib, given_params, number
from .view import Column, View, even, said, tabled

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

BLOCKS = "▁▂▃▄▅▆▇█"
PLAIN_BLOCKS = "_.-:=+*#"
"""For terminals that know no others."""
CELLS = 4
"""Columns of a curve from one rung to the next."""
REMEMBERED = 100
ROOMY = 12
"""Lines of a terminal that has room for what is searched among."""


@dataclass
class Scene:
    """What a screen shows of a search or of a probe."""

    study: str = ""
    budget: float = math.inf
    """Reference runs."""
    spent: float = 0.0
    elapsed_s: float = 0.0
    left_s: float | None = None
    """Seconds that are left at most; None where that is not known."""
    rungs: tuple[int, ...] = ()
    """Samples at which trials are compared."""
    best: Recommendation | None = None
    running: dict[int, TrialRecord] = field(default_factory=dict)
    ended: deque[TrialRecord] = field(default_factory=lambda: deque(maxlen=REMEMBERED))
    """The last trials, the newest last."""
    attempts: list[Attempt] = field(default_factory=list)
    """Of a probe that goes on now."""
    notes: deque[str] = field(default_factory=lambda: deque(maxlen=2))
    """The last warnings."""
    plan: str = ""
    """What is searched among; empty where that is not known."""


def drawn(scene: Scene, width: int, height: int, *, blocks: str = BLOCKS) -> list[RenderableType]:
    """Return the screen, from top to bottom, in at most so many lines.

    Args:
        scene: What is known.
        width: Columns of the terminal.
        height: Lines of the terminal.
        blocks: Characters for the heights of a curve, the lowest first.
    """
    view = View(width)
    parts: list[RenderableType] = [said(f"bstune: {scene.study or 'what fits'}", width, "bold")]
    if scene.attempts and not scene.running and not scene.ended:
        parts += [_clipped(line, width) for line in _notes(scene)]
        room = height - len(parts) - 3
        return [*parts, *_probe(scene.attempts, view, max(room, 1), blocks)]
    parts += [
        _budget(scene, width, blocks),
        *_best(scene, width),
        *_plan(scene, width, height),
        *(_clipped(line, width) for line in _notes(scene)),
    ]
    room = max(height - len(parts) - 1, 0)
    running = list(scene.running.values())[:room]
    ended = list(scene.ended)[::-1][: room - len(running)]
    return [*parts, _trials(scene, running, ended, view, blocks)] if running or ended else parts


def _notes(scene: Scene) -> list[Text]:
    return [said(note, style="yellow") for note in scene.notes]


def _clipped(text: Text, width: int) -> Text:
    """Return a line that is cut at the width, with dots in place of what is left out."""
    text.truncate(width, overflow="ellipsis")
    return text


def clock(seconds: float) -> str:
    """Return a time that passes, as a clock shows it.

    Example:
        >>> clock(5.4), clock(754), clock(7384)
        ('0:05', '12:34', '2:03:04')
    """
    hours, rest = divmod(int(seconds), 3600)
    minutes, seconds = divmod(rest, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def _budget(scene: Scene, width: int, blocks: str) -> Text:
    """Return the bar of the budget, with what is spent and left of it."""
    left = "" if scene.left_s is None else f", at most {clock(scene.left_s)} left"
    whole = "" if math.isinf(scene.budget) else f" of {scene.budget:.3g}"
    said_beside = f"{scene.spent:.1f}{whole} reference runs, {clock(scene.elapsed_s)} so far{left}"
    columns = width - len(said_beside) - 2
    if columns < 8 or math.isinf(scene.budget):
        return _clipped(said(said_beside), width)
    share = min(max(scene.spent / scene.budget, 0.0), 1.0) if scene.budget > 0 else 1.0
    full = round(share * min(columns, 30))
    bar = blocks[-1] * full + blocks[0] * (min(columns, 30) - full)
    return said(f"{bar}  {said_beside}")


def _plan(scene: Scene, width: int, height: int) -> list[Text]:
    return [_clipped(said(scene.plan), width)] if scene.plan and height >= ROOMY else []


def _best(scene: Scene, width: int) -> list[Text]:
    best = scene.best
    if best is None:
        return [_clipped(said("best so far: none yet"), width)]
    loss = "no full run yet"
    if best.val_loss.mean is not None:
        loss = f"loss {even([best.val_loss.mean])[0]} ({interval_text(best.val_loss) or 'no interval'})"
    own = f", {given_params(best.params, ', ')}" if best.params else ""
    setting = f"batch {best.global_batch_size}, lr {best.learning_rate:.3g}{own}"
    line = f"best so far: {setting}, {loss}, {wording.confirmed(best)}"
    return [_clipped(said(line, style="bold green" if best.verified else "bold"), width)]


# --- trials -------------------------------------------------------------------------------------------------------


def _trials(
    scene: Scene, running: Sequence[TrialRecord], ended: Sequence[TrialRecord], view: View, blocks: str
) -> RenderableType:
    """Return what runs, and below it what has ended, the newest first."""
    trials = [*running, *ended]
    rungs = scene.rungs or tuple(sorted({trial.end_samples for trial in trials if trial.end_samples}))
    seen = [loss for trial in (*scene.ended, *running) for _, loss in trial.values if loss is not None]
    low, high = min(seen, default=0.0), max(seen, default=1.0)
    states = ["runs"] * len(running) + [_end(trial) for trial in ended]
    columns = [
        Column("trial", [str(trial.number) for trial in trials], 1),
        Column("batch", [str(trial.global_batch_size) for trial in trials], 0),
        Column("lr", [f"{trial.learning_rate:.3g}" for trial in trials], 0),
        *param_columns(trials, 6),
        Column("loss, rung to rung", [curve(trial, rungs, low, high, blocks) for trial in trials], 4, "left"),
        Column("loss", [_last(trial) for trial in trials], 2),
        Column("samples", [reached(trial) for trial in trials], 5),
        Column("", states, 3, "left"),
    ]
    return tabled(columns, view, chosen=range(len(running)))


def _end(trial: TrialRecord) -> str:
    """Return what came of a trial in one or two words."""
    if trial.state == "failed":
        return f"failed: {said(trial.cause or 'error', 12).plain}"
    return said(outcome(trial).partition(":")[0], 16).plain


def _last(trial: TrialRecord) -> str:
    return number(trial.values[-1][1]) if trial.values else "-"


def curve(trial: TrialRecord, rungs: Sequence[int], low: float, high: float, blocks: str) -> str:
    """Return the learning curve of a trial: some characters from each rung to the next, as high as the loss.

    Samples grow by the same factor from one character to the next; the loss is on a log scale where it is above 0.

    Args:
        trial: A trial with its curve so far.
        rungs: Samples, ascending.
        low: The lowest loss of all curves that are compared.
        high: The highest.
        blocks: Characters by height, the lowest first.
    """
    parts = []
    start = rungs[0] / 3 if rungs else 1.0
    for rung in rungs:
        at = [start * (rung / start) ** (i / CELLS) for i in range(CELLS + 1)]
        parts.append("".join(_cell(trial, at[i], at[i + 1], low, high, blocks) for i in range(CELLS)))
        start = float(rung)
    return "|".join(parts)


def _cell(trial: TrialRecord, start: float, end: float, low: float, high: float, blocks: str) -> str:
    """Return the height of a curve between two numbers of samples; a space where the trial has not come so far."""
    losses = [loss for samples, loss in trial.values if samples <= end * 1.001]
    if trial.samples <= start * 1.001 or not losses:
        return " "
    loss = losses[-1]
    if loss is None:
        return "!"
    scale = math.log if low > 0 else float
    span = scale(high) - scale(low)
    share = 0.0 if span <= 0 else (scale(min(max(loss, low), high)) - scale(low)) / span
    return blocks[min(int(share * len(blocks)), len(blocks) - 1)]


# --- a probe ------------------------------------------------------------------------------------------------------


BAR = 24
"""Columns of the longest bar."""


def _probe(attempts: Sequence[Attempt], view: View, room: int, blocks: str) -> list[RenderableType]:
    """Return the sizes that were tried, the smallest first, with what they took against the line through these."""
    last = attempts[-1]
    by_size = {a.size: a for a in attempts}  # Of a size that was tried again, its last attempt.
    shown = sorted(list(by_size.values())[-room:], key=lambda a: a.size)
    line = _line(attempts)
    columns = [
        Column("micro-batch", [str(a.size) for a in shown], 0),
        Column("outcome", [said(a.outcome, 10).plain for a in shown], 1, "left"),
        Column("peak", ["-" if a.peak_bytes is None else gib(a.peak_bytes) for a in shown], 2),
        Column("" if line is None else "| by the memory line", _bars(shown, line, blocks), 3, "left"),
        Column("took", [duration(a.seconds) for a in shown], 4),
    ]
    chosen = [i for i, a in enumerate(shown) if a.size == last.size]
    return [tabled(columns, view, chosen=chosen), _clipped(said(memory_line(attempts), style="dim"), view.width)]


def _line(attempts: Sequence[Attempt]) -> tuple[float, float] | None:
    """Return the bytes that any size takes and those of a sample, by the smallest and the largest size that fitted."""
    fitted = sorted((a.size, a.peak_bytes) for a in attempts if a.outcome == "ok" and a.peak_bytes is not None)
    if not fitted or fitted[0][0] == fitted[-1][0]:
        return None
    (small, low), (large, high) = fitted[0], fitted[-1]
    slope = max(high - low, 0) / (large - small)
    return max(low - slope * small, 0.0), slope


def _bars(shown: Sequence[Attempt], line: tuple[float, float] | None, blocks: str) -> list[str]:
    """Return a bar for each size: what it took beyond what any size takes, and a mark where the line expects that."""
    fixed, slope = line or (0.0, 0.0)
    measured = [max((a.peak_bytes or 0) - fixed, 0.0) for a in shown]
    expected = [slope * a.size for a in shown]
    cell = max([*measured, *expected, 1.0]) / BAR
    bars = []
    for size, amount, by_line in zip(shown, measured, expected, strict=True):
        cells = [blocks[-1]] * (max(1, round(amount / cell)) if size.peak_bytes is not None else 0)
        if line is not None:
            mark = min(round(by_line / cell), BAR - 1)
            cells += [" "] * (mark + 1 - len(cells))
            cells[mark] = "|"
        bars.append("".join(cells))
    return bars


def memory_line(attempts: Sequence[Attempt]) -> str:
    """Return the line through the peaks of the smallest and the largest size that fitted, in words."""
    line = _line(attempts)
    if line is None:
        return "probing which micro-batches fit"
    return f"memory line so far: {gib(line[0])} for any size (not drawn) + {gib(line[1])} a sample"

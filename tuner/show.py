"""What a study knows, read without disturbing the search that may be writing it."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .core.errors import NoSignalError, StudyError
from .core.plain_text import one_line
from .core.probe_results import ProbeResult
from .core.results import SearchResult
from .core.trial_record import TrialRecord
from .core.trials import Facts
from .report.wording import ended
from .studies.catalog import find_study, newest_study
from .studies.storage import Storage, read_storage
from .studies.study import Study, has_search, intact
from .studies.trial_logs import read_log

if TYPE_CHECKING:
    from .report.scene import Scene


@dataclass(frozen=True)
class Shown:
    """A study as it is now."""

    headline: str
    """One line."""
    records: tuple[TrialRecord, ...]
    probe: ProbeResult | None
    result: SearchResult | None
    """The best so far; None when nothing was learned yet."""
    facts: Facts | None
    is_running: bool = False
    """A search goes on in it now."""
    study: str = ""
    budget: float = math.inf
    """Reference runs of the search."""
    rungs: tuple[int, ...] = ()
    """Training samples at which trials are compared."""

    def require_result(self) -> SearchResult:
        """Return the best so far.

        Raises:
            NoSignalError: Nothing was learned yet.
        """
        if self.result is None:
            raise NoSignalError(
                f"{self.headline}: no trial has a finite validation loss yet, so there is nothing to recommend."
            )
        return self.result


def show(name: str | None = None, *, storage: str | None = None) -> Shown:
    """Return what a study knows; by default the one that was used last.

    Raises:
        StudyError: There is no such storage or study.
    """
    with read_storage(storage) as opened:
        study = _found(name, opened)
        with intact(study.name):
            return _shown(study, opened)


def show_log(name: str | None, number: int, *, storage: str | None = None) -> str:
    """Return what a trial of a study has printed; by default of the one that was used last.

    Raises:
        StudyError: There is no such storage, study, trial or log.
    """
    with read_storage(storage) as opened:
        return read_log(_found(name, opened), number)


def _found(name: str | None, opened: Storage) -> Study:
    study = newest_study(opened) if name is None else find_study(opened, name)
    if study is None:
        names = one_line(", ".join(map(one_line, opened.names())) or "none")
        raise StudyError(f"{opened.location.path or opened.location.url} holds no study {name!r}. Studies: {names}.")
    return study


def _shown(study: Study, storage: Storage) -> Shown:
    stopped_by = study.attributes.get("stopped_by")
    if not isinstance(stopped_by, str | None):
        raise TypeError(f"stopped_by is no text: {stopped_by!r}")
    writer = storage.writer()
    is_running = writer is not None and not stopped_by
    begun = bool(study.records)
    state = (
        ended(stopped_by)
        if stopped_by
        else writer or ("not finished; the same search goes on from here" if begun else "no search")
    )
    n = len(study.finished)
    where = f"Study {one_line(study.name)} in {one_line(storage.location.url)}"
    headline = f"{where}: {n} trial{'s' if n != 1 else ''}, {one_line(state)}"
    if not has_search(study):
        return Shown(headline, study.records, study.probe, None, None, is_running, study.name)
    from .searching.result import result_so_far, stored_strategy

    strategy = stored_strategy(study)
    result = result_so_far(study, strategy, stopped_by or "interrupted")
    budget, rungs = strategy.planned_end, strategy.rungs.samples
    return Shown(headline, study.records, study.probe, result, strategy.facts, is_running, study.name, budget, rungs)


PAUSE_S = 2.0
GENTLE = 10.0
"""A study is read again after so many times as long as reading it took, or after `PAUSE_S` if that is longer."""


def watched(shown: Shown, read: Callable[[], Shown]) -> Shown:
    """Show a search on the terminal until it ends, or a line for each trial on a pipe; return the study at its end.

    Args:
        shown: The study now.
        read: Returns it as it is later.
    """
    from .report.live import is_live, shown_live

    now = [_scene(shown)]
    with contextlib.ExitStack() as stack:
        screen = stack.enter_context(shown_live(lambda: now[0])) if is_live() and shown.is_running else None
        while shown.is_running:
            began_s = time.monotonic()
            later = read()
            if screen is None:
                _say_ended(shown, later)
            shown, now[0] = later, _scene(later)
            if screen is not None:
                screen.draw()
            if shown.is_running:
                time.sleep(max(PAUSE_S, GENTLE * (time.monotonic() - began_s)))
    return shown


def _say_ended(before: Shown, after: Shown) -> None:
    from .report.terminal import note
    from .report.trials import trial_line

    known = {record.number for record in before.records if record.state != "running"}
    for record in after.records:
        if record.state != "running" and record.number not in known:
            note(trial_line(record))


def _scene(shown: Shown) -> Scene:
    """Return what a screen shows of a study."""
    from .report.scene import REMEMBERED, Scene

    scene = Scene(study=shown.study, budget=shown.budget, rungs=shown.rungs)
    scene.running = {record.number: record for record in shown.records if record.state == "running"}
    scene.ended.extend([record for record in shown.records if record.state != "running"][-REMEMBERED:])
    if shown.probe is not None and not shown.records:
        scene.attempts = list(shown.probe.attempts)
    if shown.result is not None:
        spent = shown.result.spent
        scene.best, scene.spent, scene.elapsed_s = shown.result.recommendation, spent.reference_runs, spent.seconds
        if spent.reference_runs > 0 and spent.predicted_seconds is not None:
            share = max(shown.budget - spent.reference_runs, 0.0) / spent.reference_runs
            scene.left_s = share * spent.predicted_seconds if math.isfinite(share) else None
    return scene

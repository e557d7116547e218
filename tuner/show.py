"""What a study knows, read without disturbing the search that may be writing it."""

from __future__ import annotations

from dataclasses import dataclass

from .core.errors import NoSignalError, StudyError
from .core.plain_text import one_line
from .core.probe_results import ProbeResult
from .core.results import SearchResult, TrialRecord
from .core.trials import Facts
from .studies.catalog import find_study, newest_study
from .studies.spec_json import decode_facts, decode_plan
from .studies.storage import Storage, read_storage
from .studies.study import Study, intact
from .studies.trial_logs import read_log


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
        f"ended by {stopped_by}"
        if stopped_by
        else writer or ("not finished; the same search goes on from here" if begun else "no search")
    )
    n = len(study.finished)
    where = f"Study {one_line(study.name)} in {one_line(storage.location.url)}"
    headline = f"{where}: {n} trial{'s' if n != 1 else ''}, {one_line(state)}"
    if "plan" not in study.attributes or "facts" not in study.attributes:
        return Shown(headline, study.records, study.probe, None, None, is_running)
    from .searching.result import make_result, make_strategy

    facts = decode_facts(study.attributes["facts"])
    strategy = make_strategy(decode_plan(study.attributes["plan"]), facts, study.probe, study)
    try:
        result = make_result(study, strategy, study.probe, stopped_by or "interrupted")
    except NoSignalError:
        result = None
    return Shown(headline, study.records, study.probe, result, facts, is_running)

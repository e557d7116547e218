"""What happens in a study of the service, told here as a search on this machine tells it."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

from ..core.errors import BstuneError
from ..core.progress import Progress
from ..core.results import Recommendation, SearchResult
from ..core.specs import Forecast
from ..core.trial_record import TrialRecord
from ..core.trials import Facts
from .link import Link, RefusedError, study_path

BEST_S = 2.0
"""The best so far is asked for no more often."""
AGAIN_S = 2.0
"""Between two attempts to follow a study, while the service is away."""
LAST_S = 5.0
"""So long the last events may take to arrive when the search is over."""
TOLD = ("start", "report", "finish")


class Watcher:
    """Follows a study in a thread of its own, from `start` until the study has ended, or the block."""

    def __init__(self, link: Link, tell: Callable[[Progress], None]) -> None:
        """Follow a study over a link of its own; `tell` hears of every step."""
        self._link = link
        self._tell = tell
        self._study = ""
        self._facts: Facts | None = None
        self._budget = math.inf
        self._foreseen = False
        self._after: str | None = None
        self._best: Recommendation | None = None
        self._best_s = -math.inf
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="bstune-watch", daemon=True)

    def start(self, study: str, facts: Facts) -> None:
        """Begin; `facts` are those of the objective here."""
        self._study, self._facts = study, facts
        self._thread.start()

    def __enter__(self) -> Watcher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End; where all went well, when what is still on its way has been told."""
        if kind is None and self._thread.is_alive():
            self._thread.join(LAST_S)
        self._over.set()
        self._link.close()

    def _run(self) -> None:
        while not self._over.is_set():
            try:
                if self._follow():
                    return
            except RefusedError as error:
                if error.status == 404:  # It was deleted.
                    return
            except BstuneError:
                pass  # Who trains says when the service is away.
            self._over.wait(AGAIN_S)

    def _follow(self) -> bool:
        """Tell what happens until the stream ends; return whether the study has ended."""
        path = study_path(self._study)
        for kind, number, data in self._link.events(f"{path}/events", self._after):
            self._after = number or self._after
            if not self._foreseen and self._foresee():
                return True
            if self._over.is_set() or kind in ("ended", "failed", "deleted"):
                return True
            if kind in TOLD and data.get("trial") is not None:
                self._say(kind, data)
        return False

    def _foresee(self) -> bool:
        """Tell what the search is expected to cost, as soon as the service knows, and what runs already.

        Returns:
            Whether the study has ended already.
        """
        study = self._link.get(study_path(self._study))
        if study["state"] in ("ended", "failed"):
            return True
        if study.get("forecast") is None:
            return False
        self._foreseen, self._budget = True, float(study["budget"])
        self._tell(
            Progress(
                "forecast",
                self._study,
                self._budget,
                study["spent"],
                forecast=Forecast.from_dict(study["forecast"]),
                facts=self._facts,
                rungs=tuple(study["rungs"]),
            )
        )
        for trial in study["trials"]:
            if trial["state"] == "running":
                self._say("start", {"trial": trial, "spent": study["spent"]})
        return False

    def _say(self, kind: Any, data: dict[str, Any]) -> None:
        record = TrialRecord.from_dict(data["trial"])
        self._tell(Progress(kind, self._study, self._budget, data["spent"], trial=record, find_best=self._find_best))

    def _find_best(self) -> Recommendation | None:
        if time.monotonic() - self._best_s > BEST_S:
            with contextlib.suppress(BstuneError):
                answer = self._link.get(study_path(self._study, "/recommendation"))
                self._best = SearchResult.from_dict(answer).recommendation
            self._best_s = time.monotonic()
        return self._best

"""What runs trials on the nodes of a Ray cluster: an actor with a template process, and trials forked from it.

Ray places and watches; user code runs in the same worker processes as everywhere else (`fork_server.Host`), one fresh
process per trial, so how a trial ends is classified once, for all engines. Because the actor itself runs no user code,
Ray may use it for one trial after another: torch and the data are loaded once per slot.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from ray import tune

from ..core.errors import BstuneError, DeviceError
from ..core.trials import Split, TrialReport, TrialSpec
from ..workers.fork_server import Host
from .base import Event, Finished, LossCause, Lost, Placed, Reported
from .local import LocalPool
from .ray_survey import ActorTask

POLL_S = 5.0
"""A trial that has nothing to say says so after this long, so that its actor can get new orders."""


class RayTrial(tune.Trainable):  # type: ignore[misc]  # Ray is not followed by the type checker.
    """A slot: runs the trial that its configuration names, and is then given the next one."""

    def setup(
        self, config: dict[str, Any], task: ActorTask | None = None, fences: Mapping[str, int] | None = None
    ) -> None:
        """Take the first trial; the template process starts with its first step."""
        assert task is not None
        self._task, self._fences = task, fences or {}
        self._kind = ""
        self._host: Host | None = None
        self._pool: LocalPool | None = None
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next trial."""
        self._begin(new_config)
        return True

    def _begin(self, config: dict[str, Any]) -> None:
        self._spec = decode_spec(config["spec"])
        self._submitted = False
        self._unanswered: TrialReport | None = None
        self._stop = False

    def stop_training(self) -> None:
        """Answer the last report with `stop`.

        Tune has no such call: its own `STOP` ends the actor before the trial can write its checkpoint and say what it
        took.
        """
        self._stop = True

    def step(self) -> dict[str, Any]:
        """Let the trial go on to its next report, or its end."""
        event = self._next_event()
        return {"event": event, "done": isinstance(event, (Finished, Lost))}

    def _next_event(self) -> Event | None:
        try:
            pool = self._ready_pool()
        except BstuneError as error:
            self._close()
            traceback = getattr(error, "traceback", None)
            cause: LossCause = "crashed" if isinstance(error, DeviceError) else "error"
            return Lost(self._spec.number, cause, str(error), error_type=type(error).__name__, traceback=traceback)
        if not self._submitted:
            self._submitted = True
            spec = self._spec.on(self._kind) if self._spec.splits else self._spec
            pool.submit(spec)
            return Placed(
                spec.number, self._kind if self._spec.splits else None, spec.micro_batch_size, spec.accumulation_steps
            )
        if self._unanswered is not None:
            pool.reply(self._spec.number, "stop" if self._stop else "go")
            self._unanswered = None
        for event in pool.events(POLL_S):
            if isinstance(event, Reported):
                self._unanswered = event.report
            return event
        return None

    def _ready_pool(self) -> LocalPool:
        if self._pool is None:
            self._host = self._task.host()
            self._kind = self._task.kind()
            fence_bytes = self._fences.get(self._kind, min(self._fences.values(), default=None))
            self._pool = LocalPool(self._host, fence_bytes=fence_bytes)
        return self._pool

    def _close(self) -> None:
        if self._pool is not None:
            self._pool.close()
        if self._host is not None:
            self._host.close()
        self._pool = self._host = None

    def cleanup(self) -> None:
        """End the trial and the template process."""
        self._close()


def encode_spec(spec: TrialSpec) -> str:
    """Return a run as one text: Tune takes a configuration apart and names files by it."""
    return json.dumps(dataclasses.asdict(dataclasses.replace(spec, params=dict(spec.params))))


def decode_spec(text: str) -> TrialSpec:
    """Read back what `encode_spec` wrote."""
    data = json.loads(text)
    splits = {kind: Split(**split) for kind, split in data["splits"].items()}
    return TrialSpec(**{**data, "points": tuple(data["points"]), "splits": splits})

"""Runs trials by Ray Tune, on this machine or on a cluster; see `base.Pool`.

`ray.tune.Tuner` runs in a thread, with a searcher that hands out what the drive submits and a scheduler that carries
reports to it and verdicts back. So the one strategy decides and the one study remembers, whatever the engine: Tune
places, watches and isolates. What Tune keeps of its own (its trials' states, a folder of files) is not read by anybody:
it records a pruned trial as complete.

Two things of Ray 2.60 are worked around here. A `STOP` of the scheduler ends the actor before the trial can write its
checkpoint, so the verdict goes to the actor itself and the trial ends in its own time (`ray_actor.RayTrial`). And when
Ray's memory monitor kills an actor, `Tuner.fit()` ends as a whole; `_memory_kills_are_failures` makes it the failure of
one trial. If `fit()` ends all the same, what ran is lost, each trial with the cause, and a new Tuner goes on.
"""

from __future__ import annotations

import contextlib
import itertools
import queue
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ray import tune
from ray.exceptions import OutOfMemoryError, RayActorError
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher
from ray.tune.stopper import Stopper

from ..core.errors import DeviceError
from ..core.trials import TrialReport, TrialSpec, Verdict
from .base import Event, Finished, Lost, Placed, Reported
from .ray_actor import RayTrial, encode_spec
from .ray_cluster import Cluster

WAIT_S = 0.2
HANDOVER_S = 2.0
"""How long a slot whose trial has ended is kept for the next one; its actor is then used again."""
CLOSE_S = 30.0
LOOK_S = 5.0
"""Time between two looks at which nodes are alive."""
MAX_TUNERS = 10
"""So many times Tune may break down before the search gives up."""


class RayPool:
    """Runs up to `slots` trials side by side on the nodes of a cluster."""

    places = True

    def __init__(self, cluster: Cluster, *, fences: Mapping[str, int]) -> None:
        """Run trials of the cluster's objective; `fences` limits the bytes of one trial, by kind of device."""
        self._cluster = cluster
        self._fences = dict(fences)
        self._slots = cluster.slots.n
        self._looked_s = time.monotonic()
        self._link = _Exchange()
        self._samples: dict[int, int] = {}
        self._started_s: dict[int, float] = {}
        self._broken: Exception | None = None
        cluster.end_survey()
        self._thread = threading.Thread(target=self._run, name="bstune-ray-tune", daemon=True)
        self._thread.start()

    @property
    def slots(self) -> int:
        """Trials that the living nodes can take side by side; a lost node is noticed some seconds after its trial.

        Raises:
            DeviceError: No node is left, and nothing runs.
        """
        if time.monotonic() - self._looked_s > LOOK_S:
            self._look()
        if self._slots == 0 and not self._samples:
            raise DeviceError("No node of the Ray cluster is left that could run a trial. Check `ray status`.")
        return self._slots

    def _look(self) -> None:
        self._slots, self._looked_s = self._cluster.slots_left(), time.monotonic()

    def submit(self, spec: TrialSpec) -> None:
        """Start a run in a free slot."""
        self._samples[spec.number] = spec.start_samples
        self._started_s[spec.number] = time.monotonic()
        self._link.specs.put(spec)

    def events(self, timeout_s: float) -> Iterator[Event]:
        """Yield what has happened, waiting at most this long for the first.

        Raises:
            DeviceError: No node is left, or Tune breaks down again and again.
        """
        self._link.free.set()
        with contextlib.suppress(queue.Empty):
            event = self._link.events.get(timeout=timeout_s)
            while True:
                number = event.report.number if isinstance(event, Reported) else event.number
                if number not in self._samples:  # It was cancelled while this was under way.
                    self.reply(number, "stop")
                elif isinstance(event, Reported):
                    self._samples[number] = event.report.samples
                    yield event
                elif isinstance(event, Placed):
                    yield event
                else:
                    yield self._last(event)
                event = self._link.events.get_nowait()
        if self._broken is not None:
            raise DeviceError(
                f"Ray Tune broke down {MAX_TUNERS} times, the last time with: {self._broken}"
            ) from self._broken

    def _last(self, event: Finished | Lost) -> Finished | Lost:
        """Complete what only the pool knows of a run that ended."""
        samples = self._samples.pop(event.number, 0)
        seconds = time.monotonic() - self._started_s.pop(event.number, time.monotonic())
        if isinstance(event, Finished) or event.cause not in ("killed", "crashed"):
            return event
        self._look()
        if self._slots == 0:
            raise DeviceError(
                f"No node of the Ray cluster is left that could run a trial. The last one that ran: {event.message}."
            )
        return Lost(
            event.number,
            event.cause,
            event.message,
            max(samples, event.samples),
            event.seconds or seconds,
            output=event.output,
        )

    def reply(self, number: int, verdict: Verdict) -> None:
        """Let a reporting run go on, or stop it."""
        self._link.verdicts.put((number, verdict))

    def cancel(self, number: int) -> None:
        """End a run at once; it has no more events."""
        self._samples.pop(number, None)
        self._link.cancel(number)

    def close(self) -> None:
        """End everything that runs."""
        self._link.close()
        self._thread.join(CLOSE_S)

    # --- the thread of Tune ---

    def _run(self) -> None:
        """Keep a Tuner running until the pool is closed."""
        for round_ in itertools.count(1):
            error: Exception | None = None
            try:
                with warnings.catch_warnings(), _memory_kills_are_failures():
                    warnings.simplefilter("ignore")
                    self._tuner(f"round-{round_}").fit()
            except Exception as caught:
                error = caught
            if self._link.closing:
                return
            error = error or RuntimeError("Tuner.fit() ended early")
            if round_ >= MAX_TUNERS:
                self._broken = error
            self._link.lose_all(f"Ray Tune ended with: {_cause(error)}")
            if self._broken is not None:
                return
            time.sleep(WAIT_S)

    def _tuner(self, name: str) -> tune.Tuner:
        slots = self._cluster.slots
        resources = {"CPU": slots.cpus} | ({"GPU": slots.gpus} if slots.gpus else {})
        trainable = tune.with_parameters(RayTrial, task=self._cluster.task, fences=self._fences)
        return tune.Tuner(
            tune.with_resources(trainable, tune.PlacementGroupFactory([resources])),
            tune_config=tune.TuneConfig(
                search_alg=_LinkSearcher(self._link),
                scheduler=_LinkScheduler(self._link),
                num_samples=-1,
                reuse_actors=True,  # The trial's own process is a fresh one all the same: the actor forks it.
                trial_name_creator=lambda trial: f"trial-{trial.config['number']}",
                trial_dirname_creator=lambda trial: f"trial-{trial.config['number']}",
            ),
            run_config=tune.RunConfig(
                name=name,
                storage_path=str(self._cluster.folder / "tune"),
                verbose=0,
                stop=_LinkStopper(self._link),
                failure_config=tune.FailureConfig(max_failures=0),
                checkpoint_config=tune.CheckpointConfig(
                    checkpoint_at_end=False
                ),  # The trial itself writes one, where it is to go on.
            ),
        )


class _Exchange:
    """What passes between the thread of the drive and that of Tune."""

    def __init__(self) -> None:
        self.specs: queue.SimpleQueue[TrialSpec] = queue.SimpleQueue()
        self.events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self.verdicts: queue.SimpleQueue[tuple[int, Verdict]] = queue.SimpleQueue()
        self.free = threading.Event()
        """The drive has dealt with what happened and filled the slots."""
        self.closing = False
        self._lock = threading.Lock()
        self._live: dict[int, Any] = {}
        """Tune's trial by our number; None until Tune has made one."""
        self._cancelled: set[int] = set()

    def __reduce__(self) -> tuple[type[_Exchange], tuple[()]]:
        """Pickle as an empty object: Tune writes its searcher to disk, and nobody reads it."""
        return _Exchange, ()

    def __deepcopy__(self, memo: object) -> _Exchange:
        return self

    @property
    def idle(self) -> bool:
        """Whether Tune has nothing to run."""
        return not self._live

    def take(self) -> TrialSpec | None:
        """Return the next run to start, waiting for one if Tune has nothing else to do."""
        with contextlib.suppress(queue.Empty):
            spec = self.specs.get(timeout=WAIT_S) if self.idle else self.specs.get_nowait()
            with self._lock:
                self._live[spec.number] = None
            return spec
        return None

    def added(self, number: int, trial: Any) -> None:
        """Note Tune's trial of a run."""
        with self._lock:
            self._live[number] = trial

    def pending_cancels(self) -> list[Any]:
        """Return the trials that were cancelled before they had an actor."""
        with self._lock:
            trials = [self._live.get(number) for number in self._cancelled]
        return [trial for trial in trials if trial is not None and trial.temporary_state.ray_actor is None]

    def decide(self, report: TrialReport) -> Verdict:
        """Have the loop decide on a report."""
        if report.number in self._cancelled:
            return "stop"
        self.events.put(Reported(report))
        while not self.closing:
            with contextlib.suppress(queue.Empty):
                number, verdict = self.verdicts.get(timeout=WAIT_S)
                if number == report.number:
                    return verdict
        return "stop"

    def placed(self, event: Placed) -> None:
        """Tell the drive where a run has landed."""
        if event.number not in self._cancelled:
            self.events.put(event)

    def ended(self, number: int, event: Finished | Lost) -> None:
        """Tell the drive how a run has ended, and give it time to fill the slot again."""
        with self._lock:
            self._live.pop(number, None)
            if number in self._cancelled:
                self._cancelled.discard(number)
                return
        self.free.clear()
        self.events.put(event)
        if not self.closing:
            self.free.wait(HANDOVER_S)

    def lose_all(self, message: str) -> None:
        """Report what Tune was running when it broke down as lost."""
        with self._lock:
            lost = [number for number in self._live if number not in self._cancelled]
            self._live.clear()
            self._cancelled.clear()
        for number in lost:
            self.events.put(Lost(number, "killed", message))

    def cancel(self, number: int) -> None:
        """End a run; its actor is killed, and what was forked from it goes with it."""
        with self._lock:
            self._cancelled.add(number)
            trial = self._live.get(number)
        _kill(trial)

    def close(self) -> None:
        """End all runs and have Tune come to its end."""
        self.closing = True
        self.free.set()
        with self._lock:
            trials = list(self._live.values())
        for trial in trials:
            _kill(trial)


def _kill(trial: Any) -> None:
    import ray

    actor = None if trial is None else trial.temporary_state.ray_actor
    if actor is not None:
        with contextlib.suppress(Exception):
            ray.kill(actor, no_restart=True)


class _LinkSearcher(Searcher):  # type: ignore[misc]  # Ray is not followed by the type checker.
    """Gives Tune the runs that the drive submits."""

    def __init__(self, link: _Exchange) -> None:
        super().__init__()
        self._link = link

    def suggest(self, trial_id: str) -> Any:
        while not self._link.closing:
            spec = self._link.take()
            if spec is not None:
                return {"number": spec.number, "spec": encode_spec(spec)}
            if not self._link.idle:
                return None
        return Searcher.FINISHED

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        """Do nothing: the scheduler gets it with the trial itself."""

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: the study is the record."""

    def restore(self, checkpoint_path: str) -> None:
        """Never called: nothing is restored from Tune's files."""

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        """Do nothing: the study is the record."""


class _LinkScheduler(FIFOScheduler):  # type: ignore[misc]
    """Carries Tune's news of its trials to the drive, and its verdicts to the trials."""

    def __init__(self, link: _Exchange) -> None:
        super().__init__()
        self._link = link

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        self._link.added(trial.config["number"], trial)

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        for trial in self._link.pending_cancels():
            tune_controller.stop_trial(trial)
        return super().choose_trial_to_run(tune_controller)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        event = result.get("event")
        if isinstance(event, Placed):
            self._link.placed(event)
        if isinstance(event, Reported) and self._link.decide(event.report) == "stop":
            trial.temporary_state.ray_actor.stop_training.remote()
        return str(TrialScheduler.CONTINUE)

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        number, event = trial.config["number"], result.get("event")
        lost = Lost(number, "crashed", "its Ray actor was stopped")
        self._link.ended(number, event if isinstance(event, (Finished, Lost)) else lost)

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        self._link.ended(
            trial.config["number"], Lost(trial.config["number"], "crashed", "it was removed before it started")
        )

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        self._link.ended(trial.config["number"], Lost(trial.config["number"], "killed", _death(trial)))


class _LinkStopper(Stopper):  # type: ignore[misc]
    """Ends everything when the pool is closed."""

    def __init__(self, link: _Exchange) -> None:
        self._link = link

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._link.closing


def _death(trial: Any) -> str:
    """Return why a trial's actor is gone, from the text that Tune has written of it."""
    try:
        text = Path(trial.error_file).read_text(errors="replace")
    except (OSError, TypeError):
        text = ""
    if _MEMORY in text or "memory_threshold" in text:  # Ray's own words, where its kill met no call of ours.
        return "Ray ended its process, because its node was running out of host memory"
    if "node has died" in text or "its node" in text or "is unavailable" in text:
        return "the node that it ran on was lost, or cannot be reached"
    if "died" in text or not text:
        return "the Ray worker process that it ran in died"
    return f"Ray Tune failed: {text.strip().splitlines()[-1]}"


def _cause(error: BaseException) -> str:
    lines = [line.strip() for line in str(error.__cause__ or error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


# --- a memory kill is the failure of one trial --------------------------------------------------------------------


_MEMORY = "killed for host memory"


class _KilledForMemory(RayActorError):  # type: ignore[misc]
    """An actor that Ray's memory monitor has killed, as Tune can handle it."""


@contextlib.contextmanager
def _memory_kills_are_failures() -> Iterator[None]:
    """Have Tune handle a memory kill as the death of one actor.

    In Ray 2.60 the manager of Tune's actors knows two kinds of exceptions and ends the run at any other;
    OutOfMemoryError is another.
    """
    try:
        from ray.air.execution._internal.actor_manager import RayActorManager

        original = RayActorManager._actor_task_failed
    except (ImportError, AttributeError):  # Another Ray; then a memory kill costs all that runs.
        yield
        return

    def translated(self: Any, tracked_actor_task: Any, exception: Exception) -> Any:
        if isinstance(exception, OutOfMemoryError):
            exception = _KilledForMemory(error_msg=f"{_MEMORY}: {exception}")
        return original(self, tracked_actor_task, exception)

    RayActorManager._actor_task_failed = translated
    try:
        yield
    finally:
        RayActorManager._actor_task_failed = original

"""Who runs trials: an engine is where, a pool is how. The strategy decides; a pool only runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from ..core.probe_results import Attempt, DeviceInfo, ProbeResult
from ..core.trials import Facts, TrialReport, TrialSpec, Verdict

LossCause = Literal["oom", "killed", "crashed", "hung", "error", "no_report"]


@dataclass(frozen=True)
class Finished:
    """A run has come to its end: to the planned one, or to where it was told to stop."""

    number: int
    samples: int
    """Training samples at its end, with those of the run that it continues."""
    seconds: float
    peak_bytes: int | None = None
    checkpoint: str | None = None
    """The checkpoint that it wrote, if it did."""


@dataclass(frozen=True)
class Lost:
    """A run has ended without an answer. That is a result too, with a cause."""

    number: int
    cause: LossCause
    message: str
    samples: int = 0
    seconds: float = 0.0
    peak_bytes: int | None = None
    error_type: str | None = None
    """Qualified name of the user's exception."""
    traceback: str | None = None
    output: str | None = None
    """The last lines that the user's code printed."""


@dataclass(frozen=True)
class Reported:
    """A run waits for a verdict on its report: answer with `pool.reply`."""

    report: TrialReport


@dataclass(frozen=True)
class Placed:
    """A run that had to wait for a place has one, and begins."""

    number: int
    device: str | None
    """The kind of device, where there are several: its split is the one that is taken."""
    micro_batch_size: int
    accumulation_steps: int


Event = Reported | Finished | Lost | Placed


class Pool(Protocol):
    """Runs trials, each in a separate process."""

    places: bool
    """A run that was submitted may have to wait for its place; `Placed` says when it begins."""

    @property
    def slots(self) -> int:
        """Trials that can run side by side now."""

    def submit(self, spec: TrialSpec) -> None:
        """Start a run in a free slot."""

    def events(self, timeout_s: float) -> Iterator[Event]:
        """Yield what has happened, waiting at most this long for the first."""

    def reply(self, number: int, verdict: Verdict) -> None:
        """Let a reporting run go on, or stop it."""

    def cancel(self, number: int) -> None:
        """End a run at once; it has no more events."""

    def close(self) -> None:
        """End everything that runs and leave nothing behind."""


class Engine(Protocol):
    """Where the trials of one objective run, as a search asks of it."""

    @property
    def facts(self) -> Facts:
        """What the objective is.

        Raises:
            ObjectiveError: It cannot be loaded or built.
        """

    @property
    def device_info(self) -> DeviceInfo:
        """The device that trials run on; where there are several kinds, the first."""

    @property
    def kinds(self) -> Mapping[str, DeviceInfo]:
        """The kinds of device by name, each with a probe of its own; empty where there can be only one."""

    @property
    def warnings(self) -> Sequence[str]:
        """What the user should know of how the device was chosen."""

    @property
    def jobs(self) -> int:
        """Trials that can run side by side."""

    @property
    def can_probe(self) -> bool:
        """Whether sizes can be tried here: they need a process each."""

    @property
    def chooses_threads(self) -> bool:
        """Whether the number of CPU threads of a trial is open, so that a probe may choose it."""

    def use_threads(self, threads: int) -> None:
        """Let trials have so many CPU threads; only where `chooses_threads`."""

    def run_probe(
        self,
        kind: str | None,
        *,
        timeout: float | None,
        seed: int,
        on_attempt: Callable[[Attempt], None],
        on_note: Callable[[str], None],
        max_batch: int | None = None,
    ) -> ProbeResult:
        """Probe the objective on a device of this kind; None: on the first.

        Args:
            kind: One of `kinds`.
            timeout: Seconds after which the best size so far is the answer.
            seed: Of model and data in each attempt.
            on_attempt: Called with each attempt when it has ended.
            on_note: Called with what was decided on the way, in words.
            max_batch: No larger micro-batch is of use; None: all that the data set has.
        """

    def share(
        self, probe: ProbeResult, *, seed: int, on_attempt: Callable[[Attempt], None]
    ) -> tuple[int, ProbeResult] | None:
        """Make room for as many trials side by side as have cores and memory.

        Returns:
            Their number and the probe as it is right for each of them; None where the number is not for bstune to
            choose.
        """

    def shares(self, folder: Path | None) -> bool:
        """Tell whether trials can leave checkpoints in a folder of this machine, for others to go on from."""

    def make_pool(
        self, decide: Callable[[TrialReport], Verdict], probe: ProbeResult | None, probes: Mapping[str, ProbeResult]
    ) -> Pool:
        """Return who runs the trials.

        Args:
            decide: Answers a report where there is no process that could wait for `Pool.reply`.
            probe: What a trial may take; None where nothing can be probed.
            probes: The same for each kind of device, where several were probed.
        """

    def close(self) -> None:
        """End all that runs and leave nothing behind."""

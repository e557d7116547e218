"""What travels between the host and its workers: jobs on the way out, answers on the way back.

Everything here is plain data. `messages.py` turns it into text and back; nothing of it is ever written to disk.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..core.examination import ExamineSpec
from ..core.probe_results import Outcome
from ..core.trials import MeasureNotes, MeasureSpec, TrialSpec, Verdict
from ..device.meter import Reading

if TYPE_CHECKING:
    from ..memory.trace import Trace


LOADING = "BSTUNE_LOADING"
"""Set to its process ID in a process that loads a user's file."""


@dataclass(frozen=True)
class Pickled:
    """An objective that was pickled elsewhere, for a template process to unpickle."""

    data: bytes
    kind: str | None = None
    """That of the objective, where it has one before it is loaded."""


# --- between the host and a template ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Hello:
    """The first message to a template process: how to be like the caller, and what to load."""

    sys_path: tuple[str, ...]
    environment: dict[str, str]
    """The caller's, restored in each worker after the template has loaded with one thread."""
    payload_bytes: int
    """Length of the pickled objective, which is read from a separate descriptor."""
    may_fork: bool
    trains_here: bool
    """The objective trains in the worker processes, so they load torch."""


@dataclass(frozen=True)
class Ready:
    """The template has loaded the objective."""

    fork_safe: bool
    fork_unsafe_because: str | None
    torch_cuda: str | None


@dataclass(frozen=True)
class Start:
    """Do a job in a forked process, or in the template, which ends with it.

    Two descriptors follow: socket and log.
    """

    job: Job
    fork: bool


@dataclass(frozen=True)
class Kill:
    """End a process that was forked."""

    pid: int


@dataclass(frozen=True)
class Started:
    """A process was forked."""

    pid: int


@dataclass(frozen=True)
class Exited:
    """A process that was forked has ended, and all that it started with it."""

    pid: int
    code: int
    """Negative: the signal that ended it."""


# --- jobs -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Describe:
    """Say what the objective is."""

    batch_sizes: tuple[int, ...] | None = None
    """Global batch sizes that a search names: an objective may know their step times. None: there is no search."""
    params: tuple[dict[str, Any], ...] = ()
    """Values of extra dimensions with which model and optimizer must be able to be built."""


@dataclass(frozen=True)
class TryCuda:
    """Find out whether the card works."""

    device: str


@dataclass(frozen=True)
class Measure:
    """Run a few steps of one size and measure them."""

    spec: MeasureSpec
    traced: bool = False
    """Also record what is allocated, so that other sizes can be foreseen. The steps take longer."""


@dataclass(frozen=True)
class Train:
    """Run one trial."""

    spec: TrialSpec


@dataclass(frozen=True)
class Examine:
    """Train a setting and look at the model on the way."""

    spec: ExamineSpec


Work = Describe | TryCuda | Measure | Train | Examine


@dataclass(frozen=True)
class Job:
    """A piece of work with what the process needs to know around it."""

    work: Work
    device: str
    threads: int
    fence_bytes: int | None
    """On CPU: how much private memory the process may take beyond what it starts with. On CUDA: of the card."""


@dataclass(frozen=True)
class Judged:
    """The verdict on a report."""

    verdict: Verdict


# --- answers ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measured:
    """A measurement that came to its end."""

    reading: Reading
    notes: MeasureNotes
    trace: Trace | None = None


@dataclass(frozen=True)
class Trained:
    """A trial that came to its end, or was told to stop."""

    samples: int
    seconds: float
    peak_bytes: int | None
    checkpoint: str | None


@dataclass(frozen=True)
class Failure:
    """User code raised, as plain text: the exception itself might not travel."""

    outcome: Outcome
    error_type: str
    message: str
    traceback: str
    ours: bool
    """Raised by bstune on purpose (an ObjectiveError or DeviceError), so the message says it all."""
    reading: Reading | None = None
    samples: int = 0
    seconds: float = 0.0


Answer = Any
"""Facts, CudaFacts, Measured, Trained, TrialReport, Examined or Failure."""

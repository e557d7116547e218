"""What the end of a command means: by its exit code and its last words."""

from __future__ import annotations

import re
import signal
from pathlib import Path

from ..tuner.core.errors import ObjectiveError
from ..tuner.core.probe_results import Outcome
from ..tuner.core.terminal_text import as_shown
from ..tuner.device.out_of_memory import classify_exit, first_line
from .command_run import CommandRun
from .metric_lines import READY_MADE

_SAID_WHY = re.compile(r"^(?:\[\w+\]:\s*)?(?:\w+\.)*\w*(?:Error|Exception|Interrupt|Exit)\b.*$", re.MULTILINE)

_RANK_KILLED = re.compile(r"^\s*exitcode\s*:\s*-9\b", re.MULTILINE)
"""What torchrun says of a rank that was killed."""
_BECAUSE_OF_OTHERS = re.compile(r"ChildFailedError|Connection (?:closed|reset) by peer")
"""In errors that a rank, or torchrun, has because another rank has failed."""


class CommandError(ObjectiveError):
    """The user's command failed.

    Attributes:
        outcome: What that means, by its exit code and its last words: `oom`, `limit` or `error`.
    """

    def __init__(self, message: str, outcome: Outcome, *, output: str | None = None) -> None:
        """Keep what it means."""
        super().__init__(message, output=output)
        self.outcome = outcome


def exit_code(run: CommandRun) -> int:
    """Return the exit code of a command that has ended; under torchrun a rank that was killed counts for all."""
    assert run.code is not None
    tail = run.log.tail()
    killed = run.code == 1 and _RANK_KILLED.search(tail) and classify_exit(run.code, tail) == "error"
    return -signal.SIGKILL if killed else run.code


def failed(run: CommandRun) -> CommandError:
    """Return the error for a command that ended with a code other than 0."""
    code, tail = exit_code(run), as_shown(run.log.tail())
    whys = _SAID_WHY.findall(tail)
    whys = [why for why in whys if not _BECAUSE_OF_OTHERS.search(why)] or whys
    last = whys[-1] if whys else next((line for line in reversed(tail.splitlines()) if line.strip(" =-")), "")
    name = signal.Signals(-code).name if -code in set(signal.Signals) else None
    how = f"was ended by {name}" if name else f"ended with exit code {code}"
    said = f": {first_line(last)}" if last.strip() else ""
    return CommandError(f"the command {how}{said}{_shadowed(tail)}", classify_exit(code, tail))


def _shadowed(tail: str) -> str:
    """Name the file that a script has imported in place of this package, where there is one."""
    found = re.search(r"module 'bstune' (?:\(consider renaming '([^']+)'|from '([^']+)'|has no attribute)", tail)
    beside = [Path(path).parent / "bstune.py" for path in re.findall(r'File "([^"]+\.py)"', tail)]
    path = next((path for path in (*beside, Path("bstune.py")) if path.is_file()), None)
    if found is None or path is None:
        return ""
    return f". The script has imported the file {path} in place of the package bstune: rename that file"


def no_metric(metric: str | None, how: str = "The command ended (exit code 0)") -> str:
    """Return what to say of a command that has done its part, and told no loss."""
    looked = f"what matches {metric!r}" if metric is not None else f"the ready-made patterns ({', '.join(READY_MADE)})"
    return (
        f"{how} without a validation loss: looked in all that it printed for {looked}. Say "
        r"how it prints it, such as --metric 'val_loss=([\d.eE+-]+)', or add bstune.report(val_loss=..., samples=...) "
        "to the script. What goes to TensorBoard or W&B alone is not seen, and a loss is wanted at each epoch: the "
        "Trainer of Transformers validates, and prints it, with --eval_strategy epoch."
    )

"""What can go wrong, as a tree of exceptions.

BstuneError
├── ArgumentError      an argument is wrong on its face (also a ValueError)
├── ObjectiveError     the user's code or file is at fault; carries its traceback
├── NothingFitsError   even the smallest micro-batch needs more memory than there is
├── DeviceError        the device is absent, unsupported or lost
├── StudyError         the storage, its lock, or settings that do not belong to the study
└── NoSignalError      nothing was learned in any trial

`TrialPruned` stands apart: it is how a training loop is told to stop, and no error.
"""

from __future__ import annotations


class BstuneError(Exception):
    """Something that bstune can name: what happened, what was expected, what to do."""


class ArgumentError(BstuneError, ValueError):
    """One or more arguments are wrong on their face; the message lists all of them."""


class ObjectiveError(BstuneError):
    """The user's code or file is at fault.

    Attributes:
        traceback: The user's own traceback as text, or None when there is none to show.
        output: The last lines that the user's code printed, or None.
    """

    def __init__(self, message: str, *, traceback: str | None = None, output: str | None = None) -> None:
        """Keep the traceback and the printed output beside the message."""
        super().__init__(message)
        self.traceback = traceback
        self.output = output


class NothingFitsError(BstuneError):
    """The smallest allowed micro-batch does not fit.

    Attributes:
        needed_bytes: What the smallest size was seen to need; a lower bound where it failed before its peak.
        budget_bytes: What it was allowed to take.
    """

    def __init__(self, message: str, *, needed_bytes: int | None, budget_bytes: int) -> None:
        """Keep both numbers beside the message."""
        super().__init__(message)
        self.needed_bytes = needed_bytes
        self.budget_bytes = budget_bytes


class DeviceError(BstuneError):
    """The device is absent, unsupported, refused or lost."""


class StudyError(BstuneError):
    """The storage cannot be used, is in use, or holds a study of other settings."""


class NoSignalError(BstuneError):
    """No trial ended with a finite validation loss, so there is nothing to recommend."""


class TrialPruned(Exception):  # The word that Optuna's users know for this signal.
    """Raised by `trial.report` when the trial is to stop; let it pass, or clean up and return."""


OURS = frozenset(name for name, kind in globals().items() if isinstance(kind, type) and issubclass(kind, BstuneError))


def in_words(error_type: str, message: str) -> str:
    """Return an error as a sentence: with the name of its class, unless it is one of ours, which says all itself.

    Example:
        >>> in_words("ValueError", "no rows"), in_words("ObjectiveError", "model() returned nothing.")
        ('ValueError: no rows', 'model() returned nothing.')
    """
    return message if error_type in OURS else f"{error_type}: {message}"

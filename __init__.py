"""bstune: which batch size and which learning rate?

The front door: everything a user needs is re-exported here, and nothing is imported until it is used, so that
`import bstune` costs milliseconds and loads neither torch nor Optuna.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .objectives.base import Trial as Trial
    from .objectives.load import load as load
    from .objectives.loop import objective as objective
    from .objectives.supervised import Supervised as Supervised
    from .tuner.errors import ArgumentError as ArgumentError
    from .tuner.errors import BstuneError as BstuneError
    from .tuner.errors import DeviceError as DeviceError
    from .tuner.errors import NoSignalError as NoSignalError
    from .tuner.errors import NothingFitsError as NothingFitsError
    from .tuner.errors import ObjectiveError as ObjectiveError
    from .tuner.errors import StudyError as StudyError
    from .tuner.errors import TrialPruned as TrialPruned
    from .tuner.outlook import PlanResult as PlanResult
    from .tuner.outlook import plan as plan
    from .tuner.probe import probe as probe
    from .tuner.results import ProbeResult as ProbeResult
    from .tuner.results import Recommendation as Recommendation
    from .tuner.results import SearchResult as SearchResult
    from .tuner.search import search as search

_HOME = {
    "ArgumentError": "tuner.errors",
    "BstuneError": "tuner.errors",
    "DeviceError": "tuner.errors",
    "NoSignalError": "tuner.errors",
    "NothingFitsError": "tuner.errors",
    "ObjectiveError": "tuner.errors",
    "PlanResult": "tuner.outlook",
    "ProbeResult": "tuner.results",
    "Recommendation": "tuner.results",
    "SearchResult": "tuner.results",
    "StudyError": "tuner.errors",
    "Supervised": "objectives.supervised",
    "Trial": "objectives.base",
    "TrialPruned": "tuner.errors",
    "load": "objectives.load",
    "objective": "objectives.loop",
    "plan": "tuner.outlook",
    "probe": "tuner.probe",
    "search": "tuner.search",
}

__all__ = [*_HOME, "__version__"]  # noqa: PLE0604 RUF100  # The names are the keys above.


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'bstune' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)

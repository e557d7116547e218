"""bstune: which batch size and which learning rate?

The front door: everything a user needs is re-exported here, and nothing is imported until it is used, so that
`import bstune` costs milliseconds and loads neither torch nor Optuna.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .tuner.core.pictures import drawn_by as _drawn_by
from .tuner.core.version import __version__ as __version__

if TYPE_CHECKING:
    from .objectives.base import Trial as Trial
    from .objectives.command import Command as Command
    from .objectives.load import load as load
    from .objectives.loop import objective as objective
    from .objectives.reporting import report as report
    from .objectives.supervised import Supervised as Supervised
    from .objectives.token_batches import TokenBatches as TokenBatches
    from .tuner.batch_ramp import BatchRamp as BatchRamp
    from .tuner.connect import connect as connect
    from .tuner.core.diagnosis import Diagnosis as Diagnosis
    from .tuner.core.diagnosis import Finding as Finding
    from .tuner.core.dimension import When as When
    from .tuner.core.errors import ArgumentError as ArgumentError
    from .tuner.core.errors import BstuneError as BstuneError
    from .tuner.core.errors import DeviceError as DeviceError
    from .tuner.core.errors import NoSignalError as NoSignalError
    from .tuner.core.errors import NothingFitsError as NothingFitsError
    from .tuner.core.errors import ObjectiveError as ObjectiveError
    from .tuner.core.errors import StudyError as StudyError
    from .tuner.core.errors import TrialPruned as TrialPruned
    from .tuner.core.probe_results import PlanResult as PlanResult
    from .tuner.core.probe_results import ProbeResult as ProbeResult
    from .tuner.core.results import Recommendation as Recommendation
    from .tuner.core.results import SearchResult as SearchResult
    from .tuner.core.take_home import RampForecast as RampForecast
    from .tuner.core.take_home import Scaled as Scaled
    from .tuner.core.take_home import TrainResult as TrainResult
    from .tuner.diagnose import diagnose as diagnose
    from .tuner.integrations.pruner import Pruner as Pruner
    from .tuner.integrations.sampler import Sampler as Sampler
    from .tuner.plan import plan as plan
    from .tuner.probe import probe as probe
    from .tuner.scale import scale as scale
    from .tuner.search import search as search
    from .tuner.theory.scaling import split as split
    from .tuner.train import train as train

_HOME = {
    "ArgumentError": "tuner.core.errors",
    "BatchRamp": "tuner.batch_ramp",
    "BstuneError": "tuner.core.errors",
    "Command": "objectives.command",
    "DeviceError": "tuner.core.errors",
    "Diagnosis": "tuner.core.diagnosis",
    "Finding": "tuner.core.diagnosis",
    "NoSignalError": "tuner.core.errors",
    "NothingFitsError": "tuner.core.errors",
    "ObjectiveError": "tuner.core.errors",
    "PlanResult": "tuner.core.probe_results",
    "ProbeResult": "tuner.core.probe_results",
    "Pruner": "tuner.integrations.pruner",
    "RampForecast": "tuner.core.take_home",
    "Recommendation": "tuner.core.results",
    "Sampler": "tuner.integrations.sampler",
    "Scaled": "tuner.core.take_home",
    "SearchResult": "tuner.core.results",
    "StudyError": "tuner.core.errors",
    "Supervised": "objectives.supervised",
    "TokenBatches": "objectives.token_batches",
    "TrainResult": "tuner.core.take_home",
    "Trial": "objectives.base",
    "TrialPruned": "tuner.core.errors",
    "When": "tuner.core.dimension",
    "connect": "tuner.connect",
    "diagnose": "tuner.diagnose",
    "load": "objectives.load",
    "objective": "objectives.loop",
    "plan": "tuner.plan",
    "probe": "tuner.probe",
    "report": "objectives.reporting",
    "scale": "tuner.scale",
    "search": "tuner.search",
    "split": "tuner.theory.scaling",
    "train": "tuner.train",
}

__all__ = [*_HOME, "__version__"]  # noqa: PLE0604 RUF100  # The names are the keys above.


def _pictures() -> Any:
    from importlib import import_module

    return import_module(".tuner.report.pictures", __name__)


_drawn_by(_pictures)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'bstune' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)

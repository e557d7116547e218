"""What a report tells of one study; nothing in it is trusted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..core.diagnosis import Finding
from ..core.plain_text import one_line
from ..core.probe_results import DeviceInfo, ProbeResult
from ..core.results import SearchResult
from ..core.trial_record import TrialRecord

if TYPE_CHECKING:
    from ..core.trials import Facts


@dataclass(frozen=True)
class Told:
    """What a report tells of one study."""

    study: str
    storage: str
    headline: str
    records: tuple[TrialRecord, ...]
    probe: ProbeResult | None = None
    result: SearchResult | None = None
    facts: Facts | None = None
    command: str | None = None
    """What started the search."""
    date: str | None = None
    findings: tuple[Finding, ...] = ()
    """Claims about batch size and learning rate, as far as the study can tell."""


def device_text(told: Told) -> str:
    """Return the device of a study and its threads; nothing where none is known."""
    return "" if told.probe is None else device_name(told.probe.device)


def device_name(device: DeviceInfo) -> str:
    """Return a device as a short text.

    Example:
        >>> device_name(DeviceInfo("cpu", "AMD EPYC", threads=1))
        'AMD EPYC, 1 thread'
    """
    threads = ""
    if device.threads is not None and device.kind == "cpu":
        threads = f", {device.threads} thread{'' if device.threads == 1 else 's'}"
    return f"{one_line(device.name, 120)}{threads}"

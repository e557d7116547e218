"""Findings that a study keeps, and what a report tells of them: what the record says now, what was measured once."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from typing import Any

from ..core.diagnosis import Finding
from ..core.errors import BstuneError
from ..studies.catalog import same_probe
from ..studies.study import Study
from .claims import CLAIMS, judged
from .known import Known


def kept_findings(study: Study) -> tuple[Finding, ...]:
    """Return the findings that a study keeps; none where there are none, or none that can be read."""
    kept = study.attributes.get("diagnosis", ())
    with contextlib.suppress(BstuneError, TypeError):
        return tuple(Finding.from_dict(each) for each in kept)
    return ()


def keep(study: Study, findings: Iterable[Finding], measured: Iterable[str] = (), by: Mapping[str, Any] = {}) -> None:
    """Store findings beside those of earlier calls; of two with one name the newer is kept.

    Args:
        study: Where they are stored.
        findings: What was found anew.
        measured: Names of those that rest on measurements of this call.
        by: What these measurements depend on.
    """
    whole = {finding.name: finding for finding in kept_findings(study)}
    marks = dict(study.attributes.get("measured_by", {}))
    for finding in findings:
        whole[finding.name] = finding
        marks.pop(finding.name, None)
    marks.update({name: dict(by) for name in measured})
    ordered = [whole[claim.name].to_dict() for claim in CLAIMS if claim.name in whole]
    study.set(diagnosis=ordered, measured_by=marks)


def measured_before(study: Study, by: Mapping[str, Any]) -> dict[str, Finding]:
    """Return by name the findings whose measurements an earlier call has made, and would be made alike today.

    Args:
        study: Where they are stored.
        by: What measurements depend on today, as `probe_key` tells it and more.
    """
    marks = study.attributes.get("measured_by", {})
    return {each.name: each for each in kept_findings(study) if same_probe(marks.get(each.name), by)}


def findings_of(known: Known, kept: tuple[Finding, ...]) -> tuple[Finding, ...]:
    """Return all findings: from the record as it is now, and where that needs a measurement, as it was kept."""
    measured = {finding.name: finding for finding in kept}
    needs = {claim.name for claim in CLAIMS if claim.measurement is not None}
    return tuple(
        measured.get(finding.name, finding) if finding.name in needs else finding for finding in judged(CLAIMS, known)
    )

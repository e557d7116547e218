"""Findings that a study keeps, and what a report tells of them: what the record says now, what was measured once."""

from __future__ import annotations

import contextlib

from ..core.diagnosis import Finding
from ..core.errors import BstuneError
from ..studies.study import Study
from .claims import CLAIMS, judged
from .known import Known


def kept_findings(study: Study) -> tuple[Finding, ...]:
    """Return the findings that a study keeps; none where there are none, or none that can be read."""
    kept = study.attributes.get("diagnosis", ())
    with contextlib.suppress(BstuneError, TypeError):
        return tuple(Finding.from_dict(each) for each in kept)
    return ()


def keep(study: Study, findings: tuple[Finding, ...]) -> None:
    """Store findings beside those of earlier calls; of two with one name the newer is kept."""
    names = {finding.name for finding in findings}
    whole = (*(finding for finding in kept_findings(study) if finding.name not in names), *findings)
    study.set(diagnosis=[finding.to_dict() for finding in whole])


def findings_of(known: Known, kept: tuple[Finding, ...]) -> tuple[Finding, ...]:
    """Return all findings: from the record as it is now, and where that needs a measurement, as it was kept."""
    measured = {finding.name: finding for finding in kept}
    needs = {claim.name for claim in CLAIMS if claim.measurement is not None}
    return tuple(
        measured.get(finding.name, finding) if finding.name in needs else finding for finding in judged(CLAIMS, known)
    )

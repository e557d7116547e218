"""Findings that a study keeps, which of them need not be measured again, and what a report tells of them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from ..core.diagnosis import Finding
from ..core.errors import BstuneError
from ..studies.catalog import same_probe
from ..studies.study import Study
from .claims import CLAIMS, Claim, judged, measurements_of
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


def _measured_before(study: Study, by: Mapping[str, Any]) -> dict[str, Finding]:
    """Return by name the findings whose measurements an earlier call has made, and would be made alike today."""
    marks = study.attributes.get("measured_by", {})
    return {each.name: each for each in kept_findings(study) if same_probe(marks.get(each.name), by)}


class MeasuredClaims:
    """The claims that take a measurement: those that an earlier call has measured, and those that are to be now.

    Attributes:
        reused: By name, the findings of an earlier call.
        wanted: The measurements that the others need.
    """

    def __init__(self, study: Study, claims: Iterable[Claim], by: Mapping[str, Any], *, fresh: bool) -> None:
        """Take over what a study keeps.

        Args:
            study: Where findings are stored.
            claims: Those that take a measurement.
            by: What measurements depend on today, as `probe_key` tells it and more.
            fresh: Nothing is taken over.
        """
        claims = list(claims)
        before = {} if fresh else _measured_before(study, by)
        self.reused = {claim.name: replace(before[claim.name], cost_s=0.0) for claim in claims if claim.name in before}
        self._new = [claim for claim in claims if claim.name not in self.reused]
        self.wanted = measurements_of(self._new)
        self._study, self._by = study, by

    def save(self, known: Known) -> None:
        """Store what the measurements that were made have found, so that it can be taken over."""
        done = {look.measurement for look in known.looks if look.failed is None} - set(known.unmeasured)
        told = [claim for claim in self._new if claim.measurement in done]
        keep(self._study, judged(told, known), [claim.name for claim in told], self._by)

    def left_out(self, known: Known) -> tuple[str, ...]:
        """Return the names of the claims whose measurements the budget did not allow."""
        return tuple(claim.name for claim in self._new if claim.measurement in known.prices)

    def among(self, findings: Iterable[Finding]) -> tuple[Finding, ...]:
        """Return findings with those of the earlier call in their places."""
        return tuple(self.reused.get(finding.name, finding) for finding in findings)


def findings_of(known: Known, kept: tuple[Finding, ...]) -> tuple[Finding, ...]:
    """Return all findings: from the record as it is now, and where that needs a measurement, as it was kept."""
    measured = {finding.name: finding for finding in kept}
    needs = {claim.name for claim in CLAIMS if claim.measurement is not None}
    return tuple(
        measured.get(finding.name, finding) if finding.name in needs else finding for finding in judged(CLAIMS, known)
    )

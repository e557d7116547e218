"""What a study has found: the strategy that goes on from it, and the result."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..core.errors import NoSignalError
from ..core.probe_results import ProbeResult
from ..core.results import SearchResult
from ..core.specs import Plan
from ..core.trials import Facts
from ..core.version import versions
from ..studies.spec_json import decode_facts, decode_learned, decode_plan
from ..studies.study import Study, intact
from .probes import corrected_probes

if TYPE_CHECKING:
    from ..strategy.strategy import Strategy


def make_strategy(plan: Plan, facts: Facts, probe: ProbeResult | None, study: Study) -> Strategy:
    """Return a strategy that goes on from the finished trials of the study."""
    from ..strategy.strategy import Strategy

    current, probes = corrected_probes(probe, study.probes, study.finished, facts)
    with intact(study.name):
        learned = decode_learned(study.attributes.get("learned"))
    return Strategy(plan, facts, current, study.finished, probes, learned)


def stored_strategy(study: Study) -> Strategy:
    """Return a strategy that goes on from all that a study with a search stores."""
    with intact(study.name):
        plan, facts = decode_plan(study.attributes["plan"]), decode_facts(study.attributes["facts"])
    return make_strategy(plan, facts, study.probe, study)


def make_result(study: Study, strategy: Strategy, probe: ProbeResult | None, stopped_by: str) -> SearchResult:
    """Return what a study has found so far.

    Raises:
        NoSignalError: No trial has a finite validation loss.
    """
    importance, no_importance = strategy.importance()
    return SearchResult(
        recommendation=strategy.recommend(),
        probe=probe,
        records=study.records,
        spent=strategy.spent(),
        stopped_by=stopped_by,
        target=strategy.target,
        limits=strategy.limits(),
        study=study.name,
        storage=study.storage.location.url,
        versions=versions(),
        goal=strategy.plan.goal,
        batch_answer=strategy.batch_answer(),
        probes=study.probes,
        importance=importance,
        no_importance=no_importance,
        target_source=strategy.target_source,
    )


def result_so_far(study: Study, strategy: Strategy, stopped_by: str = "interrupted") -> SearchResult | None:
    """Return what a study has found so far; None where no trial has a finite validation loss."""
    try:
        return make_result(study, strategy, study.probe, stopped_by)
    except NoSignalError:
        return None

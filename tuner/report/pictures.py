"""What results show of themselves: charts and HTML for notebooks. The front door tells `core` of this module."""

from __future__ import annotations

import warnings
from typing import Any

from ..core.errors import BstuneError
from ..core.probe_results import ProbeResult
from ..core.results import SearchResult
from .charts.curves import curves
from .charts.frame import WIDTH, require_charts, standalone
from .charts.landscape import landscape
from .charts.probe_lines import memory, throughput
from .charts.settings import frontier
from .diagnosis_text import diagnosis_html, diagnosis_text
from .notebook import probe_html, recommendation_html, search_html
from .page_told import device_name

__all__ = [
    "diagnosis_html",
    "diagnosis_text",
    "plot_curves",
    "plot_frontier",
    "plot_landscape",
    "plot_probe",
    "probe_html",
    "recommendation_html",
    "search_html",
]


def plot_landscape(result: SearchResult) -> Any:
    """Return batch size by learning rate, with the loss as colour, as an Altair chart.

    Raises:
        BstuneError: The extra `report` is missing, or there is nothing to draw.
    """
    require_charts()
    chart = _drawn(landscape(result.records, result, alone=True), "no trial has a loss yet")
    return standalone(chart.properties(width=WIDTH + 100))


def plot_curves(result: SearchResult) -> Any:
    """Return the learning curves by samples and by seconds; a click picks a trial in both.

    Raises:
        BstuneError: The extra `report` is missing, or there is nothing to draw.
    """
    require_charts()
    import altair

    by_samples = _drawn(
        curves(result.records, result.probe, result=result, alone=True), "no trial has reported a loss yet"
    )
    by_seconds = curves(result.records, result.probe, "seconds", result=result, alone=True)
    shown = [chart.properties(width=WIDTH) for chart in (by_samples, by_seconds) if chart is not None]
    with warnings.catch_warnings():  # Altair warns that the two share what is picked; they should.
        warnings.filterwarnings("ignore", message="Automatically deduplicated")
        return standalone(altair.hconcat(*shown))


def plot_frontier(result: SearchResult) -> Any:
    """Return loss against seconds of a full run, with the settings that nothing beats joined.

    Raises:
        BstuneError: The extra `report` is missing, or there is nothing to draw.
    """
    require_charts()
    chart = _drawn(frontier(result), "no trial has been run to the end with a known step time")
    return standalone(chart.properties(width=WIDTH + 100))


def plot_probe(probe: ProbeResult) -> Any:
    """Return peak memory against the budget, and throughput, side by side.

    Raises:
        BstuneError: The extra `report` is missing, or there is nothing to draw.
    """
    require_charts()
    import altair

    shown = [
        chart.properties(width=WIDTH - 60, title=title)
        for chart, title in ((memory(probe), "Memory"), (throughput(probe), "Throughput"))
        if chart is not None
    ]
    _drawn(shown or None, "nothing was measured")
    title = f"{device_name(probe.device)}: micro-batches of up to {probe.micro_batch_size} samples fit"
    return standalone(altair.hconcat(*shown).resolve_scale(color="independent"), title)


def _drawn(chart: Any, why_not: str) -> Any:
    if chart is None:
        raise BstuneError(f"There is nothing to draw: {why_not}.")
    return chart

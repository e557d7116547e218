"""The learning curves of a study as a picture of plain SVG, which a page can take in as it is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from ..core.trial_record import TrialRecord
from ..report.units import number, setting_text

WIDTH, HEIGHT, EDGE = 720, 260, 6
MOST = 100
"""Curves that are drawn: the newest, and that of the best."""


def curves(records: Sequence[TrialRecord], best: TrialRecord | None) -> str:
    """Return the losses of trials by samples, on a scale of logarithms where all are above 0; "" where there are none.

    `best` stands out, and so does what runs.
    """
    shown = list(records)[-MOST:]
    if best is not None and best not in shown:
        shown.append(best)
    drawn = [(record, curve) for record in shown if (curve := _curve(record))]
    if not drawn:
        return ""
    losses = [loss for _, curve in drawn for _, loss in curve]
    low, high, last = min(losses), max(losses), max(1, *(curve[-1][0] for _, curve in drawn))
    scale = math.log if low > 0 else float

    def place(samples: int, loss: float) -> str:
        share = (scale(high) - scale(loss)) / (scale(high) - scale(low)) if high > low else 0.5
        across, down = (WIDTH - 2 * EDGE) * samples / last, (HEIGHT - 2 * EDGE) * share
        return f"{EDGE + across:.1f},{EDGE + down:.1f}"

    lines = []
    for record, curve in sorted(drawn, key=lambda each: (each[0] is best, each[0].state == "running")):
        kind = "best" if record is best else "runs" if record.state == "running" else "ended"
        said = f"Trial {record.number}, {setting_text(record)}: {number(curve[-1][1])} at {curve[-1][0]} samples"
        places = " ".join(place(*each) for each in curve)
        # A mark of no length is a dot: also a curve of one point is seen.
        lines.append(f'<path class="{kind}" d="M{places} l0,0"><title>{escape(said)}</title></path>')
    scaled = "on a scale of logarithms, " if low > 0 else ""
    said = f"Loss from {number(high)} down to {number(low)}, {scaled}by samples up to {last}. Thick: the lowest."
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" preserveAspectRatio="none" role="img" aria-label="Curves of the trials">'
        f'<path class="axes" d="M1,1V{HEIGHT - 1}H{WIDTH - 1}"/>{"".join(lines)}</svg><p class="quiet">{said}</p>'
    )


def _curve(record: TrialRecord) -> list[tuple[int, float]]:
    return [(samples, loss) for samples, loss in record.values if loss is not None and math.isfinite(loss)]

"""The picture of a probe: `bstune probe --plot`."""

from __future__ import annotations

from pathlib import Path

from ..core.probe_results import ProbeResult
from .card import rendered
from .charts.frame import require_charts
from .output_file import check_output, write_output
from .pictures import plot_probe

_KINDS = (".png", ".svg", ".pdf")


def check_picture(path: Path) -> None:
    """Refuse a path that cannot be written or is another's file; it is better to know before the work.

    Raises:
        BstuneError: A package of the extra `report` is missing, or the file is not one to write to.
    """
    require_charts()
    check_output(path, _KINDS, "--plot", "probe.png")


def draw_probe(probe: ProbeResult, path: Path) -> None:
    """Draw the two lines of a probe: peak memory against the budget, and throughput with its knee.

    Raises:
        BstuneError: A package of the extra `report` is missing, the file cannot be written, or it is not bstune's own.
    """
    check_picture(path)
    write_output(path, rendered(plot_probe(probe), path.suffix.lower()[1:], scale=2.0), "--plot")

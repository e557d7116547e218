"""Pictures of results, drawn with matplotlib without a display."""

from __future__ import annotations

from pathlib import Path

from .errors import BstuneError
from .results import ProbeResult

GIB = 1 << 30


def require_matplotlib() -> None:
    """Raise a BstuneError unless matplotlib can be imported."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise BstuneError("A picture needs matplotlib, which is not installed: pip install 'bstune[plot]'.") from error


def draw_probe(probe: ProbeResult, path: Path) -> None:
    """Draw the two lines of a probe: peak memory against the budget, and throughput with its knee.

    Raises:
        BstuneError: matplotlib is missing, or the file cannot be written.
    """
    require_matplotlib()
    from matplotlib.figure import Figure  # Not pyplot: it would choose a display and keep the figure.

    figure = Figure(figsize=(10, 4), layout="constrained")
    memory, speed = figure.subplots(1, 2)
    for outcome, colour in (("ok", "tab:blue"), ("oom", "tab:red"), ("limit", "tab:orange")):
        tried = [attempt for attempt in probe.attempts if attempt.outcome == outcome and attempt.peak_bytes is not None]
        if tried:
            sizes, peaks = [attempt.size for attempt in tried], [(attempt.peak_bytes or 0) / GIB for attempt in tried]
            memory.plot(sizes, peaks, "o", color=colour, alpha=0.7, label=f"run: {outcome}")
    if probe.memory_line is not None:
        ends = [probe.micro_batch_size / 2, probe.micro_batch_size * 1.1]
        line = [(probe.memory_line.fixed_bytes + probe.memory_line.bytes_per_sample * size) / GIB for size in ends]
        memory.plot(ends, line, "-", color="tab:blue", label="line at the answer")
    memory.axhline(probe.budget_bytes / GIB, color="tab:red", linestyle="--", label="budget")
    memory.axvline(probe.micro_batch_size, color="grey", linestyle=":", label=f"answer: {probe.micro_batch_size}")
    memory.set(xlabel="micro-batch (samples)", ylabel="peak memory (GiB)", title=f"limited by {probe.limited_by}, proof {probe.proof}")
    memory.legend()
    sizes = [row.batch_size for row in probe.throughput]
    speed.plot(sizes, [row.samples_per_s for row in probe.throughput], "o", color="tab:green", label="measured")
    if probe.step_time_line is not None and sizes:
        grid = [sizes[0] * (sizes[-1] / sizes[0]) ** (i / 50) for i in range(51)]
        rates = [size / (probe.step_time_line.a_s + probe.step_time_line.c_s_per_sample * size) for size in grid]
        speed.plot(grid, rates, "-", color="tab:green", label="line t = a + c n")
    if probe.knee_batch_size is not None:
        speed.axvline(probe.knee_batch_size, color="grey", linestyle=":", label=f"knee: {probe.knee_batch_size}")
    speed.set(xscale="log", xlabel="micro-batch (samples)", ylabel="samples/s", ylim=(0, None), title=probe.device.name)
    if sizes:
        speed.legend()
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise BstuneError(f"The picture could not be written to {path}: {error}. Name a file such as probe.png.") from error

"""Pictures of results, drawn with matplotlib without a display."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.errors import ArgumentError, BstuneError
from ..core.plain_text import one_line
from ..core.probe_results import ProbeResult

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GIB = 1 << 30
MARK = "bstune probe --plot"
"""In the metadata of each picture: one that has it may be overwritten."""
_KINDS = {
    ".png": ("Software", b"\x89PNG\r\n", b"tEXtSoftware\0%s"),
    ".svg": ("Creator", b"<?xml", b"<dc:title>%s</dc:title>"),
    ".pdf": ("Creator", b"%PDF-", b"/Creator (%s)"),
}
"""By suffix: the field of the metadata for the mark, how such a file begins, and how matplotlib writes the field."""
_MOST_BYTES = 64 << 20


def check_picture(path: Path) -> None:
    """Refuse a path that cannot be written or is another's file; it is better to know before the work.

    Raises:
        BstuneError: matplotlib is missing, or the file is not one to write to.
    """
    require_matplotlib()
    if path.suffix.lower() not in _KINDS:
        raise ArgumentError(
            f"--plot {path}: no picture has this suffix. Name a file such as probe.png, probe.svg or probe.pdf."
        )
    folder = path.absolute().parent
    if not folder.is_dir():
        raise ArgumentError(f"--plot {path}: there is no folder {folder}.")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise BstuneError(f"--plot {path}: the folder {folder} cannot be written to.")
    if os.path.lexists(path) and not _is_ours(path):
        raise BstuneError(
            f"--plot {path}: something that bstune did not make has this name, and is left as it is. Name another file."
        )


def _is_ours(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return False
        with open(descriptor, "rb", closefd=False) as file:
            content = file.read(_MOST_BYTES)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    _, head, written = _KINDS[path.suffix.lower()]
    return content.startswith(head) and written % MARK.encode() in content


def require_matplotlib() -> None:
    """Raise a BstuneError unless matplotlib can be imported."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise BstuneError("A picture needs matplotlib, which is not installed: pip install 'bstune[plot]'.") from error


def draw_probe(probe: ProbeResult, path: Path) -> None:
    """Draw the two lines of a probe: peak memory against the budget, and throughput with its knee.

    Raises:
        BstuneError: matplotlib is missing, the file cannot be written, or it is not bstune's own.
    """
    check_picture(path)
    import matplotlib

    with matplotlib.rc_context(
        {"text.usetex": False}
    ):  # A file in the current folder may ask for it, and so for another program.
        figure = _figure(probe)
        try:
            _write(figure, path)
        except (OSError, ValueError) as error:
            raise BstuneError(
                f"The picture could not be written to {path}: {error}. Name another file, such as probe.png."
            ) from error


def _write(figure: Figure, path: Path) -> None:
    """Write a picture beside its place and then put it there, so that a file is never half a picture."""
    kind = path.suffix.lower()
    descriptor, name = tempfile.mkstemp(prefix=".bstune-plot-", dir=path.absolute().parent)
    beside = Path(name)
    try:
        with open(descriptor, "wb") as file:
            figure.savefig(file, format=kind[1:], metadata={_KINDS[kind][0]: MARK})
            umask = os.umask(0)
            os.umask(umask)
            os.fchmod(descriptor, 0o666 & ~umask)
        check_picture(path)  # Somebody may have put something there since.
        beside.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise


def _figure(probe: ProbeResult) -> Figure:
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
    memory.set(
        xlabel="micro-batch (samples)",
        ylabel="peak memory (GiB)",
        title=f"limited by {probe.limited_by}, proof {probe.proof}",
    )
    memory.legend()
    sizes = [row.batch_size for row in probe.throughput]
    speed.plot(sizes, [row.samples_per_s for row in probe.throughput], "o", color="tab:green", label="measured")
    if probe.step_time_line is not None and sizes:
        grid = [sizes[0] * (sizes[-1] / sizes[0]) ** (i / 50) for i in range(51)]
        rates = [size / (probe.step_time_line.a_s + probe.step_time_line.c_s_per_sample * size) for size in grid]
        speed.plot(grid, rates, "-", color="tab:green", label="line t = a + c n")
    if probe.knee_batch_size is not None:
        speed.axvline(probe.knee_batch_size, color="grey", linestyle=":", label=f"knee: {probe.knee_batch_size}")
    speed.set(xscale="log", xlabel="micro-batch (samples)", ylabel="samples/s", ylim=(0, None))
    speed.set_title(one_line(probe.device.name, 80), parse_math=False)
    if sizes:
        speed.legend()
    return figure

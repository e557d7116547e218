"""Pictures: what is overwritten, and what is left as it is."""

from __future__ import annotations

import dataclasses
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from bstune.cli import main
from bstune.tuner.core.errors import BstuneError
from bstune.tuner.core.probe_results import Attempt, DeviceInfo, ProbeResult, StepTimeLine, ThroughputRow
from bstune.tuner.report import plot
from bstune.tuner.report.card import rendered
from bstune.tuner.report.plot import check_picture, draw_probe
from click.testing import CliRunner

PROBE = ProbeResult(
    micro_batch_size=64,
    eval_batch_size=None,
    limited_by="memory",
    proof="bracket",
    capacity_bytes=8 << 30,
    usable_bytes=8 << 30,
    budget_bytes=7 << 30,
    peak_bytes=6 << 30,
    memory_line=None,
    memory_by_category=None,
    throughput=(ThroughputRow(8, 800.0, 0.01, 0.0), ThroughputRow(64, 3200.0, 0.02, 0.0)),
    step_time_line=StepTimeLine(0.0086, 0.00018, 48.0),
    attempts=(Attempt(8, "ok", 1 << 30, 1.0, 2),),
    device=DeviceInfo("cuda", "a card"),
    n_train_samples=1024,
)


@pytest.mark.parametrize(
    ("name", "head"),
    [("a.png", b"\x89PNG"), ("a.svg", b"<!-- bstune report -->"), ("a.pdf", b"%PDF-"), ("A.PNG", b"\x89PNG")],
)
def test_a_picture_of_our_own_is_drawn_anew(tmp_path: Path, name: str, head: bytes) -> None:
    """It has a mark, and the rights that any new file has; nothing else is left in the folder."""
    path = tmp_path / name
    before = os.umask(0o027)
    try:
        draw_probe(PROBE, path)
        first = path.read_bytes()
        draw_probe(dataclasses.replace(PROBE, micro_batch_size=32), path)
    finally:
        os.umask(before)
    assert first.startswith(head)
    assert path.read_bytes() != first
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert [found.name for found in tmp_path.iterdir()] == [name]


def theirs(folder: Path, kind: str) -> Path:
    """Something in the folder that bstune did not make, under the name of a picture."""
    path = folder / "a.png"
    if kind == "text":
        path.write_text("my thesis: bstune report")
    elif kind == "picture":
        draw_probe(PROBE, path)
        path.write_bytes(path.read_bytes().replace(b"bstune", b"others"))
    elif kind == "empty":
        path.touch()
    elif kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "link":
        draw_probe(PROBE, folder / "own.png")
        path.symlink_to("own.png")
    else:
        path.symlink_to("nowhere.png")
    return path


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", ["text", "picture", "empty", "folder", "pipe", "link", "dangling"])
def test_what_bstune_did_not_make_is_left_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """It is refused before the work begins: nothing was probed, and no storage was made."""
    path = theirs(tmp_path, kind)
    found = path.lstat()
    content = path.read_bytes() if path.is_file() else None
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BstuneError, match="did not make"):
        draw_probe(PROBE, path)
    result = CliRunner().invoke(main, ["probe", "no_such_model.py", "--plot", "a.png"])
    assert result.exit_code == (2 if kind == "folder" else 1)
    assert (
        "'a.png' is a directory" if kind == "folder" else "a.png: something that bstune did not make has this name"
    ) in result.stderr
    assert (path.lstat().st_ino, path.lstat().st_mtime_ns) == (found.st_ino, found.st_mtime_ns)
    assert content is None or path.read_bytes() == content
    assert {item.name for item in tmp_path.iterdir()} <= {"a.png", "own.png"}


@pytest.mark.parametrize("name", ["probe", "probe.xyz", "probe.jpg", "missing/probe.png"])
def test_a_name_that_cannot_be_drawn_to_is_wrong_usage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """It is said before the work."""
    monkeypatch.chdir(tmp_path)
    assert CliRunner().invoke(main, ["probe", "no_such_model.py", "--plot", name]).exit_code == 2
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_appears_during_the_work_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The place was free when the probe began."""

    def slow(*arguments: Any, **options: Any) -> bytes:
        (tmp_path / "a.png").write_text("put there meanwhile")
        return rendered(*arguments, **options)

    check_picture(tmp_path / "a.png")
    monkeypatch.setattr(plot, "rendered", slow)
    with pytest.raises(BstuneError, match="did not make"):
        draw_probe(PROBE, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_text() == "put there meanwhile"
    assert [found.name for found in tmp_path.iterdir()] == ["a.png"]


def test_the_name_of_a_device_is_text(tmp_path: Path) -> None:
    """It is no markup and no control character of an SVG."""
    from xml.etree import ElementTree

    for name, shown in (("<script>&", "<script>&"), ("a\x00\x1b\nb", r"a\x00\x1b b")):
        draw_probe(dataclasses.replace(PROBE, device=DeviceInfo("cuda", name)), tmp_path / "a.svg")
        said = "".join(ElementTree.parse(tmp_path / "a.svg").getroot().itertext())
        assert f"{shown}: micro-batches of up to 64 samples fit" in said

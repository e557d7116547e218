"""Runs of a user's script, whatever it does: a classified end, no process left, and never a wait for nothing."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import bstune
import psutil
import pytest
from bstune.objectives.command_line import places_in, words_of
from bstune.objectives.command_run import Log
from bstune.tests.objectives.small import run as train
from bstune.tests.objectives.small import spec_of
from bstune.tuner.core.command_words import filled
from bstune.tuner.core.trials import MeasureSpec, TrialReport, TrialSpec, Verdict
from bstune.tuner.device.memory import usable_cores
from bstune.tuner.engines.base import Event, Finished, Lost, Reported
from bstune.tuner.engines.local import LocalPool
from bstune.tuner.workers import messages
from bstune.tuner.workers.fork_server import Host

pytestmark = pytest.mark.cold_start
SCRIPT = r"""
import argparse, os, signal, subprocess, sys, time

parser = argparse.ArgumentParser()
parser.add_argument("--batch-size", type=int)
parser.add_argument("--lr", type=float)
parser.add_argument("--does", default="train")
args = parser.parse_args()
does = args.does


def epochs(first=1, last=4, text="epoch {} val_loss={:.4f}\n"):
    for epoch in range(first, last + 1):
        sys.stdout.write(text.format(epoch, 1 / (epoch + 1)))
        sys.stdout.flush()


if does == "garbage":
    sys.stdout.buffer.write(os.urandom(300_000).replace(b"\n", b"") + b"\n")
if does == "silent":
    sys.exit(0)
if does == "fails":
    epochs(1, 1)
    raise ValueError("boom")
if does == "memory":
    epochs(1, 2)
    raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB.")
if does == "killed":
    epochs(1, 1)
    os.kill(os.getpid(), signal.SIGKILL)
if does == "crashes":
    os.kill(os.getpid(), signal.SIGSEGV)
if does == "hangs":
    epochs(1, 1)
    time.sleep(600)
if does == "shadowed":
    open(os.path.join(os.path.dirname(__file__), "bstune.py"), "w").close()
    import bstune

    bstune.report(val_loss=1.0)
if does == "forks":
    for session in (False, True):
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=session)
if does == "much":
    line = b"step 1 loss 0.12345 " + b"x" * 80 + b"\n"
    for _ in range(10):
        sys.stdout.buffer.write(line * 100_000)
if does == "nan":
    epochs(1, 1)
    print("epoch 2 val_loss=nan", flush=True)
    time.sleep(600)
if does == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    epochs(1, 2)
    time.sleep(600)
if does == "asks":
    print(repr(sys.stdin.read()))
if does == "looks":
    with open(f"/proc/{os.getppid()}/maps") as worker:
        print("torch", "libtorch" in worker.read(), "threads", os.environ.get("OMP_NUM_THREADS"))
if does == "closes":
    epochs()
    os.close(1), os.close(2)
    time.sleep(0.3)
    os._exit(0)
if does == "bar":
    epochs(text="\r\x1b[32mepoch {0}:  50%|###  | \x1b[0m\r\x1b[32mepoch {0}: 100%|#####| val_loss={1:.4f}\x1b[0m")
elif does == "comma":
    for epoch in range(1, 5):
        print(f"epoch {epoch} val_loss={1 / (epoch + 1):.4f}".replace(".", ","))
elif does == "reports":
    import bstune

    for step in range(1, 6):
        bstune.report(val_loss=1 / step, samples=80 * step, accuracy=0.5)
else:
    epochs()
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The script, in a folder of its own."""
    path = tmp_path_factory.mktemp("script") / "train.py"
    path.write_text(SCRIPT)
    return path


def command_of(script: Path) -> bstune.Command:
    """The script as an objective, told what to do by a dimension of the space."""
    words = [sys.executable, str(script), "--batch-size={micro_batch_size}", "--lr", "{learning_rate}"]
    return bstune.Command([*words, "--does", "{does}"], samples_per_epoch=100, epochs=4)


@pytest.fixture(scope="module")
def host(script: Path) -> Iterator[Host]:
    """The processes for all runs of the script."""
    with Host(command_of(script), device="cpu") as started:
        yield started


def run(
    host: Host,
    does: str,
    *,
    verdict: Verdict = "go",
    silence_s: float = 60.0,
    log: Path | None = None,
    then: Callable[[TrialReport], None] = lambda _: None,
) -> tuple[list[TrialReport], Event | None]:
    """Run one trial of 400 samples; return its reports and its end, None where it was cancelled for its silence.

    That is `silence_s` after a report; before the first one it may have to wait for a core.
    """
    spec = TrialSpec(
        number=0,
        stage="search",
        global_batch_size=10,
        micro_batch_size=10,
        accumulation_steps=1,
        learning_rate=1e-5,
        seed=0,
        end_samples=400,
        points=(100, 200, 300, 400),
        params={"does": does},
        log_to=None if log is None else str(log),
    )
    pool = LocalPool(host)
    pool.submit(spec)
    reports: list[TrialReport] = []
    deadline_s = time.monotonic() + 60
    try:
        while time.monotonic() < deadline_s:
            for event in pool.events(0.2):
                if not isinstance(event, Reported):
                    return reports, event
                reports.append(event.report)
                pool.reply(0, verdict)
                then(event.report)
                deadline_s = min(deadline_s, time.monotonic() + silence_s)
        return reports, None
    finally:
        pool.close()


def below() -> list[psutil.Process]:
    """Return the processes below this one that run a program of the script's."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            line = process.cmdline()
        except psutil.Error:
            continue
        if any("train.py" in word or "time.sleep(600)" in word for word in line):
            found.append(process)
    return found


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    """After every run all processes of the script are gone, within the moment that the kernel takes."""
    yield
    deadline_s = time.monotonic() + 10
    while (left := below()) and time.monotonic() < deadline_s:
        time.sleep(0.02)
    assert left == []


@pytest.mark.parametrize("does", ["train", "garbage", "forks", "bar", "comma", "asks", "closes"])
def test_a_script_that_tells_its_losses_is_a_trial(host: Host, does: str) -> None:
    """Whatever else it prints, starts, reads or closes."""
    reports, end = run(host, does)

    assert [(report.samples, round(report.val_loss, 4)) for report in reports] == [
        (100, 0.5),
        (200, 0.3333),
        (300, 0.25),
        (400, 0.2),
    ]
    assert isinstance(end, Finished)
    assert end.samples == 400
    assert end.peak_bytes is None or end.peak_bytes > 0


def test_what_a_script_reports_itself_counts(host: Host) -> None:
    """At the samples that it names, with nothing printed at all."""
    reports, end = run(host, "reports")

    assert [report.samples for report in reports] == [160, 240, 320, 400]
    assert [report.val_loss for report in reports] == [1 / 2, 1 / 3, 1 / 4, 1 / 5]
    assert isinstance(end, Finished)


def test_a_script_in_more_processes_than_is_known_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its global batch would not be the one that is counted; where it is told that, it is the script's to divide."""
    (tmp_path / "train.py").write_text("import bstune\nbstune.report(val_loss=1.0, samples=400)\n")
    monkeypatch.setenv("WORLD_SIZE", "2")  # As the processes of torchrun have it.
    words = [sys.executable, str(tmp_path / "train.py"), "{learning_rate}"]
    spec = spec_of(end_samples=400, points=(400,))
    with pytest.raises(bstune.ObjectiveError, match=r"trains in 2 processes where 1 were expected.*--world-size 2"):
        train(bstune.Command([*words, "{micro_batch_size}"], samples_per_epoch=100), spec)
    for known in (
        bstune.Command([*words, "{global_batch_size}"], samples_per_epoch=100),
        bstune.Command([*words, "{micro_batch_size}"], samples_per_epoch=100, world_size=2),
    ):
        assert [report.val_loss for report in train(known, spec)] == [1.0]


def test_much_output_fills_neither_memory_nor_disk(host: Host, tmp_path: Path) -> None:
    """100 MB are read to the end, and the log keeps the beginning and the end."""
    reports, end = run(host, "much", log=tmp_path / "trial-0.log")
    log = (tmp_path / "trial-0.log").read_bytes()

    assert len(reports) == 4
    assert isinstance(end, Finished)
    assert len(log) < 2 * Log.HEAD_BYTES
    assert b"bytes left out]" in log
    assert log.endswith(b"epoch 4 val_loss=0.2000\n")


@pytest.mark.parametrize(
    ("does", "cause", "said"),
    [
        ("silent", "error", "without a validation loss"),
        ("fails", "error", "the command ended with exit code 1: ValueError: boom"),
        ("memory", "oom", "exit code 1: RuntimeError: CUDA out of memory"),
        ("killed", "killed", "SIGKILL"),
        ("crashes", "error", "the command was ended by SIGSEGV"),
    ],
)
def test_a_script_that_fails_is_a_result_with_a_cause(host: Host, does: str, cause: str, said: str) -> None:
    """The reason has the exit code and the script's own last words."""
    _, end = run(host, does)

    assert isinstance(end, Lost)
    assert end.cause == cause
    assert said in end.message
    if does == "fails":
        assert "ValueError: boom" in str(end.output)


def test_a_file_in_the_way_is_named_as_the_cause(host: Host, script: Path) -> None:
    """A script that reports imports what is called bstune and lies beside it."""
    try:
        _, end = run(host, "shadowed")
    finally:
        script.with_name("bstune.py").unlink(missing_ok=True)

    assert isinstance(end, Lost)
    assert f"has imported the file {script.parent}/bstune.py in place of the package bstune" in end.message


def test_a_worker_that_is_killed_takes_its_script_along(host: Host) -> None:
    """And is a result that is tried again."""
    begun_s = time.monotonic()

    def kill(_: TrialReport) -> None:
        for process in below():
            parent = process.parent()
            if parent is not None and time.monotonic() - begun_s < 20:
                parent.kill()

    _, end = run(host, "hangs", then=kill)

    assert isinstance(end, Lost)
    assert end.cause == "killed"


def test_a_script_that_hangs_is_ended(host: Host) -> None:
    """Who gives it up ends it with one call."""
    reports, end = run(host, "hangs", silence_s=1.0)

    assert [report.samples for report in reports] == [100]
    assert end is None


def test_an_epoch_of_one_step_is_not_all_that_is_measured(tmp_path: Path) -> None:
    """In the second step the optimizer's state is there beside gradients and activations: here, in the second epoch."""
    script = tmp_path / "grows.py"
    script.write_text(
        "import time\n"
        "for epoch in (1, 2):\n"
        "    held = b'x' * (epoch * 60 << 20)\n"
        "    print(f'epoch {epoch} val_loss={1 / epoch}', flush=True)\n"
        "time.sleep(60)\n"  # It is ended before.
    )
    words = [sys.executable, str(script), "{micro_batch_size}", "{learning_rate}", "{max_epochs}"]
    with Host(bstune.Command(words, samples_per_epoch=64, epochs=4), device="cpu") as host:
        reading = host.run(messages.Measure(MeasureSpec(64, 64, 1, 2, seed=0))).reading

    assert reading.peak_bytes > 110 << 20


@pytest.mark.parametrize("does", ["train", "nan", "deaf"])
def test_a_script_is_stopped_at_a_report(host: Host, does: str) -> None:
    """Politely, and one that ignores that by force, within seconds."""
    begun_s = time.monotonic()
    reports, end = run(host, does, verdict="stop")

    assert len(reports) == 1
    assert isinstance(end, Finished)
    assert end.samples == 100
    assert time.monotonic() - begun_s < 20


def test_its_worker_does_without_torch(script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which would take seconds and 200 MB; the script is told its threads all the same."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    with Host(command_of(script), device="cpu", threads=1) as host:
        run(host, "looks", log=tmp_path / "log")

    threads = 1 if usable_cores() > 1 else None
    assert (tmp_path / "log").read_text().startswith(f"torch False threads {threads}\n")


@pytest.mark.parametrize(
    ("words", "values", "made"),
    [
        (["--cfg=bs={micro_batch_size}"], {"micro_batch_size": 8}, ["--cfg=bs=8"]),
        (["a b", "\"q'", "größe=✓"], {}, ["a b", "\"q'", "größe=✓"]),
        (["{}", "{foo}", "{{learning_rate}}", "${HOME}"], {}, ["{}", "{foo}", "{{learning_rate}}", "${HOME}"]),
        (['{"lr":{learning_rate}}'], {"learning_rate": 0.001}, ['{"lr":0.001}']),
        (["{learning_rate}"], {"learning_rate": 1e-06}, ["1.0e-06"]),
        (["{weight_decay}"], {"weight_decay": 0.1}, ["0.1"]),
    ],
)
def test_only_the_places_are_filled(words: list[str], values: dict[str, object], made: list[str]) -> None:
    """Spaces, quotes, letters of all kinds, braces of others and places inside words."""
    places_in(words, {"weight_decay"})

    assert filled(words, values) == made


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("{lr}", "learning_rate"),
        ("{batch_size}", "micro_batch_size"),
        ("{learning_rat}", "learning_rate"),
        ("{micro_batchsize} {lr}", "learning_rate} and {micro_batch_size"),
    ],
)
def test_a_slip_in_a_place_is_named(word: str, meant: str) -> None:
    """A name that is nearly one of ours is not passed on as it is."""
    with pytest.raises(bstune.ArgumentError, match=f"did you mean {{{meant}}}"):
        bstune.Command(["train", "{micro_batch_size}", word], samples_per_epoch=10)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("", "expected a program"),
        ("python 'train.py", "No closing quotation"),
        (["python", 3], "expected a program"),
        ("python train.py --lr {learning_rate}", "no place for the batch size"),
    ],
)
def test_a_command_that_is_none_is_refused(command: object, said: str) -> None:
    """At once, with what was expected."""
    with pytest.raises(bstune.ArgumentError, match=said):
        bstune.Command(command, samples_per_epoch=10)  # type: ignore[arg-type]
    with pytest.raises(bstune.ArgumentError, match="name=3: expected a text, or None"):
        bstune.Command("train {micro_batch_size}", samples_per_epoch=10, name=3)  # type: ignore[arg-type]


def test_a_text_is_split_as_a_shell_would() -> None:
    """And is given to none."""
    assert words_of("python 'my train.py' --note \"a b\" '$HOME'") == (
        "python",
        "my train.py",
        "--note",
        "a b",
        "$HOME",
    )


def test_a_report_outside_of_a_search_does_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The line may stay in the script; nor does it fail where the search has gone."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BSTUNE_REPORT", raising=False)
    bstune.report(val_loss="no number is looked at")
    monkeypatch.setenv("BSTUNE_REPORT", "/no/such/file")
    bstune.report(val_loss=0.5, samples=10)
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")

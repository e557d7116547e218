"""Model files that send to the search something that is not a message, for real."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import bstune
import pytest
from bstune.tests.workers.sent import SPEC
from bstune.tuner.engines.base import Event, Finished, Lost, Reported
from bstune.tuner.engines.local import LocalPool
from bstune.tuner.testing.fake_device import known_probe
from bstune.tuner.workers import messages
from bstune.tuner.workers.fork_server import Host

HOSTILE = """
import json, os, socket, struct, time
import bstune, torch

def door():
    # Whoever looks finds the socket.
    for fd in range(3, 100):
        try:
            if os.readlink(f"/proc/self/fd/{fd}").startswith("socket:"):
                return socket.socket(fileno=os.dup(fd))
        except OSError:
            continue

def framed(body):
    return struct.pack(">I", len(body)) + body

def send(does, number, samples):
    end = door()
    if does == "2 GiB":
        end.sendall(struct.pack(">I", 1 << 31) + b"x" * 100)
    if does == "pickle":
        end.sendall(framed(b"cos\\nsystem\\n(S'touch executed'\\ntR."))
    if does == "garbage":
        end.sendall(framed(os.urandom(100)))
    if does == "half":
        end.sendall(framed(b"x" * 1000)[:20])
    if does == "close":
        os.closerange(3, 100)
    if does == "flood":
        report = {"type": "TrialReport", "number": number, "points": [], "samples": samples, "val_loss": float("nan"),
                  "metrics": {}, "seconds": 0.1, "noise": [], "interval": 0}
        while True:
            end.sendall(framed(json.dumps(report).encode()))
    if does == "long":
        raise ValueError("x" * 30_000_000)
    if does == "mute":
        class Mute(Exception):
            def __str__(self):
                raise RuntimeError("no")
        raise Mute
    if does == "escape":
        raise ValueError("\\x1b[2J gone \\udc80\\x07")
    time.sleep(60)

@bstune.objective(n_samples=320, epochs=4, evals=4)
def objective(trial):
    weight = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=trial.learning_rate)
    does = os.environ.get("DOES", "").split(",")
    for samples in range(trial.global_batch_size, trial.max_samples + 1, trial.global_batch_size):
        weight.grad = torch.zeros(1)
        optimizer.step()
        if samples >= trial.next_report:
            trial.report(val_loss=0.1 + abs(trial.learning_rate - 0.01) + 9 / samples, samples=samples)
            if 0 <= trial.number < len(does) and does[trial.number]:
                send(does[trial.number], trial.number, samples)
    if trial.number < 0 and os.environ.get("IN_PROBE"):
        send(os.environ["IN_PROBE"], trial.number, samples)
"""
SPACE = {"batch_size": [16, 32], "learning_rate": [0.001, 0.01, 0.1]}


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A loop that writes to bstune's own socket."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    path = tmp_path / "model.py"
    path.write_text(HOSTILE)
    return path


def test_a_search_survives_what_its_trials_send(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is lost for its own reason, at once or by the trial's timeout; nothing of it is executed."""
    wanted = ["", "2 GiB", "pickle", "garbage", "half", "close", "flood"]
    monkeypatch.setenv("DOES", ",".join(wanted))
    began_s = time.monotonic()

    result = bstune.search(
        bstune.load(model),
        probe=known_probe(64, step_s=None, n_train_samples=320),
        space=SPACE,
        budget=4,
        device="cpu",
        storage="sqlite:///:memory:",
        trial_timeout=4.0,
    )

    lost = {wanted[record.number]: record for record in result.records if record.state == "failed"}
    said = {does: record.reason for does, record in lost.items()}
    assert {does: record.cause for does, record in lost.items()} == dict.fromkeys(wanted[1:], "crashed") | {
        "half": "hung"
    }
    assert "announced a message of 2,147,483,648 bytes" in said["2 GiB"]
    assert "not a message" in said["pickle"]
    assert "not a message" in said["garbage"]
    assert "closed its connection" in said["close"]
    assert any(words in said["flood"] for words in ("before the answer", "does not read", "after it was told to stop"))
    assert all(reason.isprintable() and len(reason) < 400 for reason in said.values())
    assert result.recommendation.learning_rate == 0.01
    assert result.recommendation.verified
    assert time.monotonic() - began_s < 40
    assert not Path("executed").exists()


def test_what_an_error_says_is_cut_and_escaped(model: Path) -> None:
    """30 MB are stored as two thousand characters; text that cannot be read is named so; the terminal is unharmed."""
    events: dict[str, Lost] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DOES", "long,mute,escape")
        with Host(bstune.load(model), device="cpu") as host:
            for number, does in enumerate(("long", "mute", "escape")):
                pool = LocalPool(host)
                pool.submit(dataclasses.replace(SPEC, number=number))
                (events[does],) = (event for event in ended(pool) if isinstance(event, Lost))
    long, mute, escape = events["long"], events["mute"], events["escape"]

    assert {event.cause for event in events.values()} == {"error"}
    assert 2000 <= len(long.message) < 2200
    assert "29,998,000 characters cut" in long.message
    assert len(long.traceback or "") < 21_000
    assert "model.py" in (long.traceback or "")
    assert "its __str__ fails" in mute.message
    assert escape.message == r"\x1b[2J gone \udc80\x07"
    assert "\x1b" not in (escape.traceback or "")


def ended(pool: LocalPool) -> list[Event]:
    """Run what runs to its end and return what came."""
    events: list[Event] = []
    deadline_s = time.monotonic() + 30
    while not any(isinstance(event, (Lost, Finished)) for event in events) and time.monotonic() < deadline_s:
        for event in pool.events(1.0):
            events.append(event)
            if isinstance(event, Reported):
                pool.reply(event.report.number, "go")
    return events


@pytest.mark.parametrize("does", ["garbage", "2 GiB"])
def test_a_probe_says_what_it_was_sent(model: Path, monkeypatch: pytest.MonkeyPatch, does: str) -> None:
    """As an error of the objective, with one sentence, and at once."""
    monkeypatch.setenv("IN_PROBE", does)
    began_s = time.monotonic()

    with pytest.raises(bstune.ObjectiveError, match=r"its process (sent|announced)"):
        bstune.probe(bstune.load(model), device="cpu", storage="sqlite:///:memory:")

    assert time.monotonic() - began_s < 20


@pytest.mark.parametrize(
    ("body", "said"),
    [("os.urandom(50)", "its process"), ("b'{}'", "its process"), ("struct.pack('>I', 1 << 31)", "2,147")],
)
def test_a_file_that_writes_to_the_socket_while_it_is_loaded_is_an_error(tmp_path: Path, body: str, said: str) -> None:
    """One that names what happened, and no traceback of bstune's."""
    hostile = HOSTILE.partition("@bstune.objective")[0]
    (tmp_path / "model.py").write_text(f"{hostile}\ndoor().sendall({body} + b'x' * 100)\ntime.sleep(60)\n")

    with pytest.raises(bstune.ObjectiveError, match=said):
        Host(bstune.load(tmp_path / "model.py"), device="cpu")


LIAR = """
import threading
@bstune.objective(n_samples=320, epochs=1)
def objective(trial):
    trial.report(0.5, samples=trial.max_samples)

def lie():
    while not os.path.exists("now"):
        time.sleep(0.01)
    door().sendall(framed(json.dumps({"type": "Exited", "pid": 1, "code": 0}).encode()) + framed(b"rubbish"))
    open("lied", "w").close()
if os.fork() == 0:
    lie()
    os._exit(0)
"""


@pytest.mark.timeout(60)
def test_a_template_that_says_rubbish_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process left by the user's file writes to the template's socket: the next trial says so, and nothing hangs."""
    hostile = HOSTILE.partition("@bstune.objective")[0]
    (tmp_path / "model.py").write_text(hostile + LIAR)
    monkeypatch.chdir(tmp_path)
    with Host(bstune.load(tmp_path / "model.py"), device="cpu") as host:
        Path("now").touch()
        while not Path("lied").exists():
            time.sleep(0.01)
        with pytest.raises(bstune.BstuneError, match=r"template process died.*not a message.*rubbish"):
            host.start(messages.Describe())

"""What a worker may send.

Anything else ends its trial at once with one sentence, and neither hangs nor breaks the search.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bstune
import numpy as np
import pytest
from bstune.tuner.core.results import NoisePoint
from bstune.tuner.core.trials import Facts, MeasureNotes, MeasureSpec, Split, TrialReport, TrialSpec
from bstune.tuner.device.meter import Reading
from bstune.tuner.engines.base import Event, Finished, Lost, Reported
from bstune.tuner.engines.local import LocalPool
from bstune.tuner.memory.trace import Trace
from bstune.tuner.testing.fake_device import known_probe
from bstune.tuner.workers import messages, wire
from bstune.tuner.workers.answers import Listener
from bstune.tuner.workers.fork_server import Host
from bstune.tuner.workers.message_json import decode, encode
from bstune.tuner.workers.wire import Line, MalformedError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

SPEC = TrialSpec(
    3,
    "search",
    100,
    100,
    1,
    0.1,
    0,
    1000,
    (500, 1000),
    {"depth": 2, "kind": "a", "rate": None},
    checkpoint_to="/kept/3.pt",
)
REPORT = TrialReport(3, (500,), 500, 0.5, {"accuracy": 0.9}, 1.5)
READING = Reading(1 << 30, 1 << 28, "train", 3, (0.1, 0.2), (0.1,), {"train": 1 << 30}, 10, 20, 30)
TRACE = Trace(
    4,
    np.array([1, 1, -1], dtype=np.int8),
    np.array([0, 1, 0], dtype=np.int32),
    np.array([100, 200], dtype=np.int64),
    np.array([0, 1], dtype=np.int16),
    ("aten::mm", "module"),
    (("train", 0), ("step_done", 3)),
    4,
)
MEASURED = messages.Measured(READING, MeasureNotes(32, 8, "SGD", ("beware",), 0.1, (0.1, 0.2)), TRACE)


# --- the codec --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "message",
    [
        messages.Hello(("/a", "/b"), {"PATH": "/bin", "ODD": "\udcff"}, 10, True),
        messages.Start(messages.Job(messages.Describe(), "cpu", 2, None), True),
        messages.Start(
            messages.Job(messages.Measure(MeasureSpec(8, 8, 2, 3, 0), traced=True), "cpu", 2, 1 << 40), False
        ),
        messages.Start(
            messages.Job(messages.Train(dataclasses.replace(SPEC, splits={"A100": Split(8, 2, None)})), "cuda:0", 1, 5),
            True,
        ),
        messages.Exited(77, -9),
        Facts("a name", "loop", 1000, 1.5, metrics=("f1",)),
        dataclasses.replace(REPORT, noise=(NoisePoint(500, 4, 8, None, 2.0),), interval=100),
        dataclasses.replace(REPORT, val_loss=math.inf, metrics={"a": -math.inf}),
        messages.Failure("oom", "OutOfMemoryError", "no room", "Traceback", False, READING, 7, 1.0),
        messages.Trained(1000, 2.5, None, None),
    ],
    ids=lambda message: type(message).__name__,
)
def test_a_message_arrives_as_it_was_sent(message: Any) -> None:
    """Nested, empty, infinite, of a choice of kinds: what is decoded is equal, types included."""
    assert decode(encode(message), type(message)) == message


def test_what_is_not_a_number_arrives() -> None:
    """A loss that is NaN is news."""
    arrived = decode(encode(dataclasses.replace(REPORT, val_loss=math.nan)), TrialReport)

    assert math.isnan(arrived.val_loss)


def test_a_trace_arrives_with_its_arrays() -> None:
    """Of the types that they had, and writable as arrays are."""
    arrived = Listener(messages.Measure(MeasureSpec(4, 4, 1, 2, 0), traced=True)).take(encode(MEASURED)).trace

    for name in ("signs", "storages", "nbytes", "born_in"):
        assert getattr(arrived, name).dtype == getattr(TRACE, name).dtype
        assert getattr(arrived, name).tolist() == getattr(TRACE, name).tolist()
    assert (arrived.op_names, arrived.marks, arrived.eval_batch) == (TRACE.op_names, TRACE.marks, TRACE.eval_batch)


def test_numbers_of_numpy_travel_as_what_they_are() -> None:
    """A user's `epochs` may be one."""
    facts = Facts(None, "loop", np.int64(10), np.float32(1.5))

    assert decode(encode(facts), Facts) == Facts(None, "loop", 10, 1.5)


def changed(message: Any, **changes: Any) -> bytes:
    """Return a message with other values in it."""
    return json.dumps(json.loads(encode(message)) | changes).encode()


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "no message"),
        (b"\x80\x04\x95garbage", "no message"),
        (b"\xff\xfe\x00", "no message"),
        (b"[" * 200_000, "no message"),
        (b'{"type":"TrialReport","samples":' + b"9" * 10_000 + b"}", "no message"),
        (b"17", "is a int"),
        (b'{"type":"Facts\\u001b[2J"}', r"Facts\\x1b\[2J"),
        (b'{"type":["TrialReport"]}', "not asked for"),
        (b'{"type":"TrialReport"}', "expected type"),
        (changed(REPORT, extra=1), "expected type"),
        (changed(REPORT, val_loss="0.5"), "val_loss: expected float, found '0.5'"),
        (changed(REPORT, val_loss=True), "val_loss: expected float, found True"),
        (changed(REPORT, val_loss=None), "val_loss"),
        (changed(REPORT, val_loss=10**400), "cannot be read"),
        (changed(REPORT, samples=500.5), "samples: expected int, found 500.5"),
        (changed(REPORT, samples=10**25), "samples"),
        (changed(REPORT, samples=-5), "samples"),
        (changed(REPORT, samples=True), "samples"),
        (changed(REPORT, points=7), "points"),
        (changed(REPORT, points=[1000]), "not asked for"),
        (changed(REPORT, points=[]), "not asked for"),
        (changed(REPORT, points=[500, 1000]), "not asked for"),
        (changed(REPORT, number=4), "trial 4, and it runs trial 3"),
        (changed(REPORT, metrics={"a": "b"}), "metrics"),
        (changed(REPORT, metrics={"\ud800": 1.0}), "a text that is none"),
        (changed(REPORT, metrics={"a" * 300_000: 1.0}), "characters"),
        (changed(REPORT, seconds=math.nan), "cannot be"),
        (changed(REPORT, interval=-1), "cannot be"),
        (changed(REPORT, noise=[{"type": "NoisePoint"}]), "noise"),
        (encode(dataclasses.replace(REPORT, noise=(NoisePoint(500, 10**30, 1, None, None),))), "cannot be"),
        (encode(messages.Trained(10**15, 1.0, None, None)), "told bstune of"),
        (encode(messages.Trained(1000, math.inf, None, None)), "cannot be"),
        (encode(messages.Trained(1000, 1.0, None, "/etc/passwd")), "a checkpoint"),
        (changed(messages.Failure("error", "E", "m", "t", False), outcome="fine"), "outcome"),
    ],
)
def test_what_a_trial_may_not_send_is_refused_in_one_line(body: bytes, said: str) -> None:
    """It is short, and nothing in it could change a terminal, whatever was sent."""
    with pytest.raises(MalformedError, match=said) as refused:
        Listener(messages.Train(SPEC)).take(body)

    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 400


@pytest.mark.parametrize(
    ("work", "body"),
    [
        (messages.Describe(), encode(messages.Trained(1, 1.0, None, None))),
        (messages.Describe(), encode(Facts("a", "loop", 10, 1.0)).replace(b'"n_samples":10', b'"n_samples":0')),
        (messages.Describe(), encode(Facts("a", "loop", 10, 1.5)).replace(b"1.5", b"NaN")),
        (messages.TryCuda("cuda"), encode(REPORT)),
        (messages.Measure(MeasureSpec(4, 4, 1, 2, 0)), encode(REPORT)),
        (
            messages.Measure(MeasureSpec(4, 4, 1, 2, 0)),
            encode(dataclasses.replace(MEASURED, reading=dataclasses.replace(READING, timed_step_s=(0.0,)))),
        ),
        (
            messages.Measure(MeasureSpec(4, 4, 1, 2, 0)),
            encode(dataclasses.replace(MEASURED, reading=dataclasses.replace(READING, peak_bytes=-1))),
        ),
        (None, encode(REPORT)),
    ],
)
def test_only_what_was_asked_is_answered(work: messages.Work | None, body: bytes) -> None:
    """A message of another job, or with figures that cannot be."""
    with pytest.raises(MalformedError):
        Listener(work).take(body)


@pytest.mark.parametrize(
    "changes",
    [
        {"signs": np.array([1, 1, 2], dtype=np.int8)},
        {"signs": np.array([1, 1], dtype=np.int8)},
        {"storages": np.array([0, 1, 7], dtype=np.int32)},
        {"storages": np.array([0, 1, -1], dtype=np.int32)},
        {"nbytes": np.array([100, -200], dtype=np.int64)},
        {"nbytes": np.array([100, (1 << 62)], dtype=np.int64)},
        {"born_in": np.array([0, 2], dtype=np.int16)},
        {"born_in": np.array([0], dtype=np.int16)},
        {"nbytes": np.array([100, 200], dtype=np.int32)},
        {"marks": (("train", 9),)},
        {"batch": 0},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_trace_whose_parts_do_not_belong_together_is_refused(changes: dict[str, Any]) -> None:
    """Its arrays index each other, so one wrong number would be an error far from here."""
    body = encode(dataclasses.replace(MEASURED, trace=dataclasses.replace(TRACE, **changes)))

    with pytest.raises(MalformedError):
        Listener(messages.Measure(MeasureSpec(4, 4, 1, 2, 0), traced=True)).take(body)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=10,
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from(
        [
            REPORT,
            MEASURED,
            messages.Failure("oom", "E", "m", "t", False, READING),
            messages.Trained(1000, 1.0, None, None),
        ]
    ),
    st.data(),
)
def test_nothing_but_an_answer_or_one_kind_of_error_comes_of_any_message(message: Any, data: st.DataObject) -> None:
    """Any value in any place: no other exception, however the types lie."""
    found = json.loads(encode(message))
    place = found
    while True:
        key = data.draw(st.sampled_from(sorted(place)))
        if isinstance(place[key], dict) and place[key] and data.draw(st.booleans()):
            place = place[key]
        else:
            break
    place[key] = data.draw(JSON)
    listener = Listener(
        messages.Measure(MeasureSpec(4, 4, 1, 2, 0)) if isinstance(message, messages.Measured) else messages.Train(SPEC)
    )
    answer: Any = None
    with contextlib.suppress(MalformedError):
        answer = listener.take(json.dumps(found).encode())
    assert answer is None or type(answer) is type(message)


def test_a_trial_says_one_thing_at_a_time() -> None:
    """It waits for the answer to a report, goes forward, and reports nothing more once it was told to stop."""
    listener = Listener(messages.Train(SPEC))
    assert listener.take(encode(REPORT)) == REPORT
    with pytest.raises(MalformedError, match="before the answer"):
        listener.take(encode(dataclasses.replace(REPORT, points=(1000,), samples=1000)))
    listener.told("go")
    with pytest.raises(MalformedError, match="400 samples after 500"):
        listener.take(encode(dataclasses.replace(REPORT, points=(), samples=400, val_loss=math.nan)))
    listener.told("stop")
    with pytest.raises(MalformedError, match="told to stop"):
        listener.take(encode(dataclasses.replace(REPORT, points=(1000,), samples=1000)))
    assert listener.take(encode(messages.Trained(500, 1.0, None, "/kept/3.pt"))).samples == 500


# --- frames -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def ends() -> Iterator[tuple[Line, socket.socket]]:
    """The host's end and the worker's."""
    ours, theirs = socket.socketpair()
    line = Line(ours, most_bytes=1000)
    with theirs:
        yield line, theirs
    line.close()


def test_a_part_of_a_message_is_nothing_yet(ends: tuple[Line, socket.socket], monkeypatch: pytest.MonkeyPatch) -> None:
    """Byte by byte; and one that stops in the middle for a minute has got stuck."""
    line, theirs = ends
    for byte in struct.pack(">I", 3) + b"abc":
        line.fill()
        assert line.take() is None
        theirs.send(bytes([byte]))
    line.fill()
    assert line.take() == b"abc"

    theirs.send(struct.pack(">I", 3) + b"a")
    line.fill()
    line.note_silence()
    assert not line.has_message
    later = time.monotonic() + wire.STUCK_S + 1
    monkeypatch.setattr("time.monotonic", lambda: later)
    line.note_silence()
    with pytest.raises(MalformedError, match="nothing more"):
        line.take()


def test_several_messages_at_once_come_one_by_one(ends: tuple[Line, socket.socket]) -> None:
    """Up to the last one before the other end was closed."""
    line, theirs = ends
    for body in (b"one", b"", b"three"):
        wire.send(theirs, body)
    theirs.close()
    line.fill()

    assert [line.take() for _ in range(4)] == [b"one", b"", b"three", None]
    assert line.ended


def test_a_length_is_refused_before_anything_of_it_is_read(ends: tuple[Line, socket.socket]) -> None:
    """Two GiB are neither waited for nor kept."""
    line, theirs = ends
    theirs.send(struct.pack(">I", 1 << 31))
    line.fill()

    assert line.has_message
    with pytest.raises(MalformedError, match="2,147,483,648 bytes"):
        line.take()


def test_who_does_not_read_is_not_waited_for(ends: tuple[Line, socket.socket]) -> None:
    """The kernel takes some; then there is an end to it."""
    line, _ = ends
    began_s = time.monotonic()
    with pytest.raises(TimeoutError):
        line.send(b"x" * 10_000_000, within_s=0.1)

    assert time.monotonic() - began_s < 2


def test_descriptors_come_after_their_message_and_are_not_inherited(
    ends: tuple[Line, socket.socket], tmp_path: Path
) -> None:
    """The worker reads no byte too many, and no program that it starts has what it got."""
    line, theirs = ends
    with (tmp_path / "file").open("wb") as file:
        line.send(b"here", file.fileno(), within_s=1)
        line.send(b"next")
    assert wire.receive(theirs) == b"here"
    (fd,) = wire.receive_fds(theirs, 1)
    assert wire.receive(theirs) == b"next"
    assert not os.get_inheritable(fd)
    os.close(fd)


# --- for real ---------------------------------------------------------------------------------------------------------

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
    assert "no message" in said["pickle"]
    assert "no message" in said["garbage"]
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
    time.sleep(0.3)
    door().sendall(framed(json.dumps({"type": "Exited", "pid": 1, "code": 0}).encode()) + framed(b"rubbish"))
if os.fork() == 0:
    lie()
    os._exit(0)
"""


def test_a_template_that_says_rubbish_is_ended(tmp_path: Path) -> None:
    """A process left by the user's file writes to the template's socket: the next trial says so, and nothing hangs."""
    hostile = HOSTILE.partition("@bstune.objective")[0]
    (tmp_path / "model.py").write_text(hostile + LIAR)
    with Host(bstune.load(tmp_path / "model.py"), device="cpu") as host:
        time.sleep(0.6)
        with pytest.raises(bstune.BstuneError, match=r"template process died.*no message.*rubbish"):
            host.start(messages.Describe())

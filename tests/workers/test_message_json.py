"""Messages as JSON and back; what no worker may send is refused in one line."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
from typing import Any

import numpy as np
import pytest
from bstune.tests.workers.sent import REPORT, SPEC
from bstune.tuner.core.trials import Facts, MeasureNotes, MeasureSpec, NoisePoint, Split, TrialReport
from bstune.tuner.device.meter import Reading
from bstune.tuner.memory.trace import Trace
from bstune.tuner.workers import messages
from bstune.tuner.workers.answers import Listener
from bstune.tuner.workers.message_json import decode, encode
from bstune.tuner.workers.wire import MalformedError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

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


@pytest.mark.parametrize(
    "message",
    [
        messages.Hello(("/a", "/b"), {"PATH": "/bin", "ODD": "\udcff"}, 10, True, False),
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
        (b"", "not a message"),
        (b"\x80\x04\x95garbage", "not a message"),
        (b"\xff\xfe\x00", "not a message"),
        (b"[" * 200_000, "not a message"),
        (b'{"type":"TrialReport","samples":' + b"9" * 10_000 + b"}", "not a message"),
        (b"17", "is an int"),
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

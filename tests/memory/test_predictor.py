"""What the probe foresees from traced attempts, and when it stops tracing."""

from __future__ import annotations

import numpy as np
from bstune.tuner.memory.predictor import MAX_TRACED, Foresight
from bstune.tuner.memory.trace import Trace

MIB = 1 << 20


def step(n: int, *, events: int = 4, eval_n: int | None = None, compiled: bool = False) -> Trace:
    """Return a step made by hand: 40 MiB of weights, 2 MiB of activations a sample, 3 MiB a sample of validation."""
    signs = [1, 1, -1, 1] + [-1, 1] * (events - 4)
    return Trace(
        batch=n,
        signs=np.array(signs, dtype=np.int8),
        storages=np.array([0, 1, 1, 2, *[2, 2] * (events - 4)], dtype=np.int32),
        nbytes=np.array([40 * MIB, 2 * MIB * n, 3 * MIB * (eval_n or n)], dtype=np.int64),
        born_in=np.zeros(3, dtype=np.int16),
        marks=(("train", 0), ("validation", 3)),
        eval_batch=eval_n,
        compiled=compiled,
    )


def test_two_traces_that_pair_are_enough() -> None:
    """Then no further attempt is traced, and every size has a prediction."""
    foresight = Foresight(lambda size: size)
    assert foresight.wants_trace
    assert foresight.predictor is None

    foresight.add(step(3))
    assert foresight.wants_trace
    foresight.add(step(5))

    assert not foresight.wants_trace
    assert foresight.predictor is not None
    assert foresight.predictor(100) == 340 * MIB


def test_the_validation_batch_follows_its_own_rule() -> None:
    """It ends at the size of the validation set while the micro-batch grows on."""
    foresight = Foresight(lambda size: min(size, 10))
    foresight.add(step(3, eval_n=3))
    foresight.add(step(5, eval_n=5))

    assert foresight.predictor is not None
    assert foresight.predictor(8) == (40 + 24) * MIB
    assert foresight.predictor(100) == (40 + 200) * MIB


def test_on_cuda_the_prediction_is_what_the_allocator_reserves() -> None:
    """And a size that it cannot serve is forbidden."""
    foresight = Foresight(lambda size: size, reserved_bytes=900 * MIB)
    for n in (30, 50):
        foresight.add(step(n), context_bytes=300 * MIB)

    assert foresight.predictor is not None
    assert foresight.predictor(100) == (300 + 40 + 200 + 300) * MIB
    assert foresight.predictor(115) == float(
        "inf"
    )  # 300 + 40 + 230 + 345 MiB do not fit without giving a segment back.


def test_traces_that_never_pair_are_given_up() -> None:
    """After three sizes with three sequences it uses measured peaks, and says why."""
    foresight = Foresight(lambda size: size)
    for n in range(MAX_TRACED):
        foresight.add(step(3 + n, events=4 + n))

    assert not foresight.wants_trace
    assert foresight.predictor is None
    assert "in another order" in (foresight.why_not or "")


def test_a_compiled_model_is_not_traced_again() -> None:
    """Its trace says nothing of training."""
    foresight = Foresight(lambda size: size)
    foresight.add(step(3, compiled=True))

    assert not foresight.wants_trace
    assert "compiled" in (foresight.why_not or "")

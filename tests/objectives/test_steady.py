"""When a probe has seen enough of a command."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from bstune.objectives.steady import Steady


@pytest.mark.parametrize(
    ("second", "peak", "cpu", "trains", "over"),
    [
        (6, lambda t: 1000, lambda t: t, True, True),
        (59, lambda t: 1000, lambda t: t, False, False),
        (61, lambda t: 1000, lambda t: t, False, True),
        (290, lambda t: 0, lambda t: t, True, False),
        (601, lambda t: 0, lambda t: t, True, True),
        (60, lambda t: 1000 * t, lambda t: t, True, False),
        (100, lambda t: 1000, lambda t: 0, True, False),
        (30, lambda t: 1000 if t < 20 else 2000, lambda t: t, True, False),
        (45, lambda t: 1000 if t < 20 else 2000, lambda t: t, True, True),
    ],
    ids=[
        "trains",
        "says nothing",
        "said nothing for long",
        "not on the card yet",
        "never on the card",
        "grows",
        "waits",
        "grew late",
        "came to rest",
    ],
)
def test_memory_is_steady_while_the_script_works(
    second: int, peak: Callable[[int], int], cpu: Callable[[int], float], trains: bool, over: bool
) -> None:
    """Not while it waits, and after a rise only when half of the run has passed without another."""
    steady = Steady()
    for now in range(second + 1):
        steady.note(now, peak(now), cpu(now), trains)

    assert steady.over == over


def test_a_script_that_does_nothing_is_told_from_one_that_works() -> None:
    """A hang is no measurement."""
    hangs, loads, downloads = Steady(), Steady(), Steady()
    for now in range(125):
        hangs.note(now, 1000, 0.5, False)
        loads.note(now, 1000 * now, 0.5, False)
        downloads.note(now, 1000, 0.5, False, printed=now)

    assert hangs.idle
    assert not loads.idle
    assert not downloads.idle

"""The loss scaling of half precision, kept from skipping the steps that a probe is made of."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet


@contextmanager
def no_step_skipped() -> Iterator[None]:
    """Have every `GradScaler` that is used while the block runs begin at a scale of 1.

    They begin at 65,536 and skip steps until no gradient overflows: a dozen may pass before the first step that takes
    the memory, and the time, of all others. A probe makes two or three. That gradients vanish does not matter to it.
    """
    from torch.amp import GradScaler

    scale, begun = GradScaler.scale, WeakSet[Any]()

    def scaled(self: Any, outputs: Any) -> Any:
        if self.is_enabled() and self not in begun:
            begun.add(self)
            self.load_state_dict({**self.state_dict(), "scale": 1.0})
        return scale(self, outputs)

    GradScaler.scale = scaled  # type: ignore[method-assign]
    try:
        yield
    finally:
        GradScaler.scale = scale  # type: ignore[method-assign]

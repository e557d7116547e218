"""Sees every tensor storage come and go while real training steps run. For worker processes: it needs torch.

The recorder is a `TorchDispatchMode`, below autograd: it also sees what a backward pass and an optimizer allocate. It
cannot see scratch space inside kernels, nor what a kernel of another library takes.
"""

from __future__ import annotations

import contextlib
import gc
import sys
import weakref
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .trace import ALLOCATE, FREE, Trace

if TYPE_CHECKING:
    from ...objectives.base import Meter


class Recorder(TorchDispatchMode):
    """Records the storages of one device while it is entered.

    Args:
        batch: The micro-batch size that is run, for the trace.
        device_type: Only storages there are recorded: `cpu` or `cuda`.

    Example:
        >>> with Recorder(batch=4) as recorder:
        ...     y = torch.ones(4, 8) * 2
        >>> recorder.trace().peak_bytes
        256
    """

    def __init__(self, batch: int, device_type: str = "cpu") -> None:
        """Begin with an empty list."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.paused = False
        self._batch = batch
        self._device_type = device_type
        self._signs: list[int] = []
        self._storages: list[int] = []
        self._nbytes: list[int] = []
        self._born_in: list[int] = []
        self._op_numbers: dict[str, int] = {}
        self._alive: dict[int, tuple[int, int, weakref.ref[Any]]] = {}
        self._marks: list[tuple[str, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation, and note the storages that it met or made."""
        if self.paused:
            return func(*args, **(kwargs or {}))
        self._note(args, "input")
        result = func(*args, **(kwargs or {}))
        self._note(result, str(func))
        return result

    def watch(self, *holders: Any) -> None:
        """Note the tensors of modules, optimizers and containers that were made before the recorder was entered."""
        for holder in holders:
            if isinstance(holder, torch.nn.Module):
                tensors = [*holder.parameters(), *holder.buffers()]
                self._note([*tensors, *(tensor.grad for tensor in tensors if tensor.grad is not None)], "module")
            elif isinstance(holder, torch.optim.Optimizer):
                self._note(list(holder.state.values()), "optimizer")
            else:
                self._note(holder, "given")

    def mark(self, name: str) -> None:
        """Remember that a phase begins, or a step ended, after the events so far."""
        self._marks.append((name, len(self._signs)))

    def trace(self, *, eval_batch: int | None = None) -> Trace:
        """Return what was seen so far."""
        return Trace(
            batch=self._batch,
            signs=np.array(self._signs, dtype=np.int8),
            storages=np.array(self._storages, dtype=np.int32),
            nbytes=np.array(self._nbytes, dtype=np.int64),
            born_in=np.array(self._born_in, dtype=np.int16),
            op_names=tuple(self._op_numbers),
            marks=tuple(self._marks),
            eval_batch=eval_batch,
            compiled=compiled_module_seen(),
        )

    def _note(self, tree: Any, op_name: str) -> None:
        for leaf in tree_leaves(tree):
            if isinstance(leaf, torch.Tensor):
                try:
                    storage = leaf.untyped_storage()
                except (
                    NotImplementedError,
                    RuntimeError,
                ):  # Sparse tensors and wrappers have none; their parts are seen themselves.
                    continue
                if storage.device.type == self._device_type:
                    self._add(storage, op_name)

    def _add(self, storage: Any, op_name: str) -> None:
        key, nbytes = storage._cdata, storage.nbytes()
        known = self._alive.get(key)
        if known is not None:
            if known[1] == nbytes:
                return
            self._end(key, known[0])  # Resized in place: one storage ends, another begins.
        number = len(self._nbytes)

        def died(_: Any, key: int = key, number: int = number) -> None:
            self._end(key, number)

        self._alive[key] = (number, nbytes, weakref.ref(storage, died))
        self._nbytes.append(nbytes)
        self._born_in.append(self._op_numbers.setdefault(op_name, len(self._op_numbers)))
        self._signs.append(ALLOCATE)
        self._storages.append(number)

    def _end(self, key: int, number: int) -> None:
        known = self._alive.get(key)
        if known is not None and known[0] == number:  # The address may already belong to a later storage.
            del self._alive[key]
            self._signs.append(FREE)
            self._storages.append(number)


class MarkingMeter:
    """A meter that also tells the recorder where phases begin and steps end."""

    def __init__(self, meter: Meter, recorder: Recorder) -> None:
        """Pass everything on to `meter`."""
        self._meter = meter
        self._recorder = recorder

    def phase(self, name: str) -> None:
        """Mark the phase and pass it on."""
        self._recorder.mark(name)
        self._meter.phase(name)

    def step_done(self) -> None:
        """Mark the end of the step and pass it on."""
        self._recorder.mark("step_done")
        self._meter.step_done()

    def holds(self, *, parameters_bytes: int, gradients_bytes: int, optimizer_state_bytes: int) -> None:
        """Pass it on."""
        self._meter.holds(
            parameters_bytes=parameters_bytes,
            gradients_bytes=gradients_bytes,
            optimizer_state_bytes=optimizer_state_bytes,
        )


@contextlib.contextmanager
def recording(batch: int, device: str) -> Iterator[Recorder]:
    """Record what the block allocates on the device, in an order that depends on nothing but the program.

    The collector of reference cycles is off meanwhile: it would free them at another event each time. Batches are noted
    when they are used, not while a loader makes them: it makes them sample by sample, so its events depend on the batch
    size.
    """
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    recorder = Recorder(batch, device.split(":")[0])
    try:
        with _loaders_paused(recorder), recorder:
            yield recorder
    finally:
        if was_enabled:
            gc.enable()


@contextlib.contextmanager
def _loaders_paused(recorder: Recorder) -> Iterator[None]:
    from torch.utils.data.dataloader import _BaseDataLoaderIter

    original: Callable[[Any], Any] = _BaseDataLoaderIter.__next__

    def paused_next(self: Any) -> Any:
        before, recorder.paused = recorder.paused, True
        try:
            return original(self)
        finally:
            recorder.paused = before

    _BaseDataLoaderIter.__next__ = paused_next  # type: ignore[method-assign]
    try:
        yield
    finally:
        _BaseDataLoaderIter.__next__ = original  # type: ignore[method-assign, assignment]


def compiled_module_seen() -> bool:
    """Tell whether a compiled module is alive in this process. Under any dispatch mode such a module runs eagerly."""
    frames = sys.modules.get("torch._dynamo.eval_frame")
    if frames is None:
        return False
    modules = [thing for thing in gc.get_objects() if issubclass(type(thing), torch.nn.Module)]
    return any(
        isinstance(module, frames.OptimizedModule) or module._compiled_call_impl is not None for module in modules
    )

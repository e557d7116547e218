"""One model that several processes train together on this machine: its ranks, which average their gradients by gloo.

The first rank is the process of the trial: it alone reports, saves and decides. The others are forked from it before it
has done anything, and do what it tells them through a pipe, so none of them ever runs ahead. Micro-batches are dealt
out in turn: n ranks train exactly as one process with n times the accumulation steps.
"""

from __future__ import annotations

import contextlib
import math
import os
import pickle
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, cast

from ..tuner.core.errors import ObjectiveError
from ..tuner.core.trials import NoisePoint
from ..tuner.device.meter import RANKS, data_segment_bytes
from ..tuner.device.threads import threads_that_fork_loses
from ..tuner.theory.gradient_noise import NoiseDesign
from .data import validation_batches
from .training import TrainingRun, seed_everything

if TYPE_CHECKING:
    import torch

LAST_WORD_S = 10.0
"""From a failure of what ranks do together to the word of the one at fault, or to the end of this process."""
RANK_SEED_STRIDE = 7_919
"""Keeps the dropout of the ranks apart; their weights and data follow from the seed of the trial alone."""


class RankedRun(TrainingRun):
    """One model in training by several processes; made in the first of them, whose methods have all of them work."""

    def __init__(self, objective: Any, **how: Any) -> None:
        """Start the other ranks and build the same model in each; arguments as those of `TrainingRun`.

        Raises:
            ObjectiveError: It cannot be done on this device or in this process.
        """
        import torch

        self.world_size: int = objective.world_size
        _check(how["device"], self.world_size)
        torch.set_num_threads(max(1, torch.get_num_threads() // self.world_size))
        _share_fence(self.world_size)
        self.rank = 0
        self._followers: dict[int, Connection] = {}
        with tempfile.TemporaryDirectory() as folder:
            for rank in range(1, self.world_size):
                ours, theirs = Pipe()
                pid = os.fork()
                if pid == 0:
                    for pipe in (ours, *self._followers.values()):
                        pipe.close()
                    self._follow(rank, theirs, folder, objective, how)
                theirs.close()
                self._followers[pid] = ours
                RANKS.add(pid)
            for pid in self._followers:  # After the last fork, which would lose them.
                threading.Thread(target=_end_as, args=(pid,), daemon=True).start()
            self._join(folder)
        super().__init__(objective, **how)

    def _join(self, folder: str) -> None:
        import torch.distributed as dist

        os.environ["GLOO_SOCKET_IFNAME"] = "lo"  # All ranks are here, and nobody else is to reach them.
        store = dist.FileStore(  # type: ignore[attr-defined]
            str(Path(folder) / "ranks"), self.world_size
        )
        dist.init_process_group("gloo", store=store, rank=self.rank, world_size=self.world_size)
        dist.barrier()  # Else the first rank would remove the file while another still reads it.

    def _follow(self, rank: int, leader: Connection, folder: str, objective: Any, how: dict[str, Any]) -> NoReturn:
        """Be another rank: do what the first one says, until it is gone or something fails."""
        self.rank, self._followers = rank, {}
        try:
            self._join(folder)
            super().__init__(objective, **how)
            self._seed_rank()
            while True:
                name, args = leader.recv()
                getattr(self, name)(*args)
        except EOFError:
            pass
        except BaseException as error:
            with contextlib.suppress(OSError):
                leader.send_bytes(_pickled(error, rank))
        finally:
            os._exit(0)

    def _seed_rank(self) -> None:
        if self.rank:
            seed_everything(self.seed + self.rank * RANK_SEED_STRIDE + self.samples)

    def _tell(self, name: str, *args: Any) -> None:
        """Have the other ranks call this method of theirs."""
        for pipe in self._followers.values():
            try:
                pipe.send((name, args))
            except OSError as error:
                raise self._reason(error) from None

    def _together(self, act: Callable[[], Any]) -> None:
        """Do something that all ranks do together.

        Raises:
            BaseException: What another rank has failed with.
        """
        try:
            act()
        except RuntimeError as error:
            raise self._reason(error) from None

    def _reason(self, error: Exception) -> BaseException:
        """Return what a rank has failed with; where it tells nothing, this process is about to end as it did."""
        from multiprocessing.connection import wait

        for pipe in cast(list[Connection], wait([*self._followers.values()], LAST_WORD_S)):
            with contextlib.suppress(EOFError, OSError):
                told: BaseException = pickle.loads(pipe.recv_bytes())
                return told
        if self._followers:
            threading.Event().wait(LAST_WORD_S)
        return error

    # --- what all of them do ---

    def open_stream(
        self, micro_batch_size: int, accumulation_steps: int, *, worst_batch: Callable[[int], Any] | None = None
    ) -> None:
        """Start the endless stream of training micro-batches, of which each rank has its part."""
        self._tell("_open", micro_batch_size, accumulation_steps, worst_batch is not None)
        super().open_stream(micro_batch_size, accumulation_steps, worst_batch=worst_batch)

    def _open(self, micro_batch_size: int, accumulation_steps: int, worst: bool) -> None:
        # A function does not go through a pipe, and this process has the same objective.
        worst_batch = self.objective.worst_batch if worst else None  # type: ignore[attr-defined]
        super().open_stream(micro_batch_size, accumulation_steps, worst_batch=worst_batch)

    def step(self) -> None:
        """Do one optimizer step with the mean gradient of all ranks."""
        self._tell("_step", self.accumulation_steps)
        super().step()

    def _step(self, accumulation_steps: int) -> None:
        self.accumulation_steps = accumulation_steps
        super().step()

    def _share_gradients(self) -> None:
        """Average gradients and the last loss; a gradient that no rank has stays away."""
        import torch
        import torch.distributed as dist

        parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        assert self.last_loss is not None
        # What is there goes first, so that all ranks know whose loss is no number, and which gradients there are.
        has = [float(parameter.grad is not None) for parameter in parameters]
        there = torch.tensor([float(self.last_loss), *has])
        self._together(lambda: dist.all_reduce(there))
        self.last_loss = there[0] / self.world_size
        wanted = [parameter for parameter, n in zip(parameters, there[1:].tolist(), strict=True) if n]
        for dtype in dict.fromkeys(parameter.dtype for parameter in wanted):
            these = [parameter for parameter in wanted if parameter.dtype == dtype]
            grads = [torch.zeros_like(each) if each.grad is None else each.grad for each in these]
            if any(grad.is_sparse for grad in grads):
                raise ObjectiveError("A gradient is sparse: with world_size, expected dense ones (sparse=False).")
            flat = torch.cat([grad.reshape(-1) for grad in grads])
            self._together(lambda flat=flat: dist.all_reduce(flat))  # type: ignore[misc]
            flat /= self.world_size
            for parameter, mean in zip(these, flat.split([each.numel() for each in these]), strict=True):
                parameter.grad = mean.view_as(parameter)

    def hold_batch(self, batch: Any = None) -> None:
        """Train on one batch from here on, each rank on its own."""
        self._tell("hold_batch")
        super().hold_batch(batch)

    def load(self, path: str) -> None:
        """Go on where `save` was called."""
        self._tell("load", path)
        super().load(path)

    def _other_generators(self) -> list[dict[str, Any]]:
        import torch.distributed as dist

        self._tell("_other_generators")
        states: list[Any] = [None] * self.world_size
        self._together(lambda: dist.all_gather_object(states, self._generators()))
        return states[1:]

    def _set_generators(self, state: dict[str, Any]) -> None:
        others = state.get("other_ranks") or []
        if self.rank <= len(others):
            super()._set_generators(others[self.rank - 1] if self.rank else state)
        else:  # A checkpoint of an earlier version has the first rank's alone.
            self._seed_rank()

    def measure_noise(self, noise: NoiseDesign) -> NoisePoint:
        """Measure gradient noise here; each rank has its part of the micro-batches."""
        self._tell("measure_noise", noise)
        return super().measure_noise(noise)

    def _share_noise(self, sums: list[torch.Tensor | None], squared_norms: list[float], n: int) -> list[float]:
        import torch
        import torch.distributed as dist

        theirs = torch.zeros(n, dtype=torch.float64)
        its = theirs[self.rank :: self.world_size]
        # Of a rank that ran out of memory there is no number, and so there is none of all.
        its[:] = torch.tensor(squared_norms) if len(squared_norms) == len(its) else math.nan
        self._together(lambda: dist.all_reduce(theirs))
        parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        for i, parameter in enumerate(parameters):
            held = sums[i]
            total = torch.zeros_like(parameter) if held is None else held.contiguous()
            self._together(lambda total=total: dist.all_reduce(total))  # type: ignore[misc]
            sums[i] = total
        return theirs.tolist()

    def validate(self, eval_batch_size: int) -> dict[str, float]:
        """Return the mean loss and metrics over all validation data, of which each rank has an equal part."""
        self._tell("validate", eval_batch_size)
        return super().validate(eval_batch_size)

    def validate_once(self, eval_batch_size: int) -> int:
        """Run one validation batch in each rank; return its size."""
        import torch.distributed as dist

        self._tell("validate_once", eval_batch_size)
        n_samples = super().validate_once(eval_batch_size)
        self._together(dist.barrier)  # Else nobody would hear of a rank that has failed in it.
        return n_samples

    def validation(self, eval_batch_size: int) -> Iterator[tuple[int, Any]]:
        """Yield (samples, batch) over this rank's part of the validation data, with the model in evaluation mode."""
        import torch.distributed as dist
        from torch.utils.data import Subset

        self.model.eval()
        for buffer in self.model.buffers():  # Running averages are the first rank's, as in DistributedDataParallel.
            self._together(lambda buffer=buffer: dist.broadcast(buffer, 0))  # type: ignore[misc]
        objective, n = self.objective, len(self.objective.val_data)
        share = range(n * self.rank // self.world_size, n * (self.rank + 1) // self.world_size)
        return validation_batches(
            Subset(objective.val_data, share),
            eval_batch_size,
            collate_fn=objective.collate_fn,
            num_workers=objective.num_workers,
            pin_memory=False,
            tokens=objective.val_tokens and objective.val_tokens[share.start : share.stop],
        )

    def _sum_over_ranks(self, numbers: list[float]) -> list[float]:
        import torch
        import torch.distributed as dist

        sums = torch.tensor(numbers, dtype=torch.float64)
        self._together(lambda: dist.all_reduce(sums))
        return sums.tolist()

    def held_bytes(self) -> dict[str, int]:
        """Return the bytes of parameters (and buffers), gradients and optimizer state of all ranks."""
        return {name: self.world_size * n_bytes for name, n_bytes in super().held_bytes().items()}


def _check(device: str, world_size: int) -> None:
    if device != "cpu":
        raise ObjectiveError(
            f"world_size={world_size} trains on CPU, and the device is {device}. Use --device cpu, or search a script "
            "that torchrun starts (bstune search -- torchrun --nproc-per-node N train.py ...)."
        )
    if not sys.platform.startswith("linux"):
        raise ObjectiveError(f"world_size={world_size} works on Linux only; elsewhere leave it out.")
    if (n_threads := threads_that_fork_loses()) > 1:
        raise ObjectiveError(
            f"world_size={world_size} forks a process for each rank, which is not safe: the objective's file left "
            f"{n_threads} threads running when it was loaded. Start them in model() or in the data sets instead."
        )


def _share_fence(n: int) -> None:
    """Leave each rank its part of the memory that the process may still ask for."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if soft != resource.RLIM_INFINITY:
        used = data_segment_bytes()
        resource.setrlimit(resource.RLIMIT_DATA, (used + max(0, soft - used) // n, hard))


def _end_as(pid: int) -> None:
    """Wait for the end of a rank; where it was killed or has exited, end this process in the same way."""
    _, status = os.waitpid(pid, 0)
    if (code := os.waitstatus_to_exitcode(status)) < 0:
        os.kill(os.getpid(), -code)
    elif code > 0:
        os._exit(code)


def _pickled(error: BaseException, rank: int) -> bytes:
    """Return an error for the first rank, with where it happened."""
    if hasattr(error, "add_note"):  # Python 3.11.
        error.add_note(f"In rank {rank}:\n{traceback.format_exc()}")
    try:
        body = pickle.dumps(error)
        pickle.loads(body)
    except Exception:  # It holds what does not go through a pipe, or needs more than its message to be made.
        return pickle.dumps(RuntimeError(f"{type(error).__qualname__}: {error}"))
    return body

"""Which errors mean that memory ran out, which a limit of size, and which a bug."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from bstune.tuner.device.out_of_memory import classify


def raised(function: Callable[[], object]) -> BaseException:
    """Return what a call raises."""
    with pytest.raises(BaseException) as caught:  # noqa: PT011  # Any error: the caller looks at it.
        function()
    return caught.value


def wrapped() -> None:
    """Raise as a training framework does that tells of an error with one of its own."""
    try:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    except torch.OutOfMemoryError as error:
        raise ValueError("the training step failed") from error


OUT_OF_MEMORY: list[BaseException] = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 15.00 GiB"),
    torch.OutOfMemoryError("XPU out of memory. Tried to allocate 2 GiB"),
    RuntimeError(
        "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported at some other API call"
    ),
    RuntimeError("CUDA driver error: out of memory"),
    RuntimeError("HIP out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError(
        "MPS backend out of memory (MPS allocated: 17.00 GB, other allocations: 1.00 GB, max allowed: 18.13 GB)"
    ),
    RuntimeError("level_zero backend failed with error: 39 (UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY)"),
    RuntimeError("Triton Error [CUDA]: out of memory"),
    RuntimeError(
        'NVML_SUCCESS == r INTERNAL ASSERT FAILED at "CUDACachingAllocator.cpp":1131, please report a bug to PyTorch.'
    ),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    RuntimeError("NCCL error: unhandled cuda error. Last error: Cuda failure 2 'out of memory'"),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
        "allocate 4096 bytes."
    ),
    RuntimeError("could not create a primitive"),
    RuntimeError("std::bad_alloc"),
    RuntimeError("DataLoader worker (pid 77) is killed by signal: Killed. "),
    RuntimeError(
        "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's workers are out "
        "of shared memory."
    ),
    OSError(12, "Cannot allocate memory"),
    MemoryError(),
    raised(lambda: np.empty(1 << 59, dtype=np.uint8)),
    raised(lambda: torch.empty(1 << 59, dtype=torch.uint8)),
    raised(wrapped),
]
LIMITS: list[BaseException] = [
    RuntimeError("CUDA error: invalid configuration argument"),
    RuntimeError("Expected canUse32BitIndexMath(input) && canUse32BitIndexMath(output) to be true, but got false."),
    RuntimeError("batch size (dim 0) must be less than 65536"),
    raised(lambda: torch.nn.BatchNorm1d(4)(torch.ones(1, 4))),
]
ERRORS: list[BaseException] = [
    RuntimeError("CUDA error: an illegal memory access was encountered"),
    RuntimeError("CUDA error: device-side assert triggered"),
    RuntimeError("CUDA error: unspecified launch failure"),
    RuntimeError("CUDA error: misaligned address"),
    RuntimeError(
        "CUDA error: an illegal memory access was encountered when calling cublasCreate: CUBLAS_STATUS_ALLOC_FAILED"
    ),
    RuntimeError("CUDA error: uncorrectable ECC error encountered (Xid 48)"),
    RuntimeError("error: there was an error in the training loop"),
    RuntimeError("CUDA error: no kernel image is available for execution on the device"),
    RuntimeError("Triton Error: out of resource: shared memory, Required: 262144, Hardware limit: 101376"),
    ValueError("CUDA out of memory is what this user's own check calls it"),
    FileNotFoundError(2, "No such file or directory"),
    KeyboardInterrupt(),
    raised(lambda: torch.nn.Linear(4, 2)(torch.ones(3, 5))),
]
EITHER: list[BaseException] = [
    RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
    RuntimeError("CUDA error: CUBLAS_STATUS_INTERNAL_ERROR when calling `cublasSgemm(...)`"),
    RuntimeError(
        "cuDNN error: CUDNN_STATUS_NOT_SUPPORTED. This error may appear if you passed in a non-contiguous input."
    ),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR"),
    RuntimeError("FIND was unable to find an engine to execute this computation"),
    RuntimeError("GET was unable to find an engine to execute this computation"),
]


def name_of(error: BaseException) -> str:
    """Return a short name for a test."""
    return f"{type(error).__name__}-{str(error)[:40]}"


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=name_of)
def test_out_of_memory_in_any_spelling(error: BaseException) -> None:
    """Wherever the device stands: these words have one meaning."""
    assert classify(error) == classify(error, near_cap=False) == "oom"


@pytest.mark.parametrize("error", LIMITS, ids=name_of)
def test_limits_of_size_are_not_memory(error: BaseException) -> None:
    """More memory would not help, and a smaller size does."""
    assert classify(error) == "limit"


@pytest.mark.parametrize("error", ERRORS, ids=name_of)
def test_bugs_are_not_memory(error: BaseException) -> None:
    """Not even where the word memory stands in them, and with the device full."""
    assert classify(error, near_cap=True) == "error"


@pytest.mark.parametrize("error", EITHER, ids=name_of)
def test_what_libraries_say_of_memory_and_of_bugs_alike(error: BaseException) -> None:
    """The state of the device decides: nearly full, it was memory."""
    assert classify(error, near_cap=True) == "oom"
    assert classify(error, near_cap=False) == "error"


def test_the_accelerators_own_error_is_read_like_any_other() -> None:
    """The class of torch for what the driver says, both for memory and for bugs."""
    accelerator_error = getattr(torch, "AcceleratorError", None)
    if accelerator_error is None:
        pytest.skip("this torch has no AcceleratorError")

    assert classify(accelerator_error("CUDA error: out of memory")) == "oom"
    assert classify(accelerator_error("CUDA error: device-side assert triggered")) == "error"

"""Which error messages mean that a device ran out of memory."""

from __future__ import annotations

import re

from ..core.probe_results import Outcome

OUT_OF_MEMORY = (
    "CUDA out of memory",
    "CUDA error: out of memory",
    "CUDA driver error: out of memory",
    "CUDA_ERROR_OUT_OF_MEMORY",
    "Triton Error [CUDA]: out of memory",
    "HIP out of memory",
    "HIP error: out of memory",
    "XPU out of memory",
    "UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY",
    "UR_RESULT_ERROR_OUT_OF_HOST_MEMORY",
    "MPS backend out of memory",
    "RESOURCE_EXHAUSTED: Out of memory",
    "NVML_SUCCESS == r INTERNAL ASSERT FAILED",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUSOLVER_STATUS_ALLOC_FAILED",
    "CUSPARSE_STATUS_ALLOC_FAILED",
    "CUFFT_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED",
    "Cuda failure 2 'out of memory'",
    "Cuda failure 'out of memory'",
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "std::bad_alloc",
    "Cannot allocate memory",
    "Unable to allocate",
    "could not create a primitive",
    "could not create a memory object",
    "unable to mmap",
    "is killed by signal: Killed",
    "dataloader's workers are out of shared memory",
)
"""How backends spell it. Each was seen in a thread, a run or the source: torch's CPU allocator raises a plain
RuntimeError, oneDNN says "could not create a primitive", torch's CUDA allocator fails an assertion where it cannot ask
NVML for the text of its message, NCCL names the failure of CUDA, a loader's worker is killed by the kernel.
"""

OUT_OF_MEMORY_OR_NOT = (
    "CUBLAS_STATUS_NOT_INITIALIZED",
    "CUBLAS_STATUS_INTERNAL_ERROR",
    "CUDNN_STATUS_NOT_INITIALIZED",
    "CUDNN_STATUS_INTERNAL_ERROR",
    "CUDNN_STATUS_NOT_SUPPORTED",
    "CUDNN_STATUS_EXECUTION_FAILED",
    "was unable to find an engine to execute this computation",
    "Unable to find a valid cuDNN algorithm to run convolution",
)
"""What cuBLAS and cuDNN say when they cannot get a handle or a workspace, and also when they are used wrongly."""

CONTEXT_LOST = (
    "illegal memory access",
    "device-side assert",
    "unspecified launch failure",
    "misaligned address",
    "illegal instruction",
    "hardware stack error",
    "uncorrectable ECC error",
    "an illegal address",
    "unknown error",
    "Xid",
)
"""In a message that names CUDA: the process can use the card no more. A bug or broken hardware, never memory, whatever
the failing call says besides.
"""

SIZE_LIMIT = (
    "Expected more than 1 value per channel when training",
    "Expected more than 1 spatial element when training",
    "canUse32BitIndexMath",
    "must fit into 32-bit index math",
    "more than INT_MAX elements",
    "invalid configuration argument",
    "batch size (dim 0) must be less than 65536",
)
"""Limits of a kernel or a layer on the size itself, which no memory would lift."""


def classify(error: BaseException, near_cap: bool = True) -> Outcome:
    """Return `oom`, `limit` or `error` for an exception of user code, by its type and then by the table of spellings.

    Args:
        error: The exception. One that was raised `from` another is what that other is.
        near_cap: Whether the device was nearly full. Only then is an error that cuBLAS and cuDNN also raise for other
            reasons counted as lack of memory; see `near_capacity`.
    """
    text, known = str(error), getattr(error, "outcome", None)
    if known in ("oom", "limit", "error"):  # Of a program of the user's, by `classify_exit`.
        return known  # type: ignore[no-any-return]
    if isinstance(error, RuntimeError) and "CUDA" in text.upper() and any(words in text for words in CONTEXT_LOST):
        return "error"
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return "oom"
    if isinstance(error, (RuntimeError, OSError)):
        if any(words in text for words in OUT_OF_MEMORY):
            return "oom"
        if may_be_memory(text):
            return "oom" if near_cap else "error"
    if isinstance(error, (RuntimeError, ValueError)) and any(words in text for words in SIZE_LIMIT):
        return "limit"
    return "error" if error.__cause__ is None else classify(error.__cause__, near_cap)


def classify_exit(code: int, text: str) -> Outcome:
    """Return how a program ended, by its exit code and its last output; by the same table.

    The kernel ends what takes too much memory with SIGKILL, which a shell in between reports as 137.

    Example:
        >>> classify_exit(0, ""), classify_exit(137, ""), classify_exit(1, "MemoryError")
        ('ok', 'oom', 'oom')
    """
    if code == 0:
        return "ok"
    if code in (-9, 128 + 9):
        return "oom"
    if "CUDA" in text.upper() and any(words in text for words in CONTEXT_LOST):
        return "error"
    if re.search(r"^(?:\w+\.)*(?:MemoryError|OutOfMemoryError)\b", text, re.MULTILINE):
        return "oom"
    if any(words in text for words in OUT_OF_MEMORY):
        return "oom"
    return "limit" if any(words in text for words in SIZE_LIMIT) else "error"


def may_be_memory(message: str) -> bool:
    """Whether an error message is one that cuBLAS and cuDNN give both for lack of memory and for other reasons."""
    return any(words in message for words in OUT_OF_MEMORY_OR_NOT)


def asked_bytes(message: str) -> int | None:
    """Return the bytes that a failed allocation asked for, where its message says so.

    Example:
        >>> asked_bytes("you tried to allocate 4096 bytes"), asked_bytes("Tried to allocate 1.50 GiB.")
        (4096, 1610612736)
    """
    match = re.search(r"[Tt]ried to allocate ([\d.]+) (bytes|KiB|MiB|GiB)", message)
    if match is None:
        return None
    return int(float(match[1]) * {"bytes": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}[match[2]])


def first_line(text: str, *, width: int = 200) -> str:
    """Return the first line of a message, cut to `width`."""
    line = next(iter(text.strip().splitlines()), "")
    return line if len(line) <= width else line[: width - 1] + "…"

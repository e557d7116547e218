"""What the hardware says: memory, cards, errors, and what a step took.

- `cards`: Memory of common cards, for planning on a device that is not here.
- `cuda`: CUDA itself: only in a child, because a process that has touched CUDA cannot be forked.
- `memory`: Memory and cores of this machine, within the limits of the container, and room on its disks.
- `meter`: What a step took: peak memory and time, read inside the process that took it.
- `nvml`: CUDA cards as NVML sees them: any process may ask, because NVML makes no context.
- `out_of_memory`: Which error messages mean that a device ran out of memory.
- `run_clock`: A clock that stands still while its thread could run but has no core.
- `threads`: The threads of this process that a process forked from it would miss.
- `tree_memory`: The memory of the processes below this one: what a command of the user's takes.
"""

"""The largest size that fits: which sizes to run, and running them.

- `attempts`: Runs sizes, each in a fresh process, and returns how each ended.
- `memory_fit`: What measured peaks say of sizes that were not run: lines, their errors, and the noise.
- `run`: The run of a probe: sizes that grow, the answer run once more, and what a step costs.
- `size_search`: The search for the largest size that fits: arithmetic only, so it is tested on formulas and needs
  neither torch nor a process.
- `timing`: What a step costs: which sizes are timed, alone on the device, and for how long.
"""

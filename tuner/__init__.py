"""The room where the work is done: probe what fits, search what learns, recommend what to use.

Read `search.py` first; it tells the whole story on one page. The modules behind it, from the bottom up:

- `errors`, `results`: what can go wrong, and what comes back.
- `device`, `meter`: what a device has, and what a step took of it.
- `worker`, `pool`, `pool_local`: the processes in which user code runs, and who hands them work.
- `probe`, `memory`: the largest micro-batch that fits, and the lines that predict it.
- `scaling`, `space`, `pruner`, `strategy`: which setting to try next, and when to stop it.
- `study`: the Optuna study on disk that remembers everything.
- `recommend`, `report`: the choice among what was run, and how it is told.
"""

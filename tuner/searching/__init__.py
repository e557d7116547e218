"""The loop over many trials: prepare, probe, run, write down, and say what came of it.

- `loop`: The loop of a search: the strategy decides, the pool runs, the study remembers, and whoever listens is told.
- `prepare`: Everything that a search needs before it trains: the objective's facts, a study, a probe, a pool.
- `probes`: The probes of a search: found or made, of each kind of device, and as trials have corrected them.
- `sharing`: How many trials run side by side on this machine, where that was left open.
- `result`: What a study amounts to: the strategy that goes on from it, and the result.
"""

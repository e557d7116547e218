"""The loop over many trials: prepare, probe, run, write down, and say what was found.

- `kept`: The best model of the confirmation runs of a search, where the user wants it kept.
- `learned`: What a storage knows of a model already: where a study of other data, or of another size of it, may begin.
- `loop`: The loop of a search: the strategy decides, the pool runs, the study remembers, and whoever listens is told.
- `prepare`: Everything that a search needs before it trains: the objective's facts, a study, a probe, a pool.
- `probes`: The probes of a search: found or made, of each kind of device, and as trials have corrected them.
- `taken_up`: What becomes of a study that is taken up again: whether anything more is run, and what has changed.
- `result`: What a study amounts to: the strategy that goes on from it, and the result.
"""

"""Faces of the strategy for other people's tools.

- `meaning`: which parameter of a study is the batch size, which the learning rate, and what a step is.
- `reading`: an Optuna study read as the strategy's space, rungs and ledger.
- `sampler`: `bstune.Sampler`, an Optuna sampler.
- `pruner`: `bstune.Pruner`, an Optuna pruner.
"""

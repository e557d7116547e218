"""What to try, what to stop, what to confirm and what to recommend; it runs nothing.

- `baseline_samplers`: Optuna's samplers, for comparison, and the choice of a sampler by its name.
- `budget`: The budget of a search, in samples: what is left, what is held back, and how far a run may go.
- `candidates`: What may be recommended: every setting that was run, with its loss and what it costs.
- `cautions`: What a user is warned of, as codes and figures.
- `choice`: The choice among candidates by the goal, and why, as codes and figures.
- `cost`: What training costs: the one place that turns samples of a setting into seconds.
- `finalists`: Which settings are worth confirming on fresh seeds, and which were never compared.
- `gaussian_process`: A Gaussian process over settings and fidelity: what a full run of an untried setting would
  reach, and how surely.
- `ledger`: The books of a search: every run with its curve, and what it was charged.
- `nothing_learned`: Whether the runs of a search say anything at all.
- `posterior`: The surrogate fitted to the books of a search: how each setting would end a full run, and how surely.
- `recommend`: The recommendation at any moment: the choice among what was run, how sure it is, and what else is as
  good.
- `rungs`: Rungs in samples, the same for all batch sizes, and what stops a trial besides a better use of the budget.
- `sampler`: What to try next: a race along the learning rate first, then the surrogate's choice; or Optuna's samplers
  for comparison.
- `samples_to_target`: What the trials of a search say: the target, the samples to reach it, and with both the batch
  size that is fastest.
- `space`: What is searched: global batch sizes, learning rates, the user's extra dimensions, and the prior over them.
- `strategy`: Decides: what to try next, when a trial is to stop, what to confirm, and when the search is over.
"""

"""What to try, what to stop, what to confirm and what to recommend; it runs nothing.

- `baseline_samplers`: Optuna's samplers, for comparison, and the choice of a sampler by its name.
- `budget`: The budget of a search, in reference runs: what is left, and how far a run may go.
- `candidates`: What may be recommended: every setting that was run, with its loss, how sure that is, and what it
  costs.
- `cautions`: What a user is warned of: codes and figures; `report/reasons.py` words them.
- `choice`: The choice among candidates by the goal, and why: codes and figures; `report/reasons.py` words them.
- `confirmation`: Which setting is worth a full run on a fresh seed next.
- `cost`: What training costs: the one place that turns samples of a setting into seconds, and seconds into reference
  runs.
- `curves`: Learning curves of runs: smoothed, and where they reach a target.
- `diverged_runs`: What runs that diverged say: that training goes no further, or that the answer cannot be verified.
- `forecast`: What a search is expected to cost, and what is left of that.
- `evidence`: All that a recommendation rests on: what was asked, what was run, what it costs, and what the surrogate
  makes of it.
- `frontier`: The other answers beside the recommended one: soonest, lowest loss at equal samples or equal seconds,
  and what lies between.
- `gain`: What a run is expected to bring: by how much the seconds to the goal fall when its outcome is known.
- `gain_sampler`: What to try next: a race along the learning rate first, then the run with the most expected gain for
  its seconds.
- `gaussian_process`: A Gaussian process over settings and fidelity: what a full run of an untried setting would
  reach, and how surely.
- `importance`: How much each dimension explains, alone, of how the loss that is expected of a full run varies.
- `improvement`: What to try next, and what to stop, where somebody else counts the trials: expected improvement of a
  whole run.
- `ledger`: The books of a search: every run with its curve, and what it was charged.
- `nothing_learned`: Whether the runs of a search say anything at all: losses that no learning rate changes, and
  losses that never fall.
- `posterior`: The surrogate fitted to the books of a search: how each setting would end a full run, and how surely.
- `race`: The first race along the learning rate, at one batch size, and what can be tried while nothing finite is
  known.
- `recommend`: The recommendation at any moment: the choice among what was run, how sure it is, and what else is as
  good.
- `rung_sampler`: What to try next where no step time is known: a race along the learning rate, then rungs filled with
  what looks best.
- `rungs`: Rungs in samples, the same for all batch sizes, and what stops a trial besides a better use of the budget.
- `samples_to_target`: What the trials of a search say: the target, the samples to reach it, and with both the batch
  size that is fastest.
- `space`: What is searched: global batch sizes, learning rates, the user's extra dimensions, and the prior over them.
- `strategy`: Decides: what to try next, when a trial is to stop, what to confirm, and when the search is over.
- `untried`: What a search left untried beside its answer: other batch sizes, and learning rates beyond it.
- `worth`: What a setting is worth: the seconds in which it would reach the best loss along its own curve (equal-loss
  seconds).
"""

"""What the commands do, one file a verb, and the rooms behind them.

- `batch_ramp`: A schedule that lets the batch grow where another would let the learning rate fall.
- `connect`: A training script as a client of the service.
- `dashboard`: A storage in optuna-dashboard, on this machine only, with our card as the note of each study.
- `diagnose`: What holds for the user's own model, of what people say about batch size and learning rate.
- `doctor`: What bstune sees on this machine, and what will not work.
- `list_studies`: The studies of a storage, each with its date, objective, device and answer.
- `plan`: What would fit a device that is not here: steps traced on the device that is, replayed in an allocator of
  the other's size.
- `probe`: `bstune probe`: the largest micro-batch that fits, found or taken from the study, and stored.
- `scale`: A recommended setting at another batch size: learning rate, betas, weight decay and warm-up, moved by a
  rule.
- `report_study`: A page, a picture or a card of a study, or two studies side by side.
- `search`: The whole story on one page: describe the objective, probe what fits, try settings, confirm, recommend.
- `serve`: The service: studies for a team, led here and run by the machines of others.
- `show`: What a study knows, read without disturbing the search that may be writing it.
- `train`: Training with what a study recommends: a full run in a fresh process, by the loop of a trial; the model is
  saved.
- `work`: A worker of the service: it probes its own device, then runs what the service hands out.

The rooms, from top to bottom; imports go only downward:

- `commands`: The command line, one file a command.
- `service`: One tuner for a team: studies, trials and pages over HTTP; it runs nobody's code.
- `client`: The side of the service that trains.
- `searching`: The loop over many trials: prepare, probe, run, write down, and say what was found.
- `integrations`: Faces of the strategy for other people's tools.
- `testing`: Stand-ins for what is slow, expensive or absent, for our tests and those of users.
- `diagnosis`: Claims about batch size and learning rate, and what judges them.
- `engines`: Who runs trials: worker processes here, this process, or Ray.
- `probing`: The largest size that fits: which sizes to run, and running them.
- `workers`: The processes in which user code runs, and what travels to and from them.
- `memory`: Memory without running it: traces of real steps, their replay, and the allocator's model.
- `strategy`: What to try, what to stop, what to confirm and what to recommend; it runs nothing.
- `studies`: What is remembered: storages, studies and their trials.
- `device`: What the hardware says: memory, cards, errors, and what a step took.
- `report`: What people read: text, progress, pages and pictures.
- `theory`: Pure arithmetic: gradient noise, intervals, scaling rules, step times and the critical batch.
- `core`: What everyone speaks of: results, errors, specs and arguments; it imports nothing of bstune.
"""

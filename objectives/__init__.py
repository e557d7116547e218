"""The training problems that bstune runs: from model and data, from the user's own loop, from a file.

- `base`: What an objective is to the rest of bstune, and the `Trial` that a training loop sees.
- `command`: An unmodified training script as an objective.
- `command_end`: What the end of a command means.
- `command_line`: A command with places for what a trial sets.
- `command_probe`: What a probe learns from one run of a command.
- `command_run`: One run of a command, read while it runs, and ended with all that it has started.
- `data`: Data sets as bstune wants them: checked, streamed without end in full batches, and moved to the device.
- `examination`: A model looked at while it trains, without changing anything.
- `fingerprint`: What an objective's code is, as a hash, and which family its optimizer belongs to.
- `gradient_noise`: Gradient noise of a model in training, measured so that training goes on bit for bit as if nothing
  had happened.
- `instances`: With what the instances that an objective is made of were made, such as `FocalLoss(2.0)`.
- `keywords`: What the user's classes and functions can be called with, by their signatures.
- `lightning`: A LightningModule and its data as an objective: Lightning's own Trainer runs each trial.
- `lightning_package`: Lightning itself: which of its packages a module is of, its callbacks, loaders, and advice.
- `load`: A reference to an objective in a file or module; the file is executed only in workers.
- `longest`: Which samples are the longest: a probe measures with them, so that its answer holds in whatever order they
  come.
- `look_at_curvature`: The largest eigenvalue of the Hessian.
- `look_at_gradients`: How gradients scatter, agree with new data, and differ between layers.
- `look_at_norms`: How far the statistics of BatchNorm are off.
- `look_at_optimizers`: Trainings with SGD and with Adam.
- `look_at_sizes`: Trainings of a small and a large batch, side by side.
- `look_at_strata`: How much of the scatter of gradients is between classes.
- `look_at_structure`: What a model is made of.
- `look_at_training`: Short trainings that answer one question each.
- `loop`: The user's own training loop as an objective.
- `loss_scale`: The loss scaling of half precision, kept from skipping the steps that a probe is made of.
- `metric_lines`: Losses in what a training script prints.
- `no_objective`: What to say of a file in which no objective can be, by reading it.
- `precise_norms`: Running statistics of BatchNorm made afresh from training samples.
- `ranked_run`: One model that several processes train together on this machine.
- `ranks`: How many processes a command starts that train together: its ranks.
- `reporting`: `bstune.report`, one line in a script of the user's.
- `schedule`: Learning-rate schedules as functions of progress: samples seen over the planned end of the run.
- `scores`: Names of scores, such as accuracy: what is minimised must not be one.
- `script_flags`: What a training script takes on its command line, by reading it.
- `seal`: Whether the file that a study stores may be run by somebody who has not named it on this command line.
- `step_times`: Seconds of an optimizer step that an objective states itself, by global batch size.
- `steady`: Whether the memory of a command has come to rest: when a probe has seen enough of it.
- `supervised`: The short form of an objective: a model, a training set and a validation set. bstune owns the loop.
- `supervised_arguments`: What is wrong with the arguments of a `Supervised`, seen without running anything.
- `told_losses`: The losses that one run of a command tells.
- `token_batches`: Batches of samples of varying length, each filled up to a number of tokens.
- `training`: One model in training, where bstune owns the loop: built from a seed, stepped, validated, saved and
  loaded.
- `transformers`: A Trainer of Transformers as an objective: it runs each trial itself.
- `user_code`: What a function or class uses of its user's own code: other functions and classes, and plain values.
"""

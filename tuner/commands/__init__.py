"""The command line, one file a command; each parses, calls the library once and prints what it returns.

- `group`: What all commands share: errors become one message and an exit code, answers are printed, signals end well.
- `options`: Options that several commands take, and the kinds of values that they read.
- `probe`: `bstune probe`: the largest size that fits.
- `search`: `bstune search`: find the setting, or go on with a stored study.
- `train`: `bstune train`: a full run with what a study recommends, and the model saved.
- `plan`: `bstune plan`: what fits a card that is not here.
- `show`: `bstune show`: what a study knows.
- `report`: `bstune report`: a page, a picture or a card of a study.
- `list`: `bstune list`: the studies of a storage.
- `dashboard`: `bstune dashboard`: a storage in optuna-dashboard.
- `serve`: `bstune serve`: one tuner for a team.
- `worker`: `bstune worker`: run what a service hands out.
- `diagnose`: `bstune diagnose`: which claims about batch size and learning rate hold for a model.
- `doctor`: `bstune doctor`: what bstune sees here.
"""

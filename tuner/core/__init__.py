"""What all rooms use: results, errors, specs and arguments; it imports nothing of bstune.

- `amounts`: Sizes and durations as people write them, with a unit.
- `arguments`: Checking what the user asked for, before anything is opened, loaded or run: every wrong argument is
  named at once.
- `attributes`: Settings where people keep them: attributes and `hparams` of the objects that a framework trains with.
- `command_words`: The words of a command line with places in braces: filled, or left out with their flags.
- `diagnosis`: What a diagnosis returns: claims about batch size and learning rate, each with what was found.
- `dimension`: One dimension of what is searched, in the one shape that all of bstune works with.
- `checks`: Checks of single arguments: what is wrong is collected, and named all at once.
- `document`: A document that the user names: it is read only if it is a plain file of a sensible size, and holds what
  it should.
- `errors`: What can go wrong, as a tree of exceptions.
- `examination`: What travels to and from a process that looks at a model: what to measure, and what was found.
- `interrupts`: Signals that end a search, delayed while something is written that must be complete.
- `pictures`: Where results ask for their charts and for what a notebook shows: the front door says who draws.
- `plain_text`: Text from a study, a model, a worker or a server, made harmless before it is shown, pasted or logged.
- `probe_results`: What a probe and a plan return: sizes, memory and speed; records as in `results`.
- `progress`: What has just happened in a search, as callbacks are told.
- `record`: What all results are: frozen dataclasses which are written as JSON and read back equal, and refuse what is
  none.
- `remarks`: What a decision has to tell, as codes and figures.
- `results`: What a search returns: frozen dataclasses whose names have their units, and which survive a trip through
  JSON.
- `specs`: What a search was asked to do, and what the strategy asks for next: plain data between the modules of the
  search.
- `symptoms`: What a check of the machine finds, and how much it matters.
- `take_home`: What users take home from a search: a setting at another batch size, the price of a ramp, a trained
  model.
- `terminal_text`: What a terminal would show of a program's output at its end.
- `trial_record`: One trial as it is remembered: what was asked, what was reached, and how a record grows with each
  report.
- `trials`: What travels to and from a trial: the facts of an objective, what to run, what to measure, and the
  reports.
- `version`: Which version this is, and those of the packages that an answer may depend on.
"""

"""Claims about batch size and learning rate, and what judges them: the probe, the trials of a search, the model itself.

- `claims`: All claims that are diagnosed, with who makes them; a new one is a function and an entry there.
- `hardware`: Claims about what the hardware does with a batch, from the probe.
- `kept`: Findings that a study keeps.
- `known`: What a finding may rest on.
- `learning_rate`: Claims about the learning rate and how it moves with the batch, from the trials.
- `outcome`: Claims about what comes out, from the trials.
- `tables`: Losses of settings at equal samples, and arithmetic on such tables.
"""

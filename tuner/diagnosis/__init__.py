"""Claims about batch size and learning rate, and what judges them: the probe, the trials of a search, the model itself.

- `claims`: All claims that are diagnosed, with who makes them; a new one is a function and an entry there.
- `course`: Claims about the course of a run, from the trials.
- `dimensions`: Claims about what a search may have as a dimension: the optimizer, momentum.
- `hardware`: Claims about what the hardware does with a batch, from the probe.
- `kept`: Findings that a study keeps, and which of them need not be measured again.
- `known`: What a finding may rest on.
- `learning_rate`: Claims about the learning rate and how it moves with the batch, from the trials.
- `measured`: Measurements on the model itself: what each costs, and making them.
- `model`: Claims about what the model is made of: BatchNorm, curvature, layers, pretrained weights.
- `noise`: Claims about gradient noise.
- `outcome`: Claims about what comes out, from the trials.
- `sizes`: Claims about a small and a large batch side by side.
- `tables`: Losses of settings at equal samples, and arithmetic on such tables.
- `trained`: Claims that take some training to judge.
"""

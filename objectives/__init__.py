"""The training problems that bstune runs: from model and data, from the user's own loop, from a file.

- `base`: what an objective is to the rest of bstune, and the `Trial` that a training loop sees.
- `supervised`: from a model, a training set and a validation set; bstune owns the loop.
- `loop`: the user's own loop.
- `load`: a reference to an objective in a file, resolved only in workers.
"""

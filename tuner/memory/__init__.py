"""Memory without running it: traces of real steps, their replay, and the allocator's model.

- `caching_allocator`: A model of CUDA's caching allocator: what a sequence of requests makes it reserve, and where it
  fails or thrashes.
- `cuda_recorder`: Sees what CUDA's caching allocator was asked for while real training steps ran, from the history
  that it keeps itself.
- `dispatch_recorder`: Sees every tensor storage come and go while real training steps run. For worker processes: it
  needs torch.
- `predictor`: What traced attempts say about sizes that were not run: collects traces while a probe runs, and turns
  them into a predictor.
- `trace`: Peak memory of a training step at sizes that were not run, predicted from a few traced sizes.
"""

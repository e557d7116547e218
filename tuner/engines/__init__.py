"""Who runs trials: worker processes here, this process, or Ray.

- `base`: Who runs trials: slots, `submit`, `events`, `cancel`. The strategy decides; a pool only runs.
- `inline`: Runs trials in the calling process, one at a time: for cheap, trusted functions such as a table or a
  formula.
- `local`: Runs trials in worker processes on this machine.
- `ray_actor`: What runs on the nodes of a Ray cluster: an actor with a template process, and trials forked from
  it.
- `ray_cluster`: A Ray cluster as the place where trials run: started here or joined, looked over, and left as it was.
- `ray_guard`: Waits for the end of a search that started Ray, and clears away what is left of it.
- `ray_pool`: Runs trials by Ray Tune, on this machine or on a cluster; see `base.Pool`.
- `ray_source`: The user's code on its way to a Ray cluster: source code and the pickled objective travel, data does
  not.
"""

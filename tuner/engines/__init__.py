"""Who runs trials: worker processes here, this process, or Ray.

- `base`: Who runs trials: an engine is where, a pool is how. The strategy decides; a pool only runs.
- `choose`: Which engine a search asks for: the one place that knows them all.
- `http`: Runs trials on the machines of clients that ask for them over HTTP; see `base.Pool`.
- `inline`: Runs trials in the calling process, one at a time: for cheap, trusted functions such as a table or a
  formula.
- `leases`: Who has which trial, and until when: the books of trials that run on machines of others.
- `local`: Runs trials in worker processes on this machine.
- `ray_actor`: What runs trials on the nodes of a Ray cluster: an actor with a template process, and trials forked from
  it.
- `ray_cluster`: A Ray cluster as the place where trials run: what its nodes are, and how the objective and the probe go
  there.
- `ray_engine`: A Ray cluster as a search asks of it.
- `ray_guard`: Waits for the end of a search that started Ray, and clears away what is left of it.
- `ray_layout`: How trials are laid out over the nodes of a Ray cluster.
- `ray_pool`: Runs trials by Ray Tune, on this machine or on a cluster; see `base.Pool`.
- `ray_source`: The user's code on its way to a Ray cluster: source code and the pickled objective travel, data does
  not.
- `ray_start`: Starts Ray on this machine, or joins a cluster, and leaves the process as it was.
- `ray_survey`: What a search asks of the nodes of a Ray cluster before its trials: their kind of device, the objective,
  a probe.
- `sharing`: How many trials run side by side on this machine with `jobs="auto"`: as many as have cores and memory.
"""

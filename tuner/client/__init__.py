"""The side of the service that trains: calls over HTTP that may be repeated, and runs that outlive a lost connection.

- `link`: Calls to the service: repeated while it is away, refused when it refuses.
- `relay`: Runs what the service hands out on this machine's engine, and carries reports there and verdicts back.
- `remote`: A study of the service as a training script sees it.
- `watch`: What happens in a study of the service, told here as a search on this machine tells it.
- `wire`: Arguments of a search as they travel.
"""

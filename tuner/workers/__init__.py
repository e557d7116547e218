"""The processes in which user code runs, and what travels to and from them.

- `answers`: What a worker may answer, checked against what it was asked: the right message, about the right trial, with
  figures that can be.
- `fork_server`: The caller's side of worker processes: starts the template, hands out jobs, sees how each process
  ended, leaves none behind.
- `launch`: How a program of bstune is started, and where it and the user's code look for modules.
- `leftovers`: Processes that user code leaves behind, found and ended: nothing of a trial, and nothing of a search,
  survives it.
- `message_json`: Messages between the host and a worker as JSON, and back into checked dataclasses. No pickle:
  reading one runs code.
- `messages`: What travels between the host and its workers: jobs on the way out, answers on the way back.
- `resolve`: An objective as the caller gave it, checked; a path is turned into a reference.
- `template`: A worker program as the host sees it: how it is started, the processes that it forks, what they say, and
  how each of them ended.
- `wire`: Frames over a socket between the host and a worker: a length of four bytes, then so many bytes of a message.
- `worker`: The process in which user code runs, a program of its own: `launch.command("bstune.tuner.workers.worker",
  FD)`.
"""

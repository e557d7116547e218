"""One tuner for a team: studies, trials and pages over HTTP. It runs nobody's code.

- `app`: The routes of the service: what is called how.
- `connections`: Connections of the server: those that send nothing, or too slowly, are closed.
- `curves`: The learning curves of a study as a picture of plain SVG.
- `events`: What happens in the studies, as it goes out to those who watch.
- `hub`: The studies of the service by name: made, found, taken up after a restart, and deleted.
- `limits`: What stands before every call: who calls, how often, how much it sends and how slowly.
- `metrics`: What the service measures of itself, for Prometheus.
- `pages`: The pages of the service: plain HTML, kept fresh by server-sent events.
- `schemas`: What clients may say, as pydantic models over the project's own dataclasses.
- `served`: One study of the service: its search runs in a thread of its own.
- `tokens`: Who may do what: tokens from a file or the environment.
"""

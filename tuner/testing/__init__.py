"""Stand-ins for what is slow, expensive or absent, for our tests and those of users.

- `fake_device`: Stand-ins for what is slow, expensive or absent: a device whose memory is a formula, and a clock.
- `fake_nvml`: An NVML without a driver: cards made up for a test.
- `replay`: A pool that replays a table, so that a whole search takes milliseconds.
- `tables`: Recorded learning curves as a table, so that the truth of a search is known.
"""

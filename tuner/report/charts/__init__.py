"""Charts, one function each: from results to an Altair chart, or None where there is nothing to show.

- `curves`: Learning curves, by samples and by seconds.
- `frame`: What all charts share: colours, axes, and how a trial is picked.
- `landscape`: Batch size by learning rate, with the loss as colour.
- `probe_lines`: Memory and throughput as a probe has measured them.
- `reach`: Samples and seconds to a loss by batch size, and the lines through them.
- `search_lines`: The limits of the batch size, gradient noise, and where the seconds went.
- `settings`: Settings that were run to the end: loss against seconds, fresh seeds.
"""

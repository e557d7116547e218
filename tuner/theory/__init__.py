"""Pure arithmetic: gradient noise, intervals, scaling rules, step times and the critical batch.

- `critical_batch`: The batch size that reaches a target first. Pure arithmetic.
- `gradient_noise`: Gradient noise scale: how large a batch can be before its gradient is hardly better than a smaller
  one's. Pure arithmetic.
- `intervals`: How sure an estimate is: a quantile of Student's t, and the jackknife. Pure arithmetic.
- `ramp`: A batch size that grows where a schedule would let the learning rate fall. Pure arithmetic.
- `scaling`: Pure arithmetic: batch splits, and how the best learning rate is expected to move with the batch size.
- `step_time`: Step time as a line in the micro-batch size, t(n) = a + c * n, and the sizes at which to measure it.
"""

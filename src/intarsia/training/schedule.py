"""The learning rate as a pure function of the step: nothing to save, nothing to restore."""

from typing import Literal


def learning_rate(
    step: int, total: int, *, peak: float, warmup: float, schedule: Literal["linear", "constant"]
) -> float:
    """The learning rate of step `step` (the first is 0) of `total`.

    It rises over W = round(warmup * total) steps and is at its peak at the last of them; `linear` then falls towards 0,
    which it would reach at step `total`. No step is wasted on a rate of 0, unlike with the common `step / W`.
    """
    rising = round(warmup * total)
    if step < rising:
        return peak * (step + 1) / rising
    if schedule == "constant":
        return peak
    return peak * max(0, total - step) / max(1, total - rising)

"""Where a run stands, and how it ended."""

from dataclasses import dataclass, field


@dataclass
class State:
    """What a checkpoint holds beside tensors."""

    step: int = 0
    evaluated_at: int = 0
    window: list[list[float]] = field(default_factory=list)
    """(loss, norm of the gradient) of each step since the last log line."""
    window_tokens: int = 0
    window_seconds: float = 0.0
    loss: float | None = None
    tokens: int = 0
    seconds: float = 0.0
    best: float | None = None
    best_step: int | None = None
    best_metrics: dict[str, float] = field(default_factory=dict)
    without_gain: int = 0
    pruned: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class FitResult:
    """How a run ended. The task holds the best weights, or the last ones of a run without validation."""

    steps: int
    epochs: float
    loss: float
    """Mean training loss since the log line before the last."""
    metric: str | None
    """The metric that named the best weights; None without validation, as are `best` and `best_step`."""
    best: float | None
    best_step: int | None
    metrics: dict[str, float]
    """Validation metrics of the best weights."""
    tokens: int
    seconds: float
    stopped: str
    """`finished`, `patience` or `pruned`."""
    test: dict[str, float] = field(default_factory=dict)
    """Metrics of the best weights on `Entry.test`, where it was scored with others'."""

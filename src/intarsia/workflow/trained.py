"""What a training run leaves behind."""

from dataclasses import dataclass
from pathlib import Path

from intarsia.backbone import Backbone
from intarsia.task import Task


@dataclass(frozen=True, kw_only=True, slots=True)
class Trained:
    """What a run leaves behind."""

    task: Task
    """The trained task, with the best weights."""
    backbone: Backbone
    metrics: dict[str, dict[str, float]]
    """Split -> metric -> value: of `validation`, and of `test` where it was asked for."""
    folder: Path
    """Holds task.safetensors, task.json, run.json and metrics.jsonl; curve.png, where it was not one of a comparison."""
    parameters: int
    """Numbers that were trained; a reparameterisation's are more than what is kept of it."""
    seconds: float

    @property
    def size(self) -> int:
        """Bytes of the task itself: what one ships."""
        return sum((self.folder / name).stat().st_size for name in ("task.safetensors", "task.json"))

"""Pure tensor functions: no nn.Module, no transformers. The one place that chooses between a reference and a fast version."""

from intarsia.ops.activations import ACTIVATIONS
from intarsia.ops.pieces import Pieces
from intarsia.ops.reference import bottleneck, linear, low_rank, normalise, per_task

__all__ = ["ACTIVATIONS", "Pieces", "bottleneck", "linear", "low_rank", "normalise", "per_task"]

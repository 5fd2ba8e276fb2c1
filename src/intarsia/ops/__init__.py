"""Pure tensor functions: no nn.Module, no transformers. The one place that chooses between a reference and a fast version."""

from intarsia.ops.activations import ACTIVATIONS
from intarsia.ops.adamw import Rates, adamw
from intarsia.ops.attention import product_attention
from intarsia.ops.dropout import keyed_dropout
from intarsia.ops.fast import adapted, norm_change
from intarsia.ops.pieces import Pieces
from intarsia.ops.reference import Own, bottleneck, linear, low_rank, normalise, per_task
from intarsia.ops.segments import segment_attention

__all__ = [
    "ACTIVATIONS",
    "Own",
    "Pieces",
    "Rates",
    "adamw",
    "adapted",
    "bottleneck",
    "keyed_dropout",
    "linear",
    "low_rank",
    "norm_change",
    "normalise",
    "per_task",
    "product_attention",
    "segment_attention",
]

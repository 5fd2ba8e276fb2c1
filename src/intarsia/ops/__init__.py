"""Pure tensor functions: no nn.Module, no transformers. The one place that chooses between a reference and a fast version."""

from intarsia.ops.activations import ACTIVATIONS
from intarsia.ops.adamw import Rates, adamw
from intarsia.ops.addressed import NOBODY, At, Before, Rows, adapt_, add_norms_, add_vectors_, offsets_from, whole_norms
from intarsia.ops.attention import product_attention, with_prefix
from intarsia.ops.choice import fused
from intarsia.ops.dropout import keyed_dropout
from intarsia.ops.fast import (
    activated,
    adapted,
    adapted_,
    add_low_rank,
    frozen_norm,
    fused_activation,
    leaves_sums,
    norm_change,
    norm_change_,
    rotated,
    whole_norm,
)
from intarsia.ops.frozen import frozen_linear
from intarsia.ops.means import row_means
from intarsia.ops.native.products import Panels
from intarsia.ops.native.products import takes as takes_panels
from intarsia.ops.pieces import ALIGN, Pieces, by_row
from intarsia.ops.prefixed import prefixed_attention
from intarsia.ops.reference import Own, add_linear_, bottleneck, linear, normalise, per_task
from intarsia.ops.segments import segment_attention
from intarsia.ops.summed import Summed, again, left_to_norm, made

__all__ = [
    "ACTIVATIONS",
    "ALIGN",
    "NOBODY",
    "At",
    "Before",
    "Own",
    "Panels",
    "Pieces",
    "Rates",
    "Rows",
    "Summed",
    "activated",
    "adamw",
    "adapt_",
    "adapted",
    "adapted_",
    "add_linear_",
    "add_low_rank",
    "add_norms_",
    "add_vectors_",
    "again",
    "bottleneck",
    "by_row",
    "frozen_linear",
    "frozen_norm",
    "fused",
    "fused_activation",
    "keyed_dropout",
    "leaves_sums",
    "left_to_norm",
    "linear",
    "made",
    "norm_change",
    "norm_change_",
    "normalise",
    "offsets_from",
    "per_task",
    "prefixed_attention",
    "product_attention",
    "rotated",
    "row_means",
    "segment_attention",
    "takes_panels",
    "whole_norm",
    "whole_norms",
    "with_prefix",
]

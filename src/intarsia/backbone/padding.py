"""Whether padding beside a row leaves its states alone, on an inspected model: tried, since some mix it in.

A convolution over words (ConvBERT), a recurrence that starts at the padding (RecurrentGemma) or hashing into buckets (YOSO) makes a
row's answer depend on how long its neighbours are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from intarsia.errors import UnsupportedError

if TYPE_CHECKING:
    from intarsia.backbone.backbone import Backbone

_EXACT, _HALF = 1e-3, 0.2
"""Of the largest state; in half precision a token near the edge may go to another expert."""


@torch.no_grad()
def check_padding(backbone: Backbone) -> None:
    """UnsupportedError where it does not. Decoders are padded on both sides: generation on the left."""
    row = torch.tensor([[3, 4, 5, 6, 7]])
    spare = torch.full((1, 4), backbone.pad_id)
    limit = _EXACT if backbone.dtype in (torch.float32, torch.float64) else _HALF
    alone = backbone.features({"input_ids": row, "attention_mask": torch.ones_like(row)})
    for side in ("right", "left") if backbone.kind == "decoder" else ("right",):
        parts = (row, spare) if side == "right" else (spare, row)
        mask = torch.cat([torch.full_like(part, part is row) for part in parts], dim=1)
        states = backbone.features({"input_ids": torch.cat(parts, dim=1), "attention_mask": mask})
        own = states[:, : row.shape[1]] if side == "right" else states[:, -row.shape[1] :]
        if backbone.dtype == torch.float64 and own.isnan().any():
            continue  # transformers' own masks for BLOOM and MPT; in the dtypes that people use there is none
        if not (own - alone).abs().max() <= limit * alone.abs().max():
            raise UnsupportedError(
                f"model type {backbone.config.model_type!r} reads the padding on the {side} of a row in spite of its mask, so "
                "answers would depend on the rows beside it; take another backbone"
            )

"""What takes the place of transformers' sdpa in bf16 on a CPU: backward, torch's own kernel takes five times as long there."""

from typing import Any

import torch
from torch import Tensor, nn

from intarsia.ops import product_attention


def wants_products(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether attention is computed here."""
    return dtype == torch.bfloat16 and device.type == "cpu"


def products(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **more: Any
) -> tuple[Tensor, None]:
    """Takes and gives what transformers' sdpa_attention_forward does, and a prefix: keys and values (N, H, P, D), each for B / N
    neighbouring rows, of which the mask and a position bias know. query: (B, H, T, D) -> (B, T, H, D)."""
    from transformers.integrations.sdpa_attention import create_position_bias_mask, repeat_kv

    groups = getattr(module, "num_key_value_groups", 1)
    key, value, *prefix = (repeat_kv(x, groups) for x in (key, value, *more.get("prefix", ())))
    queries, keys = query.shape[2], key.shape[2]
    causal = more.get("is_causal")
    causal = bool(getattr(module, "is_causal", True) if causal is None else causal)
    causal = causal and queries > 1 and mask is None
    if (bias := more.get("position_bias")) is not None:
        mask = create_position_bias_mask(bias, mask, causal, query, key)
    elif causal:
        mask = torch.ones(queries, keys, dtype=torch.bool, device=key.device).tril()[None, None]
    scale = more.get("scaling")
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    before = (prefix[0], prefix[1]) if prefix else None
    found = product_attention(query, key, value, mask, scale, more.get("dropout", 0.0), before)
    return found.transpose(1, 2).contiguous(), None

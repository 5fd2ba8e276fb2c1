"""Attention of padded rows, each with its own task's keys and values before its own.

B rows, H heads, H_kv key-value heads, T queries, S keys, P virtual positions, D width of a head.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from intarsia.ops.addressed import Before, row_prefix
from intarsia.ops.choice import fused


def prefixed_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, before: Before, *, causal: bool, scale: float
) -> Tensor:
    """softmax(scale q [P_k; k]^T + mask) [P_v; v], where all queries of a row see all of its prefix.

    query: (B, H, T, D), key and value: (B, H_kv, S, D), mask: (B or 1, 1, T, S), true or 0 where a query sees a key, or None.
    causal: without a mask, the last query sees all keys, the one before all but the last. before: of the G rows that B are in equal
    parts (beams). Returns (B, T, H, D).
    """
    if fused(query):
        from intarsia.ops.kernels.prefixed import prefixed

        return prefixed(query, key, value, mask, before, causal, scale)
    rows, heads, queries, _ = query.shape
    each, groups, keys = rows // (len(before.rows.forms) - 1), heads // key.shape[1], key.shape[2]
    if mask is None:
        mask = torch.ones(queries, keys, dtype=torch.bool, device=query.device)
        mask = (mask.tril(keys - queries) if causal else mask)[None, None]
    out = []
    for row in range(rows):
        k, v, seen = key[row], value[row], mask[row if len(mask) > 1 else 0]
        if (found := row_prefix(before, row // each, k.shape[0], k.shape[2])) is not None:
            k, v = (torch.cat([own.to(x.dtype), x], dim=1) for own, x in zip(found, (k, v), strict=True))
            seen = F.pad(seen, (k.shape[1] - keys, 0), value=1 if seen.dtype == torch.bool else 0)
        k, v = (x.repeat_interleave(groups, dim=0)[None] for x in (k, v))
        out.append(F.scaled_dot_product_attention(query[row : row + 1], k, v, seen[None], scale=scale))
    return torch.cat(out).transpose(1, 2)

"""The seam at attention: keys and values of virtual positions, put before an attention's own.

transformers lets an attention function be registered by name; each attention module calls it with queries, keys and values
(B, H, T, D) after the position encoding and after the key-value cache. Ours puts a prefix there and hands on to the very
function that the model used before (sdpa, or the eager one of its own modelling file), so without a prefix nothing changes.
In bf16 on a CPU, sdpa's place is taken by the products written out.

B rows, H heads, T queries, S keys, P virtual positions, D width of a head.
"""

import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from intarsia.backbone.attention_products import products, wants_products
from intarsia.ops import Before, prefixed_attention, with_prefix


class Prefix(NamedTuple):
    """What stands before the keys and values of some neighbouring rows of a call."""

    rows: int
    """R of them."""
    key: Tensor | None
    """(N, H, P, D): N divides R, and each is for R / N neighbouring rows. None: these rows have no prefix."""
    value: Tensor | None
    """(N, H, P, D)"""
    offset: bool = False
    """Whether positions count the prefix; only a relative position bias (T5) needs to know."""
    masks: dict[Any, Any] | None = None
    """Kept from layer to layer of a call: the same mask need not be made longer at each of them."""


Extend = Callable[[int], Sequence[Prefix] | Before | None]
"""rows of this call -> what to put before them, in order, or where a kernel finds it; or None."""
Watch = Callable[[nn.Module, Tensor, Tensor], None]
"""(module, keys, values), as the module's own."""
Result = tuple[Tensor, Tensor | None]

# Names without "sdpa" or "flash" in them: transformers looks for those and takes other paths. Each has its own mask
# function: with none registered, padding would silently be attended to.
OVER = {"sdpa": "intarsia", "eager": "intarsia_eager"}
# Of an attention module: lists of Extend and of Watch, one for each that is hooked there.
EXTEND, WATCH, RELATIVE = "_intarsia_extend", "_intarsia_watch", "_intarsia_relative"


def _over_sdpa(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **more: Any
) -> Result:
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    inner = products if wants_products(query.dtype, query.device) else sdpa_attention_forward
    return _attend(inner, module, query, key, value, attention_mask, more)


def _over_eager(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **more: Any
) -> Result:
    # The fallback lives in the modelling file: it has that model's own soft cap, bias and dtype of the softmax.
    eager = sys.modules[type(module).__module__].eager_attention_forward
    return _attend(eager, module, query, key, value, attention_mask, more, additive=True)


def _attend(
    inner: Callable[..., Result],
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    more: dict[str, Any],
    *,
    additive: bool = False,
) -> Result:
    for watch in module.__dict__.get(WATCH, ()):
        watch(module, key, value)
    parts = wanted(module, query.shape[0])
    if parts is None:
        return inner(module, query, key, value, mask, **more)
    causal = more.get("is_causal")
    causal = bool(getattr(module, "is_causal", True) if causal is None else causal)
    if isinstance(parts, Before):
        scale = more.get("scaling") or query.shape[-1] ** -0.5
        causal = causal and mask is None and query.shape[2] > 1
        return prefixed_attention(query, key, value, mask, parts, causal=causal, scale=scale), None
    # Rows with prefixes of one length by themselves: nobody's keys are copied, padded or hidden for the sake of others.
    found, stop = [], 0
    for part in parts:
        span = slice(stop, stop := stop + part.rows)
        q, k, v = (x if len(parts) == 1 else x[span] for x in (query, key, value))
        own = dict(more)
        if (bias := more.get("position_bias")) is not None:
            own["position_bias"] = _own(bias, span)
        if part.key is None or part.value is None:
            found.append(inner(module, q, k, v, None if mask is None else _own(mask, span), **own))
            continue
        if bias is not None:
            own["position_bias"] = _longer_bias(module, own["position_bias"], part)
        own.pop("is_causal", None)
        longer = _once(part, mask, span, q, k, causal=causal)
        if additive and longer is not None and longer.dtype == torch.bool:
            # Eager attention adds its mask to the scores; the model made none here, and ours is boolean.
            longer = torch.zeros(longer.shape, dtype=query.dtype, device=longer.device).masked_fill(
                ~longer, torch.finfo(query.dtype).min
            )
        if inner is products:  # which takes it where it lies; transformers' functions know of none
            own["prefix"] = part.key, part.value
        else:
            k, v = with_prefix(part.key, k), with_prefix(part.value, v)
        # A mask of our own says all; left to itself sdpa would cut the keys to the first T, and lose the last P real ones.
        found.append(inner(module, q, k, v, longer, is_causal=False, **own))
    return found[0] if len(found) == 1 else _joined(found)


def wanted(module: nn.Module, rows: int) -> Sequence[Prefix] | Before | None:
    """What goes before the keys and values of so many rows: of the one bank whose call it is, among those that have hooks there."""
    found = (extend(rows) for extend in module.__dict__.get(EXTEND, ()))
    return next((parts for parts in found if parts is not None), None)


def _own(x: Tensor, span: slice) -> Tensor:
    """Of some rows; (1, ...) is everyone's."""
    return x if x.shape[0] == 1 else x[span]


def _joined(found: Sequence[Result]) -> Result:
    """The results of neighbouring rows as one. Attention's weights, where they are given, are as wide as the widest."""
    weights = [own for _, own in found if own is not None]
    outputs = torch.cat([output for output, _ in found])
    if len(weights) < len(found):
        return outputs, None
    widest = max(own.shape[-1] for own in weights)
    return outputs, torch.cat([nn.functional.pad(own, (widest - own.shape[-1], 0)) for own in weights])


def _once(
    prefix: Prefix, mask: Tensor | None, span: slice, query: Tensor, key: Tensor, *, causal: bool
) -> Tensor | None:
    """`_longer_mask` of the rows' own mask, not made again where the layer before had the same."""
    assert prefix.key is not None
    length, (queries, keys) = prefix.key.shape[2], (query.shape[2], key.shape[2])

    def make() -> Tensor | None:
        own = None if mask is None else _own(mask, span)
        return _longer_mask(own, length, queries, keys, causal=causal, device=key.device)

    if prefix.masks is None:
        return make()
    held = prefix.masks.get(causal)
    size = (span.start, span.stop, length, queries, keys, key.device)
    # The mask itself is held too, so that no other can have its place in memory.
    if held is None or held[0] is not mask or held[1] != size:
        held = prefix.masks[causal] = mask, size, make()
    return held[2]


def _longer_mask(
    mask: Tensor | None, length: int, queries: int, keys: int, *, causal: bool, device: torch.device
) -> Tensor | None:
    """The mask with columns for the prefix on its left: [ones | mask], or [ones | tril] where there was none."""
    if mask is None:
        if not causal or queries == 1:
            return None
        mask = torch.ones(queries, keys, dtype=torch.bool, device=device).tril()[None, None]
    # Seen by all: True, or nothing to add.
    fill = 1 if mask.dtype == torch.bool else 0
    return nn.functional.pad(mask, (length, 0), value=fill)


def _longer_bias(module: nn.Module, bias: Tensor, prefix: Prefix) -> Tensor:
    """T5's relative bias with columns for the prefix: zeros, since a prefix has no place; with `offset`, the bias of tokens
    that stand right before the others (as after P cached tokens)."""
    assert prefix.key is not None
    length = prefix.key.shape[2]
    table: Any = module.__dict__.get(RELATIVE)
    if not prefix.offset or table is None:
        return nn.functional.pad(bias, (length, 0))
    queries, keys = bias.shape[-2:]
    return table.compute_bias(queries, length + keys, device=bias.device, past_seen_tokens=length + keys - queries).to(
        bias.dtype
    )


def register() -> None:
    """Makes the two names known to transformers. May be called again."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask, sdpa_mask

    for name, attend, mask in ((OVER["sdpa"], _over_sdpa, sdpa_mask), (OVER["eager"], _over_eager, eager_mask)):
        AttentionInterface.register(name, attend)
        AttentionMaskInterface.register(name, mask)

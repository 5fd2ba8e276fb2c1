"""The sublayers of one layer, by the names and shapes of its modules and what one pass has shown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from itertools import takewhile

from torch import Tensor, nn

from intarsia.backbone.families import Attention, FeedForward
from intarsia.backbone.locate import is_norm, shape_of
from intarsia.backbone.watched import Watched

_QUERY, _KEY, _VALUE = re.compile(r"^q($|_|uery)"), re.compile(r"^k($|_|ey)"), re.compile(r"^v($|_|alue)")
_FUSED = re.compile(r"qkv|query_key_value|c_attn|in_proj")

Found = tuple[Attention | None, Attention | None, FeedForward | None]
"""A layer's attention, its cross-attention, its feed-forward."""
Shapes = Mapping[str, tuple[int, int]]
"""Projections that were called, by path: widths of input and output."""


class NotSure(Exception):  # noqa: N818 - the inspection says it in its own words
    """What was expected, and what was found."""


def inspect_layer(one: Watched, *, crosses: bool) -> Found:
    """crosses: of a decoder that reads an encoder too."""
    hidden = hidden_of(one)
    called = one.counts
    shapes = {n: shape for n, m in one.layer.named_modules() if n in called and (shape := shape_of(m)) is not None}
    shapes = dict(sorted(shapes.items(), key=lambda item: one.order(item[0])))
    attention = cross = None
    if crosses:
        attention, cross = _two_attentions(one, shapes, hidden)
    elif _named(shapes, _QUERY) or _fused(one, shapes):
        attention = _attention(one, shapes, hidden)
    inside = [row.module for row in (attention, cross) if row is not None]
    projections = {n for row in (attention, cross) if row is not None for n in (row.q, row.k, row.v, row.o)}
    owners = [n for n in _owners(one.layer) if n not in projections and not _within(n, inside)]
    if not inside:
        # No attention by name: the first block has its place, unless it is all that the layer has and a feed-forward.
        blocks = _tops(one, owners)
        if len(blocks) > 1 or (blocks and not _is_feed_forward(one.layer.get_submodule(blocks[0]))):
            attention = Attention(module=blocks[0], out=one.end(blocks[0]), takes_prefix=blocks[0] in one.attends)
            owners = [n for n in owners if not _within(n, blocks[:1])]
    return attention, cross, _feed_forward(one, shapes, owners, hidden, attention)


def hidden_of(one: Watched) -> int:
    """Width of the states that enter the layer."""
    x = next((call.x for call in one.calls if not call.name), None)
    if not isinstance(x, Tensor) or x.shape[:2] != (1, 4):
        what = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise NotSure(f"expected states of (1, 4, width) to enter a layer once, found {what}")
    if one.counts[""] != 1:
        raise NotSure(f"expected a layer to be called once, found {one.counts['']} calls")
    return x.shape[-1]


def is_plain(attention: Attention | None, feed_forward: FeedForward | None) -> bool:
    """Whether both are what a layer has by its projections' names and shapes."""
    return attention is not None and bool(attention.q) and feed_forward is not None and not feed_forward.block


def _named(names: Iterable[str], pattern: re.Pattern) -> list[str]:
    return [name for name in names if pattern.search(_last(name))]


def _fused(one: Watched, names: Iterable[str]) -> list[str]:
    """A state-space block's in_proj stands beside a convolution, and no attention's does."""
    return [
        name
        for name in _named(names, _FUSED)
        if not any(isinstance(m, nn.Conv1d) for m in one.layer.get_submodule(_parent(name)).children())
    ]


def _last(path: str) -> str:
    return path.rpartition(".")[2]


def _parent(path: str) -> str:
    return path.rpartition(".")[0]


def _within(path: str, modules: Iterable[str]) -> bool:
    return any(f"{path}.".startswith(f"{module}.") for module in modules)


def _common(paths: Iterable[str]) -> str:
    """The path of the smallest module that holds all of these; empty: the layer."""
    columns = zip(*(path.split(".") for path in paths), strict=False)
    return ".".join(parts[0] for parts in takewhile(lambda parts: len(set(parts)) == 1, columns))


def _two_attentions(one: Watched, shapes: Shapes, hidden: int) -> tuple[Attention, Attention]:
    """The decoder's own, and the one that reads the encoder: the second."""
    parents = list(dict.fromkeys(map(_parent, _named(shapes, _QUERY))))
    if len(parents) != 2:
        raise NotSure(f"expected self-attention and cross-attention in a decoder's layer, found queries in {parents}")
    own, cross = (_attention(one, {n: s for n, s in shapes.items() if _within(n, [p])}, hidden) for p in parents)
    return own, cross


def _attention(one: Watched, shapes: Shapes, hidden: int) -> Attention:
    q, k, v = (_named(shapes, pattern) for pattern in (_QUERY, _KEY, _VALUE))
    fused = _fused(one, shapes)
    if len(fused) == 1:
        q = k = v = fused
    if not q or len({*map(_parent, [*q, *k, *v])}) > 1:
        raise NotSure(f"expected one query, key and value projection in a layer, found {q}, {k}, {v}")
    module = _parent(q[0])
    # The output projection is inside the attention module, or (BERT) beside it under one parent.
    inputs = {*q, *k, *v}
    outputs = [n for n, shape in shapes.items() if n not in inputs and shape[1] == hidden]
    # DeBERTa projects its table of positions too, inside it and last; what is added to the stream is known where there is a sum.
    added = set(one.summands())
    outputs = [n for n in outputs if _within(n, [_parent(module) or module]) and one.end(n) in added] or outputs
    inside = [n for n in outputs if n.startswith(f"{module}.")]
    beside = [n for n in outputs if n.startswith(f"{_parent(module) or module}.")]
    # Of several inside it (gates read the input, as queries do) the last one that is called.
    if not inside and len(beside) != 1:
        raise NotSure(f"expected one output projection of width {hidden} beside {q[0]!r}, found {beside}")
    o = inside[-1] if inside else beside[0]
    _once(one, o)
    # Several of a sort are steps of a low rank (DeepSeek's), or read other tokens (Longformer's).
    known = not fused and len(q) == len(k) == len(v) == 1
    layout = "" if known else "unknown"
    return Attention(
        module=module,
        q=q[0],
        k=(k or q)[0],
        v=(v or q)[0],
        o=o,
        out=one.end(o),
        fused=layout,
        takes_prefix=module in one.attends,
    )


def _owners(layer: nn.Module) -> list[str]:
    """Paths of modules with weights of their own, besides norms."""
    return [
        name
        for name, module in layer.named_modules()
        if not is_norm(module) and any(p.dim() > 1 for p in module.parameters(recurse=False))
    ]


def _tops(one: Watched, owners: Iterable[str]) -> list[str]:
    """The layer's own blocks that hold these, in the order of the pass."""
    return sorted({name.partition(".")[0] for name in owners}, key=one.order)


def _experts(module: nn.Module) -> bool:
    """Whether some weights are one tensor for all experts. A convolution's have three axes as well."""
    return any(
        p.dim() > 2 and not isinstance(m, (nn.Conv1d, nn.Conv2d))
        for m in module.modules()
        for p in m.parameters(recurse=False)
    )


def _is_feed_forward(block: nn.Module) -> bool:
    """A block that stands alone in its layer: experts, or projections and nothing else with weights."""
    return _experts(block) or all(shape_of(m) for m in block.modules() if list(m.parameters(recurse=False)))


def _behind(one: Watched, attention: Attention | None) -> str:
    """The module whose output enters the residual stream next after attention's; empty: nobody knows."""
    summands = one.summands()
    place = summands.index(attention.out) + 1 if attention is not None and attention.out in summands else len(summands)
    return summands[place] if place < len(summands) else ""


def _feed_forward(
    one: Watched, shapes: Shapes, owners: list[str], hidden: int, attention: Attention | None
) -> FeedForward | None:
    if not owners:
        return None
    rest = [n for n in shapes if n in owners]
    into = tuple(n for n in rest if shapes[n][0] == hidden)
    down = [n for n in rest if shapes[n][1] == hidden and n not in into]
    # Experts are one tensor for all, or modules of which some met no token.
    met = all(n in one.counts for n in owners)
    if into and len(down) == 1 and met and not any(_experts(one.layer.get_submodule(n)) for n in owners):
        _once(one, down[0])
        return FeedForward(into=into, down=down[0], out=one.end(down[0]))
    # What experts and their router have in common is the block. A shared expert meets every token, so its projections are sites.
    shared = tuple(n for n in into if met and down and _parent(n) == _parent(down[0]))
    shared = shared if sum(_parent(n) == _parent(name) for n in down for name in shared[:1]) == 1 else ()
    parts = {"into": shared, "down": down[0] if shared else ""}
    if path := _common(owners):
        _once(one, path)
        return FeedForward(block=path, out=one.end(path), **parts)
    tops = _tops(one, owners)
    if behind := _behind(one, attention):
        # Gemma 4 adds experts to a network, norms the sum, and has a block of its own for each layer's words behind them.
        return FeedForward(block=tops[0], out=behind, **parts)
    if len(tops) != 2 or one.read(tops[0]) is not one.read(tops[1]):
        raise NotSure(f"expected a feed-forward {hidden} -> wide -> {hidden}, found {into} -> {down} in {tops}")
    for top in tops:
        _once(one, top)
    return FeedForward(block=tops[1], out=tops[1], beside=tops[0], **parts)


def _once(one: Watched, name: str) -> None:
    if (times := one.counts[name]) != 1:
        raise NotSure(f"expected {name!r} to be called once in a layer, found {times} calls")

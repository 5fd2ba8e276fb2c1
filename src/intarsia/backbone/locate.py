"""From a family's row (or an inspected one) and a live model to the list of its sites, with every width read off the model."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from intarsia.backbone.families import Attention, Family, FeedForward, Stack
from intarsia.errors import BackboneError
from intarsia.sites import Part, Role, Site


def shape_of(projection: nn.Module) -> tuple[int, int] | None:
    """(width of input, width of output) of a linear layer: nn.Linear, GPT-2's Conv1D, or a quantised one; None otherwise."""
    # Both: ESM's contact head has a width of input alone.
    if all(isinstance(getattr(projection, name, None), int) for name in ("in_features", "out_features")):
        return int(projection.in_features), int(projection.out_features)  # type: ignore[arg-type]
    if type(projection).__name__ == "Conv1D":
        return int(projection.nx), int(projection.nf)  # type: ignore[arg-type]
    return None


def is_norm(module: nn.Module) -> bool:
    """A LayerNorm or RMSNorm: by name, with a gain of one axis (BatchNorm and others have running statistics)."""
    weight = getattr(module, "weight", None)
    return (
        type(module).__name__.endswith(("LayerNorm", "RMSNorm"))
        and isinstance(weight, nn.Parameter)
        and weight.dim() == 1
    )


def locate(base: nn.Module, family: Family) -> tuple[Site, ...]:
    """Every site of the backbone. base: the model without its head. BackboneError names what is not where the row says."""
    layers: dict[str, tuple[Stack, int]] = {}
    sites: list[Site] = []
    for stack in family.stacks:
        for index, _ in enumerate(_module(base, stack.layers, "layers")):  # type: ignore[arg-type]
            prefix = f"{stack.layers}.{index}"
            layers[prefix] = (stack, index)
            sites += _layer_sites(base, stack, index, prefix)
    return (*sites, *_module_sites(base, layers), *_embedding_sites(base, family))


def _module(base: nn.Module, path: str, what: str) -> nn.Module:
    try:
        return base.get_submodule(path)
    except AttributeError:
        raise BackboneError(
            f"{type(base).__name__} has no module {path!r} where its family's row expects {what}; give the right row "
            "with Backbone.wrap(model, family=Family(...)) (see intarsia.backbone.families)."
        ) from None


def _width(base: nn.Module, path: str) -> tuple[int, int]:
    shape = shape_of(_module(base, path, "a projection"))
    if shape is None:
        raise BackboneError(f"{path!r} of {type(base).__name__} is not a projection; correct the family's row.")
    return shape


def _layer_sites(base: nn.Module, stack: Stack, index: int, prefix: str) -> Iterator[Site]:
    own, feed_forward = stack.row(index)
    for attention, cross in ((own, False), (stack.cross, True)):
        if attention is not None:
            yield from _attention_sites(base, attention, stack, index, prefix, cross=cross)
    if feed_forward is not None:
        yield from _feed_forward_sites(base, feed_forward, stack, index, prefix)


def _attention_sites(
    base: nn.Module, row: Attention, stack: Stack, index: int, prefix: str, *, cross: bool
) -> Iterator[Site]:
    common: Any = {"stack": stack.name, "layer": index, "cross": cross}
    o_in, hidden = _width(base, f"{prefix}.{row.o}") if row.o else (0, stack.width)
    for role, name in ((Role.Q, row.q), (Role.K, row.k), (Role.V, row.v)) if row.q and row.fused != "unknown" else ():
        path = f"{prefix}.{name}"
        reads, writes = _width(base, path)
        part = _part(row, role, writes, o_in, base.config)  # type: ignore[arg-type]
        width = writes if part is None else part.groups * (part.stop - part.start)
        yield Site(role=role, module=path, width=width, source_width=reads, part=part, **common)
    if row.o:
        yield Site(role=Role.O, module=f"{prefix}.{row.o}", width=hidden, source_width=o_in, **common)
    yield Site(
        role=Role.ATTN_OUT,
        module=f"{prefix}.{row.out}",
        width=hidden,
        source="" if row.out == row.module else f"{prefix}.{row.module}",
        source_width=_width(base, f"{prefix}.{row.q}")[0] if row.q else hidden,
        **common,
    )
    if row.takes_prefix:
        yield Site(role=Role.KV, module=f"{prefix}.{row.module}", width=hidden, **common)


def _part(row: Attention, role: Role, fused: int, query: int, config) -> Part | None:
    """Which columns of a fused projection of `fused` columns are this role's. query: the heads' total width."""
    if not row.fused:
        return None
    place = (Role.Q, Role.K, Role.V).index(role)
    if row.fused == "heads":
        heads = config.num_attention_heads
        size = fused // heads // 3
        return Part(groups=heads, start=place * size, stop=(place + 1) * size)
    key = (fused - query) // 2  # keys and values are narrower where heads share them
    start = (0, query, query + key)[place]
    return Part(groups=1, start=start, stop=start + (query if place == 0 else key))


def _feed_forward_sites(base: nn.Module, row: FeedForward, stack: Stack, index: int, prefix: str) -> Iterator[Site]:
    common: Any = {"stack": stack.name, "layer": index}
    hidden = entered = stack.width
    for name in row.into:
        reads, writes = _width(base, f"{prefix}.{name}")
        yield Site(role=Role.FFN_IN, module=f"{prefix}.{name}", width=writes, source_width=reads, **common)
    if row.down:
        reads, hidden = _width(base, f"{prefix}.{row.down}")
        yield Site(role=Role.FFN_DOWN, module=f"{prefix}.{row.down}", width=hidden, source_width=reads, **common)
        entered = _width(base, f"{prefix}.{row.into[0]}")[0]
    out = f"{prefix}.{row.out}"
    entrance = f"{prefix}.{row.block or row.into[0]}"
    yield Site(
        role=Role.FFN_OUT,
        module=out,
        width=hidden,
        # Where the whole feed-forward is the last module, its own input is x; so x stays right when it works in chunks.
        source="" if row.beside or f"{entrance}.".startswith(f"{out}.") else entrance,
        source_width=entered,
        beside=f"{prefix}.{row.beside}" if row.beside else "",
        **common,
    )


def _module_sites(base: nn.Module, layers: dict[str, tuple[Stack, int]]) -> Iterator[Site]:
    """The sites that any module may have: norms, biases, weights."""
    depth = {stack.name: index + 1 for stack, index in layers.values()}
    seen: set[int] = set()
    for path, module in base.named_modules():
        stack, layer = _place(path, layers)
        if not stack and not ("embed" in path or isinstance(module, nn.Embedding)):
            # Neither in a layer nor in the embeddings: the final norm, the pooler. They come after the layers.
            other = "encoder" if path.startswith("encoder") else "decoder"
            stack = other if len(depth) > 1 else next(iter(depth))
            layer = depth[stack]
        where = {"stack": stack, "layer": layer}
        if is_norm(module):
            yield _norm_site(path, module, where)
        shape = shape_of(module) or ((module.weight.shape[0],) * 2 if is_norm(module) else None)  # type: ignore[union-attr, index]
        if shape is not None and isinstance(getattr(module, "bias", None), nn.Parameter):
            yield Site(role=Role.BIAS, module=path, width=int(shape[1]), **where)
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) not in seen:  # a tied parameter is one parameter, trained once
                seen.add(id(parameter))
                yield Site(
                    role=Role.WEIGHT,
                    module=path,
                    parameter=name,
                    width=parameter.shape[-1] if parameter.dim() else 1,
                    **where,
                )


def _embedding_sites(base: nn.Module, family: Family) -> Iterator[Site]:
    """Where prompts can go in."""
    where: Any = {"stack": "", "layer": -1}
    config: Any = base.config
    width = 0
    if family.gives_input_embeddings:
        table: Any = base.get_input_embeddings()  # type: ignore[operator]
        path = next(path for path, module in base.named_modules() if module is table)
        width = table.weight.shape[-1]
        yield Site(role=Role.EMBED, module=path, width=width, **where)
    if family.embeddings:
        # ELECTRA's block is as narrow as its words; ViT has patches, and no table of words.
        yield Site(role=Role.EMBED_OUT, module=family.embeddings, width=width or config.hidden_size, **where)


def _place(path: str, layers: dict[str, tuple[Stack, int]]) -> tuple[str, int]:
    parts = path.split(".")
    for end in range(len(parts), 1, -1):
        if (found := layers.get(".".join(parts[:end]))) is not None:
            return found[0].name, found[1]
    return "", -1


def _norm_site(path: str, module: nn.Module, where: dict) -> Site:
    """Which of the two norms a module computes is measured, not read off its name: T5LayerNorm is an RMSNorm."""
    weight: torch.Tensor = module.weight  # type: ignore[assignment]
    eps = float(getattr(module, "eps", None) or getattr(module, "variance_epsilon", None) or 1e-6)
    with torch.no_grad():
        probe = torch.linspace(1.0, 2.0, weight.shape[0], device=weight.device, dtype=weight.dtype)
        # A norm that centres gives the same for x and x + 1. The size to compare with leaves a bias out.
        difference = (module(probe) - module(probe + 1)).float().abs().max()
        size = (module(probe) - module(-probe)).float().abs().max() / 2
        centred = bool(difference < 0.05 * size)
    has_bias = isinstance(getattr(module, "bias", None), nn.Parameter)
    return Site(
        role=Role.NORM,
        module=path,
        width=weight.shape[0],
        source_width=weight.shape[0],
        parameter="layer" if centred else "rms",
        eps=eps,
        bias=has_bias,
        **where,
    )

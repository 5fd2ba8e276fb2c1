"""What is computed by a kernel of our own where that is possible, and else as the definition says.

The names that end in _ write their result into y, as torch's do; they are for where no gradient is wanted, and launch their kernel
past torch's dispatcher, which takes longer than the launch.
"""

import torch
from torch import Tensor

from intarsia.ops import reference
from intarsia.ops.activations import ACTIVATIONS
from intarsia.ops.choice import fused
from intarsia.ops.native import activations, norms
from intarsia.ops.native import bottleneck as native
from intarsia.ops.pieces import Pieces
from intarsia.ops.reference import Own, Weight
from intarsia.ops.summed import Late, Summed, late, made, readable_twice


def leaves_sums(x: Tensor) -> bool:
    """Whether a residual sum of such states may be left to the norm behind it: in training, where a kernel reads it."""
    if not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return False
    return fused(x) or norms.takes(x)


def whole_norm(x: Tensor | Summed, own: Own, gain: Tensor, bias: Tensor | None) -> Tensor:
    """As reference.whole_norm."""
    first = x.parts[0] if isinstance(x, Summed) else x
    if not fused(first):
        if isinstance(first, Tensor) and norms.takes(first, own, gain):
            return _twice(x, own, gain, bias if own.bias is not None else None)
        return reference.whole_norm(made(x), own, gain, bias)
    if torch.compiler.is_compiling():
        from intarsia.ops.kernels.norms import norm_change as kernel

        return kernel(made(x).contiguous(), None, gain, bias, own.eps, own.centre, own.gain, own.bias)
    if torch.is_grad_enabled():
        return _twice(x, own, gain, bias)
    from intarsia.ops.kernels.norms import launch

    x = made(x).contiguous()
    launch(x, None, gain, bias, own.eps, own.centre, out := torch.empty_like(x), own.gain, own.bias)
    return out


def frozen_norm(x: Tensor | Summed, own: Own) -> Tensor:
    """As reference.frozen_norm."""
    trained = own.gain.requires_grad or (own.bias is not None and own.bias.requires_grad)  # by a stand-in of its own
    if isinstance(x, Summed) and torch.is_grad_enabled() and not trained:
        first = x.parts[0]
        if fused(first) or (isinstance(first, Tensor) and norms.takes(first, own)):
            return _twice(x, own, None, None)
    return reference.frozen_norm(made(x), own)


def _twice(x: Tensor | Summed, own: Own, gain: Tensor | None, bias: Tensor | None) -> Tensor:
    """The norm, for a residual connection as well."""
    parts = x.parts if isinstance(x, Summed) and len(x.parts) == 2 else (made(x),)
    first, *residual = parts
    if not fused(first):
        return readable_twice(*norms.summed_norm(made(first), made(residual[0]) if residual else None, own, gain, bias))
    from intarsia.ops.kernels.norms import SummedNorm

    more = own.gain, own.bias, gain, bias, own.eps
    if isinstance(first, Late) and first.function is _adapted and own.centre:
        from intarsia.ops.kernels.adapted_norm import AdaptedNorm

        y, *adapter = first.arguments
        return readable_twice(*AdaptedNorm.apply(y, made(residual[0]).contiguous(), *adapter, *more))  # type: ignore[misc]
    summands = [made(part).contiguous() for part in parts]
    return readable_twice(*SummedNorm.apply(summands[0], summands[1] if residual else None, *more, own.centre))  # type: ignore[misc]


def norm_change(x: Tensor, y: Tensor, gain: Tensor, bias: Tensor | None, eps: float, *, centre: bool) -> Tensor:
    """As reference.norm_change."""
    if fused(x) and x.dtype == y.dtype:
        from intarsia.ops.kernels.norms import norm_change as kernel

        return kernel(x.contiguous(), y.contiguous(), gain, bias, eps, centre)
    return reference.norm_change(x, y, gain, bias, eps, centre=centre)


def norm_change_(x: Tensor, y: Tensor, gain: Tensor, bias: Tensor | None, eps: float, *, centre: bool) -> Tensor:
    """As reference.norm_change_."""
    if fused(x) and x.dtype == y.dtype and y.is_contiguous():
        if torch.compiler.is_compiling():
            return y.copy_(norm_change(x, y, gain, bias, eps, centre=centre))
        from intarsia.ops.kernels.norms import launch

        launch(x.contiguous(), y, gain, bias, eps, centre, y)
        return y
    return reference.norm_change_(x, y, gain, bias, eps, centre=centre)


def rotated(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """As reference.rotated."""
    if fused(q):
        from intarsia.ops.kernels.rotary import rotated as kernel

        return kernel(q, k, cos, sin)
    return reference.rotated(q, k, cos, sin)


def add_low_rank(y: Tensor, x: Tensor, a: Weight, b: Weight, alpha: float = 1.0) -> Tensor:
    """As reference.add_low_rank."""
    if native.takes(y, x, a, b, "linear"):
        return native.bottleneck(y, x, a, None, b, None, "linear", alpha)  # type: ignore[arg-type]
    return reference.add_low_rank(y, x, a, b, alpha)


def activated(x: Tensor, non_linearity: str) -> Tensor:
    """ACTIVATIONS[non_linearity](x)"""
    return (
        activations.activation(x, non_linearity)
        if activations.takes(x, non_linearity)
        else ACTIVATIONS[non_linearity](x)
    )


def fused_activation(non_linearity: str, narrow: int) -> int | None:
    """The number of an activation, by its name in ACTIVATIONS, if the bottleneck's kernel knows it and takes this width."""
    from intarsia.ops.kernels.narrow import ACTIVATIONS as KNOWN
    from intarsia.ops.kernels.narrow import WIDEST

    return KNOWN.get(non_linearity) if narrow <= WIDEST else None


def adapted(
    y: Tensor,
    x: Tensor,
    down: Weight,
    down_bias: Tensor,
    up: Weight,
    up_bias: Tensor,
    non_linearity: str,
    dropout: float = 0.0,
    scale: float = 1.0,
) -> Tensor:
    """y + scale reference.bottleneck(x, ...): an adapter, serial where x is y; where the sum behind it is left to a norm,
    what stands for it there. non_linearity: by its name in ACTIVATIONS."""
    if not dropout and native.takes(y, x, down, up, non_linearity):
        return native.bottleneck(y, x, down, down_bias, up, up_bias, non_linearity, scale)  # type: ignore[arg-type]
    plain = x is y and scale == 1.0 and not dropout
    kind = fused_activation(non_linearity, down_bias.shape[1]) if plain and fused(y) else None
    if kind is not None and isinstance(down, Tensor) and isinstance(up, Tensor):
        return late(_adapted, y.contiguous(), down, down_bias, up, up_bias, kind)
    change = reference.bottleneck(x, down, down_bias, up, up_bias, ACTIVATIONS[non_linearity], dropout)
    return y + (change if scale == 1.0 else change * scale)


def _adapted(y: Tensor, down: Tensor, down_bias: Tensor, up: Tensor, up_bias: Tensor, kind: int) -> Tensor:
    from intarsia.ops.kernels.bottleneck import bottleneck

    return bottleneck(y, down, down_bias, up, up_bias, kind)[0]


def adapted_(y: Tensor, down: Weight, down_bias: Tensor, up: Weight, up_bias: Tensor, non_linearity: str) -> Tensor:
    """`adapted` without dropout, written into y, which it returns."""
    if torch.compiler.is_compiling():
        return y.copy_(adapted(y, y, down, down_bias, up, up_bias, non_linearity))
    if fused(y) and y.is_contiguous() and not isinstance(down, Pieces) and not isinstance(up, Pieces):
        from intarsia.ops.kernels.bottleneck import launch

        if (kind := fused_activation(non_linearity, down_bias.shape[1])) is not None:
            launch(y, down, down_bias, up, up_bias, kind, out=y)
            return y
    hidden = ACTIVATIONS[non_linearity](reference.linear(y, down, down_bias))
    return reference.add_linear_(y, hidden, up, up_bias)

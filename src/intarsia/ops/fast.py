"""What is computed by a kernel of our own where that is possible, and else as the definition says."""

from torch import Tensor

from intarsia.ops import reference
from intarsia.ops.activations import ACTIVATIONS
from intarsia.ops.choice import fused
from intarsia.ops.pieces import Pieces
from intarsia.ops.reference import Own


def norm_change(
    x: Tensor,
    y: Tensor | Own,
    gain: Tensor,
    bias: Tensor | None,
    eps: float,
    *,
    centre: bool,
) -> Tensor:
    """As reference.norm_change."""
    if fused(x) and (isinstance(y, Own) or x.dtype == y.dtype):
        from intarsia.ops.kernels.norms import norm_change as kernel

        if isinstance(y, Own):
            return kernel(x.contiguous(), None, gain, bias, eps, centre, *y)
        return kernel(x.contiguous(), y.contiguous(), gain, bias, eps, centre)
    return reference.norm_change(x, y, gain, bias, eps, centre=centre)


def adapted(
    y: Tensor,
    down: Tensor | Pieces,
    down_bias: Tensor,
    up: Tensor | Pieces,
    up_bias: Tensor,
    non_linearity: str,
    dropout: float = 0.0,
) -> Tensor:
    """y + reference.bottleneck(y, ...): a serial adapter. non_linearity: by its name in ACTIVATIONS."""
    if fused(y) and isinstance(down, Tensor) and isinstance(up, Tensor) and not dropout:
        from intarsia.ops.kernels.bottleneck import ACTIVATIONS as KNOWN
        from intarsia.ops.kernels.bottleneck import WIDEST, bottleneck

        if non_linearity in KNOWN and down.shape[1] <= WIDEST:
            return bottleneck(y.contiguous(), down, down_bias, up, up_bias, KNOWN[non_linearity])[0]
    return y + reference.bottleneck(y, down, down_bias, up, up_bias, ACTIVATIONS[non_linearity], dropout)

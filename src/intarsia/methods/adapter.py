r"""Bottleneck adapters.

Houlsby et al. 2019, "Parameter-Efficient Transfer Learning for NLP", https://arxiv.org/abs/1902.00751 (after both sublayers);
Pfeiffer et al. 2021, https://arxiv.org/abs/2005.00247 (after the feed-forward only); He et al. 2022,
https://arxiv.org/abs/2110.04366 (parallel and scaled parallel); Rueckle et al. 2021, https://arxiv.org/abs/2010.11918
(AdapterDrop).

    serial      y' = y + s (U f(D y + b) + c)       y: the sublayer's output after dropout, before the residual sum
    parallel    y' = y + s (U f(D x + b) + c)       x: the sublayer's input

Shapes: D (N, M, width), b (N, M), U (N, width, M), c (N, width); N tasks, M bottleneck width.

Initialisation: D from a normal with standard deviation `init_std` (paper 1e-2) cut at two standard deviations, biases zero.
U is zero by default, so that a new adapter is exactly the identity; `init_up="normal"` draws it like D, as the paper does.

Where the authors' code (google-research/adapter-bert) differs from the paper: its default standard deviation is 1e-3.
Both train all LayerNorm gains and biases, the embeddings' included, as `train_layer_norms` does here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from intarsia import ops
from intarsia.errors import ConfigError, UnsupportedError, nearest
from intarsia.methods.base import Delta, Method, Pretrained, ProjectionDelta, check_leave_out, with_roles
from intarsia.methods.norms import NormDelta, norm_sites
from intarsia.sites import Role, Site


@dataclass(frozen=True, kw_only=True, slots=True)
class BottleneckAdapter(Method):
    """Adapter tuning (Houlsby et al. 2019, https://arxiv.org/abs/1902.00751)."""

    name: ClassVar[str] = "adapter"
    default_lr: ClassVar[float] = 1e-3

    width: int | None = None
    """Bottleneck width M. Trainable parameters per site: about 2 * M * hidden."""
    reduction_factor: float | None = None
    """Hidden width divided by the bottleneck's; 16 when neither this nor `width` is given."""
    after: tuple[Role, ...] = (Role.ATTN_OUT, Role.FFN_OUT)
    """Where adapters go: attn_out, ffn_out or both (Houlsby). `(ffn_out,)` gives one per layer (Pfeiffer)."""
    cross: bool = True
    """Also after the cross-attention of encoder-decoders, where `after` holds attn_out."""
    parallel: bool = False
    """Read the sublayer's input instead of its output (He et al.)."""
    scale: float | Literal["learned"] = 1.0
    """Factor s on the adapter's output; He et al. use 4, or learn it (starts at 1)."""
    non_linearity: str = "gelu_new"
    """By name: relu, gelu, gelu_new, silu, swish, tanh, ..."""
    init_std: float = 1e-2
    """Standard deviation of the down-projection's initial values; above 1e-2 results get worse (paper, section 3.6)."""
    init_up: Literal["zero", "normal"] = "zero"
    """Up-projection: zero (a new adapter is the identity) or drawn like the down-projection, as in the paper."""
    train_layer_norms: bool = True
    """Train all LayerNorm gains and biases too, as the paper does; kept in the task, the backbone stays shared."""
    dropout: float = 0.0
    """Dropout on the bottleneck's activation while training."""
    leave_out: tuple[int, ...] = ()
    """Layers without adapters (AdapterDrop), counted from 0 within each stack."""

    def __post_init__(self) -> None:
        if self.width is not None and self.width < 1:
            raise ConfigError(f"BottleneckAdapter.width must be at least 1, got {self.width}")
        if self.reduction_factor is not None and not self.reduction_factor > 0:
            raise ConfigError(f"BottleneckAdapter.reduction_factor must be above 0, got {self.reduction_factor}")
        if not self.after or not set(self.after) <= {Role.ATTN_OUT, Role.FFN_OUT}:
            raise ConfigError(
                f"BottleneckAdapter.after must hold attn_out, ffn_out or both, got {[str(r) for r in self.after]}"
            )
        if self.non_linearity not in ops.ACTIVATIONS:
            known = list(ops.ACTIVATIONS)
            raise ConfigError(
                f"BottleneckAdapter.non_linearity must be one of {', '.join(known)}; got {self.non_linearity!r}"
                + nearest(self.non_linearity, known)
            )
        if self.init_up not in ("zero", "normal"):
            raise ConfigError(f"BottleneckAdapter.init_up must be 'zero' or 'normal', got {self.init_up!r}")
        if not 0 <= self.init_std < float("inf"):
            raise ConfigError(f"BottleneckAdapter.init_std must be 0 or more, got {self.init_std}")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"BottleneckAdapter.dropout must be in [0, 1), got {self.dropout}")
        if self.scale != "learned" and (isinstance(self.scale, str) or not abs(self.scale) < float("inf")):
            raise ConfigError(f"BottleneckAdapter.scale must be a finite number or 'learned', got {self.scale}")

    def bottleneck_width(self, hidden: int) -> int:
        """M for a site of this width."""
        factor = 16 if self.reduction_factor is None else self.reduction_factor
        reduced = max(1, int(min(hidden // factor, 2**31)))  # a factor near 0 asks for more than torch can count
        if self.width is None:
            return reduced
        if self.reduction_factor is not None and self.width != reduced:
            raise ConfigError(
                f"BottleneckAdapter.width={self.width} and reduction_factor={self.reduction_factor:g} disagree: hidden "
                f"width {hidden} / {self.reduction_factor:g} is {reduced}. Give only one of the two."
            )
        return self.width

    def sites(self, available: Sequence[Site]) -> list[Site]:
        """One site after each chosen sublayer, and every norm when `train_layer_norms`."""
        check_leave_out(self.leave_out, available, "BottleneckAdapter")
        chosen = [s for s in with_roles(available, self.after, self.leave_out) if self.cross or not s.cross]
        if not chosen:
            raise UnsupportedError("BottleneckAdapter finds no place on this backbone: every layer is left out.")
        return chosen + (norm_sites(available, self.leave_out) if self.train_layer_norms else [])

    def build(self, sites: Sequence[Site], pretrained: Pretrained, labels: Sequence[str] = ()) -> dict[str, Delta]:
        """BottleneckDeltas, and NormDeltas where the site is a norm."""
        return {site.key: NormDelta(site) if site.role is Role.NORM else self._bottleneck(site) for site in sites}

    def _bottleneck(self, site: Site) -> Delta:
        reads = site.source_width if self.parallel else site.width
        return BottleneckDelta(self, reads=reads, writes=site.width, width=self.bottleneck_width(site.width))


class BottleneckDelta(ProjectionDelta):
    r"""y' = y + s (U f(D z + b) + c), z = y (serial) or x (parallel).   D: (N, M, D_in), U: (N, D, M), b: (N, M), c: (N, D)"""

    def __init__(self, method: BottleneckAdapter, *, reads: int, writes: int, width: int) -> None:
        super().__init__()
        self.method = method
        self.activation = ops.ACTIVATIONS[method.non_linearity]
        self.down = nn.Parameter(torch.empty(1, width, reads))
        self.down_bias = nn.Parameter(torch.zeros(1, width))
        self.up = nn.Parameter(torch.zeros(1, writes, width))
        self.up_bias = nn.Parameter(torch.zeros(1, writes))
        self.scale = nn.Parameter(torch.ones(1, 1)) if method.scale == "learned" else None
        std = method.init_std
        for weight in (self.down, self.up) if method.init_up == "normal" else (self.down,):
            # torch's truncated normal divides by std; std = 0 (all zero) is a legal, if odd, choice.
            nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std) if std else nn.init.zeros_(weight)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """x: (B, T, D_in), the sublayer's input; y: (B, T, D). Returns (B, T, D)."""
        method, factor = self.method, self.method.scale
        if isinstance(factor, str):
            return y + self._change(x, y, self._dropout())
        inner, weights = x if method.parallel else y, (self.down, self.down_bias, self.up, self.up_bias)
        return ops.adapted(y, inner, *weights, method.non_linearity, self._dropout(), float(factor))

    def change_(self, x: Tensor, y: Tensor) -> Tensor:
        """`forward` written into y."""
        if isinstance(self.down, ops.At):
            return self._change_rows(x, y)
        dropout = self._dropout()
        if self._plain() and not dropout:
            return ops.adapted_(y, self.down, self.down_bias, self.up, self.up_bias, self.method.non_linearity)
        return y.add_(self._change(x, y, dropout))

    def addressed(self) -> bool:
        """Where the kernel knows the activation, and the width."""
        return ops.fused_activation(self.method.non_linearity, self.down.shape[1]) is not None

    def _change_rows(self, x: Tensor, y: Tensor) -> Tensor:
        own: Any = self
        inner, factor = x if self.method.parallel else y, self.method.scale
        return ops.adapt_(
            inner,
            y,
            own.down,
            own.down_bias,
            own.up,
            own.up_bias,
            self.method.non_linearity,
            1.0 if isinstance(factor, str) else factor,
            own.scale,
        )

    def _dropout(self) -> float:
        return self.method.dropout if self.training else 0.0

    def _plain(self) -> bool:
        return not self.method.parallel and self.scale is None and self.method.scale == 1.0

    def _change(self, x: Tensor, y: Tensor, dropout: float) -> Tensor:
        """s (U f(D z + b) + c)"""
        inner = x if self.method.parallel else y
        change = ops.bottleneck(inner, self.down, self.down_bias, self.up, self.up_bias, self.activation, dropout)
        if self.scale is not None:
            return change * ops.per_task(self.scale, change)
        return change if self.method.scale == 1.0 else change * float(self.method.scale)

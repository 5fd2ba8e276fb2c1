"""Queries and keys turned by their positions, in one pass over both.

In plain torch it is ten kernels forward and about as many backward, which for few tokens take as long as the matrix products.

B rows, T tokens, H heads of the queries, H_kv of the keys, D width.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_HEADS = 4
"""Turned at a time."""


@triton.jit
def _turn(x_ptr, out_ptr, head, heads, width, half, d, c1, c2, s1, s2, BACK: tl.constexpr, HEADS: tl.constexpr):
    """All heads of one token. x_ptr: its first number; out_ptr likewise, heads close together."""
    for begin in range(0, heads, HEADS):
        h = begin + tl.arange(0, HEADS)
        inside = (h < heads)[:, None] & (d < half)[None, :]
        place = x_ptr + h[:, None] * head + d[None, :]
        x1 = tl.load(place, mask=inside, other=0.0).to(tl.float32)
        x2 = tl.load(place + half, mask=inside, other=0.0).to(tl.float32)
        if BACK:
            y1, y2 = x1 * c1 + x2 * s2, x2 * c2 - x1 * s1
        else:
            y1, y2 = x1 * c1 - x2 * s1, x2 * c2 + x1 * s2
        to = out_ptr + h[:, None] * width + d[None, :]
        tl.store(to, y1.to(out_ptr.dtype.element_ty), mask=inside)
        tl.store(to + half, y2.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def rotate_tokens(q_ptr, k_ptr, cos_ptr, sin_ptr, out_q_ptr, out_k_ptr, tokens, q_row, q_head, q_token, k_row, k_head, k_token,
                  cos_row, heads, groups, width, BACK: tl.constexpr, HALF: tl.constexpr, HEADS: tl.constexpr):  # fmt: skip
    at = tl.program_id(0).to(tl.int64)
    row, token = at // tokens, at % tokens
    half, d = width // 2, tl.arange(0, HALF)
    turn = row * cos_row + token * width + d
    c1 = tl.load(cos_ptr + turn, mask=d < half, other=0.0).to(tl.float32)[None, :]
    c2 = tl.load(cos_ptr + turn + half, mask=d < half, other=0.0).to(tl.float32)[None, :]
    s1 = tl.load(sin_ptr + turn, mask=d < half, other=0.0).to(tl.float32)[None, :]
    s2 = tl.load(sin_ptr + turn + half, mask=d < half, other=0.0).to(tl.float32)[None, :]
    _turn(q_ptr + row * q_row + token * q_token, out_q_ptr + at * heads * width, q_head, heads, width, half, d,
          c1, c2, s1, s2, BACK, HEADS)  # fmt: skip
    _turn(k_ptr + row * k_row + token * k_token, out_k_ptr + at * groups * width, k_head, groups, width, half, d,
          c1, c2, s1, s2, BACK, HEADS)  # fmt: skip


def launch(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *, back: bool = False) -> tuple[Tensor, Tensor]:
    """As reference.rotated, or its derivative applied to gradients. The results lie as (B, T, H, D) in memory."""
    (rows, heads, tokens, width), groups = q.shape, k.shape[1]
    q, k = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k))
    cos, sin = cos.contiguous(), sin.contiguous()
    outs = [x.new_empty(rows, tokens, x.shape[1], width) for x in (q, k)]
    cos_row = 0 if cos.shape[0] == 1 else tokens * width
    rotate_tokens[rows * tokens,](
        q, k, cos, sin, *outs, tokens, *q.stride()[:3], *k.stride()[:3], cos_row, heads, groups, width,
        BACK=back, HALF=triton.next_power_of_2(width // 2), HEADS=_HEADS, num_warps=1,
    )  # fmt: skip
    return outs[0].transpose(1, 2), outs[1].transpose(1, 2)


class _Rotated(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(cos, sin)
        return launch(q, k, cos, sin)

    @staticmethod
    def backward(ctx, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return *launch(*grads, *ctx.saved_tensors, back=True), None, None


def rotated(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """As reference.rotated."""
    return _Rotated.apply(q, k, cos, sin)  # type: ignore[return-value]

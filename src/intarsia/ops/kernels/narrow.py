"""What the kernels of bottleneck adapters share: products with a narrow side, and activations."""

import torch
import triton
import triton.language as tl
from torch import Tensor

ACTIVATIONS = {"relu": 0, "gelu": 1, "gelu_new": 2, "gelu_pytorch_tanh": 2, "silu": 3, "swish": 3, "tanh": 4}
"""Those that the kernel knows, by the names of `ops.ACTIVATIONS`."""
WIDEST = 128
"""Bottleneck beyond which a program's registers are too few."""
PROGRAMS = 256
"""About how many a GPU keeps busy; few rows are cut into smaller tiles."""


@triton.jit
def _tanh(x):
    fade = tl.exp(-2 * tl.abs(x))
    found = (1 - fade) / (1 + fade)
    return tl.where(x < 0, -found, found)


@triton.jit
def activate(z, KIND: tl.constexpr):
    """f(z) and f'(z), fp32."""
    if KIND == 0:
        found, slope = tl.maximum(z, 0.0), tl.where(z > 0, 1.0, 0.0)
    elif KIND == 1:
        share = 0.5 * (1 + tl.erf(z * 0.7071067811865476))
        found, slope = z * share, share + z * 0.3989422804014327 * tl.exp(-0.5 * z * z)
    elif KIND == 2:
        inner = 0.7978845608028654 * (z + 0.044715 * z * z * z)
        bent = _tanh(inner)
        found = 0.5 * z * (1 + bent)
        slope = 0.5 * (1 + bent) + 0.5 * z * (1 - bent * bent) * 0.7978845608028654 * (1 + 3 * 0.044715 * z * z)
    elif KIND == 3:
        fade = tl.exp(-tl.abs(z))
        share = tl.where(z < 0, fade, 1.0) / (1 + fade)
        found, slope = z * share, share * (1 + z * (1 - share))
    else:
        found = _tanh(z)
        slope = 1 - found * found
    return found, slope


@triton.jit
def narrow_product(rows_ptr, at, inside, weight_ptr, columns, known, width, stride, along, across,
             TILE: tl.constexpr, CHUNK: tl.constexpr, NARROW: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """(TILE, NARROW): rows, `stride` apart, times a narrow weight, whose [column, w] is at column * across + w * along."""
    total = tl.zeros([TILE, NARROW], tl.float32)
    for begin in range(0, width, CHUNK):
        w = begin + tl.arange(0, CHUNK)
        row = tl.load(
            rows_ptr + at[:, None] * stride + w[None, :], mask=inside[:, None] & (w < width)[None, :], other=0.0
        )
        where = weight_ptr + columns[None, :] * across + w[:, None] * along
        weight = tl.load(where, mask=known[None, :] & (w < width)[:, None], other=0.0)
        total += tl.dot(row, weight.to(row.dtype), input_precision=PRECISION)
    return total


@triton.jit
def inner_of(y_ptr, at, inside, down_ptr, bias_ptr, columns, known, width,
             KIND: tl.constexpr, TILE: tl.constexpr, CHUNK: tl.constexpr, NARROW: tl.constexpr,
             PRECISION: tl.constexpr):  # fmt: skip
    """D y + b of rows, and f of that, (TILE, NARROW) each, in the dtype of y."""
    z = narrow_product(
        y_ptr, at, inside, down_ptr, columns, known, width, width, 1, width, TILE, CHUNK, NARROW, PRECISION
    )
    z += tl.load(bias_ptr + columns, mask=known, other=0.0).to(tl.float32)[None, :]
    z = z.to(y_ptr.dtype.element_ty)
    inner, _ = activate(z.to(tl.float32), KIND)
    return z, tl.where(known[None, :], inner, 0.0).to(y_ptr.dtype.element_ty)


@triton.jit
def adapted(y_ptr, at, there, inner, up_ptr, bias_ptr, columns, known, w, width, narrow, PRECISION: tl.constexpr):
    """y + U inner + c of rows, in the columns w; fp32."""
    wide = w < width
    up = tl.load(up_ptr + w[None, :] * narrow + columns[:, None], mask=known[:, None] & wide[None, :], other=0.0)
    out = tl.dot(inner, up.to(inner.dtype), input_precision=PRECISION)
    out += tl.load(bias_ptr + w, mask=wide, other=0.0).to(tl.float32)[None, :]
    return out + tl.load(y_ptr + at[:, None] * width + w[None, :], mask=there, other=0.0).to(tl.float32)


def tile_of(count: int) -> int:
    return max(16, min(64, triton.next_power_of_2(count // PROGRAMS)))


def options(y: Tensor, narrow: int, kind: int, *, wide: bool = False) -> dict:
    """wide: the tiles leave room for more of the width at a time."""
    return {
        "KIND": kind,
        "CHUNK": 64 if y.dtype == torch.float32 else 256 if wide else 128,
        "NARROW": max(16, triton.next_power_of_2(narrow)),
        "PRECISION": "ieee" if y.dtype == torch.float32 else "tf32",
        "num_warps": 4,
    }


def dense(weight: Tensor) -> Tensor:
    """The tasks may lie apart (rows of a flat tensor); each one's own matrix is dense."""
    return weight if weight.stride()[-2:] == (weight.shape[-1], 1) else weight.contiguous()

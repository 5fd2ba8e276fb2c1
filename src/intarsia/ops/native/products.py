"""Products with frozen matrices in bfloat16 on a CPU by a kernel of our own.

torch brings the matrix into oneDNN's layout at every call, and writes the bias down before it adds the product to it. oneDNN
itself, with a matrix that is kept in its layout, leaves one of two threads idle at some shapes, takes a step's time for each new
number of rows, and hands each core other rows than the kernels beside it do.

... leading axes, N inputs, M outputs.
"""

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from intarsia.ops.activations import ACTIVATIONS
from intarsia.ops.native.activations import ACTIVATIONS as KINDS
from intarsia.ops.native.compiled import Library, alike, amx, watched

FULL = 32
"""What N and M are multiples of."""


class _Shape(ctypes.Structure):
    """As `shape` in products.c."""

    _fields_ = (*((name, ctypes.c_long) for name in ("rows", "reads", "writes")), ("kind", ctypes.c_int))


def takes(weights: Sequence[Tensor]) -> bool:
    """Whether the kernel is there, and for these: frozen matrices (M, N) that are one below the other."""
    fit = all(
        w.dtype == torch.bfloat16 and w.device.type == "cpu" and not any(n % FULL for n in w.shape) for w in weights
    )
    return fit and amx() and LIBRARY.there()


class Panels:
    """Frozen matrices one below the other, as the kernel reads them, and their transpose; each is made when it is first wanted."""

    def __init__(self, parts: Sequence[Tensor]) -> None:
        """parts: (outputs, N) bfloat16 each, M in all; outputs and N are multiples of 32. They must stay as they are."""
        self.parts = [part.detach() for part in parts]
        self.made: dict[bool, Tensor] = {}
        """By whether it is the transpose."""
        self.follower: str | None = None
        """The activation that read what came out the last time; it can be had along with the product."""

    def forward(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """x W^T + bias.   x: (..., N), bias: (M,) or None -> (..., M)"""
        return self._product(x, bias, transposed=False)

    def forward_activated(self, x: Tensor, bias: Tensor | None, non_linearity: str) -> tuple[Tensor, Tensor]:
        """forward(x, bias), and f of it.   non_linearity: f, one of native.activations.ACTIVATIONS."""
        if watched():
            y = self.forward(x, bias)
            return y, ACTIVATIONS[non_linearity](y)
        bent = x.new_empty(*x.shape[:-1], sum(len(part) for part in self.parts))
        return self._product(x, bias, transposed=False, bent=bent, kind=KINDS[non_linearity]), bent

    def backward(self, grad: Tensor, inner: Tensor | None = None, non_linearity: str = "linear") -> Tensor:
        """grad W, times f'(inner), in float32 until then.   grad: (..., M), inner: (..., N) or None -> (..., N)

        non_linearity: f, one of activations.ACTIVATIONS.
        """
        if inner is not None and watched():
            with torch.enable_grad():
                z = inner.detach().requires_grad_()
                y = ACTIVATIONS[non_linearity](z)
            return torch.autograd.grad(y, z, self._product(grad, None, transposed=True))[0]
        return self._product(grad, None, transposed=True, inner=inner, kind=KINDS.get(non_linearity, 0))

    def _product(
        self,
        x: Tensor,
        bias: Tensor | None,
        *,
        transposed: bool,
        inner: Tensor | None = None,
        bent: Tensor | None = None,
        kind: int = 0,
    ) -> Tensor:
        if watched():
            whole = torch.cat(self.parts)
            return F.linear(x, whole.mT if transposed else whole, bias)
        if (panels := self.made.get(transposed)) is None:
            panels = self.made[transposed] = self._packed(transposed=transposed)
        x, (writes, reads) = x.contiguous(), panels.shape
        if x.shape[-1] != reads:
            raise RuntimeError(f"matrices of {reads} inputs cannot multiply states of {x.shape[-1]} numbers")
        out = x.new_empty(*x.shape[:-1], writes)
        LIBRARY.run("multiply", _Shape(x.numel() // reads, reads, writes, kind), x, panels, bias, inner, out, bent)
        return out

    def _packed(self, *, transposed: bool) -> Tensor:
        # A server's first pass is in inference mode, and what is made in it could never be trained through.
        with torch.inference_mode(False), torch.no_grad():
            whole = torch.cat(self.parts) if len(self.parts) > 1 else self.parts[0]
            whole = whole.mT.contiguous() if transposed else whole.contiguous()
            writes, reads = whole.shape
            LIBRARY.run("pack", _Shape(0, reads, writes, 0), whole, panels := torch.empty_like(whole))
        return panels


def _agrees() -> bool:
    """Whether small products are what they are in float64, each way."""
    g = torch.Generator().manual_seed(0)
    for rows in (1, 75):
        slopes = torch.linspace(-3, 3, rows * 64, dtype=torch.float32).view(rows, 64).bfloat16()
        share = slopes.double().sigmoid()
        slope = share * (1 + slopes.double() * (1 - share))
        x, bias = (torch.randn(n, 64, generator=g, dtype=torch.float32).bfloat16() for n in (rows, 1))
        weights = torch.randn(2, 32, 64, generator=g, dtype=torch.float32).bfloat16()
        whole, panels = weights.flatten(0, 1).double(), Panels(list(weights))
        found = panels.forward(x, bias[0]), panels.backward(x), panels.backward(x, slopes, "silu")
        both = panels.forward_activated(x, bias[0], "silu")
        out, back = x.double() @ whole.mT + bias.double(), x.double() @ whole
        if not alike((*found, *both), (out, back, back * slope, out, F.silu(out))):
            return False
    return True


LIBRARY = Library("products", _agrees)

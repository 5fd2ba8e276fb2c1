"""Rows of any tasks side by side, each with tensors that are read where they lie: inference on a GPU, one launch for a form.

The stored tasks of a bank are flat tensors somewhere in the device's memory. A row knows how far its task's lies from an anchor
and which form it has; a kernel knows where in a flat tensor of a form its own tensors stand. So a batch of other tasks is other
numbers in the same small tensors, which is what a CUDA graph wants; and no task's tensors are copied for a batch.

G rows, L tokens in all, D width of a module's output, F forms.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from intarsia.ops import reference
from intarsia.ops.activations import ACTIVATIONS
from intarsia.ops.choice import fused
from intarsia.ops.reference import Own, frozen_norm

NOBODY = -1
"""The form of a row without a task."""


class Rows(NamedTuple):
    """The rows of one call. Tokens behind the last row are nobody's, and are left alone."""

    anchor: Tensor
    """A tensor of the flat ones' dtype; offsets count from its first number."""
    offsets: Tensor
    """(G + 1,) int64: how many numbers behind the anchor the flat tensor of a row's task begins, a multiple of ALIGN; the last
    one is nobody's."""
    forms: Tensor
    """(G + 1,) integers: the number of the row's form, or NOBODY; the last one is NOBODY."""
    starts: Tensor | None = None
    """(G + 1,) integers: where each row begins among the tokens. None: all tokens of a call are the rows', in equal parts."""
    owner: Tensor | None = None
    """(L,) integers, beside starts: each token's row; G for nobody's."""
    longest: int = 0
    """Beside starts: bound on the tokens of a row."""
    flats: Sequence[Tensor | None] = ()
    """Each row's, for the definitions, and kept as long as kernels may read them."""
    sorts: int = 1
    """How many forms the rows have, for a guess at how many rows have each."""

    def inner(self, vectors: int) -> int:
        """How many of so many vectors a token has: 1, or its heads."""
        return 1 if self.owner is None else vectors // len(self.owner)


class At(NamedTuple):
    """Takes the place of a parameter (N, ...): the rows' tasks of one form have it at the same place."""

    rows: Rows
    form: int
    place: int
    """Where it begins in a flat tensor."""
    shape: tuple[int, ...]
    """Without the task axis."""

    def of_row(self, row: int) -> Tensor:
        """A row's own, (1, *shape)."""
        flat = self.rows.flats[row]
        assert flat is not None
        size = 1
        for length in self.shape:
            size *= length
        return flat[self.place : self.place + size].view(1, *self.shape)

    def spans(self, vectors: int) -> list[tuple[int, slice]]:
        """The rows of the form, and where theirs are among so many vectors."""
        forms, starts = self.rows.forms.tolist(), self.rows.starts
        count = len(forms) - 1
        if starts is None:
            each = vectors // count
            bounds = [row * each for row in range(count + 1)]
        else:
            bounds = [start * self.rows.inner(vectors) for start in starts.tolist()]
        return [(row, slice(bounds[row], bounds[row + 1])) for row in range(count) if forms[row] == self.form]


class Before(NamedTuple):
    """Keys and values that are put before those of each row, (H, P, D) at their places."""

    rows: Rows
    table: Tensor
    """(F, 3) int64: for each form, the places of its keys and of its values, and P; zeros where it has no prefix here."""


def adapt_(
    x: Tensor,
    y: Tensor,
    down: At,
    down_bias: At | None,
    up: At,
    up_bias: At | None,
    non_linearity: str | None,
    scale: float,
    learned: At | None = None,
) -> Tensor:
    """y[i] += s (U f(D x[i] + b) + c), with each row's own tensors, written into y, which it returns.

    x: L tokens (..., D_in), and may be y; y: (..., D), perhaps some columns of a wider tensor. non_linearity: None for none (LoRA).
    learned: a factor that is multiplied with s.
    """
    rows, read = _flat(y), x.reshape(-1, x.shape[-1])
    if rows is None:
        return y.copy_(adapt_(x, y.contiguous(), down, down_bias, up, up_bias, non_linearity, scale, learned))
    if fused(y):
        from intarsia.ops.kernels.addressed import adapt

        adapt(read, rows, down, down_bias, up, up_bias, non_linearity, scale, learned)
        return y
    same = read.data_ptr() == rows.data_ptr()
    for row, span in down.spans(len(rows)):
        own = rows[span] if same else read[span]
        inner = reference.linear(own, down.of_row(row), None if down_bias is None else down_bias.of_row(row))
        inner = inner if non_linearity is None else ACTIVATIONS[non_linearity](inner)
        found = reference.linear(inner, up.of_row(row), None if up_bias is None else up_bias.of_row(row))
        rows[span] += found * scale * (1.0 if learned is None else learned.of_row(row).to(found.dtype).squeeze(0))
    return y


def add_norms_(x: Tensor, y: Tensor, gain: At, bias: At | None, eps: float, *, centre: bool) -> Tensor:
    """y[i] += g n(x[i]) + c, with each row's own g and c, written into y, which it returns. x, y: L tokens (..., D), or their heads
    (..., H, D)."""
    if _heads_first(y, gain):
        add_norms_(x.transpose(1, 2), y.transpose(1, 2), gain, bias, eps, centre=centre)
        return y
    rows, read = _flat(y), x.reshape(-1, x.shape[-1])
    if rows is None:
        return y.copy_(add_norms_(x, y.contiguous(), gain, bias, eps, centre=centre))
    if fused(y):
        from intarsia.ops.kernels.addressed import add_norms

        add_norms(read, rows, gain, bias, eps, centre)
        return y
    for row, span in gain.spans(len(rows)):
        own = None if bias is None else bias.of_row(row)
        reference.norm_change_(read[span], rows[span], gain.of_row(row), own, eps, centre=centre)
    return y


def whole_norms(x: Tensor, own: Own, changes: Sequence[tuple[At, At | None]]) -> Tensor:
    """The frozen norm with the gain and bias of each row's own form added to its own, for one or more forms; rows of none get the
    frozen one, and tokens behind the last row anything.   x: as for `add_norms_`."""
    if _heads_first(x, changes[0][0]):
        return whole_norms(x.transpose(1, 2), own, changes).transpose(1, 2)
    if not fused(x):
        y = frozen_norm(x, own)
        for gain, bias in changes:
            y = add_norms_(x, y, gain, bias, own.eps, centre=own.centre)
        return y
    from intarsia.ops.kernels.addressed import add_norms

    read, y = x.reshape(-1, x.shape[-1]), torch.empty(x.shape, dtype=x.dtype, device=x.device)
    for number, (gain, bias) in enumerate(changes):
        more = {"frozen": (own.gain, own.bias), "others": number == 0}
        add_norms(read, y.view(read.shape), gain, bias, own.eps, own.centre, **more)
    return y


def add_vectors_(y: Tensor, bias: At) -> Tensor:
    """y[i] += c, with each row's own, written into y, which it returns. y: L tokens (..., D)."""
    if _heads_first(y, bias):
        add_vectors_(y.transpose(1, 2), bias)
        return y
    if (rows := _flat(y)) is None:
        return y.copy_(add_vectors_(y.contiguous(), bias))
    if fused(y):
        from intarsia.ops.kernels.addressed import add_norms

        add_norms(rows, rows, None, bias, 0.0, False)
        return y
    for row, span in bias.spans(len(rows)):
        rows[span] += bias.of_row(row).to(y.dtype)
    return y


def _heads_first(y: Tensor, at: At) -> bool:
    """Whether it is (B, H, T, D): some models norm their heads so."""
    return y.dim() == 4 and at.rows.owner is not None and y.shape[0] * y.shape[1] != len(at.rows.owner)


def _flat(y: Tensor) -> Tensor | None:
    """(L, D), a view; None where the rows are not one behind the other, or their numbers are not."""
    try:
        rows = y.view(-1, y.shape[-1])
    except RuntimeError:
        return None
    return rows if rows.stride(1) == 1 else None


def row_prefix(before: Before, row: int, heads: int, width: int) -> tuple[Tensor, Tensor] | None:
    """A row's keys and values, (H, P, D), for the definition of attention."""
    form = int(before.rows.forms[row])
    keys, values, length = before.table[form].tolist() if form >= 0 else (0, 0, 0)
    if not length:
        return None
    shape = (heads, length, width)
    return tuple(At(before.rows, form, place, shape).of_row(row)[0] for place in (keys, values))  # type: ignore[return-value]


def offsets_from(anchor: Tensor, flats: Sequence[Tensor | None]) -> list[int]:
    """How many numbers behind the anchor each flat tensor begins; 0 for none."""
    size, begin = anchor.element_size(), anchor.data_ptr()
    return [0 if flat is None else (flat.data_ptr() - begin) // size for flat in flats]

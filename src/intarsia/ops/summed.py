"""A residual sum that is not made before it is read: the norm behind it adds up while it reads, and the sum of its two readers'
gradients is not made in memory either."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


class Late:
    """A tensor that is computed when it is asked for, if no kernel behind it has computed it along."""

    def __init__(self, function: Callable[..., Tensor], first: Tensor, *others: Any) -> None:
        """function(first, *others) has the shape and dtype of the first."""
        self.function, self.arguments = function, (first, *others)
        self.shape, self.dtype, self.is_cuda = first.shape, first.dtype, first.is_cuda
        self._made: Tensor | None = None

    def made(self) -> Tensor:
        """It."""
        if self._made is None:
            self._made = self.function(*self.arguments)
        return self._made


class Summed:
    """The sum of tensors of one shape and dtype; of one tensor, what waits for another to be added to it.

    For everything but its shape, a sum and a split it is the tensor, made when that is asked.
    """

    def __init__(self, *parts: Tensor | Late) -> None:
        self.parts, self.shape = parts, parts[0].shape
        self._made: Tensor | None = None

    def made(self) -> Tensor:
        """The sum."""
        if self._made is None:
            first, *others = map(made, self.parts)
            self._made = first
            for other in others:
                self._made = self._made + other
        return self._made

    def __add__(self, other: Any) -> Any:
        first = self.parts[0]
        if isinstance(other, Summed) and (other.shape, other.parts[0].dtype) == (self.shape, first.dtype):
            return Summed(*self.parts, *other.parts)
        if isinstance(other, Tensor) and (other.shape, other.dtype) == (self.shape, first.dtype):
            return Summed(other, *self.parts)
        return self.made() + made(other)

    __radd__ = __add__

    def split(self, sizes: Sequence[int]) -> list[Summed]:
        """Runs of rows, each a sum that is not made either."""
        return [Summed(*own) for own in zip(*(made(part).split(list(sizes)) for part in self.parts), strict=True)]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.made(), name)

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if function in (Tensor.add, torch.add) and len(args) == 2 and not kwargs:
            other, own = args if isinstance(args[1], Summed) else args[::-1]
            return own + made(other)
        return function(*map(made, args), **{name: made(value) for name, value in (kwargs or {}).items()})


def made(x: Tensor | Summed | Late) -> Tensor:
    """x as a tensor; anything else as it is."""
    return x.made() if isinstance(x, (Summed, Late)) else x


_left = False


@contextmanager
def left_to_norm() -> Iterator[None]:
    """What is computed meanwhile is for a sum that is left to the norm behind it."""
    global _left
    before, _left = _left, True
    try:
        yield
    finally:
        _left = before


def late(function: Callable[..., Tensor], first: Tensor, *others: Any) -> Any:
    """function(first, *others), which has the first one's shape and dtype; if it is for a sum that is left to a norm, a Summed that
    stands for it there."""
    return Summed(Late(function, first, *others)) if _left else function(first, *others)


def readable_twice(y: Tensor, again: Tensor) -> Tensor:
    """y, which holds the same numbers for a second reader: a residual connection."""
    y._intarsia_again = again  # type: ignore[attr-defined]
    return y


def again(y: Tensor) -> Tensor:
    """What a second reader should take in y's place; y where there is nothing."""
    return getattr(y, "_intarsia_again", y)

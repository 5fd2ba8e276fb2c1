"""Numbers of one step on their way to the device, its results on their way back, and what is launched in between as one graph."""

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """On a GPU through pinned memory, so that the copy does not wait for what is still running there."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


class Staged:
    """Arrays on the CPU and tensors on the device that are one copy apart."""

    def __init__(self, shapes: dict[str, tuple[int, ...]], dtype: torch.dtype, device: torch.device) -> None:
        total = sum(int(np.prod(shape)) for shape in shapes.values())
        self._device = torch.zeros(total, dtype=dtype, device=device)
        # A copy is still on its way while the next one is laid out.
        pinned = device.type == "cuda"
        self._hosts = [torch.zeros(total, dtype=dtype, pin_memory=pinned) for _ in range(3 if pinned else 1)]
        self._events: list[torch.cuda.Event | None] = [None] * len(self._hosts)
        self._shapes, self._turn = shapes, 0
        self.there: dict[str, Tensor] = self._views(self._device)

    def _views(self, flat: Tensor) -> dict[str, Tensor]:
        found, at = {}, 0
        for name, shape in self._shapes.items():
            size = int(np.prod(shape))
            found[name] = flat[at : at + size].view(shape)
            at += size
        return found

    def next(self) -> dict[str, np.ndarray]:
        """The arrays to fill, once nothing is read from them any more."""
        self._turn = (self._turn + 1) % len(self._hosts)
        if (event := self._events[self._turn]) is not None:
            event.synchronize()
        return {name: view.numpy() for name, view in self._views(self._hosts[self._turn]).items()}

    def send(self) -> None:
        """To the device, behind what it is still doing."""
        self._device.copy_(self._hosts[self._turn], non_blocking=True)
        if self._device.is_cuda:
            self._events[self._turn] = torch.cuda.Event()
            self._events[self._turn].record()  # type: ignore[union-attr]


class Returning:
    """Tensors on their way to the CPU in one copy, for which nobody waits before they are wanted."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        """Of one dtype and on one device."""
        self._tensors, self._shapes, self._event = list(tensors), [tensor.shape for tensor in tensors], None
        self._flat: Tensor | None = None
        if not tensors or not tensors[0].is_cuda:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        self._tensors = []
        self._flat = torch.empty(flat.shape, dtype=flat.dtype, pin_memory=True).copy_(flat, non_blocking=True)
        self._event = torch.cuda.Event()
        self._event.record()

    def wait(self) -> list[Tensor]:
        """They, on the CPU."""
        if self._flat is None or self._event is None:
            return self._tensors
        self._event.synchronize()
        parts = self._flat.split([shape.numel() for shape in self._shapes])
        return [part.view(shape) for part, shape in zip(parts, self._shapes, strict=True)]


@contextmanager
def capturing(graph: torch.cuda.CUDAGraph, stream: torch.cuda.Stream, pool: Any = None) -> Iterator[None]:
    """What is launched meanwhile is kept in the graph.

    Other threads may bring tensors to the device. Nothing is collected: were an old graph among the garbage, CUDA would not let it
    go while another is captured, and the capture would fail.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            yield
    finally:
        if collects:
            gc.enable()

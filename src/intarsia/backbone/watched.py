"""What one forward pass shows of a model's layers: the order of the calls, what went in and came out, who calls attention."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from intarsia.backbone.attention import WATCH
from intarsia.backbone.attention_seam import AttentionHook, AttentionSeam
from intarsia.backbone.hooks import first_argument, first_output

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Call(NamedTuple):
    """One call of a module of a layer."""

    name: str
    """Its path in the layer; empty: the layer itself."""
    x: object
    """Its first input."""
    y: object
    """Its output, or the first of several."""


class _Sums(TorchFunctionMode):
    """Keeps what is added to what meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[object, object, object]] = []

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if getattr(func, "__name__", "") in ("add", "__add__", "__radd__", "add_", "__iadd__") and len(args) == 2:
            self.found.append((*args, result))
        return result


class Watched(NamedTuple):
    """The calls in one layer, in the order in which they ended."""

    layer: nn.Module
    calls: list[Call]
    attends: set[str]
    """Modules that call transformers' attention interface, by their paths."""
    sums: list[tuple[object, object, object]]
    """Two summands and their sum, of the whole pass."""

    @property
    def counts(self) -> Counter[str]:
        """How often each module was called, in the order of the first calls."""
        return Counter(call.name for call in self.calls)

    def order(self, name: str) -> int:
        """When it was first called; after all others, if it was not."""
        return next((place for place, call in enumerate(self.calls) if call.name == name), len(self.calls))

    def read(self, name: str) -> object:
        """The input of its first call; None, if it was not called."""
        return next((call.x for call in self.calls if call.name == name), None)

    def summands(self) -> list[str]:
        """Modules whose very output is added to the residual stream, in that order; none where norms stand on the stream."""
        stream, found = [self.read("")], []
        for one, other, total in self.sums:
            for held, new in ((one, other), (other, one)):
                if any(held is x for x in stream):
                    stream.append(total)
                    found += [call.name for call in self.calls if call.y is new and call.name][-1:]
                    break
        return found

    def end(self, start: str) -> str:
        """The last module that the very tensor that `start` puts out passes through, up to the residual sum."""
        chain, tail = [start], next(call.y for call in self.calls if call.name == start)
        for call in self.calls[self.order(start) + 1 :]:
            # Dropout in evaluation hands on the tensor itself; a norm makes a new one, and is followed only without a sum.
            if call.x is tail and call.name and not list(self.layer.get_submodule(call.name).children()):
                chain.append(call.name)
                tail = call.y
        counts = self.counts
        # A module that is called for both sublayers (Phi's dropout) is the place of neither.
        return next((name for name in reversed(chain) if counts[name] == 1), start)


def smallest_input(model: PreTrainedModel) -> dict[str, Tensor]:
    """Four tokens, for the decoder too where there is one."""
    ids = torch.tensor([[3, 4, 5, 6]], device=model.device)
    return {"input_ids": ids, **({"decoder_input_ids": ids} if model.config.is_encoder_decoder else {})}


@torch.no_grad()
def watch(model: PreTrainedModel, base: nn.Module, layers: Sequence[nn.Module]) -> list[Watched]:
    """What each layer does in a pass over four tokens."""
    sums = _Sums()
    found = [Watched(layer, [], set(), sums.found) for layer in layers]
    seam, handles = AttentionSeam(model, base), []
    for one in found:
        for name, module in one.layer.named_modules():

            def note(_module: nn.Module, args: tuple, kwargs: dict, y: object, one=one, name=name) -> None:
                x = first_argument(args, kwargs) if args or kwargs else None
                one.calls.append(Call(name, x, first_output(y)))

            def attended(_module: nn.Module, _key: Tensor, _value: Tensor, one=one, name=name) -> None:
                one.attends.add(name)

            handles.append(module.register_forward_hook(note, with_kwargs=True))
            if name and list(module.children()):
                handles.append(AttentionHook(seam, module, WATCH, attended, None))
    try:
        with sums:
            base(**smallest_input(model))
    finally:
        for handle in handles:
            handle.remove()
    return found

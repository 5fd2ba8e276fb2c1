"""Finds the sites of a model that the family table does not know, by looking at its modules and watching one forward pass.

What is looked for: the longest ModuleList (the layers); in a layer, projections whose names say query, key, value, and the
rest by shape (hidden -> wide is the feed-forward's entrance, wide -> hidden its second projection); then, from attention's
output projection and the feed-forward's second one, the chain of modules that pass on *the same tensor* up to the residual
sum. Where any of it is not found, the error says what was, and how to give the sites by hand. Whether word embeddings can be
given in place of tokens is tried.
"""

from __future__ import annotations

import inspect
import re
from collections import Counter
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from intarsia.backbone.families import Attention, Family, FeedForward, Stack
from intarsia.backbone.hooks import first_argument
from intarsia.backbone.locate import shape_of
from intarsia.errors import UnsupportedError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_QUERY, _KEY, _VALUE = re.compile(r"^q($|_|uery)"), re.compile(r"^k($|_|ey)"), re.compile(r"^v($|_|alue)")
_FUSED = re.compile(r"qkv|query_key_value|c_attn|in_proj")


def inspect_family(model: PreTrainedModel) -> Family:
    """A row for this one model. UnsupportedError where the inspection is not sure."""
    base = model.base_model
    found = [(path, m) for path, m in base.named_modules() if isinstance(m, nn.ModuleList) and _is_pile(m)]
    if len(found) != 1:
        lists = ", ".join(path for path, _ in found) or "none"
        raise _unsure(model, f"expected one list of equal layers, found {lists}")
    path, layers = found[0]
    first: nn.Module = layers[0]
    projections = {name: m for name, m in first.named_modules() if shape_of(m) is not None}
    attention = _attention(model, projections)
    ffn = _feed_forward(model, projections, attention)
    ends, called = _ends(model, first, (attention["o"], ffn[1]))
    # In the order of the pass: the first is where the sublayer's input is met.
    into = tuple(name for name in called if name in ffn[0])
    return Family(
        model_types=(model.config.model_type,),
        stacks=(
            Stack(
                name="decoder" if _is_causal(model) else "encoder",
                layers=path,
                attention=Attention(**attention, out=ends[0]),  # type: ignore[arg-type]
                feed_forward=FeedForward(into=into, down=ffn[1], out=ends[1]),
            ),
        ),
        gives_input_embeddings=_takes_words(model),
    )


def _unsure(model: PreTrainedModel, what: str) -> UnsupportedError:
    return UnsupportedError(
        f"model type {model.config.model_type!r} is not in the family table and inspecting it was not sure: {what}. Give the "
        "sites by hand: Backbone.wrap(model, family=Family(model_types=(...), stacks=(Stack(...),))), as in "
        "intarsia.backbone.families."
    )


def _is_pile(modules: nn.ModuleList) -> bool:
    """Layers of one class that hold both attention and more than one projection."""
    return (
        len(modules) > 0
        and len({type(m) for m in modules}) == 1
        and sum(shape_of(m) is not None for m in modules[0].modules()) >= 4
    )


@torch.no_grad()
def _is_causal(model: PreTrainedModel) -> bool:
    """Measured: whether the first token's state ignores the last token."""
    states = _states(model, input_ids=torch.tensor([[3, 4, 5, 6], [3, 4, 5, 7]], device=model.device))
    return bool(torch.allclose(states[0, 0], states[1, 0], atol=1e-6))


@torch.no_grad()
def _takes_words(model: PreTrainedModel) -> bool:
    """Measured: whether `inputs_embeds` are the words of `input_ids`. To ESM they are what leaves the whole embedding block, and a
    prompt among them would cost every row of the batch its positions."""
    base = model.base_model
    if "inputs_embeds" not in inspect.signature(base.forward).parameters:
        return False
    ids = torch.tensor([[3, 4, 5, 6]], device=model.device)
    words = base.get_input_embeddings()(ids)  # type: ignore[operator]
    states, again = _states(model, input_ids=ids), _states(model, inputs_embeds=words)
    return bool((states - again).abs().max() < 0.01 * states.abs().max())


def _states(model: PreTrainedModel, **given: Tensor) -> Tensor:
    states = getattr(model.base_model(**given), "last_hidden_state", None)
    if states is None:
        raise _unsure(model, f"{type(model.base_model).__name__}, the model without its head, gives no states")
    return states


def _attention(model: PreTrainedModel, projections: dict[str, nn.Module]) -> dict[str, str]:
    def named(pattern: re.Pattern) -> list[str]:
        return [name for name in projections if pattern.search(name.rpartition(".")[2])]

    q, k, v, fused = named(_QUERY), named(_KEY), named(_VALUE), named(_FUSED)
    if len(fused) == 1:
        q = k = v = fused
    if not (len(q) == len(k) == len(v) == 1):
        raise _unsure(model, f"expected one query, key and value projection in a layer, found {q}, {k}, {v}")
    module = q[0].rpartition(".")[0]
    hidden = shape_of(projections[q[0]])[0]  # type: ignore[index]
    # The output projection is inside the attention module, or (BERT) beside it under one parent.
    inputs = {*q, *k, *v}
    family = module.rpartition(".")[0] or module
    outputs = [
        name
        for name, projection in projections.items()
        if name not in inputs and name.startswith(family + ".") and shape_of(projection)[1] == hidden  # type: ignore[index]
    ]
    if len(outputs) != 1:
        raise _unsure(model, f"expected one output projection of width {hidden} beside {q[0]!r}, found {outputs}")
    layout = "unknown" if fused else ""
    return {"module": module, "q": q[0], "k": k[0], "v": v[0], "o": outputs[0], "fused": layout}


def _feed_forward(
    model: PreTrainedModel, projections: dict[str, nn.Module], attention: dict[str, str]
) -> tuple[tuple[str, ...], str]:
    hidden = shape_of(projections[attention["q"]])[0]  # type: ignore[index]
    rest = [
        name
        for name in projections
        if name not in attention.values() and not name.startswith(attention["module"] + ".")
    ]
    into = tuple(n for n in rest if shape_of(projections[n])[0] == hidden)  # type: ignore[index]
    down = [n for n in rest if shape_of(projections[n])[1] == hidden and n not in into]  # type: ignore[index]
    if not into or len(down) != 1:
        raise _unsure(model, f"expected a feed-forward {hidden} -> wide -> {hidden}, found {into} -> {down}")
    return into, down[0]


def _ends(model: PreTrainedModel, layer: nn.Module, starts: tuple[str, ...]) -> tuple[list[str], Counter[str]]:
    """For each start, the last module that the very tensor it puts out passes through; and how often each module is called, in
    the order of the first calls."""
    names = {module: name for name, module in layer.named_modules()}
    chains: dict[str, list[str]] = {}
    tails: dict[str, Tensor] = {}
    called: Counter[str] = Counter()

    def watch(module: nn.Module, args: tuple, kwargs: dict, output: object) -> None:
        called[names[module]] += 1
        if not isinstance(output, Tensor) or not (args or kwargs):
            return
        if (name := names[module]) in starts:
            chains[name], tails[name] = [name], output
        for start, tensor in tails.items():
            # Dropout in evaluation hands on the tensor itself; a norm makes a new one, and is followed only without a sum.
            if first_argument(args, kwargs) is tensor and name != start:
                chains[start].append(name)
                tails[start] = output

    handles = [
        m.register_forward_hook(watch, with_kwargs=True)
        for n, m in layer.named_modules()
        if n and not list(m.children())
    ]
    try:
        with torch.no_grad():
            ids = torch.ones(1, 4, dtype=torch.long, device=model.device)
            model.base_model(input_ids=ids)
    except (TypeError, ValueError, RuntimeError) as error:
        raise _unsure(model, f"a forward pass over input_ids failed ({error})") from None
    finally:
        for handle in handles:
            handle.remove()
    if missing := [start for start in starts if called[start] != 1]:
        raise _unsure(model, f"{missing[0]!r} was called {called[missing[0]]} times in a layer, expected once")
    # A module that is called for both sublayers (Phi's dropout) is the place of neither.
    return [next(name for name in reversed(chains[start]) if called[name] == 1) for start in starts], called

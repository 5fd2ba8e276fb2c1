"""Finds the sites of a model that the family table does not know, by looking at its modules and watching one forward pass.

What is looked for: the outermost ModuleLists (the layers, of an encoder-decoder two piles); in each layer, projections whose names
say query, key, value, and the rest by shape (hidden -> wide is the feed-forward's entrance, wide -> hidden its second projection);
then, from attention's output projection and the feed-forward's second one, the chain of modules that pass on *the same tensor* up
to the residual sum. Of experts it is the whole block that is followed so: router, shared expert and all. Where nothing is called
query or key (state-space and recurrent layers), the layer's first block is taken. Whether nothing besides enters the residual
stream of such layers is tried, as is whether word embeddings can be given in place of tokens. Where any of it is not found, the
error says what was, and how to give the sites by hand.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from intarsia.backbone.blocks import Found, NotSure, hidden_of, inspect_layer, is_plain
from intarsia.backbone.facts import trunk
from intarsia.backbone.families import Family, Stack
from intarsia.backbone.hooks import first_argument, first_output, with_first_output
from intarsia.backbone.watched import Watched, smallest_input, watch
from intarsia.errors import UnsupportedError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def inspect_family(model: PreTrainedModel) -> Family:
    """A row for this one model. UnsupportedError where the inspection is not sure."""
    base = trunk(model)
    if (reads := model.main_input_name) != "input_ids":
        raise _unsure(
            model, f"it reads {reads}, and only models of texts are inspected (of images, ViT is in the table)"
        )
    piles = _piles(model, base)
    try:
        watched = {pile: watch(model, base, base.get_submodule(pile)) for pile in piles}
        found = {
            pile: [inspect_layer(one, crosses=len(piles) == 2 and pile == piles[1]) for one in watched[pile]]
            for pile in piles
        }
        for pile in piles:
            _check_sums(model, base, watched[pile], found[pile])
    except NotSure as error:
        raise _unsure(model, str(error)) from None
    except (AttributeError, TypeError, ValueError, RuntimeError) as error:
        raise _unsure(model, f"a forward pass over input_ids failed ({error})") from None
    if not any(one.attends for pile in piles for one in watched[pile]):
        # Prefixes are refused with what it lacks, which is another thing than having no attention.
        found = {pile: [_taking(layer) for layer in layers] for pile, layers in found.items()}
    _check_width(model, hidden_of(watched[piles[0]][-1]))
    names = ("encoder", "decoder") if len(piles) == 2 else ("decoder" if _is_causal(model) else "encoder",)
    return Family(
        model_types=(model.config.model_type,),
        stacks=tuple(
            _stack(name, pile, found[pile], hidden_of(watched[pile][0]))
            for name, pile in zip(names, piles, strict=True)
        ),
        gives_input_embeddings=_takes_words(model),
        inspected=True,
    )


def _unsure(model: PreTrainedModel, what: str) -> UnsupportedError:
    return UnsupportedError(
        f"model type {model.config.model_type!r} is not in the family table and inspecting it was not sure: {what}. Give the "
        "sites by hand: Backbone.wrap(model, family=Family(model_types=(...), stacks=(Stack(...),))), as in "
        "intarsia.backbone.families."
    )


def _piles(model: PreTrainedModel, base: nn.Module) -> list[str]:
    """The path of the list of layers; of an encoder-decoder, the encoder's and the decoder's."""
    found: list[str] = []
    for path, module in base.named_modules():
        outermost = not any(path.startswith(f"{other}.") for other in found)
        if isinstance(module, nn.ModuleList) and outermost and _is_pile(module):
            found.append(path)
    if getattr(model.config, "is_encoder_decoder", False):
        first = [path for path in found if path.startswith("encoder.")]
        second = [path for path in found if path.startswith("decoder.")]
        if len(found) == 2 and len(first) == len(second) == 1:
            return first + second
        raise _unsure(model, f"expected the layers of an encoder and of a decoder, found {', '.join(found) or 'none'}")
    if len(found) != 1:
        raise _unsure(model, f"expected one list of equal layers, found {', '.join(found) or 'none'}")
    return found


def _is_pile(modules: nn.ModuleList) -> bool:
    """Each holds at least two weights: what a layer has at the least."""
    return len(modules) > 0 and all(sum(p.dim() > 1 for p in layer.parameters()) > 1 for layer in modules)


def _taking(layer: Found) -> Found:
    attention, cross, feed_forward = layer
    return (
        None if attention is None else replace(attention, takes_prefix=bool(attention.q)),
        None if cross is None else replace(cross, takes_prefix=True),
        feed_forward,
    )


def _stack(name: Any, pile: str, layers: Sequence[Found], width: int) -> Stack:
    rows = tuple((attention, feed_forward) for attention, _, feed_forward in layers)
    same = all(row == rows[0] for row in rows)
    attention, feed_forward = rows[0] if same else (None, None)
    return Stack(
        name=name,
        layers=pile,
        attention=attention,
        feed_forward=feed_forward,
        cross=layers[0][1],
        rows=() if same else rows,
        width=width,
    )


@torch.no_grad()
def _check_width(model: PreTrainedModel, width: int) -> None:
    """A head reads states as wide as the stream; Reformer's two streams leave it side by side."""
    states = _states(model, input_ids=smallest_input(model)["input_ids"])
    if states.shape[-1] != width:
        raise _unsure(model, f"expected states as wide as its layers, {width}, found {states.shape[-1]}")


@torch.no_grad()
def _check_sums(model: PreTrainedModel, base: nn.Module, watched: Sequence[Watched], found: Sequence[Found]) -> None:
    """NotSure unless in layers with experts or without attention what was found enters the residual stream: it is seen to, or the
    layer is the identity when nothing leaves it."""
    moved, handles = [], []

    def silent(_module: nn.Module, _args: tuple, output: Any) -> Any:
        return with_first_output(output, torch.zeros_like(first_output(output)))

    for index, (one, rows) in enumerate(zip(watched, found, strict=True)):
        attention, _, feed_forward = rows
        if is_plain(attention, feed_forward):
            continue
        ends = [row.out for row in rows if row is not None]
        if set(ends) <= set(one.summands()):
            continue
        ends += [feed_forward.beside] if feed_forward is not None and feed_forward.beside else []
        handles += [one.layer.get_submodule(end).register_forward_hook(silent) for end in ends]

        def compare(_module: nn.Module, args: tuple, kwargs: dict, output: Any, index=index, ends=ends) -> None:
            was, new = first_argument(args, kwargs), first_output(output)
            if not torch.allclose(
                was.to(new.dtype), new
            ):  # Mamba's stream is fp32 behind the first layer, whatever its weights
                moved.append((index, ends))

        handles.append(one.layer.register_forward_hook(compare, with_kwargs=True))
    if not handles:
        return
    try:
        base(**smallest_input(model))
    finally:
        for handle in handles:
            handle.remove()
    for index, ends in moved:
        raise NotSure(f"in layer {index} more enters the residual stream than what leaves {' and '.join(ends)}")


@torch.no_grad()
def _is_causal(model: PreTrainedModel) -> bool:
    """Measured: whether the first token's state ignores the last token."""
    states = _states(model, input_ids=torch.tensor([[3, 4, 5, 6], [3, 4, 5, 7]], device=model.device))
    return bool(torch.allclose(states[0, 0], states[1, 0], atol=1e-6))


@torch.no_grad()
def _takes_words(model: PreTrainedModel) -> bool:
    """Measured: whether `inputs_embeds` are the words of `input_ids`. To ESM they are what leaves the whole embedding block, and a
    prompt among them would cost every row of the batch its positions."""
    if "inputs_embeds" not in inspect.signature(_reader(model).forward).parameters:
        return False
    ids = torch.tensor([[3, 4, 5, 6]], device=model.device)
    words = trunk(model).get_input_embeddings()(ids)
    if not isinstance(words, Tensor):  # I-BERT's come with their scale, as does all that its modules hand on
        raise _unsure(model, f"expected its embeddings to give a tensor, found a {type(words).__name__}")
    states = _states(model, input_ids=ids)
    try:
        again = _states(model, inputs_embeds=words)
        _states(model, inputs_embeds=words * 1.5)  # Gemma 4 looks up which words they were, and a prompt's are none
    except (RuntimeError, TypeError, ValueError):
        return False
    return bool((states - again).abs().max() < 0.01 * states.abs().max())


def _reader(model: PreTrainedModel) -> Any:
    """What the text enters: the model without its head, or its encoder."""
    base = trunk(model)
    return base.get_encoder() if getattr(model.config, "is_encoder_decoder", False) else base


def _states(model: PreTrainedModel, **given: Tensor) -> Tensor:
    states = getattr(_reader(model)(**given), "last_hidden_state", None)
    if states is None:
        raise _unsure(model, f"{type(trunk(model)).__name__}, the model without its head, gives no states")
    return states

"""The seam at the input embeddings: prompts go in where tokens do, and states come back in the caller's layout.

One layout serves every place of a prompt and both sides of padding: each row's columns (its tokens, then the virtual tokens)
get a sort key, and one gather puts embeddings, mask, positions and token types in that order. On the way out another gather
takes the virtual tokens' states away, so a caller never meets them: (B, T) in, (B, T, D) out, whatever the prompts.

B rows, T tokens, P virtual tokens at most, L = T + P columns, E width of the embeddings.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from intarsia.backbone.ending import Ending, at_places
from intarsia.errors import ConfigError

START, AFTER_FIRST, END, TEMPLATE = range(4)
PLACES = {"start": START, "after-first": AFTER_FIRST, "end": END, "template": TEMPLATE}


class Prompts(NamedTuple):
    """What the rows of one call get at the entrance."""

    vectors: Tensor | None = None
    """(B, P, E), zeros behind shorter prompts; None: no row has a prompt."""
    lengths: Tensor | None = None
    """(B,) virtual tokens of each row."""
    places: Tensor | None = None
    """(B,) START, AFTER_FIRST, END or TEMPLATE."""
    extra: int = 0
    """Columns to add: the longest prompt of the rows that have it outside a template."""
    offset: Tensor | None = None
    """(B,) what to add to the positions of a row's tokens; None: nothing."""


class Layout(NamedTuple):
    """Where each column comes from, and where each token went."""

    order: Tensor
    """(B, L): an index into [tokens | virtual tokens] of each row."""
    mask: Tensor
    """(B, L) int64: columns that are not padding."""
    back: Tensor | None
    """(B, T): the column whose state is read for each token; None: its own."""


Ask = Callable[[int], Prompts | None]
"""rows of this call -> their prompts, or None."""


def lay_out(mask: Tensor, ids: Tensor | None, prompts: Prompts, *, left: bool, read_after: bool) -> Layout:
    """mask: (B, T) of the tokens; ids: (B, T), in which -1 - j is slot j of a template.

    left: spare columns go to the left, where decoders pad. read_after: a last token's state is read after the prompt that
    follows it (decoders).
    """
    rows, tokens = mask.shape
    if not prompts.extra and ids is not None:  # templates alone: no column is added, and none moves
        columns = torch.arange(tokens, device=mask.device).expand(rows, -1)
        return Layout(torch.where(ids < 0, tokens - 1 - ids, columns), mask, None)
    assert prompts.lengths is not None
    assert prompts.places is not None
    lengths, places = prompts.lengths[:, None], prompts.places[:, None]
    real, columns = mask.bool(), torch.arange(tokens, device=mask.device)
    first = torch.where(real, columns, tokens).amin(1, keepdim=True)
    last = torch.where(real, columns, -1).amax(1, keepdim=True)
    slots = torch.arange(prompts.extra, device=mask.device)[None]
    at = torch.where(places == START, 2 * first - 1, torch.where(places == AFTER_FIRST, 2 * first + 1, 2 * last + 1))
    there = (slots < lengths) & (places != TEMPLATE)
    spare = torch.full_like(at, -2 if left else 2 * tokens + 2)
    keys = torch.cat([(2 * columns).expand(rows, -1), torch.where(there, at, spare)], dim=1)
    order = keys.argsort(dim=1, stable=True)
    back = order.argsort(dim=1)[:, :tokens]
    whole = torch.cat([mask.long(), there.long()], dim=1).gather(1, order)
    if read_after:
        follows = torch.where((places == END) & (columns == last), lengths, 0)
        back = back + follows
    if ids is not None:
        # A slot's column takes its vector from the prompt. Other columns keep their source.
        source = torch.where(ids < 0, tokens - 1 - ids, columns.expand(rows, -1))
        source = torch.cat([source, (tokens + slots).expand(rows, -1)], dim=1)
        order = source.gather(1, order)
    return Layout(order, whole, back)


def positions_of(mask: Tensor, first: int) -> Tensor:
    """(B, T) positions that count real tokens, so that padding on the left shifts nothing. first: the first token's position."""
    return (mask.long().cumsum(1) - 1).clamp(min=0) + first


class Entrance:
    """The hooks at the model that reads the text: the whole model, or the encoder of an encoder-decoder."""

    def __init__(
        self, base: nn.Module, kind: str, *, block: str = "", first_position: int = 0, ending: Ending | None = None
    ) -> None:
        """block: the embedding block's path, where prompts go behind it; empty: they join the word embeddings."""
        self.base, self.kind, self.block, self.ending = base, kind, block, ending
        self.first_position = first_position
        # OPT's language model goes past its base model, straight to the decoder within; other decoders are their own.
        inner = {"encoder-decoder": "get_encoder", "decoder": "get_decoder"}.get(kind)
        self.reader: nn.Module = base if inner is None else getattr(base, inner)()
        self.takes = tuple(inspect.signature(self.reader.forward).parameters)
        self.layout: Layout | None = None
        self.pending: tuple[Layout | None, Prompts] | None = None

    def hook(self, ask: Ask) -> list[RemovableHandle]:
        """Installs the hooks; `ask` tells each call's prompts."""

        def before(_module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
            self.layout = self.pending = None  # a call that failed may have left some
            given = self._named(args, kwargs)
            entry = given.get("input_ids", given.get("pixel_values", given.get("inputs_embeds")))
            prompts = None if entry is None else ask(entry.shape[0])
            if prompts is None:
                return None
            entered = self.enter(given, prompts)
            back = None if self.layout is None else self.layout.back
            if back is not None and self.ending is not None and self.ending.moved(back):
                self.layout = None
            return (), entered

        def after(_module: nn.Module, _args: tuple, output: Any) -> Any:
            return output if self.layout is None else self._leave(output)

        handles = [self.reader.register_forward_pre_hook(before, with_kwargs=True, prepend=True)]
        handles.append(self.reader.register_forward_hook(after))
        if self.block:
            handles.append(self.base.get_submodule(self.block).register_forward_hook(self._behind_block))
        if self.kind == "encoder-decoder":
            decoder: nn.Module = self.base.get_decoder()  # type: ignore[operator]
            handles.append(decoder.register_forward_pre_hook(self._decoder_mask, with_kwargs=True))
        return handles

    def _named(self, args: tuple, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        return {k: v for k, v in {**dict(zip(self.takes, args, strict=False)), **kwargs}.items() if v is not None}

    def enter(self, given: dict[str, Any], prompts: Prompts) -> dict[str, Any]:
        """The model's arguments with the prompts in them. given: its arguments by name."""
        given = dict(given)
        if prompts.vectors is None:
            self._shift(given, prompts)
            return given
        if _cached(given):
            raise ConfigError(
                "a prompt goes before the first token, and this call goes on from cached tokens; decode with "
                "TaskBank.generate(...)"
            )
        return self._enter_block(given, prompts) if self.block else self._enter_words(given, prompts)

    def _enter_words(self, given: dict[str, Any], prompts: Prompts) -> dict[str, Any]:
        assert prompts.vectors is not None
        ids = given.pop("input_ids", None)
        table: Any = self.base.get_input_embeddings()  # type: ignore[operator]
        words = given["inputs_embeds"] if ids is None else table(ids.clamp(min=0))
        mask = _mask_of(given, words)
        decoder = self.kind == "decoder"
        layout = self.layout = lay_out(mask, ids, prompts, left=decoder, read_after=decoder)
        given["inputs_embeds"] = at_places(torch.cat([words, prompts.vectors.to(words.dtype)], dim=1), layout.order)
        given["attention_mask"] = layout.mask
        if (types := given.get("token_type_ids")) is not None:
            given["token_type_ids"] = nn.functional.pad(types, (0, prompts.vectors.shape[1])).gather(1, layout.order)
        if "position_ids" in self.takes:
            given["position_ids"] = self._moved(given.get("position_ids"), mask, layout, prompts)
        return given

    def _enter_block(self, given: dict[str, Any], prompts: Prompts) -> dict[str, Any]:
        """Behind the embedding block: tokens are embedded as without a prompt, at their own positions."""
        entry = given.get("input_ids", given.get("inputs_embeds"))
        if entry is not None:
            mask = _mask_of(given, entry)
            layout = lay_out(mask, None, prompts, left=False, read_after=False)
            if "position_ids" in self.takes and "position_ids" not in given:
                given["position_ids"] = positions_of(mask, self.first_position)
            given["attention_mask"] = layout.mask
            self.layout = layout
            self.pending = layout, prompts
        else:
            self.pending = None, prompts
        return given

    def _behind_block(self, _module: nn.Module, _args: tuple, states: Tensor) -> Tensor | None:
        if self.pending is None:
            return None
        (layout, prompts), self.pending = self.pending, None
        assert prompts.vectors is not None
        if layout is None:  # images: the number of patches shows here
            mask = torch.ones(states.shape[:2], dtype=torch.long, device=states.device)
            layout = self.layout = lay_out(mask, None, prompts, left=False, read_after=False)
        return at_places(torch.cat([states, prompts.vectors.to(states.dtype)], dim=1), layout.order)

    def _positions(self, mask: Tensor, prompts: Prompts) -> Tensor:
        positions = positions_of(mask, self.first_position)
        return positions if prompts.offset is None else positions + prompts.offset[:, None]

    def _moved(self, own: Tensor | None, mask: Tensor, layout: Layout, prompts: Prompts) -> Tensor:
        """Each column's position. own: the caller's of the tokens, (B, T) or (1, T), which keep what sets them apart from a count;
        mask: (B, T) of the tokens."""
        if own is not None and layout.back is None:  # no token moves
            return own
        positions = self._positions(layout.mask, prompts)
        if own is None:
            return positions
        apart = own - positions_of(mask, self.first_position)
        return positions + nn.functional.pad(apart, (0, prompts.vectors.shape[1])).gather(1, layout.order)  # type: ignore[union-attr]

    def _shift(self, given: dict[str, Any], prompts: Prompts) -> None:
        """Moves the positions of rows whose prefix counts as tokens."""
        if prompts.offset is None:
            return
        if "position_ids" in given:
            given["position_ids"] = given["position_ids"] + prompts.offset[:, None]
            return
        entry = given.get("input_ids", given.get("inputs_embeds"))
        assert entry is not None
        mask = given.get("attention_mask")
        if not isinstance(mask, Tensor) or mask.dim() != 2:
            mask = torch.ones(entry.shape[0], _cached(given) + entry.shape[1], dtype=torch.long, device=entry.device)
            given.setdefault("attention_mask", mask)  # without one, positions that do not start at 0 look like packing
        given["position_ids"] = self._positions(mask, prompts)[:, -entry.shape[1] :]

    def _leave(self, output: Any) -> Any:
        """Takes the virtual tokens' states away; an encoder's stay, for the decoder to read."""
        assert self.layout is not None
        if self.kind == "encoder-decoder":
            return output
        layout, self.layout = self.layout, None
        if layout.back is None:
            return output
        states, pooler = at_places(output[0], layout.back), getattr(self.base, "pooler", None)
        # What was pooled is of the first column, which may be a virtual token's.
        if isinstance(output, tuple):  # of a caller who wants no dictionary
            if isinstance(pooler, nn.Module) and len(output) > 1 and isinstance(output[1], Tensor):
                return states, pooler(states), *output[2:]
            return states, *output[1:]
        output.last_hidden_state = states
        if getattr(output, "pooler_output", None) is not None and isinstance(pooler, nn.Module):
            output.pooler_output = pooler(states)
        if getattr(output, "hidden_states", None) is not None:
            output.hidden_states = tuple(at_places(own, layout.back) for own in output.hidden_states)
        return output

    def _decoder_mask(self, _module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        """The decoder reads the virtual tokens' states too, so its mask of the encoder's columns is the longer one."""
        states, layout = kwargs.get("encoder_hidden_states"), self.layout
        if states is None or layout is None or states.shape[1] != layout.mask.shape[1]:
            return None
        beams = states.shape[0] // layout.mask.shape[0]
        mask = layout.mask if beams == 1 else layout.mask.repeat_interleave(beams, dim=0)
        return args, {**kwargs, "encoder_attention_mask": mask}


def _mask_of(given: Mapping[str, Any], entry: Tensor) -> Tensor:
    """(B, T) of the tokens. ConfigError for a mask of another form: it says who sees whom, and nothing of a prompt's columns."""
    mask = given.get("attention_mask")
    if mask is None:
        return torch.ones(entry.shape[:2], dtype=torch.long, device=entry.device)
    if not isinstance(mask, Tensor) or mask.shape != entry.shape[:2]:
        got = list(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
        raise ConfigError(
            f"a prompt adds columns, so attention_mask must say of each token whether it is one, {list(entry.shape[:2])}; got {got}"
        )
    return mask


def _cached(given: Mapping[str, Any]) -> int:
    past = given.get("past_key_values")
    return 0 if past is None else int(past.get_seq_length())

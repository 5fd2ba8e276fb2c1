"""A frozen transformers model whose sites are known. Owns the hooks; knows no method."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from intarsia.backbone import hooks
from intarsia.backbone.attention_products import wants_products
from intarsia.backbone.attention_seam import AttentionSeam
from intarsia.backbone.copying import check_copy, hooked_on, without_tasks
from intarsia.backbone.embedded import embedded_folder
from intarsia.backbone.ending import Ending, at_places
from intarsia.backbone.entrance import Entrance, Prompts, positions_of
from intarsia.backbone.facts import Facts, trunk
from intarsia.backbone.families import Family, family_of
from intarsia.backbone.fingerprint import fingerprint
from intarsia.backbone.frozen_linear import FrozenLinear, joined, paneled
from intarsia.backbone.inspection import inspect_family
from intarsia.backbone.loading import (
    QUANTISED,
    cast,
    check_model,
    choose_device,
    choose_dtype,
    from_pretrained,
    keep_trainable,
    load_tokenizer,
    quantise,
)
from intarsia.backbone.locate import locate
from intarsia.backbone.padding import check_padding
from intarsia.backbone.plain import Plain, find_plain
from intarsia.backbone.quick import quick
from intarsia.backbone.reading import Pretrained
from intarsia.backbone.residuals import Call, left_to_norms, norms_a_sum
from intarsia.backbone.reuse import standing_in
from intarsia.errors import ConfigError
from intarsia.modes import own_modes
from intarsia.sites import Role, Site
from intarsia.staged import to_device
from intarsia.turns import Turns

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Backbone(Facts):
    """One frozen pretrained transformer. Make it with `Backbone.load` or `Backbone.wrap`."""

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, name: str, family: Family, print_: str
    ) -> None:
        self.model = model
        self.base: nn.Module = trunk(model)
        """The model without its head; sites' paths start here."""
        self._tokenizer = tokenizer
        self.name = name
        self.fingerprint = print_
        self.sites: tuple[Site, ...] = locate(self.base, family)
        self.family = family
        self.counts_positions = "position_ids" in inspect.signature(self.base.forward).parameters
        """Whether the model is told each token's position."""
        self.attention = AttentionSeam(model, self.base)
        """Where keys and values of virtual positions go in."""
        self.hooked = hooked_on(model)
        """What banks have on it, as long as they have."""
        self.turns = Turns()
        """Whose turn it is to call the model: banks on it may be called from several threads."""
        self.pretrained = Pretrained(self)
        """What a method may read of the frozen model when it builds a task."""
        self.paneled: list[FrozenLinear] = []
        """Linear layers whose products are a kernel's of ours."""
        if family.inspected:
            check_padding(self)

    @classmethod
    @own_modes()
    def load(
        cls,
        name: str | os.PathLike[str],
        *,
        dtype: str | torch.dtype = "auto",
        device: str | torch.device = "auto",
        language_model: bool = False,
    ) -> Backbone:
        """A backbone by hub name, local folder, or `embedded:minilm` / `embedded:smollm2`.

        dtype: float32, bfloat16, float16, auto (bfloat16 where the hardware multiplies it fast), or int8 or nf4 (weights of the
        linear layers, through torchao or bitsandbytes; the fingerprint stays, so tasks go between these and dense backbones).
        device: as torch names them, or auto. Causal and encoder-decoder checkpoints keep their language-model head; encoders
        come with their masked language model's only if `language_model`, as a verbaliser needs it.
        """
        if not isinstance(name, str | os.PathLike):
            raise ConfigError(
                f"a backbone is loaded by a hub name, a folder or embedded:minilm, got {type(name).__name__}; of a model make "
                "one with Backbone.wrap(model)"
            )
        name, dtype = os.fspath(name), str(dtype).removeprefix("torch.")
        where = choose_device(device)
        kind = choose_dtype(dtype, where)
        embedded = name.startswith("embedded:")
        folder = str(embedded_folder(name.removeprefix("embedded:"))) if embedded else os.path.expanduser(name)
        model = from_pretrained(folder, name, language_model=language_model)
        tokenizer = load_tokenizer(folder)
        row = _family(model)
        print_ = fingerprint(trunk(model))  # before the cast: the checkpoint's, whatever dtype it is then used in
        cast(model, kind)
        torch.nn.Module.to(model, where)
        if dtype in QUANTISED:
            quantise(model, dtype)
        backbone = cls(_freeze(model), tokenizer, name, row, print_)
        backbone.suit_processor(kind)
        return backbone

    @classmethod
    @own_modes()
    def wrap(
        cls, model: PreTrainedModel, *, tokenizer: PreTrainedTokenizerBase | None = None, family: Family | None = None
    ) -> Backbone:
        """Any transformers model, with its own head if it has one; frozen here. `family`: the sites by hand, for models that
        neither the table nor the inspection knows."""
        check_model(model, tokenizer)
        check_copy(model)
        _freeze(model)  # before it is inspected: with dropout on, the same token has other states in every pass
        row = family if family is not None else _family(model)
        name = getattr(model.config, "_name_or_path", "") or type(model).__name__
        return cls(model, tokenizer, name, row, fingerprint(trunk(model)))

    def __deepcopy__(self, memo: dict[int, Any]) -> Backbone:
        return without_tasks(self, memo)

    def suit_processor(self, dtype: torch.dtype) -> None:
        """Takes what is faster for a model of this dtype where it is: kernels of ours for attention and for products
        with frozen weights. `load` has done it."""
        if wants_products(dtype, self.device) and self.model.config._attn_implementation == "sdpa":
            self.attention.enter()
        self.paneled = paneled(self.base, self.sites)

    @cached_property
    def plain(self) -> Plain:
        """Norms and activations that torch has kernels for; found by trying, in the dtype that the model has then."""
        return find_plain(self)

    @cached_property
    def left_to_norms(self) -> list[Call]:
        """Blocks of packed rows that leave their residual sums to the norm behind them, and these norms."""
        return left_to_norms(self.base, self.plain.norms)

    @cached_property
    def joined(self) -> list[FrozenLinear]:
        """Queries, keys and values that packed rows have in one product each; from the first use on their weights share memory."""
        return joined(self.base, self.sites)

    @cached_property
    def ending(self) -> Ending | None:
        """Where the tokens that nobody reads can be left out; None: nowhere."""
        stack = self.family.stacks[-1]
        if not stack.meeting:
            return None
        layers: Any = self.base.get_submodule(stack.layers)
        return Ending(layers[-1].get_submodule(stack.meeting))

    def train_mode(self, on: bool) -> None:
        """Dropout inside the frozen trunk, on or off."""
        if self.model.training != on:  # hundreds of modules, and asked for at each step
            self.model.train(on)

    def hook(self, site: Site, change: Callable[..., Any]) -> hooks.Hooks:
        """Installs `change` at a site: (x, y) -> y' at a projection, () -> replacement or None at a weight, and
        rows -> what goes in before them (or None) at attentions (attention.Prefix) and embeddings (entrance.Prompts)."""
        if site.role is Role.WEIGHT:
            return hooks.at_parameter(self.model, self.base, site, change)
        if site.role is Role.KV:
            return hooks.Hooks(self.attention.extend(site, change))
        if site.role in (Role.EMBED, Role.EMBED_OUT):
            return hooks.Hooks(*self.entrance(site).hook(change))
        return hooks.at_projection(self.base, site, change, self.ending)

    def hook_norm(self, site: Site, change: hooks.Norm) -> hooks.Hooks | None:
        """Has the whole norm at a site computed by `change`. None where `hook` has to be used: the norm does more than an ops.Own
        says, or somebody else (another bank, a user's own code) has its forward already."""
        module = self.base.get_submodule(site.module)
        if "forward" in module.__dict__ or all(module is not norm for _, norm in self.plain.norms):
            return None
        return hooks.Hooks(hooks.WholeNorm(module, site, change, alone=norms_a_sum(self.base, site)))

    def entrance(self, site: Site) -> Entrance:
        """Where prompts of this site (Role.EMBED or EMBED_OUT) go in."""
        block = site.module if site.role is Role.EMBED_OUT else ""
        return Entrance(self.base, self.kind, block=block, first_position=self.first_position, ending=self.ending)

    def with_prompts(self, batch: Mapping[str, Tensor], prompts: Prompts) -> dict[str, Tensor]:
        """A decoder's arguments with prompts in them, for transformers' own `generate`."""
        batch = self._here(batch)
        site = next(site for site in self.sites if site.role is Role.EMBED)
        entered = self.entrance(site).enter(batch, prompts)
        return {name: entered[name] for name in ("inputs_embeds", "attention_mask")}

    def _here(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        device = self.device
        # Collators put labels in, of which transformers would take a loss of its own.
        return {name: to_device(tensor, device) for name, tensor in batch.items() if name != "labels"}

    def features(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The states that a head reads, (B, T, hidden). batch: what the tokenizer gives, (B, T) tensors (ViT: pixel_values).

        An encoder-decoder reads the text in its encoder and, shifted right, once more in its decoder, as transformers' own
        sequence classifiers for T5 and BART do.
        """
        batch = self._here(batch)
        if self.kind != "encoder-decoder":
            cache = {} if self.kind == "encoder" else {"use_cache": False}
            with standing_in(self, batch), quick(self):
                return self.base(**self._with_positions(batch), **cache).last_hidden_state
        ids, mask = batch["input_ids"], batch.get("attention_mask")
        states = self.base.get_encoder()(input_ids=ids, attention_mask=mask).last_hidden_state  # type: ignore[operator]
        start = torch.full_like(ids[:, :1], self.start_id)
        # A template's prompt slots (negative ids) are the encoder's; the decoder reads padding there.
        ids = ids.masked_fill(ids < 0, self.pad_id)
        return self.base.get_decoder()(  # type: ignore[operator]
            input_ids=batch.get("decoder_input_ids", torch.cat([start, ids[:, :-1]], dim=1)),
            attention_mask=self.mask(batch),
            encoder_hidden_states=states,
            encoder_attention_mask=mask,
            use_cache=False,
        ).last_hidden_state

    def states_at(self, batch: Mapping[str, Tensor], places: Tensor) -> Tensor:
        """The states (B, Q, hidden) of `features` at the places (B, Q) of each row, int64; where the model has an `ending`, no
        others go through what is behind its last attention."""
        places = to_device(places, self.device)
        if self.ending is None or self.checkpointing:  # which runs the layer again, when nobody says for which places
            return at_places(self.features(batch), places)
        with self.ending.only(places):
            states = self.features(batch)
            return states if self.ending.met else at_places(states, places)

    def _with_positions(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Positions count real tokens, or padding on the left would shift BERT's and GPT-2's."""
        mask = batch.get("attention_mask")
        if mask is not None and self.counts_positions and "position_ids" not in batch:
            batch["position_ids"] = positions_of(mask, self.first_position)
        return batch

    def token_scores(self, batch: Mapping[str, Tensor], read: Tensor) -> Tensor:
        """The language model's scores (K, V), fp32, at the K places where `read` (B, T) is true, row by row; or at those that it
        lists, (K,) int64, counted through the rows.

        batch: (B, T) tensors; an encoder-decoder's with decoder_input_ids, whose places `read` means. ConfigError without a
        language-model head. Only those places go through the vocabulary's projection, which is most of a small model's work.
        """
        with self.only(to_device(read, self.device)):
            return self.word_scores(self._here(batch))

    def word_scores(self, batch: dict[str, Tensor]) -> Tensor:
        """The language model's scores, fp32, of the places that `only` names, (K, V)."""
        cache = {} if self.kind == "encoder" else {"use_cache": False}
        with standing_in(self, batch), quick(self):
            batch = batch if self.kind == "encoder-decoder" else self._with_positions(batch)
            return self.model(**batch, **cache).logits[0].float()

    @contextmanager
    def only(self, places: Tensor) -> Iterator[None]:
        """Nothing but these places goes through the vocabulary's projection meanwhile: (B, T) bool, or (K,) int64."""

        def pick(_module: nn.Module, args: tuple) -> tuple:
            states = args[0][places] if places.dtype == torch.bool else args[0].flatten(0, 1).index_select(0, places)
            return (states.unsqueeze(0), *args[1:])

        handle = self.language_head.register_forward_pre_hook(pick)
        try:
            yield
        finally:
            handle.remove()

    def mask(self, batch: Mapping[str, Tensor]) -> Tensor | None:
        """(B, T), which of the states that `features` gives are of real tokens; None: all are."""
        decoder = self.kind == "encoder-decoder" and "decoder_input_ids" in batch
        mask = batch.get("decoder_attention_mask" if decoder else "attention_mask")
        return None if mask is None else to_device(mask, self.device)


def _freeze(model: PreTrainedModel) -> PreTrainedModel:
    model.requires_grad_(False)
    keep_trainable(model)
    return model.eval()


def _family(model: PreTrainedModel) -> Family:
    config: Any = trunk(model).config
    row = family_of(config.model_type, gated=bool(getattr(config, "is_gated_act", False)))
    return row if row is not None else inspect_family(model)

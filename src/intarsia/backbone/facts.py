"""What can be read off a backbone's model: its kind, its sizes, where it counts positions from, and what it has."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from intarsia.backbone.families import Family
from intarsia.errors import BackboneError, ConfigError
from intarsia.sites import Role, Site

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Kind = Literal["encoder", "decoder", "encoder-decoder"]


def trunk(model: PreTrainedModel) -> Any:
    """The model without its head. Llama 4's language model calls itself its base; T5's is, and has two stacks."""
    base: Any = model.base_model
    if base is not model or model.get_output_embeddings() is None:
        return base
    from transformers import PreTrainedModel

    inner = [module for module in model.children() if isinstance(module, PreTrainedModel)]
    return inner[0] if len(inner) == 1 else base


class Facts:
    """Of one frozen pretrained transformer."""

    model: PreTrainedModel
    base: nn.Module
    name: str
    family: Family
    sites: tuple[Site, ...]
    counts_positions: bool
    _tokenizer: PreTrainedTokenizerBase | None

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The backbone's tokenizer; BackboneError when it has none."""
        if self._tokenizer is None:
            raise BackboneError(
                f"backbone {self.name!r} has no tokenizer; pass one with Backbone.wrap(model, tokenizer=...)."
            )
        return self._tokenizer

    @property
    def config(self) -> Any:
        """transformers' config of the model without its head."""
        return self.base.config

    @property
    def kind(self) -> Kind:
        """What the stacks make it."""
        stacks = self.family.stacks
        return "encoder-decoder" if len(stacks) == 2 else stacks[0].name

    @property
    def dtype(self) -> torch.dtype:
        """Of the computation in the trunk."""
        return self.model.dtype

    @property
    def device(self) -> torch.device:
        """Of the weights."""
        return self.model.device

    @property
    def hidden(self) -> int:
        """Width of the residual stream that a head reads."""
        if self.config.model_type == "opt":
            return self.config.word_embed_proj_dim  # OPT-350m projects its states down at the end
        stack = "encoder" if self.kind == "encoder" else "decoder"
        return next(s.width for s in self.sites if s.role is Role.ATTN_OUT and s.stack == stack)

    @property
    def max_length(self) -> int:
        """Longest input in tokens; 512 where the model has no bound of its own (T5)."""
        limit = (
            getattr(self.config, "max_position_embeddings", None) or getattr(self.config, "n_positions", None) or 512
        )
        limit -= self.first_position
        known = getattr(self._tokenizer, "model_max_length", None)
        return min(int(limit), int(known)) if known else int(limit)

    @cached_property
    def positions(self) -> int | None:
        """Most tokens of a row where their positions are looked up in a table; None: they are computed, and any row is read."""
        names = ("wpe", "embed_positions", "position_embeddings")
        tables = (own for path, own in self.base.named_modules() if path.rpartition(".")[2] in names)
        limit = getattr(self.config, "max_position_embeddings", None)
        looked_up = any(isinstance(own, nn.Embedding) for own in tables)
        return limit - self.first_position if looked_up and limit is not None else None

    def parameter_count(self) -> int:
        """Parameters of the model without its head."""
        return sum(p.numel() for p in self.base.parameters())

    def parameter(self, site: Site) -> Tensor:
        """The present value at a site of Role.WEIGHT."""
        return self.base.get_submodule(site.module).get_parameter(site.parameter)

    @property
    def drops(self) -> bool:
        """Whether its configuration has any dropout at all; Llama and its kin have none."""
        rates = (value for name, value in self.config.to_dict().items() if "drop" in name)
        return any(isinstance(rate, float) and rate > 0 for rate in rates)

    @cached_property
    def first_position(self) -> int:
        """The position of a text's first token: after the padding index in RoBERTa and its kin (MPNet, CamemBERT, ...), whose
        table of positions has one."""
        tables = (module for path, module in self.base.named_modules() if path.endswith("position_embeddings"))
        padding = next((getattr(table, "padding_idx", None) for table in tables), None)
        return 0 if padding is None else padding + 1

    @property
    def shifts_positions(self) -> bool:
        """Whether tokens can be told to stand after virtual positions: by position ids, or by T5's relative bias."""
        return self.counts_positions or "relative_attention_num_buckets" in self.config.to_dict()

    @cached_property
    def token_types(self) -> int | None:
        """How many token types its table has; None without one."""
        tables = (own for path, own in self.base.named_modules() if path.endswith("token_type_embeddings"))
        return next((own.num_embeddings for own in tables if isinstance(own, nn.Embedding)), None)

    @property
    def vocabulary(self) -> int | None:
        """How many tokens its table has; None where that is not known."""
        try:
            return getattr(self.base.get_input_embeddings(), "num_embeddings", None)  # type: ignore[operator]
        except NotImplementedError:
            return None

    @property
    def language_head(self) -> nn.Module:
        """The projection to the vocabulary; ConfigError where the model has none."""
        head = self.model.get_output_embeddings()
        if head is None:
            raise ConfigError(
                f"backbone {self.name!r} has no language-model head, so it writes no words; use a causal or encoder-decoder "
                "checkpoint, or a masked language model for a verbaliser"
            )
        return head

    @property
    def pooler(self) -> nn.Module | None:
        """The pretrained pooler, where the model has one."""
        return getattr(self.base, "pooler", None)

    @property
    def padding_side(self) -> Literal["left", "right"]:
        """Where rows that are read, not written on, are padded: as the tokenizer does, but on the right where the first column is
        position 0 whatever is in it, or a decoder's start token."""
        either = self.shifts_positions and self.kind != "encoder-decoder"
        return "left" if either and self.tokenizer.padding_side == "left" else "right"

    @property
    def pad_id(self) -> int:
        """A token for places that nobody reads, also where the tokenizer (GPT-2, Llama) has none or the config says -1."""
        given = (getattr(self._tokenizer, "pad_token_id", None), getattr(self.config, "pad_token_id", None))
        return next((int(own) for own in given if own is not None and own >= 0), 0)

    @cached_property
    def attends_only(self) -> bool:
        """Whether a layer's tokens see each other in attention alone; not in a state-space or recurrent block, which keeps states
        of its own."""
        found = {
            role: {(s.stack, s.layer, s.cross) for s in self.sites if s.role is role}
            for role in (Role.ATTN_OUT, Role.KV)
        }
        return found[Role.ATTN_OUT] == found[Role.KV]

    @cached_property
    def has_experts(self) -> bool:
        """Whether a router sends tokens to experts, so that what a pass does depends on its tokens."""
        rows = [row for stack in self.family.stacks for row in (stack.rows or (stack.row(0),))]
        return any(feed_forward is not None and bool(feed_forward.block) for _, feed_forward in rows)

    @property
    def start_id(self) -> int:
        """The token from which a decoder with an encoder begins, as transformers' `generate` finds it; BackboneError where neither
        the config nor the generation settings say it."""
        for name in ("decoder_start_token_id", "bos_token_id"):
            for holder in (self.config, getattr(self.model, "generation_config", None)):
                if (start := getattr(holder, name, None)) is not None:
                    return int(start)
        raise BackboneError(
            f"the config of backbone {self.name!r} has no decoder_start_token_id, nor a bos_token_id, so its decoder has nothing "
            "to begin with; set model.config.decoder_start_token_id (T5 begins with its padding token, 0)"
        )

    @property
    def checkpointing(self) -> bool:
        """Whether gradient checkpointing is on: the trunk's modules run again during backward."""
        return any(module.gradient_checkpointing for module in self._checkpointed)

    @cached_property
    def _checkpointed(self) -> list[Any]:
        """Modules that may be told to run again. transformers' own question looks for them among all modules, each time, and it is
        asked in every pass."""
        return [module for module in self.model.modules() if hasattr(module, "gradient_checkpointing")]

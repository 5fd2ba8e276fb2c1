"""A frozen transformers model whose sites are known. Owns the hooks; knows no method."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from intarsia.backbone import hooks
from intarsia.backbone.embedded import embedded_folder
from intarsia.backbone.families import Family, family_of
from intarsia.backbone.fingerprint import fingerprint
from intarsia.backbone.inspection import inspect_family
from intarsia.backbone.locate import locate
from intarsia.errors import BackboneError, ConfigError, nearest
from intarsia.sites import Role, Site

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
Kind = Literal["encoder", "decoder", "encoder-decoder"]


class Backbone:
    """One frozen pretrained transformer. Make it with `Backbone.load` or `Backbone.wrap`."""

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, name: str, family: Family, print_: str
    ) -> None:
        self.model = model
        self.base: nn.Module = model.base_model
        """The model without its head; sites' paths start here."""
        self._tokenizer = tokenizer
        self.name = name
        self.fingerprint = print_
        self.sites: tuple[Site, ...] = locate(self.base, family)
        self.family = family
        self._counts_positions = "position_ids" in inspect.signature(self.base.forward).parameters

    @classmethod
    def load(cls, name: str, *, dtype: str = "auto", device: str = "auto") -> Backbone:
        """A backbone by hub name, local folder, or `embedded:minilm` / `embedded:smollm2`.

        dtype: float32, bfloat16, float16, or auto (bfloat16 where the hardware multiplies it fast). device: as torch names
        them, or auto. Causal and encoder-decoder checkpoints keep their language-model head; encoders come without one.
        """
        where = _device(device)
        kind = _dtype(dtype, where)
        folder = str(embedded_folder(name.removeprefix("embedded:"))) if name.startswith("embedded:") else name
        model = _from_pretrained(folder, name)
        tokenizer = _load_tokenizer(folder)
        row = _family(model)
        # Before the cast: the fingerprint is the checkpoint's, whatever dtype it is then used in.
        print_ = fingerprint(model.base_model)
        _cast(model, kind)
        torch.nn.Module.to(model, where)
        if where.type == "cpu" and kind is torch.bfloat16 and model.config._attn_implementation == "sdpa":
            # torch's bf16 sdpa backward on CPU costs eight times the written-out products and softmax at usual lengths.
            model.set_attn_implementation("eager")
        return cls(_freeze(model), tokenizer, name, row, print_)

    @classmethod
    def wrap(
        cls, model: PreTrainedModel, *, tokenizer: PreTrainedTokenizerBase | None = None, family: Family | None = None
    ) -> Backbone:
        """Any transformers model, with its own head if it has one; frozen here. `family`: the sites by hand, for models that
        neither the table nor the inspection knows."""
        row = family if family is not None else _family(model)
        name = getattr(model.config, "_name_or_path", "") or type(model).__name__
        return cls(_freeze(model), tokenizer, name, row, fingerprint(model.base_model))

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
        if self.config.model_type in ("roberta", "xlm-roberta", "camembert"):
            limit -= self.config.pad_token_id + 1  # their positions start after the padding index
        known = getattr(self._tokenizer, "model_max_length", None)
        return min(int(limit), int(known)) if known else int(limit)

    def parameter_count(self) -> int:
        """Parameters of the model without its head."""
        return sum(p.numel() for p in self.base.parameters())

    def parameter(self, site: Site) -> Tensor:
        """The present value at a site of Role.WEIGHT."""
        return self.base.get_submodule(site.module).get_parameter(site.parameter)

    def train_mode(self, on: bool) -> None:
        """Dropout inside the frozen trunk, on or off."""
        self.model.train(on)

    def hook(self, site: Site, change: Callable[..., Any]) -> hooks.Hooks:
        """Installs `change` at a site: (x, y) -> y' at a projection, () -> replacement or None at a weight."""
        if site.role is Role.WEIGHT:
            return hooks.at_parameter(self.model, self.base, site, change)
        return hooks.at_projection(self.base, site, change)

    def features(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The states that a head reads, (B, T, hidden). batch: what the tokenizer gives, (B, T) tensors (ViT: pixel_values).

        An encoder-decoder reads the text in its encoder and, shifted right, once more in its decoder, as transformers' own
        sequence classifiers for T5 and BART do.
        """
        batch = {name: tensor.to(self.device) for name, tensor in batch.items()}
        if self.kind == "encoder":
            return self.base(**batch).last_hidden_state
        if self.kind == "decoder":
            mask = batch.get("attention_mask")
            if mask is not None and self._counts_positions:
                # Positions count real tokens, or padding on the left would shift GPT-2's.
                batch.setdefault("position_ids", (mask.long().cumsum(1) - 1).clamp(min=0))
            return self.base(**batch, use_cache=False).last_hidden_state
        ids, mask = batch["input_ids"], batch.get("attention_mask")
        states = self.base.get_encoder()(input_ids=ids, attention_mask=mask).last_hidden_state  # type: ignore[operator]
        start = torch.full_like(ids[:, :1], self.config.decoder_start_token_id)
        return self.base.get_decoder()(  # type: ignore[operator]
            input_ids=batch.get("decoder_input_ids", torch.cat([start, ids[:, :-1]], dim=1)),
            attention_mask=self.mask(batch),
            encoder_hidden_states=states,
            encoder_attention_mask=mask,
            use_cache=False,
        ).last_hidden_state

    def mask(self, batch: Mapping[str, Tensor]) -> Tensor | None:
        """(B, T), which of the states that `features` gives are of real tokens; None: all are."""
        decoder = self.kind == "encoder-decoder" and "decoder_input_ids" in batch
        mask = batch.get("decoder_attention_mask" if decoder else "attention_mask")
        return None if mask is None else mask.to(self.device)

    @property
    def checkpointing(self) -> bool:
        """Whether gradient checkpointing is on: the trunk's modules run again during backward."""
        renamed = hasattr(
            type(self.model), "is_activation_checkpointing"
        )  # transformers 5.20 deprecates the other name
        return bool(
            getattr(self.model, "is_activation_checkpointing" if renamed else "is_gradient_checkpointing", False)
        )


def _freeze(model: PreTrainedModel) -> PreTrainedModel:
    model.requires_grad_(False)
    return model.eval()


def _family(model: PreTrainedModel) -> Family:
    config: Any = model.base_model.config
    row = family_of(config.model_type, gated=bool(getattr(config, "is_gated_act", False)))
    return row if row is not None else inspect_family(model)


def _cast(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Casts the parameters, as loading in that dtype would. Buffers stay: rotary frequencies in bf16 shift positions."""
    keep = getattr(model, "_keep_in_fp32_modules", None) or () if dtype is torch.float16 else ()
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and not set(name.split(".")) & set(keep):
            parameter.data = parameter.data.to(dtype)


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"unknown device {name!r}; give auto, cpu, cuda or cuda:N.") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device {name!r} was asked for, but torch sees no CUDA device here; give --device cpu.")
    return device


def _dtype(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        return torch.bfloat16 if _fast_bfloat16(device) else torch.float32
    if name not in DTYPES:
        raise ConfigError(f"unknown dtype {name!r}; give auto, {', '.join(DTYPES)}{nearest(name, list(DTYPES))}")
    return DTYPES[name]


def _fast_bfloat16(device: torch.device) -> bool:
    """Whether matrix products in bfloat16 beat fp32 there: tensor cores, AMX or AVX-512 BF16; emulated bf16 is slower."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    if device.type != "cpu":
        return False
    cpu = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(cpu.get("amx_bf16") or cpu.get("avx512_bf16") or cpu.get("arm_bf16") or cpu.get("bf16"))


def _from_pretrained(folder: str, name: str) -> PreTrainedModel:
    import transformers as tf
    from safetensors import SafetensorError

    try:
        config = tf.AutoConfig.from_pretrained(folder)
        architecture = (getattr(config, "architectures", None) or [""])[0]
        auto: Any = tf.AutoModel
        if type(config) in tf.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING and getattr(config, "is_encoder_decoder", False):
            auto = tf.AutoModelForSeq2SeqLM
        elif type(config) in tf.MODEL_FOR_CAUSAL_LM_MAPPING and architecture.endswith(("CausalLM", "LMHeadModel")):
            auto = tf.AutoModelForCausalLM
        model, report = auto.from_pretrained(folder, output_loading_info=True)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        line = " ".join(str(error).split())[:200]
        if os.sep in name and not Path(name).exists():
            line = "there is no such folder"
        raise BackboneError(
            f"cannot load backbone {name!r}: {line}. Give a folder with config.json and weights, a hub name that is in the "
            "local cache or reachable, or embedded:minilm / embedded:smollm2."
        ) from None
    missing = sorted(report["missing_keys"])
    if missing and all("pooler." in name for name in missing):
        # The checkpoint has none, and transformers made a random one: a task on it would change from process to process.
        model.base_model.pooler = None
    elif missing:
        raise BackboneError(
            f"backbone {name!r} lacks {len(missing)} tensor(s) of {type(model).__name__}, the first is {missing[0]!r}; they would "
            "be random. Give a complete checkpoint."
        )
    return model


def _load_tokenizer(folder: str) -> PreTrainedTokenizerBase | None:
    """None where the checkpoint ships no tokenizer (ViT); whoever needs one then says so."""
    import transformers as tf

    try:
        tokenizer = tf.AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, KeyError):
        return None
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer

"""The frozen language model's own voice, with whatever is hooked on it: its scores of words, and transformers' `generate`."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from intarsia.backbone.entrance import Prompts
from intarsia.errors import ConfigError, UnsupportedError

if TYPE_CHECKING:
    from intarsia.backbone.backbone import Backbone


def generate(
    backbone: Backbone, batch: Mapping[str, Tensor], settings: Mapping[str, Any], prompts: Prompts | None
) -> list[Tensor]:
    """The new tokens of each row, without padding and end-of-sequence token.

    batch: input_ids and attention_mask (B, T), padded on the left for decoders. prompts: of a decoder's rows; they are put in
    here, once, because `generate` counts the tokens that it starts from. settings: keyword arguments of transformers' generate; of
    the checkpoint's own there are the special tokens only.
    """
    given = {name: batch[name].to(backbone.device) for name in ("input_ids", "attention_mask")}
    # A decoder's output begins with its input, an encoder-decoder's with the start token.
    skip = given["input_ids"].shape[1] if backbone.kind == "decoder" else 1
    model: Any = backbone.model
    if not model.can_generate():
        raise UnsupportedError(
            f"transformers' generate does not know {type(model).__name__}; load a causal language model"
        )
    if prompts is not None and prompts.vectors is not None:
        if "inputs_embeds" not in inspect.signature(model.prepare_inputs_for_generation).parameters:
            raise UnsupportedError(
                f"a prompt goes in as vectors, and transformers' generate takes none for {type(model).__name__}; write with a task "
                "of another method (adapter, lora, prefix), or take another backbone"
            )
        given, skip = backbone.with_prompts(given, prompts), 0
    ends = end_tokens(backbone)
    pad = model.generation_config.pad_token_id
    pad = pad if pad is not None else (ends[0] if ends else 0)
    if backbone.kind == "encoder-decoder" and model.generation_config.decoder_start_token_id is None:
        settings = {**settings, "decoder_start_token_id": backbone.start_id}
    with _special_tokens_only(model.generation_config):
        new = model.generate(**given, **settings, pad_token_id=pad, eos_token_id=ends or None)[:, skip:]
    stops = torch.isin(new, torch.tensor(ends, dtype=new.dtype, device=new.device))
    lengths = torch.where(stops.any(1), stops.int().argmax(1), new.shape[1]).tolist()
    return [row[:length] for row, length in zip(new, lengths, strict=True)]


@contextmanager
def own_draws(backbone: Backbone, ids: Tensor, seed: int | None) -> Iterator[None]:
    """Random numbers that are a batch's own meanwhile, by its ids and the seed, or the first rows of all batches would be drawn
    alike, and the second ones; the caller's are as before afterwards. seed: None: nothing is drawn."""
    devices = [backbone.device] if backbone.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices, enabled=seed is not None):
        if seed is not None:
            seen = hashlib.sha256(ids.to("cpu", torch.int64).contiguous().numpy().tobytes())
            seen.update(str(seed).encode())
            torch.manual_seed(int.from_bytes(seen.digest()[:7], "big"))
        yield


@contextmanager
def _special_tokens_only(config: Any) -> Iterator[None]:
    """A checkpoint's penalties, forced tokens and least lengths (Qwen 2.5, BART) away meanwhile: no task was trained with them, and
    a penalty counts a batch's padding and sees no token of a prompt's row, so that a row's text would depend on its neighbours."""
    from transformers import GenerationConfig

    own = dict(vars(config))
    bare = GenerationConfig(bos_token_id=config.bos_token_id, decoder_start_token_id=config.decoder_start_token_id)
    vars(config).clear()
    vars(config).update(vars(bare))
    try:
        yield
    finally:
        vars(config).clear()
        vars(config).update(own)


def end_tokens(backbone: Backbone) -> list[int]:
    """What ends a text: the checkpoint's own end tokens, and the tokenizer's, with which targets end in training. They differ in
    some checkpoints (SmolLM2), and a task would then never stop."""
    end: Any = backbone.model.generation_config.eos_token_id
    ends = [] if end is None else [end] if isinstance(end, int) else list(end)
    own: Any = None if backbone._tokenizer is None else backbone._tokenizer.eos_token_id
    return ends if own is None or own in ends else [own, *ends]


def word_scores(backbone: Backbone, batch: Mapping[str, Tensor], words: Sequence[int]) -> Tensor:
    """(B, C), fp32: the scores of these tokens at the one [MASK] of an encoder, after a decoder's last token, or as the first
    output of an encoder-decoder."""
    ids = batch["input_ids"].to(backbone.device)
    mask = batch.get("attention_mask", torch.ones_like(ids)).to(backbone.device)
    if backbone.kind == "encoder":
        blank: Any = backbone.tokenizer.mask_token_id
        read = ids.eq(blank)
        if not bool(read.sum(1).eq(1).all()):
            raise ConfigError(
                "a verbaliser reads the [MASK], and some row has not exactly one; put {mask} once into the template"
            )
    elif backbone.kind == "decoder":
        columns = torch.arange(ids.shape[1], device=ids.device)
        read = columns.eq(torch.where(mask.bool(), columns, -1).amax(1, keepdim=True))
    else:
        start = torch.full_like(ids[:, :1], backbone.start_id)
        batch, read = {**batch, "decoder_input_ids": start}, torch.ones_like(start, dtype=torch.bool)
    return backbone.token_scores(batch, read)[:, list(words)]

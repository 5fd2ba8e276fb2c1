# ruff: noqa: E501 - a table of configs reads best with a row a line
"""Tiny random models of every family in the table: the test path that needs no download."""

from typing import Any

import pytest
import torch
import transformers as tf

_ENCODER: dict[str, Any] = {
    "vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
    "max_position_embeddings": 64, "pad_token_id": 0,
}  # fmt: skip
_DECODER: dict[str, Any] = {**_ENCODER, "num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": 2}
_BART: dict[str, Any] = {
    "vocab_size": 97, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 64,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2, "forced_eos_token_id": 2,
}  # fmt: skip
# heads * d_kv != d_model on purpose: the shape that breaks prefixes of the peers.
_T5: dict[str, Any] = {
    "vocab_size": 97, "d_model": 32, "d_kv": 6, "d_ff": 48, "num_layers": 2, "num_heads": 4, "pad_token_id": 0,
    "eos_token_id": 1, "decoder_start_token_id": 0,
}  # fmt: skip
_HEAD_DIM = {"head_dim": 12}  # != hidden_size / heads, as in Qwen 3 and Gemma

CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("BertConfig", _ENCODER),
    "roberta": ("RobertaConfig", {**_ENCODER, "pad_token_id": 1, "max_position_embeddings": 66}),
    "electra": ("ElectraConfig", {**_ENCODER, "embedding_size": 16}),
    "distilbert": ("DistilBertConfig", {"vocab_size": 97, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48, "max_position_embeddings": 64, "pad_token_id": 0}),
    "modernbert": ("ModernBertConfig", {**_ENCODER, "num_hidden_layers": 3, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2, "local_attention": 8}),
    "gpt2": ("GPT2Config", {"vocab_size": 97, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "n_inner": 48, "bos_token_id": 1, "eos_token_id": 2}),
    "gpt_neox": ("GPTNeoXConfig", {**_ENCODER, "bos_token_id": 1, "eos_token_id": 2}),
    "opt": ("OPTConfig", {"vocab_size": 97, "hidden_size": 32, "word_embed_proj_dim": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 48, "max_position_embeddings": 64, "pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 2}),
    "llama": ("LlamaConfig", _DECODER),
    "mistral": ("MistralConfig", {**_DECODER, "sliding_window": 8}),
    "qwen2": ("Qwen2Config", _DECODER),
    "qwen3": ("Qwen3Config", {**_DECODER, **_HEAD_DIM}),
    "gemma": ("GemmaConfig", {**_DECODER, **_HEAD_DIM}),
    "gemma2": ("Gemma2Config", {**_DECODER, **_HEAD_DIM, "sliding_window": 8}),
    "gemma3": ("Gemma3TextConfig", {**_DECODER, **_HEAD_DIM, "sliding_window": 8, "num_hidden_layers": 3}),
    "smollm3": ("SmolLM3Config", _DECODER),
    "phi3": ("Phi3Config", _DECODER),
    "t5": ("T5Config", _T5),
    "mt5": ("MT5Config", {**_T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
    "bart": ("BartConfig", _BART),
    "mbart": ("MBartConfig", _BART),
    "vit": ("ViTConfig", {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "image_size": 16, "patch_size": 4}),
}  # fmt: skip
FAMILIES = tuple(CONFIGS)
families = pytest.mark.parametrize("family", FAMILIES)
ENCODERS = ("bert", "roberta", "electra", "distilbert", "modernbert", "vit")
SEQ2SEQ = ("t5", "mt5", "bart", "mbart")
DECODERS = tuple(f for f in FAMILIES if f not in ENCODERS + SEQ2SEQ)


def config(family: str, **changes: Any) -> tf.PreTrainedConfig:
    name, fields = CONFIGS[family]
    return getattr(tf, name)(**{**fields, **changes})


def build(family: str, *, seed: int = 0, **changes: Any) -> tf.PreTrainedModel:
    """A random model: base model for encoders, LM for decoders and encoder-decoders; weights large enough to matter."""
    cfg = config(family, **changes)
    auto = (
        tf.AutoModel
        if family in ENCODERS
        else tf.AutoModelForSeq2SeqLM
        if family in SEQ2SEQ
        else tf.AutoModelForCausalLM
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = auto.from_config(cfg)
        with torch.no_grad():
            for parameter in model.parameters():
                # Zero biases and unit gains would hide a bias or gain that goes to the wrong place.
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def inputs(family: str, *, rows: int = 3, tokens: int = 7, seed: int = 0) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    if family == "vit":
        return {"pixel_values": torch.randn(rows, 3, 16, 16, generator=g)}
    batch = {
        "input_ids": torch.randint(3, 97, (rows, tokens), generator=g),
        "attention_mask": torch.ones(rows, tokens, dtype=torch.long),
    }
    if family in SEQ2SEQ:
        batch["decoder_input_ids"] = torch.randint(3, 97, (rows, tokens - 2), generator=g)
    return batch

"""Small models that the table of families does not know, with random weights."""

import torch
import transformers as tf

ENCODER = {
    "vocab_size": 97,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
_DISENTANGLED = {
    "relative_attention": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_biased_input": False,
    "share_att_key": True,
}
UNKNOWN = {
    "deberta-v2": ("DebertaV2Config", {**ENCODER}),
    "deberta-v3": (
        "DebertaV2Config",
        {**ENCODER, **_DISENTANGLED, "position_buckets": 8, "norm_rel_ebd": "layer_norm", "type_vocab_size": 0},
    ),
    # Both project their table of positions inside attention, after queries, keys and values.
    "deberta-v1": ("DebertaConfig", {**ENCODER, **_DISENTANGLED, "type_vocab_size": 0}),
    "deberta-v2 as its config has it": (
        "DebertaV2Config",
        {**ENCODER, **_DISENTANGLED, "share_att_key": False, "position_buckets": 8},
    ),
    "mpnet": ("MPNetConfig", {**ENCODER, "pad_token_id": 1}),
    "camembert": ("CamembertConfig", {**ENCODER, "pad_token_id": 1}),
    "bloom": ("BloomConfig", {"vocab_size": 97, "hidden_size": 32, "n_layer": 2, "n_head": 4, "pad_token_id": 0}),
    "falcon": (
        "FalconConfig",
        {
            "vocab_size": 97,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
    ),
    "gpt_neo": (
        "GPTNeoConfig",
        {
            "vocab_size": 97,
            "hidden_size": 32,
            "num_layers": 2,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 1]],
            "max_position_embeddings": 64,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
    ),
    "gptj": (
        "GPTJConfig",
        {
            "vocab_size": 97,
            "n_embd": 32,
            "n_layer": 2,
            "n_head": 4,
            "n_positions": 64,
            "rotary_dim": 4,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
    ),
    "olmo2": ("Olmo2Config", {**ENCODER, "num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": 2}),
    # One dropout for both sublayers, whose outputs are added together.
    "phi": ("PhiConfig", {**ENCODER, "bos_token_id": 1, "eos_token_id": 2}),
    "esm": ("EsmConfig", {**ENCODER, "pad_token_id": 1, "mask_token_id": 2}),
    # Its feed-forward calls the second of its entrances first.
    "hunyuan": (
        "HunYuanMoEV1Config",
        {**ENCODER, "head_dim": 8, "num_experts": 4, "moe_topk": 2, "moe_intermediate_size": 16},
    ),
}
CAUSAL = ("bloom", "falcon", "gpt_neo", "gptj", "olmo2", "phi", "hunyuan")


def model_of(family):
    name, fields = UNKNOWN[family]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = tf.AutoModel.from_config(getattr(tf, name)(**fields))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def batch_of(rows=4, tokens=7):
    g = torch.Generator().manual_seed(0)
    return {
        "input_ids": torch.randint(3, 97, (rows, tokens), generator=g),
        "attention_mask": torch.ones(rows, tokens, dtype=torch.long),
    }

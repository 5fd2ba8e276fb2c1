"""Decoders whose attention is not routed: what works on them in a bank is written as if each text were alone."""

import random

import pytest
import torch
import transformers as tf

from intarsia.backbone import Backbone
from intarsia.bank import TaskBank
from intarsia.methods import BottleneckAdapter, LoRA, PromptTuning, PTuning, TopLayers
from intarsia.serving.decoder import Decoder
from intarsia.sites import Role
from intarsia.task import Task
from methods.every import stir
from serving.writing import Letters, alone, asked, run

_SMALL = {
    "vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_OLD = {"vocab_size": 97, "n_embd": 32, "n_layer": 2, "n_head": 4, "bos_token_id": 1, "eos_token_id": 2}
UNROUTED = {
    "bloom": tf.BloomConfig(**_SMALL),
    "falcon": tf.FalconConfig(**_SMALL, alibi=False, new_decoder_architecture=False),
    "falcon with alibi": tf.FalconConfig(**_SMALL, alibi=True, new_decoder_architecture=False),
    "gpt_neo": tf.GPTNeoConfig(
        vocab_size=97, hidden_size=32, num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]], window_size=8,
        max_position_embeddings=64, bos_token_id=1, eos_token_id=2,
    ),
    "gptj": tf.GPTJConfig(**_OLD, rotary_dim=4, n_positions=64),
    "mpt": tf.MptConfig(vocab_size=97, d_model=32, n_layers=2, n_heads=4, max_seq_len=64, bos_token_id=1, eos_token_id=2),
}  # fmt: skip
METHODS = {
    "adapter": BottleneckAdapter(width=5),
    "lora": LoRA(rank=3, targets=(Role.FFN_IN,)),  # all of them have it; some keep q, k and v in one matrix
    "prompt": PromptTuning(length=3, init="uniform"),
    "p-tuning": PTuning(length=4, encoder="mlp"),
    "top layer": TopLayers(k=1),
}


def bank_of(name):
    """A random model of the family, and tasks on it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = tf.AutoModelForCausalLM.from_config(UNROUTED[name]).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
    backbone = Backbone.wrap(model, tokenizer=Letters())
    bank = TaskBank(backbone)
    for number, (task, method) in enumerate(METHODS.items()):
        bank.add(stir(Task.new(task, backbone, method).eval(), 0.4, number).fold().requires_grad_(False))
    return bank


@pytest.mark.parametrize("name", UNROUTED)
def test_every_text_of_an_unrouted_family_is_the_one_that_its_request_gets_alone(name):
    bank, shuffle = bank_of(name), random.Random(name)
    texts = asked(bank, shuffle, 20)
    want = {writing: alone(bank, writing) for writing in texts}
    run(Decoder(bank, max_rows=6), texts, shuffle)
    for writing in texts:
        assert writing.new == want[writing], writing.task

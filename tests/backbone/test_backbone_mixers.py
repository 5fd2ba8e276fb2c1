"""Models whose layers are not all attention, encoder-decoders that the table does not know, and what is refused of others."""

import pytest
import torch
import transformers as tf

from backbone.unknown import ENCODER
from intarsia.backbone import Backbone
from intarsia.backbone.packed import Segments, packed
from intarsia.bank import TaskBank
from intarsia.errors import BackboneError, ConfigError, UnsupportedError
from intarsia.heads import Decoding, Head
from intarsia.methods import BottleneckAdapter, LoRA, PrefixTuning, PromptTuning
from intarsia.serving.decoder import Decoder
from intarsia.sites import Role
from intarsia.task import Task
from methods.every import stir

_DECODER = {**ENCODER, "num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": 2}
_BART = {
    "vocab_size": 97, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 64,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2,
}  # fmt: skip
_T5 = {"vocab_size": 97, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
_JAMBA = {**_DECODER, "attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 1, "use_mamba_kernels": False}
_NEXT = {
    **_DECODER, "head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 24, "layer_types": ["linear_attention", "full_attention"],
    "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
}  # fmt: skip
MODELS = {
    "jamba": ("JambaForCausalLM", _JAMBA),
    "qwen3_next": ("Qwen3NextForCausalLM", _NEXT),
    "mamba": ("MambaForCausalLM", {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}),
    "marian": ("MarianMTModel", _BART),
    "m2m_100": ("M2M100ForConditionalGeneration", _BART),
    "pegasus": ("PegasusForConditionalGeneration", _BART),
    "umt5": ("UMT5ForConditionalGeneration", {**_T5, "decoder_start_token_id": 0}),
    "longt5": ("LongT5ForConditionalGeneration", {**_T5, "decoder_start_token_id": 0}),
}
METHODS = {
    "adapter": BottleneckAdapter(width=4),
    "prefix": PrefixTuning(length=3, mid=None, init_std=0.5),
    "prompt": PromptTuning(length=2, init="uniform"),
}
PLAIN = Decoding(max_new_tokens=4)


def model_of(name, fields, *, seed=0):
    cls = getattr(tf, name)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = cls(cls.config_class(**fields)).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def padded(rows, *, left):
    longest = max(map(len, rows))
    spare = [[0] * (longest - len(row)) for row in rows]
    ids = [own + row if left else row + own for row, own in zip(rows, spare, strict=True)]
    mask = [
        [0] * len(own) + [1] * len(row) if left else [1] * len(row) + [0] * len(own)
        for row, own in zip(rows, spare, strict=True)
    ]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


@pytest.mark.parametrize("family", MODELS)
@torch.no_grad()
def test_rows_of_all_methods_are_as_alone_in_a_padded_batch_and_write_the_same(family):
    backbone = Backbone.wrap(model_of(*MODELS[family]))
    decoder = backbone.kind == "decoder"
    assert decoder == (family in ("jamba", "qwen3_next", "mamba"))
    tasks = []
    for name, method in METHODS.items():
        if name == "prefix" and family == "mamba":
            with pytest.raises(UnsupportedError, match="finds no attention on this backbone that takes a prefix"):
                Task.new(name, backbone, method)
            continue
        tasks.append(stir(Task.new(name, backbone, method)).requires_grad_(False).eval())
    bank = TaskBank(backbone, tasks)
    names = [*(task.name for task in tasks), None]
    rows = [[3 + (7 * i + j) % 90 for j in range(6 - i)] for i in range(len(names))]
    for left in (False, True) if decoder else (False,):
        batch = padded(rows, left=left)
        for i, (own, name) in enumerate(zip(bank(batch, tasks=names), names, strict=True)):
            alone = bank(padded([rows[i]], left=left), tasks=[name])[0]
            here = own[-len(rows[i]) :] if left else own[: len(rows[i])]
            torch.testing.assert_close(here, alone, rtol=1e-4, atol=1e-5)
    together = bank.generate(padded(rows, left=decoder), names, PLAIN) if _takes_prompts(backbone) else []
    for i, own in enumerate(together):
        assert own.tolist() == bank.generate(padded([rows[i]], left=decoder), [names[i]], PLAIN)[0].tolist()


def _takes_prompts(backbone):
    import inspect

    return "inputs_embeds" in inspect.signature(backbone.model.prepare_inputs_for_generation).parameters or (
        backbone.kind == "encoder-decoder"
    )


@pytest.mark.parametrize("family", ["jamba", "qwen3_next"])
def test_only_attention_takes_a_prefix_and_every_layer_an_adapter(family):
    backbone = Backbone.wrap(model_of(*MODELS[family]))
    assert [s.layer for s in backbone.sites if s.role is Role.KV] == [1]
    assert [s.layer for s in backbone.sites if s.role is Role.ATTN_OUT] == [0, 1]
    assert [s.layer for s in backbone.sites if s.role is Role.FFN_OUT] == [0, 1]
    assert not backbone.attends_only


def test_a_residual_stream_wider_than_the_weights_is_inspected_and_trained():
    backbone = Backbone.wrap(model_of(*MODELS["mamba"]).to(torch.bfloat16))
    task = stir(Task.new("t", backbone, METHODS["adapter"], Head(labels=("no", "yes"), dropout=0.0)))
    bank = TaskBank(backbone, [task])
    bank(padded([[3, 4, 5], [6, 7]], left=False), tasks="t").sum().backward()
    assert all(parameter.grad.isfinite().all() and parameter.grad.any() for parameter in task.parameters())


def test_states_other_than_keys_and_values_are_neither_packed_nor_batched_continuously():
    # Rows side by side in one long row would see each other in them.
    backbone = Backbone.wrap(model_of(*MODELS["jamba"]))
    starts = torch.tensor([0, 6], dtype=torch.int32)
    with (
        pytest.raises(UnsupportedError, match="has layers without it"),
        packed(backbone, Segments(starts, 6, starts, 6)),
    ):
        pytest.fail("packed")
    with pytest.raises(ConfigError, match="has layers that keep other states; write with TaskBank"):
        Decoder(TaskBank(backbone))


@pytest.mark.parametrize(
    ("name", "fields", "side"),
    [
        ("ConvBertModel", {**ENCODER, "embedding_size": 16}, "right"),
        (
            "RecurrentGemmaForCausalLM",
            {**_DECODER, "num_hidden_layers": 3, "lru_width": 32, "attention_window_size": 8, "head_dim": 8},
            "left",
        ),
    ],
)
def test_a_model_that_reads_padding_is_refused(name, fields, side):
    with pytest.raises(UnsupportedError) as error:
        Backbone.wrap(model_of(name, fields))
    assert f"reads the padding on the {side} of a row in spite of its mask" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_prompt_is_refused_where_generate_takes_no_vectors():
    backbone = Backbone.wrap(
        model_of("OpenAIGPTLMHeadModel", {"vocab_size": 97, "n_embd": 32, "n_layer": 2, "n_head": 4})
    )
    tasks = {name: Task.new(name, backbone, METHODS[name]) for name in ("adapter", "prompt")}
    bank, batch = TaskBank(backbone, list(tasks.values())), padded([[3, 4, 5]], left=True)
    assert len(bank.generate(batch, "adapter", PLAIN)[0]) == 4
    with pytest.raises(UnsupportedError, match="generate takes none for OpenAIGPTLMHeadModel") as error:
        bank.generate(batch, "prompt", PLAIN)
    assert "\n" not in str(error.value)


def test_a_decoder_without_a_start_token_is_told_what_to_set():
    model = model_of("T5ForConditionalGeneration", {**_T5, "pad_token_id": 0})
    backbone, batch = Backbone.wrap(model), padded([[3, 4, 5]], left=False)
    bank = TaskBank(backbone, [Task.new("t", backbone, LoRA(), Head(labels=("no", "yes")))])
    for ask in (lambda: bank(batch, tasks="t"), lambda: bank.generate(batch, [None], PLAIN)):
        with pytest.raises(BackboneError, match="has no decoder_start_token_id, nor a bos_token_id") as error:
            ask()
        assert "\n" not in str(error.value)
    model.config.decoder_start_token_id = 0
    assert bank(batch, tasks="t").shape == (1, 2)
    assert len(bank.generate(batch, [None], PLAIN)[0]) <= 4

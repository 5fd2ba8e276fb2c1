"""Mixtures of experts: adapters sit behind the whole block, the router's and the shared expert's parts and all."""

import math

import pytest
import torch
import transformers as tf

from intarsia.backbone import Backbone
from intarsia.bank import TaskBank
from intarsia.errors import UnsupportedError
from intarsia.heads import Head
from intarsia.methods import BottleneckAdapter, LoRA
from intarsia.methods.lora import TARGETS
from intarsia.sites import Role
from intarsia.task import Task
from methods.every import row, stir

_DECODER = {
    "vocab_size": 97,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_TWO = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_LOCAL = {"num_local_experts": 4, "num_experts_per_tok": 2}
_GROUPED = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}
_LATENT = {
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
}
_MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1}
_SPARSE = {"num_experts": 4, "num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1}
# The config's class, what is small in it, and each layer's block: what the layer adds to its residual stream.
EXPERTS = {
    "mixtral": ("MixtralConfig", _LOCAL, "mlp"),
    "phimoe": ("PhimoeConfig", _LOCAL, "mlp"),
    "gpt_oss": ("GptOssConfig", {**_LOCAL, "head_dim": 8}, "mlp"),
    "olmoe": ("OlmoeConfig", {"num_experts": 4, "num_experts_per_tok": 2}, "mlp"),
    "qwen2_moe": ("Qwen2MoeConfig", {**_TWO, "shared_expert_intermediate_size": 24, "mlp_only_layers": [0]}, "mlp"),
    "qwen3_moe": ("Qwen3MoeConfig", {**_TWO, "head_dim": 8}, "mlp"),
    "qwen3_next": (
        "Qwen3NextConfig",
        {
            **_TWO,
            "head_dim": 8,
            "shared_expert_intermediate_size": 24,
            "layer_types": ["linear_attention", "full_attention"],
            "linear_num_value_heads": 4,
            "linear_num_key_heads": 2,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
        },
        "mlp",
    ),
    "deepseek_v2": ("DeepseekV2Config", {**_GROUPED, **_LATENT}, "mlp"),
    "deepseek_v3": ("DeepseekV3Config", {**_GROUPED, **_LATENT}, "mlp"),
    "glm4_moe": ("Glm4MoeConfig", {**_GROUPED, "head_dim": 8}, "mlp"),
    "dots1": ("Dots1Config", _GROUPED, "mlp"),
    "ernie4_5_moe": (
        "Ernie4_5_MoeConfig",
        {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 16, "moe_num_shared_experts": 1},
        "mlp",
    ),
    "hunyuan": (
        "HunYuanMoEV1Config",
        {"num_experts": 4, "moe_topk": 2, "moe_intermediate_size": 16, "head_dim": 8},
        "mlp",
    ),
    "llama4": ("Llama4TextConfig", {**_LOCAL, "num_experts_per_tok": 1, "head_dim": 8}, "feed_forward"),
    "granitemoe": ("GraniteMoeConfig", _LOCAL, "block_sparse_moe"),
    "granitemoeshared": (
        "GraniteMoeSharedConfig",
        {**_LOCAL, "shared_intermediate_size": 24},
        ("block_sparse_moe", "shared_mlp"),
    ),
    "granitemoehybrid": (
        "GraniteMoeHybridConfig",
        {**_LOCAL, **_MAMBA, "shared_intermediate_size": 24, "layer_types": ["mamba", "attention"]},
        ("block_sparse_moe", "shared_mlp"),
    ),
    # A network beside the experts, norms on both and on their sum, and a block for each layer's own words behind them.
    "gemma4": (
        "Gemma4TextConfig",
        {
            "layer_types": ["sliding_attention", "full_attention"],
            "head_dim": 8,
            "sliding_window": 8,
            "vocab_size_per_layer_input": 97,
            "hidden_size_per_layer_input": 8,
            "enable_moe_block": True,
            "num_experts": 4,
            "top_k_experts": 2,
            "moe_intermediate_size": 16,
        },
        "post_feedforward_layernorm",
    ),
    "jetmoe": ("JetMoeConfig", {**_LOCAL, "kv_channels": 8}, "mlp"),
    "jamba": (
        "JambaConfig",
        {"num_experts": 4, "num_experts_per_tok": 2, "attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False},
        "feed_forward",
    ),
    "switch": (
        "SwitchTransformersConfig",
        {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 4, **_SPARSE},
        "mlp",
    ),
    "nllb-moe": (
        "NllbMoeConfig",
        {
            "d_model": 32,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 48,
            "decoder_ffn_dim": 48,
            "num_experts": 4,
            "encoder_sparse_step": 2,
            "decoder_sparse_step": 2,
        },
        "ffn",
    ),
}  # fmt: skip
SHARED = ("qwen2_moe", "qwen3_next", "deepseek_v3", "hunyuan", "llama4", "granitemoeshared", "gemma4")
experts = pytest.mark.parametrize("family", list(EXPERTS))
HEAD = Head(labels=("no", "yes"), dropout=0.0)


def backbone_of(family):
    name, fields, _ = EXPERTS[family]
    closed = family in ("switch", "nllb-moe")
    common = {k: v for k, v in _DECODER.items() if not closed or not k.startswith(("num_", "hidden", "inter"))}
    config = getattr(tf, name)(**{**common, **fields})
    if closed:
        config.decoder_start_token_id = 2
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = (tf.AutoModelForSeq2SeqLM if closed else tf.AutoModelForCausalLM).from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randn_like(parameter) * 0.2)
    model.set_experts_implementation("eager")  # the grouped product knows no float64
    return Backbone.wrap(model.eval().double())


def batch_of(rows=4, tokens=6):
    g = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 97, (rows, tokens), generator=g)
    mask = torch.ones_like(ids)
    mask[1, -2:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def adapter_by_hand(delta, y):
    """y + U gelu(D y + b) + c of one task, a token at a time."""
    out = torch.empty_like(y)
    for index in range(y.shape[0]):
        down = delta.down[0] @ y[index] + delta.down_bias[0]
        cubic = math.sqrt(2 / math.pi) * (down + 0.044715 * down**3)
        out[index] = y[index] + delta.up[0] @ (0.5 * down * (1 + torch.tanh(cubic))) + delta.up_bias[0]
    return out


def layers_of(backbone, block):
    """(stack, index, the modules whose outputs are the feed-forward's) of each layer."""
    for stack in backbone.family.stacks:
        for index, layer in enumerate(backbone.base.get_submodule(stack.layers)):
            if isinstance(block, tuple):
                yield stack.name, index, [layer.get_submodule(path) for path in block]
            else:
                inner = layer.layer[-1] if hasattr(layer, "layer") else layer
                yield stack.name, index, [inner.get_submodule(block)]


def hook_by_hand(modules, delta):
    """Adds the adapter's change to what the layer adds up; returns the handles."""
    *others, last = modules
    kept = []

    def keep(_module, _args, output):
        kept.append(output)

    def change(_module, _args, output):
        y = output[0] if isinstance(output, tuple) else output
        whole = y + kept.pop() if others else y
        new = y - whole + adapter_by_hand(delta, whole.reshape(-1, whole.shape[-1])).view(whole.shape)
        return (new, *output[1:]) if isinstance(output, tuple) else new

    return [*(other.register_forward_hook(keep) for other in others), last.register_forward_hook(change)]


@experts
@torch.no_grad()
def test_adapters_stand_behind_the_whole_block(family):
    backbone, batch = backbone_of(family), batch_of()
    method = BottleneckAdapter(width=3, after=(Role.FFN_OUT,), train_layer_norms=False)
    task = stir(Task.new("t", backbone, method).double(), 0.5)
    task.requires_grad_(False)
    plain = backbone.features(batch)
    handles = []
    for stack, index, modules in layers_of(backbone, EXPERTS[family][2]):
        handles += hook_by_hand(modules, task.delta(f"{stack}/{index}/ffn_out"))
    wanted = backbone.features(batch)
    for handle in handles:
        handle.remove()
    assert not torch.allclose(wanted, plain, atol=1e-3)
    bank = TaskBank(backbone, [task])
    exact = {"rtol": 1e-9, "atol": 1e-9}
    torch.testing.assert_close(bank(batch, tasks="t"), wanted, **exact)
    mixed = bank(batch, tasks=["t", None, "t", None])
    for index, one in enumerate(mixed):
        torch.testing.assert_close(one, (plain if index % 2 else wanted)[index], **exact)


@experts
def test_a_step_changes_the_task_and_nothing_else(family):
    backbone, batch = backbone_of(family), batch_of()
    state = {key: value.clone() for key, value in backbone.model.state_dict().items()}
    for method in (BottleneckAdapter(width=3), BottleneckAdapter(width=3, parallel=True)):
        task = Task.new("t", backbone, method, HEAD).double()
        with torch.no_grad():
            bank = TaskBank(backbone, [task])
            bare = Task.new("bare", backbone, method).double()
            bank.add(bare)
            assert torch.equal(bank(batch, tasks="bare"), backbone.features(batch)), "a new task is not the identity"
        before = {name: p.clone() for name, p in stir(task).named_parameters()}
        optimizer = torch.optim.SGD(task.parameters(), 0.1)
        bank.loss(batch, torch.tensor([0, 1, 1, 0]), "t").backward()
        optimizer.step()
        assert not [name for name, p in task.named_parameters() if torch.equal(p, before[name])]
        bank.detach()
    after = backbone.model.state_dict()
    assert all(torch.equal(after[key], value) for key, value in state.items())


@pytest.mark.parametrize("family", SHARED)
def test_lora_trains_the_shared_experts_projections(family):
    backbone, batch = backbone_of(family), batch_of()
    method = LoRA(rank=2, targets=(Role.O, Role.FFN_IN, Role.FFN_DOWN))
    tasks = [stir(Task.new(name, backbone, method).double(), seed=i) for i, name in enumerate("ab")]
    bank = TaskBank(backbone, tasks)
    for task in tasks:
        bank(batch, tasks=task.name).sum().backward()
        assert not [name for name, p in task.named_parameters() if not p.grad.any()]
    with torch.no_grad():
        mixed = bank(batch, tasks=["a", "b", None, "a"])
        for index, name in enumerate(["a", "b", None, "a"]):
            alone = bank(row(batch, index), tasks=[name])[0]
            # The router computes in fp32.
            torch.testing.assert_close(mixed[index], alone, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss", "olmoe"])
def test_lora_says_that_experts_weights_are_no_targets(family):
    with pytest.raises(UnsupportedError) as error:
        Task.new("t", backbone_of(family), LoRA(targets=TARGETS))
    text = str(error.value)
    assert "\n" not in text
    assert "LoRA.targets holds ffn_in, ffn_down, which this backbone does not have" in text
    assert "experts' weights are one tensor" in text
    assert text.endswith("its targets can be q, k, v, o.")

"""Whole forward passes against independent re-computations: weights merged, modules replaced, peft with the same tensors."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import tiny
from intarsia.backbone import Backbone
from intarsia.bank import TaskBank
from intarsia.methods import LoRA
from intarsia.sites import Role
from intarsia.task import Task
from methods.every import METHODS, new_task, stir, usable, wrap
from tiny import families

# RMSNorms of transformers take their statistics in fp32 even in a float64 model.
EXACT = {"rtol": 1e-9, "atol": 1e-9}
RMS = {"rtol": 1e-5, "atol": 1e-5}


def tolerance(backbone):
    return RMS if any(s.role is Role.NORM and s.parameter == "rms" for s in backbone.sites) else EXACT


def double(family):
    """A float64 backbone, and an untouched copy of its model to be changed by hand."""
    model = tiny.build(family).double()
    return Backbone.wrap(model), Backbone.wrap(copy.deepcopy(model))


def inputs(family):
    return {k: v.double() if v.is_floating_point() else v for k, v in tiny.inputs(family).items()}


def through_the_bank(backbone, task, batch):
    bank = TaskBank(backbone, [task])
    with torch.no_grad():
        return bank(batch, tasks=task.name)


class Added(nn.Module):
    """inner(z) + adapter(inner(z)), or + adapter(z): written without any of the library's operations."""

    def __init__(self, inner, delta, factor=1.0, parallel=False, activation=None):
        super().__init__()
        self.inner, self.delta, self.factor, self.parallel = inner, delta, factor, parallel
        self.activation = activation or (lambda z: F.gelu(z, approximate="tanh"))

    def adapter(self, z):
        d = self.delta
        return self.factor * (self.activation(z @ d.down[0].T + d.down_bias[0]) @ d.up[0].T + d.up_bias[0])

    def forward(self, *args, **kwargs):
        y = self.inner(*args, **kwargs)
        source = (args[0] if args else kwargs["hidden_states"]) if self.parallel else y
        if isinstance(y, tuple):
            return (y[0] + self.adapter(source), *y[1:])
        return y + self.adapter(source)

    def __getattr__(self, name):
        # T5's feed-forward and others look at attributes of the module that they call.
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)


@torch.no_grad()
def merge_norms_and_biases(base, task):
    """The very weights that the differences stand for."""
    for key, site in task.sites.items():
        module = base.get_submodule(site.module)
        if site.role is Role.NORM:
            module.weight += task.delta(key).gain[0]
        if site.role in (Role.NORM, Role.BIAS) and task.delta(key).bias is not None:
            module.bias += task.delta(key).bias[0]


@families
@pytest.mark.parametrize("method", ["layer-norm", "bitfit"])
def test_trained_norms_and_biases_equal_a_model_with_those_weights(family, method):
    backbone, other = double(family)
    if method not in usable(backbone):
        pytest.skip("this family has no biases")
    task = new_task(backbone, method, head=None).double()
    merge_norms_and_biases(other.base, task)
    batch = inputs(family)
    with torch.no_grad():
        expected = other.features(batch)
    torch.testing.assert_close(through_the_bank(backbone, task, batch), expected, **tolerance(backbone))


@families
@pytest.mark.parametrize("method", ["full", "top-layers"])
def test_replaced_weights_equal_a_model_with_those_weights(family, method):
    backbone, other = double(family)
    task = new_task(backbone, method, head=None).double()
    with torch.no_grad():
        for key, site in task.sites.items():
            other.parameter(site).copy_(task.delta(key).value[0])
        expected = other.features(inputs(family))
    assert torch.equal(through_the_bank(backbone, task, inputs(family)), expected)


@families
def test_lora_equals_a_model_whose_weights_hold_the_products(family):
    backbone, other = double(family)
    task = new_task(backbone, "lora", head=None).double()
    with torch.no_grad():
        for key, site in task.sites.items():
            delta = task.delta(key)
            product = delta.b[0] @ delta.a[0] * (16.0 / 2)
            module = other.base.get_submodule(site.module)
            weight = module.weight.T if type(module).__name__ == "Conv1D" else module.weight
            if site.part is not None:
                part = site.part
                rows = torch.arange(weight.shape[0]).view(part.groups, -1)[:, part.start : part.stop].flatten()
                weight[rows] += product
            else:
                weight += product
        expected = other.features(inputs(family))
    torch.testing.assert_close(through_the_bank(backbone, task, inputs(family)), expected, **tolerance(backbone))


@families
@pytest.mark.parametrize("method", ["serial", "pfeiffer"])
def test_serial_adapters_equal_a_model_with_modules_put_in(family, method):
    # With trained norms too ("serial"): where a norm is the sublayer's last module (Gemma 2), the adapter reads the trained norm.
    backbone, other = double(family)
    task = new_task(backbone, method, head=None).double()
    merge_norms_and_biases(other.base, task)
    for key, site in task.sites.items():
        if site.role in (Role.ATTN_OUT, Role.FFN_OUT):
            inner = other.base.get_submodule(site.module)
            activation = F.relu if method == "pfeiffer" else None
            other.base.set_submodule(site.module, Added(inner, task.delta(key), activation=activation))
    with torch.no_grad():
        expected = other.features(inputs(family))
    torch.testing.assert_close(through_the_bank(backbone, task, inputs(family)), expected, **tolerance(backbone))


def put_beside(family, layer, attention, feed_forward, cross):
    """The parallel adapters' textbook places, by hand: `Added` around each whole sublayer."""
    if family == "bert":
        output, feed = layer.attention.output, layer.output

        def after_attention(states, stream):
            return output.LayerNorm(output.dense(states) + attention.adapter(stream) + stream)

        def after_feed_forward(states, stream):
            return feed.LayerNorm(feed.dense(states) + feed_forward.adapter(stream) + stream)

        output.forward, feed.forward = after_attention, after_feed_forward
    elif family in ("llama", "qwen3"):
        attention.inner, feed_forward.inner = layer.self_attn, layer.mlp
        layer.self_attn, layer.mlp = attention, feed_forward
    else:
        attention.inner, feed_forward.inner = layer.layer[0].SelfAttention, layer.layer[-1].DenseReluDense
        layer.layer[0].SelfAttention, layer.layer[-1].DenseReluDense = attention, feed_forward
        if cross is not None:
            cross.inner = layer.layer[1].EncDecAttention
            layer.layer[1].EncDecAttention = cross


@pytest.mark.parametrize("family", ["bert", "llama", "qwen3", "t5", "mt5"])
@pytest.mark.parametrize("scale", [1.0, 4.0, "learned"])
def test_parallel_adapters_equal_a_model_with_modules_put_beside_its_sublayers(family, scale):
    backbone, other = double(family)
    method = replace(METHODS["parallel"], scale=scale, train_layer_norms=False)
    task = stir(Task.new("parallel", backbone, method)).double()

    def added(stack, layer, role, cross=False):
        name = f"{stack}/{layer}/{'cross_' if cross else ''}{role}"
        if name not in task.sites:
            return None
        delta = task.delta(name)
        return Added(nn.Identity(), delta, delta.scale[0] if scale == "learned" else scale, parallel=True)

    with torch.no_grad():
        for stack in backbone.family.stacks:
            for index, layer in enumerate(other.base.get_submodule(stack.layers)):
                attention, feed = (added(stack.name, index, role) for role in ("attn_out", "ffn_out"))
                put_beside(family, layer, attention, feed, added(stack.name, index, "attn_out", cross=True))
        expected = other.features(inputs(family))
    torch.testing.assert_close(through_the_bank(backbone, task, inputs(family)), expected, **tolerance(backbone))


PEFT = {
    "bert": {"query": Role.Q, "value": Role.V, "intermediate.dense": Role.FFN_IN},
    "gpt2": {"attn.c_proj": Role.O, "mlp.c_fc": Role.FFN_IN, "mlp.c_proj": Role.FFN_DOWN},
    "llama": {"q_proj": Role.Q, "k_proj": Role.K, "v_proj": Role.V, "o_proj": Role.O, "down_proj": Role.FFN_DOWN},
    "qwen3": {"q_proj": Role.Q, "v_proj": Role.V, "gate_proj": Role.FFN_IN, "up_proj": Role.FFN_IN},
    "t5": {"q": Role.Q, "v": Role.V, "wi": Role.FFN_IN, "wo": Role.FFN_DOWN},
    "bart": {"q_proj": Role.Q, "v_proj": Role.V, "fc2": Role.FFN_DOWN},
}


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # read by peft
@pytest.mark.parametrize("family", list(PEFT))
def test_lora_equals_peft_with_the_same_tensors(family):
    peft = pytest.importorskip("peft")
    backbone, other = double(family)
    targets = tuple(dict.fromkeys(PEFT[family].values()))
    task = Task.new("lora", backbone, LoRA(rank=4, alpha=6.0, targets=targets)).double()
    g = torch.Generator().manual_seed(0)
    config = peft.LoraConfig(
        r=4, lora_alpha=6.0, target_modules=list(PEFT[family]), lora_dropout=0.0, fan_in_fan_out=family == "gpt2"
    )
    wrapped = peft.get_peft_model(other.base, config)
    with torch.no_grad():
        for key, site in task.sites.items():
            delta, theirs = task.delta(key), wrapped.base_model.model.get_submodule(site.module)
            delta.b.copy_(torch.randn(delta.b.shape, generator=g) * 0.2)
            theirs.lora_A["default"].weight.copy_(delta.a[0])
            theirs.lora_B["default"].weight.copy_(delta.b[0])
        theirs = other.features(inputs(family))
    assert sum(p.numel() for n, p in wrapped.named_parameters() if "lora_" in n) == task.trained_parameters()
    ours = through_the_bank(backbone, task, inputs(family))
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("family", ["bert", "qwen3", "t5", "gpt_neox"])
@pytest.mark.parametrize("method", ["serial", "parallel", "learned", "lora", "layer-norm", "bitfit"])
def test_stacked_tasks_equal_each_task_alone(family, method):
    """The leading task axis: the tensors of the rows' tasks joined on axis 0 serve a batch."""
    backbone = wrap(family)
    if method not in usable(backbone):
        pytest.skip("this family has no biases")
    tasks = [stir(Task.new(f"t{i}", backbone, METHODS[method]).double(), seed=i) for i in range(4)]
    route = [3, 0, 0, 2, 1]
    g = torch.Generator().manual_seed(0)
    for key, site in tasks[0].sites.items():
        joined = copy.deepcopy(tasks[0].delta(key))
        for name, _ in list(joined.named_parameters()):
            setattr(joined, name, nn.Parameter(torch.cat([getattr(tasks[n].delta(key), name) for n in route])))
        # Norms of single heads (Qwen 3) have one more axis between the rows and the width.
        inner = (3, 2) if site.module.endswith("q_norm") else (3,)
        x = torch.randn(5, *inner, site.source_width or site.width, generator=g, dtype=torch.float64)
        y = torch.randn(5, *inner, site.width, generator=g, dtype=torch.float64)
        each = [tasks[n].delta(key)(x[i : i + 1], y[i : i + 1]) for i, n in enumerate(route)]
        torch.testing.assert_close(joined(x, y), torch.cat(each), rtol=1e-10, atol=1e-10)

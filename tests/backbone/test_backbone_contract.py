"""The contract of the family table, over a tiny random model of each of its 22 families."""

import re

import pytest
import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

import tiny
from intarsia.bank import TaskBank
from intarsia.sites import BY_MODULE, Role
from intarsia.task import Task
from methods.every import METHODS, new_task, usable, wrap

KEY_BIAS = re.compile(r"\b(key|k_proj|k_lin)\b.*bias|^deltas\.bias/.*(key|k_proj|k_lin)\.bias")
PROBE = "intarsia_probe"
CALLS: list[tuple[nn.Module, torch.Tensor, torch.Tensor, torch.Tensor]] = []
families = pytest.mark.parametrize("family", tiny.FAMILIES)


def probe(module, query, key, value, attention_mask, scaling=None, dropout=0.0, position_bias=None, **_):
    """Written-out attention that keeps what it was given. The mask, where there is one, is boolean."""
    CALLS.append((module, query, key, value))
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = query @ key.mT * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if position_bias is not None:
        scores = scores + position_bias
    if attention_mask is not None:
        scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
    return (scores.softmax(-1) @ value).transpose(1, 2).contiguous(), None


@pytest.fixture(scope="module", autouse=True)
def _registered():
    AttentionInterface.register(PROBE, probe)
    AttentionMaskInterface.register(PROBE, sdpa_mask)
    yield
    for registry in (AttentionInterface, AttentionMaskInterface):
        registry._global_mapping.pop(PROBE, None)


def probed(family):
    backbone = wrap(family)
    backbone.model.set_attn_implementation(PROBE)
    CALLS.clear()
    return backbone


@torch.no_grad()
def attention_calls(backbone, batch):
    CALLS.clear()
    backbone.features(batch)
    return [(module, (q.clone(), k.clone(), v.clone())) for module, q, k, v in CALLS]


@families
def test_every_site_is_there_and_is_called_with_the_widths_that_it_says(family):
    backbone = wrap(family)
    seen: dict[str, tuple[int, int]] = {}
    for site in backbone.sites:
        assert isinstance(backbone.base.get_submodule(site.module), nn.Module)
        if site.role in (Role.KV, Role.EMBED, Role.EMBED_OUT, Role.WEIGHT):
            continue

        def look(x, y, site=site):
            seen[site.key] = (x.shape[-1], y.shape[-1])
            return y

        backbone.hook(site, look)
    with torch.no_grad():
        backbone.features(tiny.inputs(family))
    unreached = ("pooler.", "lm_head")
    for site in backbone.sites:
        if site.role in (Role.KV, Role.EMBED, Role.EMBED_OUT, Role.WEIGHT) or site.module.startswith(unreached):
            continue
        assert site.key in seen, f"{site.key} was not called"
        assert seen[site.key][1] == site.width, site.key
        if site.role not in BY_MODULE or site.role is Role.NORM:
            assert seen[site.key][0] == site.source_width, site.key


@families
def test_sites_have_distinct_keys_and_every_layer_has_its_roles(family):
    backbone = wrap(family)
    assert len({site.key for site in backbone.sites}) == len(backbone.sites)
    roles = {Role.Q, Role.K, Role.V, Role.O, Role.ATTN_OUT, Role.FFN_IN, Role.FFN_DOWN, Role.FFN_OUT, Role.KV}
    stacks = {stack.name: stack for stack in backbone.family.stacks}
    assert set(stacks) == {"encoder": {"encoder"}, "decoder": {"decoder"}}.get(backbone.kind, {"encoder", "decoder"})
    for name, stack in stacks.items():
        for layer in range(len(backbone.base.get_submodule(stack.layers))):
            mine = [s for s in backbone.sites if (s.stack, s.layer) == (name, layer) and s.role not in BY_MODULE]
            assert {s.role for s in mine if not s.cross} == roles
            crossing = {s.role for s in mine if s.cross}
            assert crossing == ({Role.Q, Role.K, Role.V, Role.O, Role.ATTN_OUT, Role.KV} if stack.cross else set())


@families
def test_weight_sites_hold_every_parameter_once(family):
    backbone = wrap(family)
    held = [id(backbone.parameter(s)) for s in backbone.sites if s.role is Role.WEIGHT]
    assert len(set(held)) == len(held)
    assert set(held) == {id(p) for p in backbone.base.parameters()}


def norms_after_the_sums(family, stack):
    """Paths of a layer's norms that the residual stream itself passes through; none where norms come before a sublayer."""
    return {
        "bert": ("attention.output.LayerNorm", "output.LayerNorm"),
        "roberta": ("attention.output.LayerNorm", "output.LayerNorm"),
        "electra": ("attention.output.LayerNorm", "output.LayerNorm"),
        "distilbert": ("sa_layer_norm", "output_layer_norm"),
        "bart": ("self_attn_layer_norm", "final_layer_norm")
        if stack == "encoder"
        else ("self_attn_layer_norm", "encoder_attn_layer_norm", "final_layer_norm"),
    }.get(family, ())


@families
def test_zeroed_sublayers_leave_the_residual_stream(family):
    backbone = wrap(family)
    for site in backbone.sites:
        if site.role in (Role.ATTN_OUT, Role.FFN_OUT):
            backbone.hook(site, lambda _x, y: torch.zeros_like(y))
    checked = []

    def compare(layer, args, kwargs, output, stack=""):
        stream = args[0] if args else kwargs["hidden_states"]
        for path in norms_after_the_sums(family, stack):
            stream = layer.get_submodule(path)(stream)
        output = output if isinstance(output, torch.Tensor) else output[0]
        torch.testing.assert_close(output, stream, rtol=0, atol=0)
        checked.append(stack)

    for stack in backbone.family.stacks:
        for layer in backbone.base.get_submodule(stack.layers):
            layer.register_forward_hook(lambda *a, stack=stack.name: compare(*a, stack=stack), with_kwargs=True)
    with torch.no_grad():
        backbone.features(tiny.inputs(family))
    assert len(checked) == sum(len(backbone.base.get_submodule(s.layers)) for s in backbone.family.stacks)


@families
def test_attention_is_called_from_the_modules_of_the_table(family):
    backbone = probed(family)
    calls = attention_calls(backbone, tiny.inputs(family))
    named = {backbone.base.get_submodule(s.module) for s in backbone.sites if s.role is Role.KV}
    assert {module for module, _ in calls} == named
    assert len(calls) == len(named)


@families
def test_a_projections_site_moves_what_attention_gets_of_it_and_nothing_else(family):
    backbone = probed(family)
    batch = tiny.inputs(family)
    plain = attention_calls(backbone, batch)
    for stack in backbone.family.stacks:
        for cross in (False, True) if stack.cross else (False,):
            here = [s for s in backbone.sites if (s.stack, s.layer, s.cross) == (stack.name, 0, cross)]
            module = backbone.base.get_submodule(next(s.module for s in here if s.role is Role.KV))
            before = next(tensors for owner, tensors in plain if owner is module)
            for place, role in enumerate((Role.Q, Role.K, Role.V)):
                (site,) = (s for s in here if s.role is role)
                handles = backbone.hook(site, lambda _x, y: torch.zeros_like(y))
                after = next(tensors for owner, tensors in attention_calls(backbone, batch) if owner is module)
                handles.remove()
                for other in range(3):
                    if other == place:
                        # ModernBERT and others may turn or norm it on the way: zero stays zero.
                        assert not after[other].any(), (site.key, "is not zero")
                    else:
                        assert torch.equal(after[other], before[other]), (site.key, "moved its neighbour")


@families
def test_a_value_site_of_zero_silences_attention(family):
    backbone = wrap(family)
    for site in backbone.sites:
        if site.role is Role.V:
            backbone.hook(site, lambda _x, y: torch.zeros_like(y))
        elif site.role is Role.O:
            backbone.hook(
                site, lambda x, y: (x.abs().max().item() == 0 or pytest.fail("attention is not silent")) and y
            )
    with torch.no_grad():
        backbone.features(tiny.inputs(family))


@families
def test_norm_sites_know_what_their_norm_computes(family):
    from intarsia import ops

    backbone = wrap(family)
    sites = [s for s in backbone.sites if s.role is Role.NORM and not s.module.startswith("pooler.")]
    assert sites
    checked = set()
    for site in sites:

        def check(x, y, site=site):
            module = backbone.base.get_submodule(site.module)
            normal = ops.normalise(x, site.eps, centre=site.parameter == "layer")
            bias = module.bias if site.bias else 0.0
            gain = 1 + module.weight if family.startswith("gemma") else module.weight
            torch.testing.assert_close(normal * gain + bias, y, rtol=1e-5, atol=1e-5)
            checked.add(site.key)
            return y

        backbone.hook(site, check)
    with torch.no_grad():
        backbone.features(tiny.inputs(family))
    assert len(checked) == len(sites)


@families
def test_every_method_trains_saves_loads_and_leaves_no_trace(family, tmp_path):
    backbone = wrap(family)
    batch = tiny.inputs(family)
    state = {key: value.clone() for key, value in backbone.model.state_dict().items()}
    with torch.no_grad():
        before = backbone.features(batch)
    labels = torch.tensor([0, 1, 2])
    for method in usable(backbone):
        task = new_task(backbone, method)
        bank = TaskBank(backbone, [task])
        loss = task.loss(bank(batch, tasks=method), labels)
        loss.backward()
        assert not [name for name, p in task.named_parameters() if p.grad is None], method
        silent = [name for name, p in task.named_parameters() if not p.grad.any()]
        # A key's bias adds the same to all of a query's scores: its gradient is zero but for rounding.
        assert not [name for name in silent if not KEY_BIAS.search(name)], method
        with torch.no_grad():
            scores = bank(batch, tasks=method)
        task.save(tmp_path / method)
        bank.evict(method)
        loaded = Task.load(tmp_path / method, backbone)
        for name, tensor in task.tensors().items():
            assert torch.equal(tensor, loaded.tensors()[name]), (method, name)
        bank.add(loaded)
        with torch.no_grad():
            assert torch.equal(bank(batch, tasks=method), scores), method
        bank.detach()
        with torch.no_grad():
            assert torch.equal(backbone.features(batch), before), method
    after = backbone.model.state_dict()
    assert list(after) == list(state)
    assert all(torch.equal(after[key], state[key]) for key in state)
    assert not any(p.requires_grad for p in backbone.model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in backbone.model.modules())


@families
def test_a_new_task_is_the_identity(family):
    backbone = wrap(family)
    batch = tiny.inputs(family)
    with torch.no_grad():
        before = backbone.features(batch)
        for method in usable(backbone):
            task = new_task(backbone, method, head=None, awake=0.0)
            bank = TaskBank(backbone, [task])
            assert torch.equal(bank(batch, tasks=method), before), method
            bank.detach()


@families
def test_trained_sets_are_what_their_names_say(family):
    backbone = wrap(family)
    pooler = sum(p.numel() for n, p in backbone.base.named_parameters() if n.startswith(("pooler", "lm_head")))
    count = {m: new_task(backbone, m).trained_parameters() for m in usable(backbone)}
    assert count["head"] == 3 * backbone.hidden + 3
    assert count["full"] == backbone.parameter_count() - pooler + count["head"]
    assert count["head"] < count["layer-norm"] < count["top-layers"] < count["full"]
    norms = [m for m in backbone.base.modules() if type(m).__name__.endswith(("LayerNorm", "RMSNorm"))]
    assert count["layer-norm"] - count["head"] == sum(p.numel() for m in norms for p in m.parameters(recurse=False))
    if "bitfit" in count:
        # The biases of projections and norms; ViT's patches are a convolution, below the transformer's layers.
        other = ("pooler", "embeddings.patch_embeddings")
        biases = [p for n, p in backbone.base.named_parameters() if n.endswith("bias") and not n.startswith(other)]
        assert count["bitfit"] - count["head"] == sum(p.numel() for p in biases)


@families
def test_tensors_without_weight_decay_are_the_biases_and_gains(family):
    backbone = wrap(family)
    for method in usable(backbone):
        task = new_task(backbone, method)
        shapes = {name: p.dim() for name, p in task.named_parameters()}
        free = task.decay_free()
        assert free <= shapes.keys(), method
        assert free == {name for name, axes in shapes.items() if axes <= 2}, method


@pytest.mark.parametrize("family", ["bert", "llama", "gpt2", "gemma2", "t5"])
def test_adapters_as_in_the_paper_start_near_the_identity_but_not_on_it(family):
    from dataclasses import replace

    backbone = wrap(family)
    batch = tiny.inputs(family)
    with torch.no_grad():
        before = backbone.features(batch)
        moved = {}
        for std in (1e-3, 0.1):
            task = Task.new("paper", backbone, replace(METHODS["serial"], init_up="normal", init_std=std))
            bank = TaskBank(backbone, [task])
            moved[std] = (bank(batch, tasks="paper") - before).abs().max().item()
            bank.detach()
    assert 0 < moved[1e-3] < 1e-2 < moved[0.1]

"""The contract of the family table, over a tiny random model of each of its 22 families."""

import re

import pytest
import torch
from torch import nn

import tiny
from intarsia.bank import TaskBank
from intarsia.sites import BY_MODULE, Role
from intarsia.task import Task
from methods.every import METHODS, new_task, usable, wrap
from tiny import families

KEY_BIAS = re.compile(r"\b(key|k_proj|k_lin)\b.*bias|^deltas\.bias/.*(key|k_proj|k_lin)\.bias")


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

"""What attention is called with, seen by an attention of our own, over a tiny random model of each family."""

import pytest
import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

import tiny
from intarsia.sites import Role
from methods.every import wrap
from tiny import families

PROBE = "intarsia_probe"


CALLS: list[tuple[nn.Module, torch.Tensor, torch.Tensor, torch.Tensor]] = []


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
    backbone, loudest = wrap(family), {}

    def listen(site, x, y):
        loudest[site.key] = x.abs().max().item()
        return y

    for site in backbone.sites:
        if site.role is Role.V:
            backbone.hook(site, lambda _x, y: torch.zeros_like(y))
        elif site.role is Role.O:
            backbone.hook(site, lambda x, y, site=site: listen(site, x, y))
    with torch.no_grad():
        backbone.features(tiny.inputs(family))
    attentions = [site for site in backbone.sites if site.role is Role.KV]
    assert list(loudest.values()) == [0.0] * len(attentions), loudest

"""Prefix tuning and P-tuning v2 against the papers' formulas, written out again."""

import copy
import json

import pytest
import torch

from intarsia.errors import ConfigError, UnsupportedError
from intarsia.methods import PrefixTuning, PTuningV2, method_from_dict, method_to_dict
from methods.fakes import BLOCK, DECODER, ENCODER, SEQ2SEQ, WORDS, FakePretrained, built

FORMS = {
    "flat": PrefixTuning(length=3, mid=None),
    "gated": PrefixTuning(length=3, mid=None, gating=True),
    "mlp": PrefixTuning(length=3, mid=7, embedding=5),
    "gated mlp": PrefixTuning(length=3, mid=7, gating=True, dropout=0.5),
    "ptuning-v2": PTuningV2(length=4),
}
forms = pytest.mark.parametrize("form", FORMS)


def stirred(deltas):
    g = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in deltas.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=g).to(parameter.dtype) * 0.3)
    return deltas


def outputs(deltas):
    return {key: tuple(part.detach() for part in delta()) for key, delta in deltas.items()}


def same(left, right, tolerance=0.0):
    for key in left:
        for one, other in zip(left[key], right[key], strict=True):
            torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


@forms
def test_every_attention_gets_keys_and_values_of_its_own_shape(form):
    method = FORMS[form]
    deltas = built(method, SEQ2SEQ)
    assert set(deltas) == {site.key for site in SEQ2SEQ if site.role == "kv"}
    for key, delta in deltas.items():
        heads, key_width, value_width = (2, 4, 4) if "/0/" in key else (1, 5, 3)
        keys, values = delta()
        assert keys.shape == (1, heads, method.length, key_width), key
        assert values.shape == (1, heads, method.length, value_width), key
        assert delta.length == method.length
        assert all(parameter.shape[0] == 1 for parameter in delta.parameters())


def test_the_reparameterised_prefix_is_the_authors_joint_mlp():
    # Their control_trans: one Sequential(Linear, Tanh, Linear) whose output holds the keys and values of all layers.
    deltas = stirred(built(PrefixTuning(length=3, mid=7, embedding=5), ENCODER, pretrained=FakePretrained((2, 4, 4))))
    deltas = deltas.double()
    first, second = deltas["encoder/0/kv"], deltas["encoder/1/kv"]
    mlp = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Tanh(), torch.nn.Linear(7, 2 * 2 * 8)).double()
    with torch.no_grad():
        mlp[0].weight.copy_(first.source.weight[0])
        mlp[0].bias.copy_(first.source.bias[0])
        mlp[2].weight.copy_(torch.cat([first.weight[0], second.weight[0]]))
        mlp[2].bias.copy_(torch.cat([first.bias[0], second.bias[0]]))
    past = mlp(first.source.prompt).view(1, 3, 4, 2, 4).permute(2, 0, 3, 1, 4).split(2)
    for delta, present in zip((first, second), past, strict=True):
        keys, values = delta()
        torch.testing.assert_close(keys, present[0], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(values, present[1], rtol=1e-12, atol=1e-12)


def test_gates_are_sigmoids_one_for_the_keys_and_one_for_the_values():
    deltas = stirred(built(FORMS["gated"], DECODER)).double()
    for delta in deltas.values():
        keys, values = delta()
        gate = 1 / (1 + torch.exp(-delta.gate[0]))
        torch.testing.assert_close(keys, delta.key * gate[0], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(values, delta.value * gate[1], rtol=1e-12, atol=1e-12)


@forms
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
def test_folding_keeps_the_prefix(form, dtype, tolerance):
    deltas = stirred(built(FORMS[form], SEQ2SEQ)).to(dtype).eval()
    before = outputs(deltas)
    folded = {key: delta.fold() for key, delta in deltas.items()}
    for delta in folded.values():
        assert set(dict(delta.named_parameters())) == {"key", "value"}
        assert delta.key.dtype == dtype
    same(outputs(folded), before, tolerance)


@forms
def test_the_folded_method_builds_the_folded_shapes(form):
    method = FORMS[form]
    folded = {key: delta.fold().state_dict() for key, delta in built(method, SEQ2SEQ).items()}
    fresh = {key: delta.state_dict() for key, delta in built(method.folded(), SEQ2SEQ).items()}
    assert {k: {n: t.shape for n, t in v.items()} for k, v in folded.items()} == {
        k: {n: t.shape for n, t in v.items()} for k, v in fresh.items()
    }


def test_folding_keeps_the_recipe_of_a_flat_prefix():
    delta = built(PrefixTuning(mid=4, dropout=0.25, position_offset=True), DECODER)["decoder/0/kv"].fold()
    assert (delta.dropout, delta.offset, delta.length) == (0.25, True, 10)


def test_the_shared_layer_is_stored_counted_and_trained_once_for_each_sort_of_attention():
    deltas = built(PrefixTuning(length=3, mid=7, embedding=5), SEQ2SEQ)
    sources = [name for name in deltas.state_dict() if "source" in name]
    parts = ("source.prompt", "source.weight", "source.bias")
    owners = ("encoder/0/kv", "decoder/0/kv", "decoder/0/cross_kv")
    assert sorted(sources) == sorted(f"{owner}.{part}" for owner in owners for part in parts)
    assert sum(p.numel() for p in deltas.parameters()) == 3 * (3 * 5 + 7 * 5 + 7) + 3 * (16 + 8) * (7 + 1)


def test_the_shared_layer_stays_shared_through_casts_and_copies():
    deltas = built(PrefixTuning(length=3, mid=7), ENCODER)
    before = outputs(deltas.double())
    assert all(part.dtype == torch.float64 for pair in before.values() for part in pair)
    twin = copy.deepcopy(deltas)
    with torch.no_grad():
        twin["encoder/0/kv"].source.prompt.add_(1.0)
    same(outputs(deltas), before)
    for key, pair in outputs(twin).items():
        assert not torch.equal(pair[0], before[key][0]), key
    restored = built(PrefixTuning(length=3, mid=7), ENCODER, seed=5).double()
    restored.load_state_dict(deltas.state_dict())
    same(outputs(restored), before)


@forms
def test_gradients_reach_every_tensor(form):
    deltas = stirred(built(FORMS[form], SEQ2SEQ))
    sum(part.square().sum() for delta in deltas.values() for part in delta()).backward()
    for name, parameter in deltas.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_dropout_acts_on_the_prefix_in_training_only():
    delta = built(PrefixTuning(length=50, mid=None, dropout=0.5), DECODER)["decoder/0/kv"]
    keys = delta.train()()[0]
    kept = keys != 0
    assert 0.3 < kept.float().mean() < 0.7
    torch.testing.assert_close(keys[kept], 2 * delta.key[kept])
    assert torch.equal(delta.eval()()[0], delta.key)


@pytest.mark.parametrize("mid", [None, 7])
def test_zero_values_start_at_zero_and_their_keys_do_not(mid):
    for delta in built(PrefixTuning(init="zero", mid=mid), SEQ2SEQ).values():
        keys, values = delta()
        assert torch.equal(values, torch.zeros_like(values))
        assert (keys != 0).all()


@pytest.mark.parametrize("mid", [None, 64])
@pytest.mark.parametrize(("text", "length"), [("summarise the table", 3), ("one two", 5), ("one two three four", 2)])
def test_real_words_give_their_activations_repeated_or_cut(mid, text, length):
    pretrained = FakePretrained()
    deltas = built(PrefixTuning(init="text", init_text=text, length=length, mid=mid), SEQ2SEQ, pretrained=pretrained)
    words = pretrained.activations(text)
    turns = [index % len(text.split()) for index in range(length)]
    for key, delta in deltas.items():
        for part, real in zip(delta(), words[key], strict=True):
            torch.testing.assert_close(part[0], real[:, turns], rtol=0, atol=1e-4 if mid else 0)


def test_a_narrow_mlp_is_fitted_to_real_words_by_least_squares():
    # Eight words through two hidden units cannot be met; the residual must then be orthogonal to what the layer can do.
    text = "a bb ccc dddd eeeee ffffff ggggggg hhhhhhhh"
    pretrained = FakePretrained()
    method = PrefixTuning(init="text", init_text=text, length=8, mid=2)
    deltas = built(method, DECODER, pretrained=pretrained).double()
    hidden = deltas["decoder/0/kv"].source()[0].detach()
    features = torch.cat([hidden, torch.ones(8, 1)], dim=1)
    for key, delta in deltas.items():
        for part, real in zip(delta(), pretrained.activations(text)[key], strict=True):
            residual = (real - part[0]).detach().transpose(0, 1).flatten(1)
            assert residual.abs().max() > 0.1
            torch.testing.assert_close(
                features.mT @ residual, torch.zeros(3, residual.shape[1]).double(), atol=1e-3, rtol=0
            )


def test_random_values_have_the_scale_that_is_asked_for():
    delta = built(PrefixTuning(length=400, mid=None, init_std=0.3), DECODER)["decoder/0/kv"]
    for part in (delta.key, delta.value):
        assert abs(part.std().item() - 0.3) < 0.02
        assert abs(part.mean().item()) < 0.02


@forms
def test_the_same_seed_gives_the_same_prefix_and_another_seed_another(form):
    one, again, other = (outputs(built(FORMS[form], DECODER, seed=seed).eval()) for seed in (3, 3, 4))
    same(one, again)
    assert not torch.equal(one["decoder/0/kv"][0], other["decoder/0/kv"][0])


@forms
def test_only_the_mlps_weights_decay(form):
    deltas = built(FORMS[form], SEQ2SEQ)
    free = {f"{key}.{name}" for key, delta in deltas.items() for name in delta.decay_free()}
    assert {name for name, _ in deltas.named_parameters()} - free == {
        name for name, _ in deltas.named_parameters() if name.endswith("weight")
    }


@pytest.mark.parametrize(
    ("off", "left"),
    [
        ({"encoder": False}, {"decoder/0/kv", "decoder/1/kv", "decoder/0/cross_kv", "decoder/1/cross_kv"}),
        ({"decoder": False, "cross": False}, {"encoder/0/kv", "encoder/1/kv"}),
        ({"encoder": False, "decoder": False}, {"decoder/0/cross_kv", "decoder/1/cross_kv"}),
        ({"leave_out": (1,)}, {"encoder/0/kv", "decoder/0/kv", "decoder/0/cross_kv"}),
    ],
)
def test_each_sort_of_attention_and_each_layer_can_be_left_out(off, left):
    method = PrefixTuning(mid=4, **off)
    deltas = built(method, SEQ2SEQ)
    assert set(deltas) == left
    # Whatever layer comes first owns what is shared.
    assert sum("source.prompt" in name for name in deltas.state_dict()) == len(
        {k.split("/")[0] + k[-8:] for k in left if "/0/" in k}
    )


@pytest.mark.parametrize(
    ("method", "available", "says"),
    [
        (PrefixTuning(decoder=False), DECODER, "which has decoder; switch that on"),
        (
            PTuningV2(encoder=False),
            ENCODER,
            "PTuningV2 finds none of its attentions on this backbone, which has encoder",
        ),
        (PrefixTuning(leave_out=(0, 1)), ENCODER, "every layer is left out"),
        (PrefixTuning(), [WORDS, BLOCK], "no attention on this backbone that takes a prefix; prompt, ptuning"),
    ],
)
def test_a_backbone_without_a_place_is_named(method, available, says):
    with pytest.raises(UnsupportedError) as error:
        method.sites(available)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"length": 0}, "length must be at least 1, got 0"),
        ({"mid": 0}, "mid must be at least 1, got 0"),
        ({"embedding": -1}, "embedding must be at least 1, got -1"),
        ({"mid": None, "embedding": 8}, "embedding is 8, but a flat prefix has none"),
        ({"encoder": False, "decoder": False, "cross": False}, "leave at least one on"),
        ({"dropout": 1.0}, "dropout must be in [0, 1), got 1.0"),
        ({"init_std": float("nan")}, "init_std must be 0 or more, got nan"),
        ({"init": "ones"}, "init must be 'random', 'zero', 'text'; got 'ones'"),
        ({"init": "text"}, "init_text must hold words; got None"),
        ({"init": "text", "init_text": " "}, "init_text must hold words; got ' '"),
        ({"init_text": "hello"}, "init_text is given, but init is 'random'"),
    ],
)
@pytest.mark.parametrize("method", [PrefixTuning, PTuningV2])
def test_a_bad_setting_is_named_at_birth(method, settings, says):
    with pytest.raises(ConfigError) as error:
        method(**settings)
    assert says in str(error.value)
    assert str(error.value).startswith(method.__name__)
    assert "\n" not in str(error.value)


def test_left_out_layers_must_exist():
    with pytest.raises(ConfigError, match=r"leave_out holds 2, but the backbone's layers are 0 to 1"):
        PrefixTuning(leave_out=(2,)).sites(DECODER)


@forms
def test_a_prefix_comes_back_from_json_as_it_was(form):
    method = FORMS[form]
    assert method_from_dict(json.loads(json.dumps(method_to_dict(method)))) == method


def test_flat_prefixes_train_with_larger_steps_than_reparameterised_ones():
    assert PrefixTuning(mid=None).default_lr > PrefixTuning().default_lr
    assert PTuningV2().default_lr > PTuningV2(mid=512).default_lr

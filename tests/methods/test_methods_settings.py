"""Methods as settings: validated at birth, written to and read from plain json, one clear line when something is wrong."""

import json
import math

import pytest
import torch

from intarsia.errors import ConfigError, UnsupportedError
from intarsia.methods import METHODS as BY_NAME
from intarsia.methods import BottleneckAdapter, LoRA, TopLayers, method_from_dict, method_to_dict
from intarsia.sites import Role
from intarsia.task import Task
from methods.every import METHODS, wrap

NAN, INF = float("nan"), float("inf")

BAD = {
    "width 0": (lambda: BottleneckAdapter(width=0), "width must be at least 1, got 0"),
    "negative width": (lambda: BottleneckAdapter(width=-4), "got -4"),
    "reduction 0": (lambda: BottleneckAdapter(reduction_factor=0), "reduction_factor must be above 0"),
    "reduction nan": (lambda: BottleneckAdapter(reduction_factor=NAN), "got nan"),
    "no place": (lambda: BottleneckAdapter(after=()), "attn_out, ffn_out or both"),
    "wrong place": (lambda: BottleneckAdapter(after=(Role.Q,)), "got ['q']"),
    "non-linearity": (lambda: BottleneckAdapter(non_linearity="rellu"), "did you mean 'relu'?"),
    "init_std < 0": (lambda: BottleneckAdapter(init_std=-1.0), "init_std"),
    "init_std nan": (lambda: BottleneckAdapter(init_std=NAN), "init_std"),
    "init_std inf": (lambda: BottleneckAdapter(init_std=INF), "init_std"),
    "init_up misspelt": (lambda: BottleneckAdapter(init_up="zeros"), "init_up"),
    "scale nan": (lambda: BottleneckAdapter(scale=NAN), "scale"),
    "scale inf": (lambda: BottleneckAdapter(scale=INF), "scale"),
    "scale misspelt": (lambda: BottleneckAdapter(scale="learnt"), "scale"),
    "dropout 1": (lambda: BottleneckAdapter(dropout=1.0), "dropout must be in [0, 1)"),
    "rank 0": (lambda: LoRA(rank=0), "rank must be at least 1"),
    "alpha nan": (lambda: LoRA(alpha=NAN), "alpha"),
    "alpha 0": (lambda: LoRA(alpha=0), "alpha"),
    "no targets": (lambda: LoRA(targets=()), "q, k, v, o, ffn_in, ffn_down"),
    "wrong target": (lambda: LoRA(targets=("query",)), "got ['query']"),
    "LoRA dropout": (lambda: LoRA(dropout=-0.1), "dropout"),
    "k 0": (lambda: TopLayers(k=0), "k must be at least 1"),
    "unknown method": (lambda: method_from_dict({"name": "adaptor"}), "did you mean 'adapter'?"),
    "no name": (lambda: method_from_dict({"width": 3}), "unknown method None"),
    "unknown field": (lambda: method_from_dict({"name": "adapter", "widht": 3}), "did you mean 'width'?"),
    "wrong type": (lambda: method_from_dict({"name": "adapter", "width": "many"}), "width"),
    "half a width": (lambda: method_from_dict({"name": "adapter", "width": 4.5}), "width"),
    "a bad value from a file": (lambda: method_from_dict({"name": "lora", "rank": -1}), "rank must be at least 1"),
    "a rank beyond counting": (
        lambda: method_from_dict({"name": "lora", "rank": 10**30}),
        "rank: must be below 2147483648",
    ),
    "a role from a file": (lambda: method_from_dict({"name": "lora", "targets": ["w"]}), "targets"),
}


def one_line(error: pytest.ExceptionInfo, fragment: str) -> None:
    text = str(error.value)
    assert "\n" not in text
    assert fragment in text


@pytest.mark.parametrize(("make", "fragment"), BAD.values(), ids=BAD)
def test_a_bad_setting_is_refused_at_birth_in_one_line(make, fragment):
    with pytest.raises(ConfigError) as error:
        make()
    one_line(error, fragment)


DEEP = {
    "width and reduction disagree": (BottleneckAdapter(width=7, reduction_factor=4), "width 32 / 4 is 8"),
    "layer that is not there": (BottleneckAdapter(leave_out=(2,)), "layers are 0 to 1"),
    "negative layer": (BottleneckAdapter(leave_out=(-1,)), "leave_out holds -1"),
    "LoRA layer that is not there": (LoRA(leave_out=(0, 9)), "leave_out holds 9"),
    "too many top layers": (TopLayers(k=3), "give at most 2"),
}


@pytest.mark.parametrize("family", ["bert", "llama", "t5"])
@pytest.mark.parametrize(("method", "fragment"), DEEP.values(), ids=DEEP)
def test_a_setting_that_does_not_fit_the_backbone_is_refused_in_one_line(family, method, fragment):
    with pytest.raises(ConfigError) as error:
        Task.new("bad", wrap(family), method)
    one_line(error, fragment)


@pytest.mark.parametrize(
    "method", [BottleneckAdapter(leave_out=(0, 1)), LoRA(leave_out=(0, 1))], ids=["adapter", "lora"]
)
def test_leaving_out_every_layer_is_refused(method):
    with pytest.raises(UnsupportedError) as error:
        Task.new("nothing", wrap("bert"), method)
    one_line(error, "every layer is left out")


@pytest.mark.parametrize("family", ["modernbert", "llama", "t5"])
def test_bitfit_without_biases_names_the_methods_that_work(family):
    with pytest.raises(UnsupportedError) as error:
        Task.new("bitfit", wrap(family), METHODS["bitfit"])
    one_line(error, "adapter, lora, layer-norm, top-layers, full, head")


@pytest.mark.parametrize("name", list(METHODS))
def test_a_method_comes_back_from_json_as_it_was(name):
    method = METHODS[name]
    written = json.loads(json.dumps(method_to_dict(method)))
    assert method_from_dict(written) == method
    assert type(method_from_dict(written)) is BY_NAME[written["name"]]


def test_missing_fields_of_a_file_take_their_defaults():
    for name, cls in BY_NAME.items():
        assert method_from_dict({"name": name}) == cls()
        assert cls.name == name
        assert cls().default_lr > 0


@pytest.mark.parametrize(
    ("method", "width"),
    [
        (BottleneckAdapter(), 2),  # 32 / 16
        (BottleneckAdapter(reduction_factor=4), 8),
        (BottleneckAdapter(reduction_factor=1000), 1),
        (BottleneckAdapter(reduction_factor=0.5), 64),
        (BottleneckAdapter(reduction_factor=3), 10),
        (BottleneckAdapter(width=8, reduction_factor=4), 8),
        (BottleneckAdapter(width=5), 5),
    ],
)
def test_the_bottleneck_width_is_given_or_follows_from_the_reduction(method, width):
    task = Task.new("task", wrap("bert"), method)
    assert task.delta("encoder/0/ffn_out").down.shape == (1, width, 32)


def test_initial_values_follow_the_paper():
    backbone = wrap("bert", hidden_size=256, num_attention_heads=4)
    delta = Task.new("t", backbone, BottleneckAdapter(width=64, init_up="normal")).delta("encoder/0/attn_out")
    for weight in (delta.down, delta.up):
        # A normal of 1e-2 cut at two standard deviations has a standard deviation of 0.88e-2.
        assert weight.abs().max() <= 2e-2
        assert weight.std().item() == pytest.approx(0.88e-2, rel=0.03)
        assert abs(weight.mean().item()) < 3e-4
    assert not delta.down_bias.any()
    assert not delta.up_bias.any()
    zero = Task.new("t", backbone, BottleneckAdapter(width=64)).delta("encoder/0/attn_out")
    assert torch.equal(zero.down, delta.down)
    assert not zero.up.any()
    lora = Task.new("t", backbone, LoRA(rank=8)).delta("encoder/0/q")
    assert 0.99 / math.sqrt(256) < lora.a.abs().max() <= 1 / math.sqrt(256)
    assert not lora.b.any()


def test_the_same_seed_gives_the_same_values_and_leaves_the_callers_numbers_alone():
    backbone = wrap("bert")
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    first, second, third = (Task.new("t", backbone, METHODS["serial"], seed=s).tensors() for s in (1, 1, 2))
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(first[k], second[k]) for k in first)
    assert not all(torch.equal(first[k], third[k]) for k in first)


@pytest.mark.parametrize("family", ["t5", "gemma2"])
def test_left_out_layers_hold_nothing(family):
    task = Task.new("t", wrap(family), BottleneckAdapter(leave_out=(0,)))
    assert {s.layer for s in task.sites.values()} == {1, 2}  # 2: the norm after the layers
    assert {s.layer for s in task.sites.values() if s.role is not Role.NORM} == {1}
    assert {s.layer for s in Task.new("t", wrap(family), LoRA(leave_out=(1,))).sites.values()} == {0}


def test_left_out_layers_of_bert_leave_the_bottom_untouched():
    task = Task.new("t", wrap("bert"), BottleneckAdapter(leave_out=(0,)))
    assert {s.layer for s in task.sites.values()} == {1}


def test_cross_attention_has_adapters_unless_told_otherwise():
    keys = {cross: Task.new("t", wrap("t5"), BottleneckAdapter(cross=cross)).sites for cross in (True, False)}
    assert {s.layer for s in keys[True].values() if s.cross} == {0, 1}
    assert not any(s.cross for s in keys[False].values())
    only = Task.new("t", wrap("t5"), BottleneckAdapter(after=(Role.FFN_OUT,)))
    assert not any(s.cross for s in only.sites.values())


@pytest.mark.parametrize("name", ["serial", "lora"])
def test_dropout_works_in_training_only(name):
    from dataclasses import replace

    from methods.every import stir

    task = stir(Task.new("t", wrap("bert"), replace(METHODS[name], dropout=0.5)))
    delta = task.delta("encoder/0/attn_out" if name == "serial" else "encoder/0/q")
    x = y = torch.randn(2, 3, 32)
    task.eval()
    assert torch.equal(delta(x, y), delta(x, y))
    task.train()
    assert not torch.equal(delta(x, y), delta(x, y))

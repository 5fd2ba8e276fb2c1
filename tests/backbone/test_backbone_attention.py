"""In bf16 on a CPU attention is written out as products; it is transformers' own attention in every family."""

import pytest
import torch
import transformers as tf

import tiny
from intarsia.backbone import Backbone, attention
from intarsia.backbone.packed import Segments, packed
from intarsia.bank import TaskBank
from intarsia.errors import UnsupportedError
from intarsia.methods import LoRA, PrefixTuning
from intarsia.ops.native import attention as native
from intarsia.task import Task
from seams.byhand import EXACT, Exact, alone, padded, task64, wrap64

FAMILIES = [family for family in tiny.FAMILIES if family != "gemma2"]  # its soft cap exists in eager attention only
NAMES = ["prefix", None, "lora", "prefix"]


def results_and_gradients(family, side):
    """Of rows with and without a prefix in one float64 batch, each at its own tokens."""
    backbone = wrap64(family, "sdpa")
    methods = {"prefix": PrefixTuning(length=3, mid=None), "lora": LoRA(rank=2)}
    tasks = {name: task64(name, backbone, method) for name, method in methods.items()}
    bank, batch = TaskBank(backbone, list(tasks.values())), padded(family, len(NAMES), side)
    found = [out[alone(family, batch, i)[1]] for i, out in enumerate(bank(batch, tasks=NAMES))]
    sum(out.square().sum() for out in found).backward()
    return found, [p.grad for task in tasks.values() for p in task.parameters() if p.grad is not None]


@pytest.mark.parametrize("side", ["none", "left", "right"])
@pytest.mark.parametrize("family", FAMILIES)
def test_products_equal_sdpa_in_every_family_with_padding_and_prefixes(family, side, monkeypatch):
    if family == "vit" and side != "none":
        pytest.skip("images have no padding")
    calls = []
    with Exact():
        wanted = results_and_gradients(family, side)
        real = attention.products
        monkeypatch.setattr(attention, "products", lambda *args, **more: calls.append(1) or real(*args, **more))
        monkeypatch.setattr(attention, "wants_products", lambda dtype, device: True)
        found = results_and_gradients(family, side)
    assert calls
    assert found[1]
    for own, other in zip(found, wanted, strict=True):
        for one, same in zip(own, other, strict=True):
            torch.testing.assert_close(one, same, **EXACT)


@pytest.mark.parametrize("family", ["bert", "llama", "t5"])
def test_a_bf16_backbone_on_a_cpu_takes_them_with_and_without_prefixes(family, tmp_path, monkeypatch):
    tiny.build(family).save_pretrained(tmp_path)
    calls = []
    real = attention.products
    monkeypatch.setattr(attention, "products", lambda *args, **more: calls.append(1) or real(*args, **more))
    low, exact = (Backbone.load(str(tmp_path), dtype=dtype, device="cpu") for dtype in ("bfloat16", "float32"))
    batch = tiny.inputs(family)
    close = {"rtol": 0.1, "atol": 0.1}
    with torch.no_grad():
        torch.testing.assert_close(low.features(batch).float(), exact.features(batch), **close)
        assert calls
        calls.clear()
        bank = TaskBank(low, [task64("prefix", low, PrefixTuning(length=3, mid=None)).float()])
        bank(batch, tasks="prefix")
        assert calls
        bank.detach()
        calls.clear()
        low.features(batch)
    assert calls, "also after the last prefix has gone"


def wide(family):
    """With heads as wide as the kernel wants them; Llama's share their keys."""
    common = {
        "vocab_size": 97,
        "hidden_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
    }
    torch.manual_seed(0)
    if family == "bert":
        return tf.BertModel(tf.BertConfig(**common))
    return tf.LlamaForCausalLM(tf.LlamaConfig(**common, num_key_value_heads=2))


@pytest.mark.skipif(not native.LIBRARY.there(), reason="needs a C compiler and torch with GNU OpenMP")
@pytest.mark.parametrize("family", ["bert", "llama"])
def test_the_kernel_puts_prefixes_before_the_keys_of_their_rows(family, monkeypatch):
    """In a mixed batch: prefixes of two lengths, one of them for two rows, and a row without."""
    backbone = Backbone.wrap(wide(family).bfloat16())
    methods = {"long": PrefixTuning(length=7, mid=8), "flat": PrefixTuning(length=2, mid=None, init_std=0.5)}
    tasks = [Task.new(name, backbone, method, seed=0) for name, method in methods.items()]
    bank, batch, found, calls = TaskBank(backbone, tasks), padded(family, 4, "left"), [], []
    real = native.attention
    monkeypatch.setattr(native, "attention", lambda *given: calls.append(given[5] is not None) or real(*given))
    for there in (True, False):
        monkeypatch.setattr(native.LIBRARY, "_trusted", there)
        out = bank(batch, tasks=["long", "long", None, "flat"])
        learnt = [p for task in tasks for p in task.parameters()]
        ways = torch.randn(len(out), *out[0].shape, generator=torch.Generator().manual_seed(1))
        loss = sum(
            (x.float() * way * m[:, None]).sum() for x, way, m in zip(out, ways, batch["attention_mask"], strict=True)
        )
        found.append([*out, *torch.autograd.grad(loss, learnt)])
    assert calls.count(True) == 2 * 2  # two layers, two tasks
    assert calls.count(False) == 1  # a row without any has no gradients in the first layer
    for one, other in zip(*found, strict=True):
        one, other = one.detach().float(), other.detach().float()
        assert float((one - other).norm()) < 0.03 * float(other.norm())


def doge():
    """It calls attention with its mask by name, and makes that mask of the states."""
    config = tf.DogeConfig(
        vocab_size=97, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48
    )
    torch.manual_seed(0)
    return Backbone.wrap(tf.DogeForCausalLM(config))


def test_a_model_that_gives_its_mask_by_name_takes_prefixes():
    backbone = doge()
    bank, batch = (
        TaskBank(backbone, [Task.new("t", backbone, PrefixTuning(length=3, mid=None, init_std=0.5))]),
        tiny.inputs("llama"),
    )
    with torch.no_grad():
        together = bank(batch, tasks=["t", None, "t"])
        torch.testing.assert_close(together[0], bank({k: x[:1] for k, x in batch.items()}, tasks="t")[0])
        torch.testing.assert_close(together[1], backbone.features(batch)[1])


def test_packed_rows_refuse_a_mask_that_attention_makes_itself():
    backbone, ids = doge(), torch.arange(3, 9)[None]
    segments = Segments(torch.tensor([0, 6], dtype=torch.int32), 6, torch.tensor([0, 6], dtype=torch.int32), 6)
    with (
        torch.no_grad(),
        pytest.raises(UnsupportedError, match="do not know attention_mask"),
        packed(backbone, segments),
    ):
        backbone.base(input_ids=ids, use_cache=False)

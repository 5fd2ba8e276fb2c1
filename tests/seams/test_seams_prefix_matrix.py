"""Prefixes against attention written out by hand, in float64: family x {eager, sdpa} x padding, forward and backward."""

import pytest
import torch

import tiny
from intarsia.bank import TaskBank
from intarsia.heads import Decoding
from intarsia.methods.prefix import PrefixTuning
from seams.byhand import EXACT, Exact, alone, by_hand, padded, task64, wrap64, written
from tiny import families

# gemma2's soft cap exists in eager attention only.
CELLS = [(f, i) for f in tiny.FAMILIES for i in ("eager", "sdpa") if (f, i) != ("gemma2", "sdpa")]
SORTS = {
    "encoder": {"decoder": False, "cross": False},
    "decoder": {"encoder": False, "cross": False},
    "cross": {"encoder": False, "decoder": False},
}


def tasks_for(backbone):
    """Prefixes of unequal length; of an encoder-decoder also each sort of attention by itself."""
    methods = {"three": PrefixTuning(length=3, mid=None), "five": PrefixTuning(length=5, mid=None)}
    if backbone.kind == "encoder-decoder":
        methods |= {n: PrefixTuning(length=2 + i, mid=None, **off) for i, (n, off) in enumerate(SORTS.items())}
    else:
        methods["first layer"] = PrefixTuning(length=2, mid=None, leave_out=(1,))
    return {name: task64(name, backbone, method) for name, method in methods.items()}


def weighed(states):
    """A scalar that sees every number of the states, each with its own weight."""
    g = torch.Generator().manual_seed(states.shape[0])
    return (states * torch.randn(states.shape, generator=g, dtype=states.dtype)).sum()


def gradients(tasks):
    found = {(t.name, n): p.grad for t in tasks.values() for n, p in t.named_parameters() if p.grad is not None}
    for task in tasks.values():
        task.zero_grad()
    return found


def expected(backbone, family, batch, tasks, names):
    """Each row by itself, by hand: states at its own tokens, and all tasks' gradients."""
    states, total = [], torch.zeros((), dtype=torch.float64)
    for i, name in enumerate(names):
        one, _ = alone(family, batch, i)
        with by_hand(backbone, tasks.get(name)):
            states.append(backbone.features(one)[0])
        total = total + weighed(states[-1])
    total.backward()
    return [s.detach() for s in states], gradients(tasks)


def check(family, batch, results, tasks, want, grads):
    total = torch.zeros((), dtype=torch.float64)
    for i, (result, reference) in enumerate(zip(results, want, strict=True)):
        own = result[alone(family, batch, i)[1]]
        torch.testing.assert_close(own, reference, **EXACT, msg=lambda m, i=i: f"row {i}: {m}")
        total = total + weighed(own)
    total.backward()
    found = gradients(tasks)
    assert found.keys() == grads.keys()
    for key, grad in grads.items():
        torch.testing.assert_close(found[key], grad, **EXACT, msg=lambda m, key=key: f"{key}: {m}")


@pytest.mark.parametrize(("family", "implementation"), CELLS)
def test_a_prefix_equals_attention_written_out_by_hand(family, implementation):
    with Exact():
        backbone = wrap64(family, implementation)
        tasks = tasks_for(backbone)
        names = ["five", None, *[n for n in tasks if n != "five"], "five"]
        for side in ("none",) if family == "vit" else ("none", "left", "right"):
            batch = padded(family, len(names), side)
            want, grads = expected(backbone, family, batch, tasks, names)
            assert all(grad.abs().max() > 1e-4 for grad in grads.values()), "the prefixes matter"
            bank = TaskBank(backbone, list(tasks.values()))
            check(family, batch, bank(batch, tasks=names), tasks, want, grads)
            bank.detach()


@families
def test_a_whole_batch_of_one_task_equals_attention_written_out_by_hand(family):
    with Exact():
        backbone = wrap64(family)
        tasks = {"five": task64("five", backbone, PrefixTuning(length=5, mid=None))}
        for side in ("none",) if family == "vit" else ("none", "left", "right", "no mask"):
            batch = padded(family, 4, side.replace("no mask", "none"))
            want, grads = expected(backbone, family, batch, tasks, ["five"] * 4)
            bank = TaskBank(backbone, list(tasks.values()))
            given = {k: v for k, v in batch.items() if (side, k) != ("no mask", "attention_mask")}
            check(family, batch, bank(given, tasks="five"), tasks, want, grads)
            bank.detach()


TEXT = "w21 w5 w60"


def with_text(batch, index):
    """The row without padding, after the text's tokens."""
    own = batch["input_ids"][index][batch["attention_mask"][index].bool()]
    return {"input_ids": torch.cat([torch.tensor([21, 5, 60]), own])[None]}


@pytest.mark.parametrize("mid", [None, 16], ids=["flat", "reparameterised"])
@pytest.mark.parametrize("family", tiny.DECODERS)
def test_a_prefix_made_of_words_that_counts_as_tokens_equals_those_words(family, mid):
    """Keys and values of real words at their own positions are what attention would find there. In the sliding windows: a
    prefix never leaves them."""
    with Exact(), torch.no_grad():
        backbone = wrap64(family)
        method = PrefixTuning(length=3, mid=mid, init="text", init_text=TEXT, position_offset=True)
        task = task64("text", backbone, method, std=0.0)
        exactly = EXACT if mid is None else {"rtol": 0, "atol": 1e-5}  # it was fitted in fp32
        bank = TaskBank(backbone, [task, task64("other", backbone, PrefixTuning(length=5, mid=None))])
        for side in ("none", "left", "right"):
            batch = padded(family, 4, side, tokens=5)
            want = [backbone.features(with_text(batch, i))[0, 3:] for i in range(4)]
            whole = bank(batch, tasks="text")
            mixed = bank(batch, tasks=["text", "other", "text", None])
            for i in range(4):
                columns = alone(family, batch, i)[1]
                torch.testing.assert_close(whole[i][columns], want[i], **exactly)
                if i in (0, 2):
                    torch.testing.assert_close(mixed[i][columns], want[i], **exactly)
        batch = {k: v for k, v in padded(family, 4, "left", tokens=4).items() if k in ("input_ids", "attention_mask")}
        want = [written(backbone, with_text(batch, i), None, 2) for i in range(4)]
        got = bank.generate(batch, ["text", "other", "text", None], Decoding(max_new_tokens=2))
        assert [got[i].tolist() for i in (0, 2)] == [want[i] for i in (0, 2)]
        assert [new.tolist() for new in bank.generate(batch, "text", Decoding(max_new_tokens=2))] == want

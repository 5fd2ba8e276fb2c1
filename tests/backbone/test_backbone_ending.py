"""Behind the last attention only the tokens that are read go on: nothing else may change by it."""

import warnings

import pytest
import torch
import transformers as tf

import tiny
from intarsia.backbone import Backbone
from intarsia.backbone.ending import at_places
from intarsia.backbone.reuse import ReusedTrunk, layers_of
from intarsia.bank import TaskBank
from intarsia.heads import Head, place
from intarsia.task import Task
from methods.every import METHODS, PROMPTED, row, stir, usable, wrap

ENDED = ("bert", "roberta", "electra")
CLOSE = {"rtol": 1e-10, "atol": 1e-12}


def exact(family, **changes):
    return Backbone.wrap(tiny.build(family, **changes).double())


def padded(family, side, rows=6, tokens=9):
    batch = tiny.inputs(family, rows=rows, tokens=tokens)
    for index in range(rows):
        cut = index % 4
        where = slice(0, cut) if side == "left" else slice(tokens - cut, tokens)
        batch["input_ids"][index, where] = tiny.config(family).pad_token_id or 0
        batch["attention_mask"][index, where] = 0
    return batch


def made(backbone, method, head, name=""):
    task = Task.new(name or method, backbone, {**METHODS, **PROMPTED}[method], head)
    return stir(task).to(backbone.dtype).eval()


def widths(backbone):
    """How many tokens a row go through the last feed-forward block, call by call."""
    seen = []
    module = layers_of(backbone)[-1].get_submodule(backbone.family.stacks[0].feed_forward.down)
    module.register_forward_hook(lambda _module, args, _y: seen.append(args[0].shape[1]))
    return seen


@pytest.mark.parametrize("family", [f for f in tiny.FAMILIES if f not in ("vit", *tiny.SEQ2SEQ)])
def test_the_states_at_places_are_those_of_the_whole_pass(family):
    backbone, batch = exact(family), tiny.inputs(family, rows=4, tokens=9)
    assert (backbone.ending is not None) == (family in ENDED)
    table = backbone.base.get_input_embeddings().weight.requires_grad_()
    places = torch.tensor([[0, 3], [8, 8], [2, 1], [0, 0]])
    want = at_places(backbone.features(batch), places)
    found = backbone.states_at(batch, places)
    torch.testing.assert_close(found, want, **CLOSE)
    weight = torch.randn(want.shape, generator=torch.Generator().manual_seed(1), dtype=want.dtype)
    theirs, ours = (torch.autograd.grad((x * weight).sum(), table)[0] for x in (want, found))
    torch.testing.assert_close(ours, theirs, **CLOSE)
    assert theirs.abs().max() > 1e-3


@pytest.mark.parametrize("family", ENDED)
def test_only_they_go_through_the_last_feed_forward_block(family):
    backbone, batch = exact(family), tiny.inputs(family, rows=4, tokens=9)
    seen = widths(backbone)
    backbone.states_at(batch, torch.zeros(4, 2, dtype=torch.long))
    assert backbone.features(batch).shape[1] == 9  # and the next call is as any other
    assert seen == [2, 9]


@pytest.mark.parametrize("pooling", ["cls", "last", "pooler"])
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("family", ENDED)
def test_scores_and_gradients_of_every_method_are_the_same(family, side, pooling):
    if pooling == "pooler" and family == "electra":
        pytest.skip("ELECTRA has no pooler")
    batch, head = padded(family, side), Head(labels=("a", "b", "c"), pooling=pooling, dropout=0.0)
    found = []
    for ended in (True, False):
        backbone = exact(family)
        if not ended:
            backbone.__dict__["ending"] = None  # before any hook of the bank has it
        tasks = {name: made(backbone, name, head) for name in (*usable(backbone), *PROMPTED)}
        bank, seen = TaskBank(backbone, list(tasks.values())), widths(backbone)
        for name, task in tasks.items():
            scores = bank(batch, tasks=name)
            each = [p for p in task.parameters() if p.requires_grad]
            gradients = torch.autograd.grad(scores.square().sum(), each, allow_unused=True)
            found.append((name, scores.detach(), gradients))
        assert (set(seen) == {1}) == ended
    half = len(found) // 2
    for (name, scores, gradients), (_, plain, others) in zip(found[:half], found[half:], strict=True):
        torch.testing.assert_close(scores, plain, **CLOSE, msg=name)
        for own, other in zip(gradients, others, strict=True):
            assert (own is None) == (other is None), name
            if own is not None:
                torch.testing.assert_close(own, other, **CLOSE, msg=name)


@pytest.mark.parametrize("by_address", [False, True])
@pytest.mark.parametrize("side", ["right", "left"])
def test_rows_of_heads_that_read_elsewhere_mix(side, by_address):
    backbone, batch = wrap("bert"), padded("bert", side)
    heads = [Head(labels=("a", "b"), pooling=pooling) for pooling in ("cls", "last", "pooler", "cls")]
    methods = ("serial", "lora", "prefix", "prompt")
    tasks = [made(backbone, method, head) for method, head in zip(methods, heads, strict=True)]
    bank, seen = TaskBank(backbone, [task.requires_grad_(False) for task in tasks]), widths(backbone)
    names = ["serial", "prompt", "lora", "prefix", "prompt", "serial"]
    bank._stacked = bank._addressed = by_address  # what the device decides
    with torch.no_grad():
        mixed = bank(batch, tasks=names)
        assert set(seen) == {1}
        bank.backbone.__dict__["ending"] = None
        alone = [bank(row(batch, index), tasks=[name])[0] for index, name in enumerate(names)]
    torch.testing.assert_close(mixed, alone, rtol=0, atol=1e-5)


def test_heads_that_read_all_tokens_get_all():
    backbone, batch = wrap("bert"), padded("bert", "right")
    one, many = (Head(labels=("a", "b"), pooling=pooling) for pooling in ("cls", "mean"))
    tags = Head(kind="token-classification", labels=("a", "b"), pooling="cls")
    tasks = [made(backbone, "serial", head, name) for name, head in (("one", one), ("many", many), ("tags", tags))]
    bank, seen = TaskBank(backbone, tasks), widths(backbone)
    for names in ("one", "many", "tags", ["one"] * 6, ["one", "many"] * 3, ["one"] * 5 + [None]):
        bank(batch, tasks=names)
    assert seen == [1, 9, 9, 1, 9, 9]


def test_stored_states_may_stand_in_for_the_last_layer_too():
    backbone, batch = exact("bert"), padded("bert", "right")
    trunk = ReusedTrunk(backbone, below=2, limit=2**20)
    places = place(batch["attention_mask"], "last")[:, None]
    with torch.no_grad():
        want = backbone.states_at(batch, places)
        torch.testing.assert_close(backbone.states_at(trunk.with_states(batch), places), want, **CLOSE)


def test_with_gradient_checkpointing_the_layer_runs_whole():
    backbone = wrap("bert")
    with warnings.catch_warnings():  # transformers 5.20 renames it
        warnings.filterwarnings("ignore", message=".*gradient_checkpointing_enable.*", category=FutureWarning)
        backbone.model.gradient_checkpointing_enable({"use_reentrant": False})
    backbone.model.train()
    task = made(backbone, "serial", Head(labels=("a", "b"), pooling="cls"))
    bank, seen = TaskBank(backbone, [task]), widths(backbone)
    bank(padded("bert", "right"), tasks="serial").sum().backward()
    assert set(seen) == {9}
    assert any(p.grad is not None for p in task.parameters())


def test_xlm_roberta_is_robertas_kin():
    fields = {**tiny.CONFIGS["roberta"][1], "bos_token_id": 0, "eos_token_id": 2}
    torch.manual_seed(0)
    xlm = Backbone.wrap(tf.XLMRobertaModel(tf.XLMRobertaConfig(**fields)).double())
    assert xlm.sites == exact("roberta").sites
    batch, seen = tiny.inputs("roberta", rows=4, tokens=9), widths(xlm)
    places = torch.tensor([[0], [8], [2], [1]])
    torch.testing.assert_close(xlm.states_at(batch, places), at_places(xlm.features(batch), places), **CLOSE)
    assert seen == [1, 9]

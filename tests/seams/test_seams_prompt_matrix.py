"""Prompts made of real tokens' embeddings against those very tokens in the input, in float64, at every place of a prompt."""

import pytest
import torch
import transformers as tf

import tiny
from intarsia.backbone import Backbone
from intarsia.bank import TaskBank
from intarsia.errors import UnsupportedError
from intarsia.heads import Head
from intarsia.methods.prefix import PrefixTuning
from intarsia.methods.prompt import PromptTuning
from intarsia.methods.ptuning_v2 import PTuningV2
from intarsia.task import Task
from seams.byhand import EXACT, Exact, alone, padded, task64, tokens_with_prompt, words, wrap64

READERS = tuple(f for f in tiny.FAMILIES if f != "vit")
PROMPT = (21, 5, 60)
PLACES = ("start", "after-first", "end", "template")
_SMALL = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "pad_token_id": 0}
UNROUTED = {
    "bloom": tf.BloomConfig(**_SMALL),
    "falcon": tf.FalconConfig(**_SMALL, alibi=False, new_decoder_architecture=False),
    "gpt_neo": tf.GPTNeoConfig(
        vocab_size=97, hidden_size=32, num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]], window_size=8,
        max_position_embeddings=64,
    ),
    "gptj": tf.GPTJConfig(vocab_size=97, n_embd=32, n_layer=2, n_head=4, rotary_dim=4, n_positions=64),
    "mpt": tf.MptConfig(vocab_size=97, d_model=32, n_layers=2, n_heads=4, max_seq_len=64),
    "deberta-v2": tf.DebertaV2Config(
        **_SMALL, intermediate_size=48, relative_attention=True, position_buckets=8, pos_att_type=["p2c", "c2p"],
        max_position_embeddings=64, max_relative_positions=64, norm_rel_ebd="layer_norm", share_att_key=True,
    ),
    "mpnet": tf.MPNetConfig(**{**_SMALL, "pad_token_id": 1}, intermediate_size=48, max_position_embeddings=64),
    "xlnet": tf.XLNetConfig(vocab_size=97, d_model=32, n_layer=2, n_head=4, d_inner=48),
}  # fmt: skip


def unrouted(name):
    """A tiny float64 backbone of a family whose attention does not go through transformers' interface."""
    torch.manual_seed(0)
    model = tf.AutoModel.from_config(UNROUTED[name]).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return Backbone.wrap(model.double(), tokenizer=words(model.config))


def of_tokens(backbone, place, count=3):
    """A prompt of the first of PROMPT's tokens."""
    method = PromptTuning(length=count, init="text", init_text=" ".join(f"w{i}" for i in PROMPT[:count]), place=place)
    return task64(f"{place} {count}", backbone, method, std=0.0)


def with_slots(batch, rows):
    """Slots of a template in some real columns of these rows."""
    ids = batch["input_ids"].clone()
    for i in rows:
        real = batch["attention_mask"][i].nonzero()[:, 0]
        ids[i, real[torch.tensor([1, 3, 2])]] = torch.tensor([-1, -2, -3])
    return {**batch, "input_ids": ids}


def expected(backbone, family, batch, index, place, count):
    """States of the row's own tokens when the prompt's tokens stand among them, without padding."""
    one, columns = alone(family, batch, index)
    decoder = "decoder_input_ids" in one
    ids, where = tokens_with_prompt(one["input_ids"][0].tolist(), PROMPT[:count], place)
    if "attention_mask" in one:  # BART with padding on the left: positions are those of the columns
        first = int(one["attention_mask"][0].argmax())
        shift = {"start": first, "after-first": first + 1, "end": one["input_ids"].shape[1], "template": 0}[place]
        own = one["input_ids"][0].tolist()
        ids = ids if place == "template" else [*own[:shift], *PROMPT[:count], *own[shift:]]
        one["attention_mask"] = torch.cat(
            [one["attention_mask"], torch.ones(1, len(ids) - len(own), dtype=torch.long)], 1
        )
    if not decoder and place == "end" and backbone.kind == "decoder":
        where[-1] = len(ids) - 1  # a last token is read after the prompt that follows it
    states = backbone.features({**one, "input_ids": torch.tensor([ids])})[0]
    return columns, states if decoder else states[where]


def compare(backbone, family, side, tasks):
    """Rows of all tasks mixed, and with padding also each task's rows together."""
    batch = padded(family, len(tasks) + 1, side)
    order = [*tasks, "plain"]
    names = [None if n == "plain" else n for n in order]
    bank = TaskBank(backbone, list(tasks.values()))
    slots = [i for i, n in enumerate(order) if n.startswith("template")]
    given = with_slots(batch, slots)
    mixed = bank(given, tasks=names)
    for i, name in enumerate(names):
        place, count = ("start", 0) if name is None else (name.rpartition(" ")[0], tasks[name].prompt.length)
        columns, want = expected(backbone, family, given, i, place, count)
        torch.testing.assert_close(mixed[i][columns], want, **EXACT, msg=lambda m, i=i: f"{order[i]}: {m}")
    for name, task in tasks.items() if side != "none" else ():
        place = name.rpartition(" ")[0]
        given = with_slots(batch, range(len(order)) if place == "template" else ())
        whole = bank(given, tasks=name)
        for i in range(len(order)):
            columns, want = expected(backbone, family, given, i, place, task.prompt.length)
            torch.testing.assert_close(whole[i][columns], want, **EXACT, msg=lambda m, n=name: f"{n}: {m}")
    bank.detach()


def all_places(backbone):
    tasks = [of_tokens(backbone, place) for place in PLACES] + [of_tokens(backbone, "start", 1)]
    return {task.name: task for task in tasks}


@pytest.mark.parametrize("family", READERS)
def test_a_prompt_of_real_embeddings_equals_those_tokens(family):
    with Exact(), torch.no_grad():
        backbone = wrap64(family)
        tasks = all_places(backbone)
        for side in ("none", "left", "right"):
            compare(backbone, family, side, tasks)


@pytest.mark.parametrize("family", [f for f in UNROUTED if f != "xlnet"])
def test_a_prompt_on_an_inspected_family_equals_those_tokens(family):
    with Exact(), torch.no_grad():
        backbone = unrouted(family)
        tasks = all_places(backbone)
        for side in ("none", "left", "right"):
            compare(backbone, "bert", side, tasks)  # the layout of its batches


def test_where_inspection_is_not_sure_one_line_says_so():
    with pytest.raises(UnsupportedError, match="'xlnet' is not in the family table and inspecting it was not sure"):
        unrouted("xlnet")


@pytest.mark.parametrize("method", [PrefixTuning(length=2), PTuningV2(length=2)], ids=lambda m: m.name)
@pytest.mark.parametrize("family", [f for f in UNROUTED if f != "xlnet"])
def test_a_prefix_where_attention_takes_none_names_the_methods_that_work(family, method):
    backbone = unrouted(family)
    before = backbone.model.config._attn_implementation
    with pytest.raises(
        UnsupportedError, match=r"attention interface.*Methods that work on it: .*lora.*prompt"
    ) as error:
        Task.new("t", backbone, method)
    assert "\n" not in str(error.value)
    assert backbone.model.config._attn_implementation == before
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in backbone.model.modules())


def test_token_types_of_a_prompt_are_the_first_sort():
    with Exact(), torch.no_grad():
        backbone = wrap64("bert")
        batch = padded("bert", 1, "none", tokens=6)
        types = torch.tensor([[0, 0, 0, 1, 1, 1]])
        bank = TaskBank(backbone, [of_tokens(backbone, place) for place in ("start", "end")])
        for place, own in (("start", slice(3, 9)), ("end", slice(0, 6))):
            ids, _ = tokens_with_prompt(batch["input_ids"][0].tolist(), PROMPT, place)
            longer = torch.zeros(1, 9, dtype=torch.long)
            longer[:, own] = types
            want = backbone.base(input_ids=torch.tensor([ids]), token_type_ids=longer).last_hidden_state[:, own]
            got = bank({**batch, "token_type_ids": types}, tasks=f"{place} 3")
            torch.testing.assert_close(got, want, **EXACT)


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "electra", "vit"])
def test_a_prompt_at_the_embedding_output_is_joined_there(family):
    """Behind positions and norm: tokens are embedded as without it."""
    with Exact(), torch.no_grad():
        backbone = wrap64(family)
        places = ("start", "after-first", "end")
        tasks = {
            p: task64(p, backbone, PromptTuning(length=2 + i, place=p, insert_at="embedding_output"))
            for i, p in enumerate(places)
        }
        for side in ("none",) if family == "vit" else ("none", "left", "right"):
            batch = padded(family, 4, side, tokens=6)
            names = [*places, None]
            bank = TaskBank(backbone, list(tasks.values()))
            mixed, whole = bank(batch, tasks=names), {p: bank(batch, tasks=p) for p in places}
            bank.detach()
            for i, name in enumerate(names):
                one, columns = alone(family, batch, i)
                for p in places:
                    want = _joined_by_hand(backbone, one, tasks[p], len(columns))
                    torch.testing.assert_close(whole[p][i][columns], want, **EXACT)
                    if p == name:
                        torch.testing.assert_close(mixed[i][columns], want, **EXACT)
            torch.testing.assert_close(mixed[3][columns], backbone.features(one)[0], **EXACT)


def _joined_by_hand(backbone, one, task, tokens):
    at = {"start": 0, "after-first": 1, "end": tokens}[task.prompt.place]
    length = task.prompt.length

    def join(_module, _args, states):
        return torch.cat([states[:, :at], task.prompt(), states[:, at:]], dim=1)

    handle = backbone.base.embeddings.register_forward_hook(join)
    states = backbone.features(one)[0]
    handle.remove()
    assert len(states) == tokens + length
    return torch.cat([states[:at], states[at + length :]])


POOLINGS = {
    "bert": ("cls", "mean", "last", "pooler"),
    "distilbert": ("cls", "mean"),
    "llama": ("mean", "last"),
    "t5": ("mean", "last"),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("family", POOLINGS)
def test_heads_read_real_tokens_and_no_virtual_one(family, place):
    """peft reads virtual token 0 where [CLS] should be. A decoder's last token is read after the prompt that follows it."""
    with Exact(), torch.no_grad():
        backbone = wrap64(family)
        method = PromptTuning(length=3, init="text", init_text="w21 w5 w60", place=place)
        for pooling in POOLINGS[family]:
            head = Head(labels=("no", "yes"), dropout=0.0, pooling=pooling)
            task = Task.new("t", backbone, method, head).eval().double()
            bank = TaskBank(backbone, [task])
            batch = padded(family, 4, "right")
            given = with_slots(batch, range(4)) if place == "template" else batch
            got = bank(given, tasks="t")
            bank.detach()
            for i in range(4):
                states = expected(backbone, family, given, i, place, 3)[1]
                read = {"mean": states.mean(0), "last": states[-1]}.get(pooling, states[0])
                if pooling == "pooler":
                    read = backbone.base.pooler(states[None])[0]
                want = task.head_module.weight[0] @ read + task.head_module.bias[0]
                torch.testing.assert_close(got[i], want, **EXACT, msg=lambda m, p=pooling: f"{p}: {m}")


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("family", ["t5", "bart"])
def test_a_decoder_that_reads_the_text_again_reads_it_without_the_prompt(family, place):
    """Classification with an encoder-decoder: the prompt is the encoder's; the decoder sees padding in a template's slots."""
    with Exact(), torch.no_grad():
        backbone = wrap64(family)
        task = of_tokens(backbone, place)
        batch = padded(family, 4, "right")
        del batch["decoder_input_ids"]
        given = with_slots(batch, range(4)) if place == "template" else batch
        got = TaskBank(backbone, [task])(given, tasks=task.name)
        task_free = wrap64(family)
        for i in range(4):
            own = given["input_ids"][i][given["attention_mask"][i].bool()]
            ids, _ = tokens_with_prompt(own.tolist(), PROMPT, place)
            start = torch.tensor([task_free.config.decoder_start_token_id])
            shifted = torch.cat([start, own[:-1].masked_fill(own[:-1] < 0, task_free.config.pad_token_id)])[None]
            want = task_free.features({"input_ids": torch.tensor([ids]), "decoder_input_ids": shifted})[0]
            torch.testing.assert_close(got[i][: len(own)], want, **EXACT)

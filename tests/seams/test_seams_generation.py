"""Decoding with a cache against whole forward passes without one: every family, prefixes and prompts, padding, beams, sampling."""

import pytest
import torch

import tiny
from intarsia.bank import TaskBank
from intarsia.errors import ConfigError
from intarsia.heads import Decoding, Head
from intarsia.methods import BottleneckAdapter, LoRA
from intarsia.methods.prefix import PrefixTuning
from intarsia.methods.prompt import PromptTuning
from intarsia.task import Task
from seams.byhand import EXACT, Exact, alone, padded, scores_of, task64, tokens_with_prompt, wrap64, written

WRITERS = tiny.DECODERS + tiny.SEQ2SEQ
families = pytest.mark.parametrize("family", WRITERS)
METHODS = {
    "prefix of 3": PrefixTuning(length=3, mid=None),
    "prefix of 5": PrefixTuning(length=5, mid=8),
    "prompt of 4": PromptTuning(length=4, init="uniform"),
    "prompt of 2": PromptTuning(length=2, init="uniform", place="after-first"),
    "prompt at end": PromptTuning(length=3, init="uniform", place="end"),
}
STEPS = 4


def writer(family, **changes):
    """A language model that may write to the end, and tasks on it."""
    backbone = wrap64(family, **changes)
    return backbone, {name: task64(name, backbone, method, std=1.0) for name, method in METHODS.items()}


def prompts(family, rows, side=""):
    batch = padded(family, rows, side or ("left" if family in tiny.DECODERS else "right"), tokens=9)
    return {name: batch[name] for name in ("input_ids", "attention_mask")}


def unpadded(family, batch, index):
    return alone(family, {**batch, "decoder_input_ids": batch["input_ids"]}, index)[0]


@families
def test_cached_decoding_of_mixed_rows_equals_whole_forward_passes(family):
    with Exact():
        backbone, tasks = writer(family)
        names = [*tasks, None]
        batch = prompts(family, len(names))
        rows = [unpadded(family, batch, i) for i in range(len(names))]
        want = [written(backbone, rows[i], tasks.get(n), STEPS) for i, n in enumerate(names)]
        assert any(want[i] != written(backbone, rows[i], None, STEPS) for i in range(len(tasks)))
        bank = TaskBank(backbone, list(tasks.values()))
        for static in (False, True):
            decoding = Decoding(max_new_tokens=STEPS, static_cache=static)
            assert [new.tolist() for new in bank.generate(batch, names, decoding)] == want, static


@families
def test_every_steps_scores_equal_those_of_a_whole_forward_pass(family):
    """One task for all rows: the scores come in the rows' order."""
    with Exact():
        backbone, tasks = writer(family)
        sides = ("none", "left") if family in tiny.DECODERS else ("left", "right")
        for number, (name, task) in enumerate(tasks.items()):
            batch = prompts(family, 3, sides[number % 2])
            want = []
            for i in range(3):
                with scores_of(backbone) as scores:
                    new = written(backbone, unpadded(family, batch, i), task, STEPS)
                want.append((new, scores))
            bank = TaskBank(backbone, [task])
            with scores_of(backbone) as steps:
                got = [new.tolist() for new in bank.generate(batch, name, Decoding(max_new_tokens=STEPS))]
            assert got == [new for new, _ in want], name
            for i, (_, scores) in enumerate(want):
                for step, score in enumerate(scores):
                    torch.testing.assert_close(steps[step][i], score[0], **EXACT, msg=lambda m, n=name: f"{n}: {m}")
            bank.detach()


@families
def test_beam_search_over_mixed_rows_equals_each_row_alone(family):
    with Exact():
        backbone, tasks = writer(family)
        tasks["adapter"] = task64("adapter", backbone, BottleneckAdapter(width=4))
        bank = TaskBank(backbone, list(tasks.values()))
        names = [*tasks, None]
        batch = prompts(family, len(names))
        decoding = Decoding(max_new_tokens=STEPS, beams=3)
        mixed = bank.generate(batch, names, decoding)
        for i, name in enumerate(names):
            one = {k: v for k, v in unpadded(family, batch, i).items() if k in batch}
            assert bank.generate(one, [name], decoding)[0].tolist() == mixed[i].tolist(), name


@pytest.mark.parametrize("family", ["llama", "bart"])
def test_each_batch_draws_numbers_of_its_own(family):
    backbone, _ = writer(family)
    bank, batch = TaskBank(backbone), prompts(family, 2)
    other = {**batch, "input_ids": batch["input_ids"].flip(0)}
    even = Decoding(max_new_tokens=8, sample=True, temperature=1e6, top_k=0)  # what is drawn is the noise alone
    first, second = (bank.generate(one, [None, None], even) for one in (batch, other))
    assert [new.tolist() for new in first] != [new.tolist() for new in second]


@pytest.mark.parametrize("family", ["llama", "gpt2", "t5", "bart"])
def test_sampling_is_the_seeds_alone(family):
    backbone, tasks = writer(family)
    bank = TaskBank(backbone, list(tasks.values()))
    names = [*tasks, None]
    batch = prompts(family, len(names))

    def sample(seed):
        decoding = Decoding(max_new_tokens=8, sample=True, temperature=2.0, top_k=0, seed=seed)
        return [new.tolist() for new in bank.generate(batch, names, decoding)]

    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first = sample(1)
    assert torch.equal(torch.random.get_rng_state(), before), "the caller's random numbers are left as they were"
    torch.manual_seed(6)
    assert sample(1) == first
    assert sample(2) != first


@pytest.mark.parametrize("family", ["llama", "gpt2", "bart", "t5"])
@pytest.mark.parametrize(
    "own",
    [
        {"repetition_penalty": 1.8},
        {"encoder_repetition_penalty": 1.8, "no_repeat_ngram_size": 2},
        {"min_length": 20, "forced_bos_token_id": 7, "forced_eos_token_id": 2},
        {"num_return_sequences": 2, "return_dict_in_generate": True, "stop_strings": ["a"]},
    ],
    ids=lambda own: next(iter(own)),
)
def test_a_checkpoints_own_settings_have_no_part_in_a_text(family, own):
    """A penalty counts a batch's padding, and sees no token of rows that stand beside a prompt."""
    backbone, tasks = writer(family)
    tasks["lora"] = task64("lora", backbone, LoRA(rank=2), std=0.5)
    bank = TaskBank(backbone, list(tasks.values()))
    names = [*tasks, None]
    batch, decoding = prompts(family, len(names)), Decoding(max_new_tokens=8)
    plain = [new.tolist() for new in bank.generate(batch, names, decoding)]
    config = backbone.model.generation_config
    for name, value in own.items():
        setattr(config, name, value)
    before = config.to_dict()
    assert [new.tolist() for new in bank.generate(batch, names, decoding)] == plain
    assert backbone.model.generation_config is config
    assert config.to_dict() == before, "the model keeps its settings for its owner's own calls"


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
def test_a_decoders_rows_that_end_in_padding_are_refused(family):
    backbone, tasks = writer(family)
    bank = TaskBank(backbone, list(tasks.values()))
    with pytest.raises(ConfigError, match="pad on the left"):
        bank.generate(prompts(family, 3, "right"), "prefix of 3", Decoding(max_new_tokens=STEPS))


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_generating_leaves_the_model_and_the_banks_answers_as_they_were(family):
    backbone, tasks = writer(family)
    batch = padded(family, 2, "none")
    with torch.no_grad():
        before = backbone.features(batch)
        bank = TaskBank(backbone, list(tasks.values()))
        states = bank(batch, tasks="prompt of 4")
        bank.generate(prompts(family, 2), "prompt of 4", Decoding(max_new_tokens=2, beams=2))
        assert torch.equal(bank(batch, tasks="prompt of 4"), states)
        bank.detach()
        assert torch.equal(backbone.features(batch), before)


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_a_compiled_model_gives_the_same_states(family):
    backbone = wrap64(family, num_hidden_layers=1)
    methods = {"prefix": METHODS["prefix of 3"], "prompt": METHODS["prompt of 4"], "lora": LoRA(rank=2)}
    tasks = [task64(name, backbone, method) for name, method in methods.items()]
    bank = TaskBank(backbone, tasks)
    names = [*methods, None]
    batch = padded(family, len(names), "left" if family == "llama" else "right", tokens=6)
    torch._dynamo.reset()
    with torch.no_grad():
        plain = bank(batch, tasks=names)
        backbone.base.compile(backend="aot_eager")
        compiled = bank(batch, tasks=names)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    for name, one, other in zip(names, plain, compiled, strict=True):
        torch.testing.assert_close(other, one, rtol=0, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize(("family", "static"), [("llama", True), ("gpt2", False)])
def test_a_compiled_model_writes_the_same_tokens(family, static):
    layers = {"n_layer": 1} if family == "gpt2" else {"num_hidden_layers": 1}
    with Exact():
        backbone, tasks = writer(family, **layers)
        names = ["prefix of 3", "prompt of 2", None]  # each more is a dozen seconds of tracing
        batch = prompts(family, len(names))
        bank = TaskBank(backbone, [tasks[name] for name in names[:-1]])
        plain = [new.tolist() for new in bank.generate(batch, names, Decoding(max_new_tokens=STEPS))]
        torch._dynamo.reset()
        backbone.base.compile(backend="aot_eager")
        decoding = Decoding(max_new_tokens=STEPS, static_cache=static)
        assert [new.tolist() for new in bank.generate(batch, names, decoding)] == plain
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0


@families
def test_the_loss_of_a_generation_task_equals_that_of_prompt_and_target_written_out(family):
    """The mean over the target tokens, and their sum as a mean over the rows; prompts of real tokens, at every place."""
    with Exact():
        backbone = wrap64(family)
        model = backbone.model
        batch, labels = padded(family, 3, "right"), torch.full((3, 11), -100)
        if family in tiny.SEQ2SEQ:
            labels = tiny.inputs(family, rows=3, seed=1)["decoder_input_ids"]
            labels[1, -2:] = -100
            start = torch.full((3, 1), model.config.decoder_start_token_id)
            batch["decoder_input_ids"] = torch.cat([start, labels[:, :-1].clamp(min=0)], dim=1)
            batch["decoder_attention_mask"] = torch.cat([torch.ones_like(start), (labels[:, :-1] >= 0).long()], dim=1)
        else:
            for i in range(3):
                last = int(batch["attention_mask"][i].sum())
                labels[i, last - 3 : last] = batch["input_ids"][i, last - 3 : last]
        for place in ("start", "after-first", "template"):
            given = {k: v.clone() for k, v in batch.items()}
            if place == "template":
                given["input_ids"][:, 2:4] = torch.tensor([-2, -1])
            method = PromptTuning(length=2, init="text", init_text="w21 w5", place=place)
            for kind in ("token", "sentence"):
                task = Task.new("t", backbone, method, Head(kind="generation", loss=kind)).double()
                bank = TaskBank(backbone, [task])
                loss = bank.loss(given, labels, "t")
                loss.backward()
                bank.detach()
                assert task.prompt.prompt.grad.abs().max() > 0
                summed = 0.0
                for i in range(3):
                    one = {k: v[i : i + 1] for k, v in given.items() if k.startswith("decoder")}
                    own = given["input_ids"][i][given["attention_mask"][i].bool()].tolist()
                    ids, where = tokens_with_prompt(own, (21, 5), place)
                    logits = model(input_ids=torch.tensor([ids]), **one).logits[0]
                    if family in tiny.SEQ2SEQ:
                        own = labels[i]
                    else:
                        own = torch.full((len(ids),), -100)
                        own[where] = labels[i, : len(where)]
                        logits, own = logits[:-1], own[1:]
                    summed = summed + torch.nn.functional.cross_entropy(logits, own, reduction="sum")
                want = summed / (3 if kind == "sentence" else (labels >= 0).sum())
                torch.testing.assert_close(loss, want, **EXACT, msg=lambda m, p=place: f"{p}: {m}")


@families
def test_prompts_in_a_template_are_written_after(family):
    with Exact():
        backbone = wrap64(family)
        method = PromptTuning(length=2, init="text", init_text="w21 w5", place="template")
        bank = TaskBank(
            backbone, [task64("t", backbone, method, std=0.0), task64("other", backbone, METHODS["prompt of 4"])]
        )
        batch = prompts(family, 3)
        batch["input_ids"][:, 4:6] = torch.tensor([-1, -2])
        want = []
        for i in range(3):
            one = unpadded(family, batch, i)
            ids, _ = tokens_with_prompt(one["input_ids"][0].tolist(), (21, 5), "template")
            want.append(written(backbone, {**one, "input_ids": torch.tensor([ids])}, None, STEPS))
        for beams in (1, 2):
            decoding = Decoding(max_new_tokens=STEPS, beams=beams)
            got = [new.tolist() for new in bank.generate(batch, "t", decoding)]
            assert bank.generate(batch, ["t", "other", "t"], decoding)[2].tolist() == got[2]
            if beams == 1:
                assert got == want

"""A user's own calls of the model with a prefix or a prompt active, and the peers' pains that concern them, by their numbers."""

import warnings

import pytest
import torch
import transformers as tf

import tiny
from intarsia.backbone import Backbone
from intarsia.bank import TaskBank
from intarsia.errors import ConfigError
from intarsia.heads import Decoding
from intarsia.methods import BottleneckAdapter, LoRA
from intarsia.methods.prefix import PrefixTuning
from intarsia.methods.prompt import PromptTuning
from intarsia.methods.ptuning import PTuning
from intarsia.task import Task
from methods.every import HEAD, row, stir, wrap
from seams.byhand import EXACT, Exact, alone, padded, task64, wrap64

WRITERS = tiny.DECODERS + tiny.SEQ2SEQ
READERS = tuple(f for f in tiny.FAMILIES if f != "vit")
METHODS = {
    "flat prefix": PrefixTuning(length=3, mid=None),
    "prefix": PrefixTuning(length=5, mid=6, gating=True),
    "counted prefix": PrefixTuning(length=2, mid=None, position_offset=True),
    "prompt": PromptTuning(length=4, init="uniform"),
    "prompt at end": PromptTuning(length=2, init="uniform", place="end"),
    "lstm": PTuning(length=3, encoder="lstm", place="after-first"),
    "mlp": PTuning(length=2),
}


def methods_for(backbone):
    moved = backbone.shifts_positions
    return {name: method for name, method in METHODS.items() if moved or name != "counted prefix"}


@pytest.mark.parametrize("family", READERS)
def test_the_model_itself_answers_in_the_callers_layout(family):
    with Exact(), torch.no_grad():
        backbone = wrap64(family)
        model = backbone.model
        batch = padded(family, 3, "right")
        plain = model(**batch)[0]
        tasks = [task64(name, backbone, method) for name, method in methods_for(backbone).items()]
        bank = TaskBank(backbone, tasks)
        for task in tasks:
            bank.activate(None)
            states = bank(batch, tasks=task.name)
            bank.activate(task.name)
            got = model(**batch)[0]
            assert got.shape == plain.shape
            assert (got - plain).abs().max() > 1e-3
            if family in tiny.ENCODERS:
                want = states
            elif family in ("t5", "gemma2"):  # a scale before the head, a soft cap behind it
                continue
            else:
                want = backbone.language_head(states)
            for i in range(3):
                columns = alone(family, batch, i)[1]
                torch.testing.assert_close(
                    got[i][columns], want[i][columns], **EXACT, msg=lambda m, n=task.name: f"{n}: {m}"
                )
        bank.detach()
        assert torch.equal(model(**batch)[0], plain)


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "gpt2", "llama", "opt", "t5", "bart"])
def test_a_users_classifier_trains_a_prompt_or_a_prefix(family):
    torch.manual_seed(0)
    model = tf.AutoModelForSequenceClassification.from_config(tiny.config(family, num_labels=2, pad_token_id=1)).eval()
    backbone = Backbone.wrap(model)
    batch = {k: v for k, v in padded(family, 4, "none").items() if not k.startswith("decoder")}
    batch["input_ids"][:, -1] = model.config.eos_token_id or 5  # T5 and BART read their classifier's state there
    batch["labels"] = torch.tensor([0, 1, 1, 0])
    for name in ("prefix", "prompt", "mlp"):
        task = Task.new(name, backbone, METHODS[name])
        bank = TaskBank(backbone, [task])
        bank.activate(name)
        optimizer = torch.optim.AdamW(task.parameters(), lr=2e-2)
        losses = []
        for _ in range(8):
            loss = model(**batch).loss
            loss.backward()
            assert all(p.grad is not None for p in task.parameters())
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        assert losses[-1] < losses[0], name
        bank.detach()


@pytest.mark.parametrize("family", WRITERS)
def test_the_models_own_generate_goes_on_behind_a_prefix_and_refuses_what_it_cannot(family):
    with Exact():
        backbone = wrap64(family)
        model = backbone.model
        model.generation_config.forced_eos_token_id = None  # BART's own call would cut its last word off
        tasks = [task64(name, backbone, method, std=1.0) for name, method in methods_for(backbone).items()]
        bank = TaskBank(backbone, tasks)
        side = "left" if family in tiny.DECODERS else "right"
        batch = {k: v for k, v in padded(family, 3, side).items() if not k.startswith("decoder")}
        for task in tasks:
            bank.activate(task.name)
            if task.prompt is not None and family in tiny.DECODERS:
                with pytest.raises(ConfigError, match=r"TaskBank.generate") as error:
                    model.generate(**batch, max_new_tokens=3, do_sample=False)
                assert "\n" not in str(error.value)
                continue
            got = model.generate(**batch, max_new_tokens=3, do_sample=False)
            want = bank.generate(batch, task.name, Decoding(max_new_tokens=3))
            skip = batch["input_ids"].shape[1] if family in tiny.DECODERS else 1
            for ids, own in zip(got[:, skip:], want, strict=True):
                assert ids[: len(own)].tolist() == own.tolist(), task.name


@pytest.mark.parametrize("family", ["llama", "mistral", "gpt2", "bart"])
def test_pain_1_a_prefix_is_not_lost_over_sdpa_with_padding_or_without(family):
    found = {}
    for implementation in ("eager", "sdpa"):
        model = tiny.build(family)
        model.set_attn_implementation(implementation)
        backbone = Backbone.wrap(model)
        task = stir(Task.new("t", backbone, METHODS["flat prefix"]).eval(), 0.5)
        bank = TaskBank(backbone, [task])
        for side in ("none", "right"):
            batch = padded(family, 3, side)
            with torch.no_grad():
                found[implementation, side] = bank(batch, tasks="t")
                assert (found[implementation, side] - backbone.features(batch)).abs().max() > 1e-2
    for side in ("none", "right"):
        torch.testing.assert_close(found["eager", side], found["sdpa", side], rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama", "gemma2", "t5", "bart", "vit"])
def test_pain_2_gradient_checkpointing_gives_equal_gradients(family):
    model = tiny.build(family)
    for module in model.modules():
        for name, value in list(vars(module).items()):
            if isinstance(value, float) and (name == "p" or "dropout" in name):
                setattr(module, name, 0.0)
    backbone = Backbone.wrap(model)
    batch, labels = padded(family, 3, "right"), torch.tensor([0, 2, 1])
    methods = {"adapter": BottleneckAdapter(width=3), "lora": LoRA(rank=2), "prefix": METHODS["prefix"]}
    methods |= {"flat prefix": METHODS["flat prefix"]}
    methods |= {"prompt": PromptTuning(length=2)} if family == "vit" else {n: METHODS[n] for n in ("prompt", "lstm")}
    if family == "vit":
        methods["prompt"] = PromptTuning(length=2, init="uniform")
    found = {}
    for on in (False, True):
        if on:
            with warnings.catch_warnings():
                # transformers 5.20 renamed it; users still call the old name.
                warnings.filterwarnings("ignore", message=".*gradient_checkpointing_enable.*", category=FutureWarning)
                model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        assert backbone.checkpointing is on
        backbone.train_mode(True)
        for name, method in methods.items():
            task = stir(Task.new(name, backbone, method, HEAD).eval())
            bank = TaskBank(backbone, [task])
            task.loss(bank(batch, tasks=name), labels).backward()
            bank.detach()
            found[on, name] = {n: p.grad for n, p in task.named_parameters()}
    for name in methods:
        for key, grad in found[False, name].items():
            torch.testing.assert_close(
                found[True, name][key], grad, rtol=1e-5, atol=1e-6, msg=lambda m, k=key: f"{k}: {m}"
            )


@pytest.mark.parametrize(
    ("family", "shape"), [("llama", (2, 8)), ("qwen3", (2, 12)), ("gemma3", (2, 12)), ("t5", (4, 6)), ("bart", (4, 8))]
)
def test_pains_3_and_4_every_attention_has_a_prefix_of_its_own_shape(family, shape):
    """Grouped heads, heads * width != hidden; encoder, decoder and cross attention."""
    backbone = wrap64(family)
    task = task64("t", backbone, METHODS["flat prefix"])
    sorts = {(site.stack, site.cross) for site in task.sites.values()}
    seq2seq = {("encoder", False), ("decoder", False), ("decoder", True)}
    assert sorts == (seq2seq if family in tiny.SEQ2SEQ else {("decoder", False)})
    for key in task.sites:
        assert task.delta(key).key.shape == task.delta(key).value.shape == (1, shape[0], 3, shape[1])
    TaskBank(backbone, [task])(padded(family, 3, "right"), tasks="t").square().sum().backward()
    assert all(p.grad.abs().max() > 0 for p in task.parameters())


@pytest.mark.parametrize("family", ["llama", "gpt2", "t5"])
def test_pain_6_generate_sees_the_prompt_also_with_a_static_cache(family):
    backbone = wrap64(family)
    bank = TaskBank(backbone, [task64("t", backbone, PromptTuning(length=8, init="uniform"), std=3.0)])
    batch = {k: v for k, v in padded(family, 3, "none").items() if not k.startswith("decoder")}
    for static in (False, True):
        decoding = Decoding(max_new_tokens=4, static_cache=static)
        plain, prompted = (bank.generate(batch, names, decoding) for names in ([None] * 3, "t"))
        assert [a.tolist() for a in plain] != [b.tolist() for b in prompted]


@pytest.mark.parametrize("family", READERS)
def test_pains_7_8_and_14_rows_of_all_sorts_mix(family):
    """Prompts and prefixes of unequal length, bottlenecks, LoRA and the plain backbone: each row as if alone."""
    with Exact(), torch.no_grad():
        backbone = wrap64(family)
        methods = {**methods_for(backbone), "adapter": BottleneckAdapter(width=3), "lora": LoRA(rank=2)}
        bank = TaskBank(backbone, [task64(name, backbone, method) for name, method in methods.items()])
        names = ["lora", None, *reversed(methods)]
        batch = padded(family, len(names), "right")
        mixed = bank(batch, tasks=names)
        for i, name in enumerate(names):
            columns = alone(family, batch, i)[1]
            one = bank(row(batch, i), tasks=[name])[0]
            torch.testing.assert_close(mixed[i][columns], one[columns], **EXACT, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("family", ["bert", "gpt2", "llama", "gemma2", "t5", "bart", "opt"])
def test_pain_13_fp32_tasks_train_and_write_on_low_precision_models(family, dtype):
    backbone = Backbone.wrap(tiny.build(family).to(dtype))
    batch, labels = padded(family, 3, "right"), torch.tensor([0, 2, 1])
    for name, method in methods_for(backbone).items():
        task = Task.new(name, backbone, method, HEAD).eval()
        bank = TaskBank(backbone, [task])
        task.loss(bank(batch, tasks=name), labels).backward()
        for key, parameter in task.named_parameters():
            assert parameter.dtype is torch.float32
            assert parameter.grad.isfinite().all(), (name, key)
        bank.detach()
    if family in tiny.ENCODERS:
        return
    tasks = [Task.new(name, backbone, method).eval() for name, method in methods_for(backbone).items()]
    rows = padded(family, len(tasks), "left" if family in tiny.DECODERS else "right")
    given = {k: v for k, v in rows.items() if not k.startswith("decoder")}
    new = TaskBank(backbone, tasks).generate(given, [task.name for task in tasks], Decoding(max_new_tokens=3, beams=2))
    assert len(new) == len(tasks)
    assert all(one.dtype is torch.int64 for one in new)


def test_a_cell_that_makes_a_bank_with_prefixes_is_run_again_and_each_bank_answers_by_its_own():
    backbone, batch = wrap("llama"), tiny.inputs("llama")
    one, two = (stir(new_prefix(backbone, "t"), seed=seed) for seed in (1, 2))
    with torch.no_grad():
        want = []
        for task in (one, two):
            bank = TaskBank(backbone, [task])
            want.append(bank(batch, tasks="t"))
            bank.detach()
        first, second = TaskBank(backbone, [one]), TaskBank(backbone, [two])
        assert torch.equal(first(batch, tasks="t"), want[0])
        assert torch.equal(second(batch, tasks="t"), want[1])
        first.detach()
        assert torch.equal(second(batch, tasks="t"), want[1])
    second.detach()
    assert backbone.model.config._attn_implementation == "sdpa"
    assert not any("_intarsia_extend" in vars(module) for module in backbone.model.modules())


def new_prefix(backbone, name):
    return Task.new(name, backbone, PrefixTuning(length=2, mid=None), HEAD).eval()

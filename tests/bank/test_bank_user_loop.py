"""A user's own loop over the model itself, with its own head; gradient checkpointing; number types."""

import warnings

import pytest
import torch
import transformers as tf

import tiny
from intarsia.backbone import Backbone
from intarsia.bank import TaskBank
from intarsia.errors import ConfigError
from intarsia.task import Task
from methods.every import HEAD, METHODS, PROMPTED, new_task, stir, usable, wrap


def classifier(family="bert"):
    auto = tf.AutoModelForSequenceClassification
    torch.manual_seed(0)
    return auto.from_config(tiny.config(family, num_labels=2)).eval()


@pytest.mark.parametrize("method", list(METHODS))
def test_a_users_loop_over_a_model_with_its_own_head_learns_and_detaches(method):
    model = classifier()
    batch = {**tiny.inputs("bert", rows=4), "labels": torch.tensor([0, 1, 1, 0])}
    state = {k: v.clone() for k, v in model.state_dict().items()}
    with torch.no_grad():
        before = model(**batch).logits
    backbone = Backbone.wrap(model)
    task = Task.new("mine", backbone, METHODS[method])
    bank = TaskBank(backbone, [task])
    with torch.no_grad():
        assert torch.equal(model(**batch).logits, before)  # resident, not active
        bank.activate("mine")
        assert torch.equal(model(**batch).logits, before)  # active, and new
    if method == "head":
        assert task.trained_parameters() == 0
        return
    optimizer = torch.optim.AdamW(task.parameters(), lr=1e-2)
    losses = []
    for _ in range(8):
        loss = model(**batch).loss
        loss.backward()
        assert all(p.grad is not None for p in task.parameters())
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    with torch.no_grad():
        trained = model(**batch).logits
        bank.activate(None)
        assert torch.equal(model(**batch).logits, before)
        bank.activate("mine")
        assert torch.equal(model(**batch).logits, trained)
        bank.evict("mine")
        assert torch.equal(model(**batch).logits, before)
    assert all(torch.equal(model.state_dict()[k], v) for k, v in state.items())
    assert list(model.state_dict()) == list(state)


def test_a_batch_through_the_bank_leaves_the_activated_task_active():
    model = classifier()
    backbone = Backbone.wrap(model)
    batch = tiny.inputs("bert")
    bank = TaskBank(backbone, [new_task(backbone, "serial", head=None), new_task(backbone, "lora")])
    with torch.no_grad():
        bank.activate("serial")
        active = model(**batch).logits
        bank(batch, tasks="lora")
        bank(batch, tasks=["lora", None, "serial"])
        assert torch.equal(model(**batch).logits, active)
        bank.evict("lora")
        assert torch.equal(model(**batch).logits, active)


def test_an_activated_task_serves_batches_of_any_size():
    model = classifier()
    backbone = Backbone.wrap(model)
    bank = TaskBank(backbone, [new_task(backbone, "serial", head=None)])
    bank.activate("serial")
    batch = tiny.inputs("bert", rows=5)
    with torch.no_grad():
        whole = model(**batch).logits
        parts = [model(**{k: v[i : i + 1] for k, v in batch.items()}).logits for i in range(5)]
    torch.testing.assert_close(torch.cat(parts), whole)


@pytest.mark.parametrize("family", ["llama", "gpt2", "t5"])
def test_a_language_models_own_loss_trains_a_task(family):
    backbone = wrap(family)
    batch = tiny.inputs(family)
    labels = batch.pop("decoder_input_ids", batch["input_ids"])
    task = Task.new("mine", backbone, METHODS["serial"])
    bank = TaskBank(backbone, [task])
    bank.activate("mine")
    backbone.model(**batch, labels=labels).loss.backward()
    assert all(p.grad is not None for p in task.parameters())


def test_a_task_without_a_head_gives_states_and_has_no_loss():
    backbone = wrap("bert")
    task = new_task(backbone, "serial", head=None)
    bank = TaskBank(backbone, [task])
    states = bank(tiny.inputs("bert"), tasks="serial")
    assert states.shape == (3, 7, 32)
    with pytest.raises(ConfigError, match="has no head"):
        task.loss(states, torch.zeros(3))


def checkpointing(model, on):
    if not on:
        getattr(model, "activation_checkpointing_disable", model.gradient_checkpointing_disable)()
        return
    settings = {"gradient_checkpointing_kwargs": {"use_reentrant": False}}
    with warnings.catch_warnings():
        # transformers 5.20 renamed it, and its new name takes other words; users still call the old one.
        warnings.filterwarnings("ignore", message=".*gradient_checkpointing_enable.*", category=FutureWarning)
        model.gradient_checkpointing_enable(**settings)


def gradients(backbone, task, batch, labels):
    task.zero_grad()
    loss = task.loss(TaskBank(backbone, [task])(batch, tasks=task.name), labels)
    loss.backward()  # nobody has the bank but the graph, as far as layers run again
    return loss.item(), {name: p.grad.clone() for name, p in task.named_parameters()}


@pytest.mark.parametrize("family", ["bert", "distilbert", "gpt2", "llama", "gemma2", "t5", "bart", "vit"])
def test_gradient_checkpointing_gives_equal_gradients_for_every_method(family):
    changes = {"attention_dropout": 0.0} if family not in ("bert", "gpt2", "t5") else {}
    backbone = wrap(family, **changes)
    for module in backbone.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name in ("dropout", "activation_dropout", "attention_dropout", "attn_dropout", "dropout_prob"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    batch, labels = tiny.inputs(family), torch.tensor([0, 2, 1])
    calls = []
    # Inside a layer: hooks of the layer itself stand outside its checkpoint.
    inner = backbone.base.get_submodule(next(s.module for s in backbone.sites if s.role == "q"))
    inner.register_forward_hook(lambda *_: calls.append(1))
    for method in usable(backbone):
        task = new_task(backbone, method)
        backbone.train_mode(True)
        checkpointing(backbone.model, False)
        calls.clear()
        plain = gradients(backbone, task, batch, labels)
        once = len(calls)
        checkpointing(backbone.model, True)
        assert backbone.checkpointing
        calls.clear()
        again = gradients(backbone, task, batch, labels)
        if method not in ("head", "top-layers"):
            assert len(calls) > once, "the layer was not run again"
        assert again[0] == pytest.approx(plain[0], abs=1e-6)
        for name, grad in plain[1].items():
            torch.testing.assert_close(again[1][name], grad, rtol=1e-5, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("method", ["serial", "full"])
def test_after_a_checkpointed_step_the_model_itself_is_plain_again(method):
    backbone = wrap("bert")
    batch = tiny.inputs("bert")
    with torch.no_grad():
        before = backbone.features(batch)
    bank = TaskBank(backbone, [new_task(backbone, method)])
    checkpointing(backbone.model, True)
    backbone.train_mode(True)
    bank(batch, tasks=method).sum().backward()
    backbone.train_mode(False)
    with torch.no_grad():
        assert torch.equal(backbone.features(batch), before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_low_precision_backbones_train_every_method_in_fp32(family, dtype):
    backbone = Backbone.wrap(tiny.build(family).to(dtype))
    batch = {k: v.to(dtype) if v.is_floating_point() else v for k, v in tiny.inputs(family).items()}
    labels = torch.tensor([0, 2, 1])
    names = usable(backbone)
    tasks = [new_task(backbone, m) for m in names]
    bank = TaskBank(backbone, tasks)
    for task in tasks:
        scores = bank(batch, tasks=task.name)
        assert scores.dtype is torch.float32
        task.loss(scores, labels).backward()
        for name, p in task.named_parameters():
            assert p.dtype is torch.float32, (task.name, name)
            assert p.grad is not None, (task.name, name)
            assert p.grad.isfinite().all(), (task.name, name)
    with torch.no_grad():
        mixed = bank({k: v[:2] for k, v in batch.items()}, tasks=["serial", "lora"])
        for one, name in zip(mixed, ("serial", "lora"), strict=True):
            assert one.isfinite().all(), name
        assert backbone.features(batch).dtype is dtype


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_low_precision_sites_are_those_of_fp32_and_new_tasks_are_the_identity(family, dtype):
    exact, low = wrap(family), Backbone.wrap(tiny.build(family).to(dtype))
    assert low.sites == exact.sites
    batch = {k: v.to(dtype) if v.is_floating_point() else v for k, v in tiny.inputs(family).items()}
    with torch.no_grad():
        before = low.features(batch)
        for method in usable(low):
            bank = TaskBank(low, [new_task(low, method, head=None, awake=0.0)])
            assert torch.equal(bank(batch, tasks=method), before), method
            bank.detach()


def test_low_precision_training_moves_values_by_less_than_the_backbones_own_steps():
    """Steps that bfloat16 could not hold: the reason why deltas are fp32."""
    backbone = Backbone.wrap(tiny.build("bert").to(torch.bfloat16))
    task = stir(Task.new("t", backbone, METHODS["full"], HEAD), 0.0)
    bank = TaskBank(backbone, [task])
    before = {k: v.clone() for k, v in task.tensors().items()}
    optimizer = torch.optim.SGD(task.parameters(), lr=1e-4)
    task.loss(bank(tiny.inputs("bert"), tasks="t"), torch.tensor([0, 1, 2])).backward()
    optimizer.step()
    after = task.tensors()
    weights = [k for k in after if k.endswith("dense/weight.value")]
    assert weights
    for key in weights:
        moved = after[key] != before[key]
        assert moved.float().mean() > 0.5, key
        lost = after[key].bfloat16() == before[key].bfloat16()
        assert (moved & lost).float().mean() > 0.4, key


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_two_banks_train_the_norms_of_one_backbone(family):
    backbone, batch = wrap(family), tiny.inputs(family, rows=2)
    tasks = {name: stir(new_task(backbone, "layer-norm", name=name), seed=seed) for seed, name in enumerate("ab")}
    plain = TaskBank(backbone)(batch, tasks=[None, None])
    alone = {}
    for name, task in tasks.items():
        bank = TaskBank(backbone, [task])
        alone[name] = bank(batch, tasks=name)
        bank.detach()
    banks = {name: TaskBank(backbone, [task]) for name, task in tasks.items()}
    for _ in range(2):
        for name, bank in banks.items():
            torch.testing.assert_close(bank(batch, tasks=name), alone[name], rtol=1e-5, atol=1e-5)
        banks.pop("a", TaskBank(backbone)).detach()
    banks["b"].detach()
    after = TaskBank(backbone)(batch, tasks=[None, None])
    assert all(torch.equal(one, other) for one, other in zip(after, plain, strict=True))


@pytest.mark.parametrize("method", ["lora", "serial"])
def test_a_frozen_task_that_came_in_inference_mode_stands_beside_one_in_training(method, tmp_path):
    backbone = wrap("bert")
    new_task(backbone, method).save(tmp_path / "frozen")
    bank = TaskBank(backbone)
    with torch.inference_mode():
        bank.load(tmp_path / "frozen", name="frozen")
    live = new_task(backbone, "bitfit")
    bank.add(live)
    frozen, own = bank(tiny.inputs("bert", rows=2), tasks=["frozen", live.name])
    (frozen.sum() + own.sum()).backward()
    assert all(parameter.grad is not None for parameter in live.parameters())


@pytest.mark.parametrize("method", ["ptuning lstm", "ptuning mlp", "serial"])
def test_a_step_under_autocast_trains_what_one_without_it_does(method):
    backbone = wrap("bert")
    task = stir(Task.new("t", backbone, {**METHODS, **PROMPTED}[method], HEAD)).eval()
    bank, batch, labels = TaskBank(backbone, [task]), tiny.inputs("bert"), torch.tensor([0, 1, 2])
    plain = bank.loss(batch, labels, "t")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = bank.loss(batch, labels, "t")
    loss.backward()
    assert loss.item() == pytest.approx(plain.item(), abs=0.05)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in task.parameters())


@pytest.mark.parametrize("method", ["full", "top-layers"])
def test_a_model_that_is_cast_after_a_task_came_takes_its_weights_in_the_new_dtype(method):
    backbone = wrap("bert")
    bank, batch = TaskBank(backbone, [new_task(backbone, method, name="t")]), tiny.inputs("bert")
    with torch.no_grad():
        before = bank(batch, tasks="t")
        backbone.model.to(torch.float64)
        torch.testing.assert_close(bank(batch, tasks="t"), before, rtol=0, atol=1e-4)

"""What people do with a bank in notebooks and scripts of their own: threads, stored tasks, mistakes."""

import copy
import pickle
import threading
from pathlib import Path

import pytest
import torch

import intarsia
import tiny
from bank.mixed import held
from intarsia.backbone import Backbone
from intarsia.bank import TaskBank
from intarsia.errors import BackboneError, ConfigError, IntarsiaError, TaskError
from intarsia.heads import Decoding, Head
from intarsia.methods import LoRA
from intarsia.task import Task
from methods.every import HEAD, METHODS, PROMPTED, new_task, stir, wrap

CLOSE = {"rtol": 0, "atol": 1e-5}


def test_threads_that_call_one_bank_get_what_each_gets_alone_while_another_trains():
    bank, batch, errors = held("serial", "lora", "prefix", "prompt"), tiny.inputs("bert"), []
    live = new_task(bank.backbone, "lora", name="live")
    other = TaskBank(bank.backbone, [live])
    with torch.no_grad():
        alone = {name: bank(batch, tasks=name) for name in bank.tasks}
    first = torch.autograd.grad(other.loss(batch, torch.tensor([0, 1, 2]), "live"), list(live.parameters()))

    def ask(name):
        try:
            with torch.no_grad():
                for _ in range(15):
                    torch.testing.assert_close(bank(batch, tasks=name), alone[name], **CLOSE)
        except Exception as error:  # noqa: BLE001 - for the main thread
            errors.append(error)

    def train():
        try:
            for _ in range(5):
                loss = other.loss(batch, torch.tensor([0, 1, 2]), "live")
                for grad, want in zip(torch.autograd.grad(loss, list(live.parameters())), first, strict=True):
                    torch.testing.assert_close(grad, want, **CLOSE)
        except Exception as error:  # noqa: BLE001
            errors.append(error)

    threads = [threading.Thread(target=ask, args=(name,)) for name in alone] + [threading.Thread(target=train)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors, errors[0]


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_a_task_with_embeddings_of_another_size_than_the_models_is_refused(family):
    bank, batch = held("full", family=family), tiny.inputs(family)
    bank.backbone.model.resize_token_embeddings(120)
    with pytest.raises(ConfigError, match=r"\[97, 32\], and the model now as \[120, 32\]"):
        bank(batch, tasks="full")
    assert bank.backbone.model.get_input_embeddings().weight.shape == (120, 32)
    bank.detach()
    bank.backbone.features({"input_ids": torch.tensor([[3, 110]])})


STORED = {
    "save": lambda task, tmp: task.save(tmp / "again"),
    "state_dict": lambda task, _: task.state_dict(),
    "load_state_dict": lambda task, _: task.load_state_dict({}),
    "requires_grad_": lambda task, _: task.requires_grad_(True),
    "deepcopy": lambda task, _: copy.deepcopy(task),
    "pickle": lambda task, _: pickle.dumps(task),
    "another bank": lambda task, _: TaskBank(wrap("bert")).add(task),
}


@pytest.mark.parametrize("use", STORED)
@pytest.mark.parametrize("method", ["serial", "prompt"])
def test_what_a_bank_says_of_a_stored_task_is_not_taken_for_the_task(method, use, tmp_path):
    backbone, batch = wrap("bert"), tiny.inputs("bert")
    stir(Task.new("t", backbone, {**METHODS, **PROMPTED}[method], HEAD)).save(tmp_path)
    bank = TaskBank(backbone)
    task = bank.load(tmp_path)
    with torch.no_grad():
        before = bank(batch, tasks="t")
        with pytest.raises(TaskError, match=r"bank.evict\('t'\)") as error:
            STORED[use](task, tmp_path)
        assert "\n" not in str(error.value)
        task.train().to(torch.float16)
        assert torch.equal(bank(batch, tasks="t"), before)


def test_a_task_that_goes_in_inference_mode_can_be_trained_afterwards(tmp_path):
    backbone, batch = wrap("bert"), tiny.inputs("bert")
    new_task(backbone, "lora", name="t").save(tmp_path)
    bank = TaskBank(backbone)
    with torch.inference_mode():
        bank.load(tmp_path)
        task = bank.evict("t")
    bank.add(task.requires_grad_(True))
    bank.loss(batch, torch.tensor([0, 1, 2]), "t").backward()
    assert all(parameter.grad is not None for parameter in task.parameters())


def test_a_bank_that_cannot_be_made_leaves_no_hooks_behind():
    backbone = wrap("bert")
    task = Task.new("p", backbone, PROMPTED["prefix flat"], HEAD)
    with pytest.raises(TaskError, match="already holds"):
        TaskBank(backbone, [task, task])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in backbone.model.modules())
    TaskBank(backbone, [task])(tiny.inputs("bert"), tasks="p")


def _writer(family="gpt2"):
    backbone = wrap(family)
    return TaskBank(backbone, [Task.new("w", backbone, LoRA(rank=2), Head(kind="generation"))])


MISTAKES = {
    "a task for a name": lambda bank, batch: bank(batch, tasks=bank.tasks["lora"]),
    "tasks for names": lambda bank, batch: bank(batch, tasks=[bank.tasks["lora"]] * 3),
    "no name": lambda bank, batch: bank(batch, tasks=None),
    "a task for a name in a loss": lambda bank, batch: bank.loss(
        batch, torch.tensor([0, 1, 2]), task=bank.tasks["lora"]
    ),
    "labels as a list": lambda bank, batch: bank.loss(batch, [0, 1, 2], task="lora"),
    "too few labels to write": lambda *_: _writer().loss(tiny.inputs("gpt2"), torch.zeros(3, 5, dtype=torch.long), "w"),
    "no tensor to write": lambda *_: _writer().loss(tiny.inputs("gpt2"), [[3, 4]], "w"),
    "no decoder to write with": lambda *_: _writer("t5").loss(
        {"input_ids": torch.ones(3, 5).long()}, torch.ones(3, 5).long(), "w"
    ),
    "one text for a folder": lambda *_: intarsia.predict("runs/t", "hello"),
    "a model to load onto": lambda bank, batch: Task.load("runs/t", bank.backbone.model),
    "texts for a batch": lambda bank, batch: bank(["some text"], tasks="lora"),
    "ids for a batch": lambda bank, batch: bank(batch["input_ids"], tasks="lora"),
    "lists for tensors": lambda bank, batch: bank({"input_ids": [[3, 4]]}, tasks="lora"),
    "an empty batch": lambda bank, batch: bank({}, tasks="lora"),
    "one text": lambda bank, batch: bank.predict("hello", tasks="lora"),
    "no batch size": lambda bank, batch: bank.predict(["hello"], tasks="lora", batch_size=0),
    "a task for a text": lambda bank, batch: bank.predict(["hello"], tasks=bank.tasks["lora"]),
    "a folder for a task": lambda bank, batch: bank.add("runs/lora"),
    "one task for tasks": lambda bank, batch: TaskBank(bank.backbone, bank.tasks["lora"]),
    "a model for a backbone": lambda bank, batch: TaskBank(bank.backbone.model),
    "a model to build on": lambda bank, batch: Task.new("x", bank.backbone.model, LoRA(), HEAD),
    "a class for a method": lambda bank, batch: Task.new("x", bank.backbone, LoRA, HEAD),
    "a word for a method": lambda bank, batch: Task.new("x", bank.backbone, "lora", HEAD),
    "a class for a head": lambda bank, batch: Task.new("x", bank.backbone, LoRA(), Head),
    "labels for a head": lambda bank, batch: Task.new("x", bank.backbone, LoRA(), ("a", "b")),
    "a number for a name": lambda bank, batch: Task.new(5, bank.backbone, LoRA(), HEAD),
    "a word to wrap": lambda bank, batch: Backbone.wrap("bert"),
    "a backbone to wrap": lambda bank, batch: Backbone.wrap(bank.backbone),
    "a layer to wrap": lambda bank, batch: Backbone.wrap(torch.nn.Linear(3, 3)),
    "a word for a tokenizer": lambda bank, batch: Backbone.wrap(bank.backbone.model, tokenizer="bert"),
    "nothing to load": lambda bank, batch: Backbone.load(None),
    "a path to nowhere": lambda bank, batch: Backbone.load(Path("/nowhere/at/all")),
    "a dtype without name": lambda bank, batch: Backbone.load("embedded:minilm", dtype=torch.float64),
    "one row of ids": lambda bank, batch: bank({"input_ids": batch["input_ids"][0]}, tasks="lora"),
    "a dictionary to decode with": lambda *_: _writer().generate(tiny.inputs("gpt2"), "w", {"max_new_tokens": 3}),
    "a column of labels": lambda bank, batch: bank.loss(batch, torch.tensor([[0], [1], [2]]), task="lora"),
    "too few labels": lambda bank, batch: bank.loss(batch, torch.tensor([0, 1]), task="lora"),
    "a row too long": lambda bank, batch: bank(tiny.inputs("bert", tokens=65), tasks="lora"),
    "rows too long": lambda bank, batch: bank(tiny.inputs("bert", tokens=65), tasks=["lora", None, "lora"]),
    "a row too long to learn": lambda *_: _writer("bart").loss(
        tiny.inputs("bart", tokens=67), torch.ones(3, 65).long(), "w"
    ),
    "no room to write": lambda *_: _writer().generate(tiny.inputs("gpt2", tokens=50), "w", Decoding(max_new_tokens=15)),
    "too much to write": lambda *_: _writer("bart").generate(tiny.inputs("bart"), "w", Decoding(max_new_tokens=65)),
    "embeddings to write on": lambda bank, batch: held("lora", family="gpt2").generate(
        {"inputs_embeds": torch.zeros(1, 2, 32)}, "lora"
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_clear_line(mistake):
    bank, batch = held("lora"), tiny.inputs("bert")
    with pytest.raises(IntarsiaError) as error:
        MISTAKES[mistake](bank, batch)
    assert "\n" not in str(error.value)
    assert bank(batch, tasks="lora").shape == (3, 3)


def test_a_backbone_is_loaded_by_a_path_and_torchs_own_dtype_and_device(tmp_path):
    tiny.build("bert").save_pretrained(tmp_path)
    backbone = Backbone.load(tmp_path, dtype=torch.bfloat16, device=torch.device("cpu"))
    assert (backbone.dtype, backbone.name) == (torch.bfloat16, str(tmp_path))


def test_predictions_have_no_dropout_and_leave_training_mode_as_it_was():
    backbone = Backbone.load("embedded:minilm", dtype="float32")
    task = Task.new("t", backbone, LoRA(rank=2), Head(labels=("a", "b"), dropout=0.5))
    bank = TaskBank(backbone, [task])
    backbone.train_mode(True)
    first, second = (bank.predict(["fine by me"], "t")[0].scores for _ in range(2))
    assert first == second
    assert task.training
    assert backbone.model.training


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft's own
@pytest.mark.parametrize("kind", ["PromptTuningConfig", "PrefixTuningConfig"])
def test_a_model_with_virtual_tokens_of_peft_is_refused(kind):
    peft = pytest.importorskip("peft")
    settings = getattr(peft, kind)(task_type="FEATURE_EXTRACTION", num_virtual_tokens=3)
    with pytest.raises(BackboneError, match="get_base_model"):
        Backbone.wrap(peft.get_peft_model(tiny.build("bert"), settings))


def test_a_task_is_saved_and_loaded_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    backbone = wrap("bert")
    new_task(backbone, "lora").save("~/tasks/lora")
    assert not (tmp_path / "~").exists()
    assert TaskBank(backbone).load("~/tasks/lora").name == "lora"


def test_texts_that_are_no_texts_are_refused_in_one_line(tmp_path):
    backbone = Backbone.load("embedded:minilm", dtype="float32")
    Task.new("t", backbone, LoRA(rank=2), HEAD).save(tmp_path)
    with pytest.raises(IntarsiaError, match="text 2 must be a str, got int"):
        intarsia.predict(tmp_path, ["fine", 3], backbone=backbone)
    bank = TaskBank(backbone)
    bank.load(tmp_path)
    with pytest.raises(IntarsiaError, match="of its columns or words; got int"):
        bank.predict([["fine", 3]], tasks="t")


@pytest.mark.parametrize("family", ["bert", "gpt2", "bart"])
@pytest.mark.parametrize("method", ["lora", "prompt"])
def test_rows_that_fill_the_table_of_positions_are_read_and_padding_takes_none(family, method):
    bank = held(method, family=family)
    most = 64 - 3 * (method == "prompt")
    batch = tiny.inputs(family, tokens=most)
    batch.pop("decoder_input_ids", None)
    with torch.no_grad():
        full = bank(batch, tasks=method)
        with pytest.raises(IntarsiaError, match=f"positions for 64; cut the rows, .*max_length={most}"):
            bank(tiny.inputs(family, tokens=most + 1), tasks=method)
        if family == "bart":  # numbers all columns
            return
        wider = {key: torch.nn.functional.pad(x, (0, 3)) for key, x in batch.items()}
        torch.testing.assert_close(bank(wider, tasks=method), full, **CLOSE)


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_a_row_that_fills_the_table_stands_beside_one_with_virtual_tokens(family):
    bank, batch = held("lora", "prompt", family=family), tiny.inputs(family, tokens=64)
    batch["attention_mask"] = (torch.arange(64) < torch.tensor([[64], [61], [9]])).long()
    names = ["lora", "prompt", "prompt"]
    with torch.no_grad():
        together = bank(batch, tasks=names)
        for row, (name, length) in enumerate(zip(names, (64, 61, 9), strict=True)):
            alone = bank({key: x[row : row + 1, :length] for key, x in batch.items()}, tasks=name)[0]
            torch.testing.assert_close(together[row], alone, **CLOSE)
        with pytest.raises(IntarsiaError, match="longest row has 64 tokens, 3 more with what is virtual"):
            bank(batch, tasks=["prompt", "lora", "lora"])


@pytest.mark.parametrize("family", ["llama", "bart"])
def test_a_batch_of_a_collator_keeps_its_labels_to_itself(family):
    """As DataCollatorForSeq2Seq and DataCollatorForLanguageModeling make them."""
    bank, batch = _writer(family), tiny.inputs(family)
    labels = batch["decoder_input_ids" if family == "bart" else "input_ids"].clone()
    labels[:, :2] = -100
    assert bank.loss({**batch, "labels": labels}, labels, "w") == bank.loss(batch, labels, "w")


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.int16])
def test_classes_may_be_whole_numbers_of_any_sort(dtype):
    bank, batch, labels = held("lora"), tiny.inputs("bert"), torch.tensor([0, 1, 2])
    assert bank.loss(batch, labels.to(dtype), "lora") == bank.loss(batch, labels, "lora")

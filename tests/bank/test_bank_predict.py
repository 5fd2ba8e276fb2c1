"""bank.predict: any tasks on any texts, each answer the one that `intarsia.predict` gives from the task's folder."""

import pytest

import intarsia
import tiny
from intarsia import BottleneckAdapter, Head, Task
from intarsia.backbone import Backbone
from intarsia.bank import TaskBank
from intarsia.errors import ConfigError, DataError, TaskError
from methods.every import stir
from serving.served import make
from workflow.tiny_run import make_backbone, make_decoder

TEXTS = ["good film", "the plot was very poor and the book awful", "fine", "a bad bad film"]


def same(one, other):
    assert (one.text, one.label) == (other.text, other.label)
    assert one.scores == pytest.approx(other.scores, abs=1e-5) if one.scores is not None else other.scores is None


def test_answers_are_those_of_each_task_folder_alone(tmp_path):
    backbone = Backbone.load(str(make_backbone(tmp_path / "b")), dtype="float32")
    tasks = [make(backbone, f"task{n}", n, n) for n in range(4)]
    tasks += [make(backbone, "names", 1, kind="token-classification", labels=("O", "PER"))]
    tasks += [make(backbone, "topics", 0, kind="multi-label", labels=("a", "b", "c"))]
    for task in tasks:
        task.save(tmp_path / task.name)
    names = [task.name for task in tasks for _ in TEXTS]
    bank = TaskBank(backbone, tasks)
    found = bank.predict(TEXTS * len(tasks), names, batch_size=5)
    bank.detach()
    for task, start in zip(tasks, range(0, len(found), len(TEXTS)), strict=True):
        alone = intarsia.predict(tmp_path / task.name, TEXTS, backbone=backbone)
        for one, other in zip(found[start : start + len(TEXTS)], alone, strict=True):
            same(one, other)


@pytest.mark.parametrize("kind", ["classification", "token-classification"])
@pytest.mark.parametrize("family", ["bart", "t5", "llama", "bert"])
def test_a_tokenizer_that_pads_on_the_left_changes_no_answer(family, kind, tmp_path):
    tokenizer = Backbone.load(str(make_backbone(tmp_path / "b")), dtype="float32").tokenizer
    tokenizer.padding_side = "left"
    backbone = Backbone.wrap(tiny.build(family), tokenizer=tokenizer)
    labels = ("O", "PER")
    task = stir(Task.new("t", backbone, BottleneckAdapter(width=4), Head(kind=kind, labels=labels)), 0.3).eval()
    task.save(tmp_path / "t")
    bank = TaskBank(backbone, [task])
    alone = [bank.predict([text], "t")[0] for text in TEXTS]
    bank.detach()
    together = TaskBank(backbone, [task]).predict(TEXTS, "t")
    for found in (together, intarsia.predict(tmp_path / "t", TEXTS, backbone=backbone)):
        for one, other in zip(found, alone, strict=True):
            same(one, other)


def test_texts_are_generated_beside_one_another(tmp_path):
    backbone = Backbone.load(str(make_decoder(tmp_path / "b")), dtype="float32")
    tasks = [make(backbone, f"task{n}", n, n, kind="generation") for n in range(3)]
    for task in tasks:
        task.data |= {"target_length": 12, "generation": {"max_new_tokens": 6 if task.name == "task0" else 8}}
        task.save(tmp_path / task.name)
    bank = TaskBank(backbone, tasks)
    found = bank.predict([text for text in TEXTS for _ in tasks], [task.name for _ in TEXTS for task in tasks])
    bank.detach()
    for number, task in enumerate(tasks):
        alone = intarsia.predict(tmp_path / task.name, TEXTS, backbone=backbone)
        assert [one.prediction for one in found[number::3]] == [one.prediction for one in alone]


def test_pairs_and_what_does_not_fit_are_told_apart(tmp_path):
    backbone = Backbone.load(str(make_backbone(tmp_path / "b")), dtype="float32")
    pair, mood = make(backbone, "pair", 1), make(backbone, "mood", 0)
    pair.data["text_columns"] = ["first", "second"]
    bank = TaskBank(backbone, [pair, mood])
    both = bank.predict([("good film", "bad book"), "fine"], ["pair", "mood"])
    assert both[0].text == ["good film", "bad book"]
    same(both[1], bank.predict(["fine"], "mood")[0])
    pair.save(tmp_path / "pair")
    bank.load(tmp_path / "pair", name="couple")
    for texts, names, error, words in (
        (["good"], ["couple"], DataError, "task 'couple' takes 2 text"),
        (["good"], ["pair"], DataError, "task 'pair' takes 2 text"),
        (["good", "bad"], ["mood"], ConfigError, "2 names"),
        (["good"], [None], ConfigError, "names of tasks"),
        ([" "], ["mood"], DataError, "empty"),
        (["good"], ["moot"], TaskError, "did you mean"),
    ):
        with pytest.raises(error, match=words):
            bank.predict(texts, names)

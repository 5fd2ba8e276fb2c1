"""Batches that are none: what torch would say of them, from inside a model, helps nobody."""

import pytest
import torch

from intarsia.bank import TaskBank
from intarsia.errors import ConfigError
from intarsia.heads import IGNORED, Head
from intarsia.methods import LoRA
from intarsia.task import Task
from methods.every import wrap

WRONG = {
    "a mask that is wider": (
        {"attention_mask": torch.ones(2, 7)},
        r"attention_mask must be of the shape of input_ids, \[2, 5\]; got \[2, 7\]",
    ),
    "a mask of one row": ({"attention_mask": torch.ones(1, 5)}, r"got \[1, 5\]"),
    "no columns": (
        {"input_ids": torch.zeros(2, 0).long()},
        "input_ids must be .* one at least in a row; got rows without a token",
    ),
    "no rows": ({"input_ids": torch.zeros(0, 5).long()}, "the batch has no rows"),
    "fractions": ({"input_ids": torch.ones(2, 5)}, r"got float32, make whole numbers of them with ids.long\(\)"),
    "a token too many": (
        {"input_ids": torch.full((2, 5), 97)},
        "holds token 97, and .* has tokens 0 to 96; .* added to it want model.resize_token_embeddings",
    ),
    "a token below 0": ({"input_ids": torch.full((2, 5), -1)}, "input_ids holds token -1"),
}


@pytest.mark.parametrize("family", ["bert", "llama", "t5"])
@pytest.mark.parametrize("wrong", WRONG)
def test_a_batch_that_cannot_be_read_is_said(family, wrong):
    backbone = wrap(family)
    bank = TaskBank(backbone, [Task.new("mood", backbone, LoRA(rank=2), Head(labels=("a", "b")))])
    changes, message = WRONG[wrong]
    ids = torch.full((2, 5), 7)
    batch = (
        {"input_ids": ids, "attention_mask": torch.ones_like(ids)} if "attention_mask" in changes else {}
    ) | changes
    with pytest.raises(ConfigError, match=message):
        bank(batch, tasks="mood")
    if wrong != "no rows":
        with pytest.raises(ConfigError, match=message):
            bank(batch, tasks=["mood", None])


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_types_of_tokens_are_those_of_the_model(family):
    backbone = wrap(family)
    known = backbone.config.type_vocab_size
    bank = TaskBank(backbone, [Task.new("mood", backbone, LoRA(rank=2), Head(labels=("a", "b")))])
    ids = torch.full((2, 5), 7)
    bank({"input_ids": ids, "token_type_ids": torch.full_like(ids, known - 1)}, tasks="mood")
    for wrong in (known, -1):
        batch = {"input_ids": ids, "token_type_ids": torch.full_like(ids, wrong)}
        for tasks in ("mood", ["mood", None]):
            with pytest.raises(
                ConfigError, match=f"token_type_ids holds token type {wrong}, and .* types 0 to {known - 1}"
            ):
                bank(batch, tasks=tasks)


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_targets_are_words_of_the_model_or_nothing(family):
    backbone = wrap(family)
    bank = TaskBank(backbone, [Task.new("words", backbone, LoRA(rank=2), Head(kind="generation"))])
    ids = torch.full((2, 5), 7)
    batch = {"input_ids": ids} | ({"decoder_input_ids": ids} if family == "t5" else {})
    for labels, got in ((ids + 90, 97), (ids - 8, -1), (ids.float(), "float32")):
        with pytest.raises(ConfigError, match=f"generation wants labels from 0 to 96, and -100 .* got {got}"):
            bank.loss(batch, labels, "words")
    nothing = bank.loss(batch, torch.full_like(ids, IGNORED), "words")
    nothing.backward()
    assert nothing.item() == 0

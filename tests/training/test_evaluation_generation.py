"""Loss and text of a generation task: over all target tokens, whatever the batches; text in the order of the rows."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from intarsia.backbone import Backbone
from intarsia.bank import TaskBank
from intarsia.data.batching import GenerationSource
from intarsia.data.generation import EncodedPairs
from intarsia.errors import ConfigError, DataError
from intarsia.heads import Decoding, Head
from intarsia.methods import PrefixTuning
from intarsia.task import Task
from intarsia.training import TextMetrics, Writing, evaluate, predict, validation_metric
from tiny import build

LENGTHS = [(3, 4), (5, 2), (4, 6), (7, 3), (2, 5)]


def spelled(ids):
    return " ".join(map(str, ids.tolist()))


def flat(rows):
    return np.concatenate(rows).astype(np.int32), np.cumsum([0, *map(len, rows)]).astype(np.int64)


def new(family: str, batch_size: int, *, labelled: bool = True, **head):
    """A bank, a prefix task, and rows of unequal length."""
    r = np.random.default_rng(0)
    inputs = [r.integers(3, 97, n) for n, _ in LENGTHS]
    targets = [np.append(r.integers(3, 97, n - 1), 2) for _, n in LENGTHS]
    (ids, offsets), (out, out_offsets) = flat(inputs), flat(targets)
    pairs = EncodedPairs(
        encoder_decoder=family == "bart",
        ids=ids,
        offsets=offsets,
        targets=out if labelled else None,
        target_offsets=out_offsets if labelled else None,
        references=[[spelled(row), "97"] for row in targets] if labelled else None,
        truncated=0,
        truncated_targets=0,
    )
    backbone = Backbone.wrap(build(family))
    task = Task.new("t", backbone, PrefixTuning(length=3, mid=8), Head(kind="generation", **head))
    start = 2 if family == "bart" else None
    return TaskBank(backbone, [task]), task, GenerationSource(pairs, batch_size, pad_id=0, decoder_start_token_id=start)


@pytest.mark.parametrize("family", ["llama", "gpt2", "bart"])
@pytest.mark.parametrize("how", ["token", "sentence"])
def test_the_loss_is_over_all_tokens_or_sentences_whatever_the_batches(family, how):
    losses = [evaluate(*new(family, size, loss=how)).metrics for size in (1, 2, 5)]
    assert all(found == pytest.approx(losses[0], rel=1e-5) for found in losses)
    assert losses[0].keys() == {"loss"}, "text was not asked for"
    tokens = evaluate(*new(family, 2)).metrics["loss"]
    mean_length = sum(n for _, n in LENGTHS) / len(LENGTHS)
    assert losses[0]["loss"] == pytest.approx(tokens * (1 if how == "token" else mean_length), rel=1e-5)


def test_the_loss_is_that_of_the_targets_alone():
    bank, task, source = new("llama", 1)
    total = count = 0.0
    for key in source.plan(0):
        batch, labels = source.load(key)
        bank.activate("t")
        with torch.no_grad():
            logits = bank.backbone.model(**batch, use_cache=False).logits
        bank.activate(None)
        assert labels is not None
        total += F.cross_entropy(logits[0, :-1], labels[0, 1:], reduction="sum").item()
        count += int((labels[0, 1:] != -100).sum())
    assert evaluate(bank, task, source).metrics["loss"] == pytest.approx(total / count, rel=1e-4)


@pytest.mark.parametrize("family", ["llama", "bart"])
def test_texts_come_in_the_order_of_the_plan_and_do_not_depend_on_the_batches(family):
    writing = Writing(decode=spelled, decoding=Decoding(max_new_tokens=4))
    bank, task, source = new(family, 2)
    found = predict(bank, task, source, writing=writing)
    bank, task, alone = new(family, 1)
    assert found.predictions == predict(bank, task, alone, writing=writing).predictions
    for row, key in enumerate(alone.plan(0)):
        (ids,) = bank.generate(alone.prompts(key), "t", decoding=writing.decoding)
        assert found.predictions[row] == spelled(ids)
    assert found.metrics == {}


def test_text_is_scored_where_it_is_asked_for_with_a_tick_for_each_batch():
    ticks = []
    writing = Writing(decode=spelled, decoding=Decoding(max_new_tokens=4), metrics=TextMetrics(lowercase=True))
    bank, task, source = new("llama", 2)
    found = evaluate(bank, task, source, writing=writing, tick=lambda: ticks.append(1))
    assert {"loss", "bleu", "chrf", "rouge_l", "exact_match"} <= found.metrics.keys()
    assert len(found.predictions) == len(LENGTHS)
    assert len(ticks) == 2 * len(source.plan(0)), "one pass for the loss, one for the texts"


def test_rows_without_targets_are_answered_and_not_scored():
    bank, task, source = new("llama", 2, labelled=False)
    writing = Writing(decode=spelled, decoding=Decoding(max_new_tokens=2))
    assert len(predict(bank, task, source, writing=writing).predictions) == len(LENGTHS)
    with pytest.raises(DataError, match="evaluation needs labels"):
        evaluate(bank, task, source)


def test_the_default_metric_is_the_loss_or_the_share_of_right_labels():
    assert validation_metric(None, "generation", ()) == "loss"
    assert validation_metric(None, "generation", ("bad", "good")) == "exact_match"
    assert validation_metric("loss", "generation", ("bad", "good")) == "loss"
    assert validation_metric(None, "classification", ("bad", "good")) == "accuracy"


def test_an_unknown_setting_of_generation_is_named():
    class Told:
        data = {"generation": {"beams": 2, "tokenize": "char"}}  # noqa: RUF012 - a stand-in

    class Speaks:
        tokenizer = None

    writing = Writing.of(Told(), Speaks(), {"beams": 3})
    assert (writing.decoding.beams, writing.metrics.tokenize) == (3, "char")
    with pytest.raises(ConfigError, match="did you mean 'beams'"):
        Writing.of(Told(), Speaks(), {"beam": 3})

"""Inputs and targets become batches: only targets are learnt, prompts are what a row begins with."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from intarsia.data import GenerationSource, Rows, Template, encode_generation
from intarsia.errors import ConfigError, DataError


def encoded_of(tokenizer, rows: Rows, template: str | None = None, encoder_decoder: bool = False, **more: Any):
    lengths: dict[str, Any] = {"max_length": 64, "target_length": 24} | more
    parsed = None if template is None else Template.parse(template)
    return encode_generation(rows, tokenizer, template=parsed, encoder_decoder=encoder_decoder, **lengths)


@pytest.fixture(scope="module")
def closing(byte_level):
    """The tokenizer of an encoder-decoder: it ends its inputs, as T5's does."""
    from tokenizers import processors

    own = copy.deepcopy(byte_level)
    own.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A $B </s>", special_tokens=[("</s>", 2)]
    )
    return own


PAIRS = Rows([("film", "plot"), ("the very good cast", "a")], [["good film", "not bad"], ["very bad"]])


def test_a_decoder_learns_the_target_and_its_end_and_nothing_else(byte_level):
    encoded = encoded_of(byte_level, PAIRS)
    source = GenerationSource(encoded, 2, pad_id=0)
    (key,) = source.plan()
    batch, labels = source.load(key)
    assert labels is not None
    assert set(batch) == {"input_ids", "attention_mask"}
    for ids, mask, learnt, row in zip(batch["input_ids"], batch["attention_mask"], labels, key, strict=True):
        text, target = " | ".join(PAIRS.texts[row]) + "\n", (PAIRS.labels or [])[row][0]
        prompt = byte_level(text)["input_ids"]
        answer = [*byte_level(target, add_special_tokens=False)["input_ids"], byte_level.eos_token_id]
        pads = [0] * (len(ids) - len(prompt) - len(answer))
        assert ids.tolist() == [*prompt, *answer, *pads]
        assert mask.tolist() == [1] * len(prompt + answer) + pads
        assert learnt.tolist() == [-100] * len(prompt) + answer + [-100] * len(pads)
    assert source.tokens(key) == int(batch["attention_mask"].sum())
    assert source.rows(key).tolist() == key.tolist()


def test_prompts_are_what_a_row_begins_with_padded_where_generation_does_not_go_on(byte_level):
    source = GenerationSource(encoded_of(byte_level, PAIRS), 2, pad_id=0)
    (key,) = source.plan()
    (whole, labels), prompts = source.load(key), source.prompts(key)
    assert labels is not None
    for ids, mask, row, learnt in zip(
        prompts["input_ids"], prompts["attention_mask"], whole["input_ids"], labels, strict=True
    ):
        asked = int((learnt != -100).int().argmax())
        assert ids[mask == 1].tolist() == row[:asked].tolist()
        assert mask.tolist() == sorted(mask.tolist())
    assert source.references(key) == [(PAIRS.labels or [])[i] for i in key]


def test_an_encoder_decoder_reads_the_input_and_is_told_the_target_one_place_later(closing):
    encoded = encoded_of(closing, PAIRS, encoder_decoder=True)
    source = GenerationSource(encoded, 2, pad_id=0, decoder_start_token_id=1)
    (key,) = source.plan()
    batch, labels = source.load(key)
    assert labels is not None
    for i, row in enumerate(key):
        read = batch["input_ids"][i][batch["attention_mask"][i] == 1].tolist()
        assert read == closing(" | ".join(PAIRS.texts[row]))["input_ids"]
        real = batch["decoder_attention_mask"][i] == 1
        assert labels[i][real].tolist() == closing((PAIRS.labels or [])[row][0])["input_ids"]
        assert batch["decoder_input_ids"][i][real].tolist() == [1, *labels[i][real].tolist()[:-1]]
        assert (labels[i][~real] == -100).all()
        assert (batch["decoder_input_ids"][i][~real] == 0).all()
    prompts = source.prompts(key)
    assert {name: x.tolist() for name, x in prompts.items()} == {name: batch[name].tolist() for name in prompts}
    with pytest.raises(ConfigError, match="decoder_start_token_id"):
        GenerationSource(encoded, 2, pad_id=0)


def test_a_decoders_prompt_never_ends_and_its_blank_goes_to_the_answers_word(byte_level, closing):
    rows, template = Rows([("film",)], [["good"]]), "text: {x} name: "
    encoded = encoded_of(byte_level, rows, template)
    assert encoded.targets is not None
    assert [*encoded.ids, *encoded.targets] == [*byte_level("text: film name: good")["input_ids"], 2]
    assert encoded.ids.tolist() == byte_level("text: film name:")["input_ids"]
    assert 2 not in encoded_of(closing, rows, template).ids
    assert encoded_of(closing, rows, template, encoder_decoder=True).ids[-1] == 2


def test_a_tokenizer_that_puts_a_blank_before_each_text_gets_no_second_one():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel({"?": 0, "</s>": 1, "▁a": 2, "▁good": 3, "▁": 4}, unk_token="?"))
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="?", eos_token="</s>")
    encoded = encoded_of(tokenizer, Rows([("a",)], [["good"]]), "{x} ")
    assert encoded.targets is not None
    assert (encoded.ids.tolist(), encoded.targets.tolist()) == ([2], [3, 1])


def test_slots_of_a_template_go_through_to_the_batch(byte_level):
    source = GenerationSource(
        encoded_of(byte_level, Rows([("film",)], [["good"]]), "{prompt:2}{x}\n{prompt}"), 1, pad_id=0
    )
    ids = source.load(source.plan()[0])[0]["input_ids"][0]
    assert ids[ids < 0].tolist() == [-1, -2, -3]
    assert ids[0] == byte_level.bos_token_id


def test_long_inputs_are_cut_and_targets_stay_whole(byte_level):
    rows = Rows([("film " * 50,), ("film",)], [["good"], ["bad " * 50]])
    encoded = encoded_of(byte_level, rows, "name: {x}\n", max_length=40, target_length=10)
    assert (encoded.truncated, encoded.truncated_targets) == (1, 1)
    assert encoded.targets is not None
    assert encoded.target_offsets is not None
    first = encoded.ids[: encoded.offsets[1]]
    assert len(first) == 30
    assert byte_level.decode(first.tolist()).startswith("<s>name: film film")
    assert byte_level.decode(first.tolist()).endswith("\n")
    good, bad = encoded.targets[: encoded.target_offsets[1]], encoded.targets[encoded.target_offsets[1] :]
    assert good[-1] == byte_level.eos_token_id
    assert (len(bad), byte_level.eos_token_id in bad) == (10, False)  # it does not end there


def test_a_target_of_just_the_longest_length_is_whole(byte_level):
    rows = Rows([("film",)], [["good bad good"]])
    length = len(encoded_of(byte_level, rows).targets)
    for longest, cut in ((length, 0), (length - 1, 1)):
        encoded = encoded_of(byte_level, rows, target_length=longest)
        assert (len(encoded.targets), encoded.truncated_targets) == (longest, cut)
        assert (encoded.targets[-1] == byte_level.eos_token_id) == (not cut)


def test_an_input_is_cut_alike_with_and_without_its_target(byte_level):
    rows = Rows([("film " * 50,)], [["good"]])
    scored, asked = (encoded_of(byte_level, part, max_length=40) for part in (rows, Rows(rows.texts)))
    assert scored.ids.tolist() == asked.ids.tolist()


def test_rows_without_references_have_prompts_only(byte_level):
    source = GenerationSource(encoded_of(byte_level, Rows(PAIRS.texts)), 2, pad_id=0)
    (key,) = source.plan()
    batch, labels = source.load(key)
    assert labels is None
    assert batch["input_ids"].tolist() == source.prompts(key)["input_ids"].tolist()
    with pytest.raises(DataError, match="no texts to compare with"):
        source.references(key)


@pytest.mark.parametrize("lengths", [{"target_length": 1}, {"target_length": 64}, {"max_length": 1}])
def test_lengths_without_room_are_refused(byte_level, lengths):
    with pytest.raises(ConfigError, match=r"target_length must be at least 2, got .*, and max_length at least"):
        encoded_of(byte_level, PAIRS, **lengths)


def test_a_tokenizer_without_an_end_cannot_generate(tokenizer):
    with pytest.raises(ConfigError, match="end-of-sequence token"):
        encoded_of(tokenizer, PAIRS)


def test_batches_are_a_function_of_seed_and_epoch_and_hold_like_lengths(byte_level):
    rows = Rows([("film " * (1 + i % 7),) for i in range(90)], [["good " * (1 + i % 5)] for i in range(90)])
    encoded = encoded_of(byte_level, rows)
    plan = [key.tolist() for key in GenerationSource(encoded, 8, pad_id=0, seed=3).plan(1)]
    assert sorted(row for key in plan for row in key) == list(range(90))
    assert plan == [key.tolist() for key in GenerationSource(encoded, 8, pad_id=0, seed=3).plan(1)]
    assert plan != [key.tolist() for key in GenerationSource(encoded, 8, pad_id=0, seed=3).plan(2)]
    ordered = [row for key in GenerationSource(encoded, 8, pad_id=0).plan() for row in key]
    assert encoded.lengths[ordered].tolist() == sorted(encoded.lengths.tolist())


def test_the_cache_gives_the_same_and_knows_the_references(byte_level, tmp_path, monkeypatch):
    first = encoded_of(byte_level, PAIRS, cache=tmp_path)
    encoded_of(byte_level, Rows(PAIRS.texts, [["film"], ["very bad"]]), cache=tmp_path)
    encoded_of(byte_level, Rows(PAIRS.texts), cache=tmp_path)
    encoded_of(byte_level, PAIRS, cache=tmp_path, target_length=23)
    assert len(list(tmp_path.iterdir())) == 4
    monkeypatch.setattr("intarsia.data.generation.fill", None)  # a second tokenisation would crash
    again = encoded_of(byte_level, PAIRS, cache=tmp_path)
    assert first.targets is not None
    assert again.targets is not None
    assert (again.ids.tolist(), again.targets.tolist()) == (first.ids.tolist(), first.targets.tolist())
    assert again.references == PAIRS.labels

"""Tokens equal those of transformers, labels sit where they belong, and the cache is never trusted blindly."""

from __future__ import annotations

import numpy as np
import pytest
import transformers as tf
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny
from intarsia import Backbone, Head, HeadOnly, Task, TaskBank
from intarsia.data import Rows, collate, encode
from intarsia.errors import ConfigError, DataError

LETTERS = st.lists(st.sampled_from("bcdefgh"), min_size=1, max_size=12).map(" ".join)


def flat(rows: list[list[int]]) -> list[int]:
    return [token for row in rows for token in row]


@pytest.mark.parametrize("side", ["right", "left"])
@given(
    texts=st.lists(st.tuples(LETTERS, LETTERS), min_size=1, max_size=5),
    max_length=st.integers(5, 20),
    pair=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_tokens_equal_those_of_transformers(tokenizer, side, texts, max_length, pair):
    rows = Rows(texts if pair else [text[:1] for text in texts])
    tokenizer.truncation_side = side
    try:
        encoded = encode(rows, tokenizer, max_length, "classification")
        columns = [list(column) for column in zip(*rows.texts, strict=True)]
        expected = tokenizer(*columns, truncation=True, max_length=max_length)
        whole = tokenizer(*columns)
    finally:
        tokenizer.truncation_side = "right"
    assert encoded.ids.tolist() == flat(expected["input_ids"])
    assert encoded.lengths.tolist() == [len(row) for row in expected["input_ids"]]
    assert encoded.truncated == sum(len(row) > max_length for row in whole["input_ids"])
    if pair:
        assert encoded.type_ids is not None
        assert encoded.type_ids.tolist() == flat(expected["token_type_ids"])
    else:
        assert encoded.type_ids is None
    assert encoded.ids.dtype == np.int32


def test_the_tokenizer_is_left_as_it_was_and_its_state_does_not_matter(tokenizer):
    rows = Rows([("good film",), ("the plot was not very bad",)])
    before = encode(rows, tokenizer, 16, "classification")
    tokenizer(["a", "good film"], padding="max_length", truncation=True, max_length=4)
    state = tokenizer.backend_tokenizer.to_str()
    after = encode(rows, tokenizer, 16, "classification")
    assert after.ids.tolist() == before.ids.tolist()
    assert tokenizer.backend_tokenizer.to_str() == state


def test_a_tokenizer_without_type_ids_gets_none(tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "model_input_names", ["input_ids", "attention_mask"])
    assert encode(Rows([("a", "b")]), tokenizer, 16, "classification").type_ids is None


@pytest.mark.parametrize(
    ("kind", "labels", "dtype", "shape"),
    [
        ("classification", [1, 0], np.int64, (2,)),
        ("regression", [0.5, -1.0], np.float32, (2,)),
        ("multi-label", [[1, 0, 1], [0, 0, 0]], np.float32, (2, 3)),
        ("classification", None, None, None),
    ],
)
def test_labels_have_the_type_that_the_loss_needs(tokenizer, kind, labels, dtype, shape):
    encoded = encode(Rows([("good",), ("bad film",)], labels), tokenizer, 8, kind)
    batch, targets = collate(encoded, [1, 0], 0)
    assert batch["input_ids"].tolist() == [[2, 5, 6, 3], [2, 4, 3, 0]]
    if labels is None:
        assert targets is None
        return
    assert targets is not None
    assert encoded.labels is not None
    assert (encoded.labels.dtype, tuple(targets.shape)) == (dtype, shape)
    assert targets.tolist() == labels[::-1]


def test_a_words_label_is_on_its_first_token_only(tokenizer):
    rows = Rows([("film-plot", "was", "good-bad-a"), ("the",)], [[1, 0, 2], [1]])
    encoded = encode(rows, tokenizer, 16, "token-classification")
    assert encoded.labels is not None
    assert encoded.words is not None
    # [CLS] film plot was good bad a [SEP]   [CLS] the [SEP]
    assert encoded.labels.tolist() == [-100, 1, -100, 0, 2, -100, -100, -100, -100, 1, -100]
    assert encoded.words.tolist() == [-1, 0, -1, 1, 2, -1, -1, -1, -1, 0, -1]
    assert (encoded.truncated, encoded.lost_words) == (0, 0)
    batch, labels = collate(encoded, [1, 0], 0, "left")
    assert labels is not None
    assert labels.shape == batch["input_ids"].shape
    assert labels[0].tolist() == [-100] * 6 + [1, -100]


def test_words_that_were_cut_are_counted(tokenizer):
    rows = Rows([("film-plot", "was", "good", "a"), ("the",), ("--", "bad")], [[1, 0, 2, 1], [1], [0, 2]])
    encoded = encode(rows, tokenizer, 5, "token-classification")
    assert encoded.labels is not None
    assert encoded.labels.tolist()[:5] == [-100, 1, -100, 0, -100]
    assert encoded.labels.tolist()[-3:] == [-100, 2, -100]  # the word without a token shifts no label
    assert (encoded.truncated, encoded.lost_words) == (1, 3)


def test_byte_level_words_keep_the_space_before_them():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel({"[UNK]": 0, "Ġgood": 1, "good": 2}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="[UNK]")
    assert encode(Rows([("good", "good")]), tokenizer, 8, "token-classification").ids.tolist() == [1, 1]
    assert encode(Rows([("good good",)]), tokenizer, 8, "classification").ids.tolist() == [2, 1]


def test_long_pairs_are_cut_without_keeping_what_overflows(tokenizer):
    long = "good film " * 30_000  # tokenizers' own cutting would keep millions of combined parts
    encoded = encode(Rows([(long, long)]), tokenizer, 16, "classification")
    assert (len(encoded.ids), encoded.truncated) == (16, 1)


def test_more_rows_than_one_chunk(tokenizer):
    texts = [("good film plot"[: 4 + 5 * (i % 3)],) for i in range(9001)]
    encoded = encode(Rows(texts), tokenizer, 8, "classification")
    assert encoded.lengths.tolist() == [3 + i % 3 for i in range(9001)]


def test_max_length_must_leave_room_for_the_text(tokenizer):
    with pytest.raises(ConfigError, match="max_length must be at least 5"):
        encode(Rows([("a", "b")]), tokenizer, 4, "classification")
    with pytest.raises(ConfigError, match="max_length must be at least 3"):
        encode(Rows([("a",)]), tokenizer, -1, "classification")


class InPython(tf.PythonBackend):
    """A tokenizer without the tokenizers library."""

    vocab_size = 97

    def get_vocab(self):
        return {f"w{i}": i for i in range(97)}


@pytest.mark.parametrize("kind", ["classification", "token-classification", "generation"])
def test_a_tokenizer_that_splits_texts_in_python_is_refused_in_one_line(kind):
    rows = Rows([("a",)])
    with pytest.raises(ConfigError, match="InPython splits them in Python; give a PreTrainedTokenizerFast") as error:
        if kind == "generation":
            bank = TaskBank(Backbone.wrap(tiny.build("gpt2"), tokenizer=InPython()))
            bank.add(Task.new("t", bank.backbone, HeadOnly(), Head(kind="generation")))
            bank.predict(["a"], "t")
        encode(rows, InPython(), 8, kind)
    assert "\n" not in str(error.value)


def test_a_text_without_tokens_is_an_error(tokenizer):
    import copy

    bare = copy.deepcopy(tokenizer)
    from tokenizers import processors

    bare.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A", pair="$A $B:1", special_tokens=[]
    )
    with pytest.raises(DataError, match=r"row 2: the tokenizer makes no token of \('---',\)"):
        encode(Rows([("a",), ("---",)]), bare, 8, "classification")


PAIRS = Rows([("good film", "the plot"), ("bad", "a cast was not very good")], [1, 0])


def same(left, right) -> bool:
    return all(
        np.array_equal(getattr(left, name), getattr(right, name))
        for name in ("ids", "offsets", "type_ids", "labels", "truncated")
    )


def test_the_cache_is_used_and_gives_the_same(tokenizer, tmp_path, monkeypatch):
    first = encode(PAIRS, tokenizer, 8, "classification", tmp_path / "cache")
    (file,) = (tmp_path / "cache").iterdir()
    assert file.suffix == ".safetensors"
    monkeypatch.setattr("intarsia.data.encoding._tokenise", None)  # a second tokenisation would crash
    second = encode(PAIRS, tokenizer, 8, "classification", tmp_path / "cache")
    assert same(first, second)
    assert second.truncated == 1
    assert second.notes == ()


def test_labels_are_never_taken_from_the_cache(tokenizer, tmp_path):
    encode(PAIRS, tokenizer, 8, "classification", tmp_path)
    other = encode(Rows(PAIRS.texts, [0, 0]), tokenizer, 8, "classification", tmp_path)
    assert other.labels is not None
    assert other.labels.tolist() == [0, 0]
    assert len(list(tmp_path.iterdir())) == 1
    words = Rows([("film-plot", "was")], [[0, 1]])
    encode(words, tokenizer, 8, "token-classification", tmp_path)
    swapped = encode(Rows(words.texts, [[1, 0]]), tokenizer, 8, "token-classification", tmp_path)
    assert swapped.labels is not None
    assert swapped.labels.tolist() == [-100, 1, -100, 0, -100]


def test_other_texts_lengths_or_tokenizers_have_other_files(tokenizer, tmp_path, monkeypatch):
    encode(PAIRS, tokenizer, 8, "classification", tmp_path)
    encode(PAIRS, tokenizer, 9, "classification", tmp_path)
    encode(Rows([*PAIRS.texts, ("a", "b")]), tokenizer, 8, "classification", tmp_path)
    monkeypatch.setattr(tokenizer, "truncation_side", "left")
    encode(PAIRS, tokenizer, 8, "classification", tmp_path)
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize("damage", ["truncated", "empty", "one byte", "garbage", "folder"])
def test_a_damaged_cache_file_is_made_again_and_said(tokenizer, tmp_path, damage):
    first = encode(PAIRS, tokenizer, 8, "classification", tmp_path)
    (file,) = tmp_path.iterdir()
    raw = file.read_bytes()
    if damage == "folder":
        file.unlink()
        file.mkdir()
    else:
        flipped = raw[:-40] + bytes([raw[-40] ^ 1]) + raw[-39:]
        file.write_bytes({"truncated": raw[:-9], "empty": b"", "one byte": flipped, "garbage": b"\xff" * 500}[damage])
    second = encode(PAIRS, tokenizer, 8, "classification", tmp_path)
    assert same(first, second)
    assert "made again" in second.notes[0]
    if damage != "folder":
        assert encode(PAIRS, tokenizer, 8, "classification", tmp_path).notes == ()


def test_a_cache_that_cannot_be_written_is_said_and_harmless(tokenizer, tmp_path):
    (tmp_path / "file").write_text("in the way")
    encoded = encode(PAIRS, tokenizer, 8, "classification", tmp_path / "file")
    assert len(encoded) == 2
    assert "not written" in encoded.notes[0]

"""A template is read as written, shows the place of what is wrong, and loses fields only when a row is too long."""

from __future__ import annotations

import copy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from intarsia.data import DataSpec, EncodedSource, Rows, Template, encode, load_data
from intarsia.data.template import Field, Mask, Slots
from intarsia.errors import ConfigError, DataError

WORDS = st.lists(st.sampled_from("bcdefgh"), min_size=1, max_size=12).map(" ".join)


@pytest.fixture(scope="module")
def masked(tokenizer):
    """The tokenizer of the other tests with a mask token."""
    own = copy.deepcopy(tokenizer)
    own.add_special_tokens({"mask_token": "[MASK]"})
    return own


def tokens(tokenizer, ids) -> list[str | int]:
    return [int(i) if i < 0 else tokenizer.convert_ids_to_tokens(int(i)) for i in ids]


def test_parts_are_read_in_order_and_slots_are_numbered_over_the_template():
    template = Template.parse("{prompt:2}{a} is {{so}} {prompt} {mask} {b c}.{ a }")
    assert template.parts == (
        Slots(0, 2), Field("a"), " is {so} ", Slots(2, 1), " ", Mask(), " ", Field("b c"), ".", Field("a"),
    )  # fmt: skip
    assert (template.columns, template.prompt_length, template.has_mask) == (("a", "b c"), 3, True)
    assert not Template.parse("{a}").has_mask


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{a} is {b", "character 8 ('{a} is {b', at '{b'): a single '{'; write '{{' for a brace"),
        ("{a} } x", "character 5 ('{a} } x', at '} x'): a single '}'"),
        ("{a}{}", "character 4 ('{a}{}', at '{}'): empty braces"),
        ("{a}{prompt:0}", "{prompt:0}, expected the number of slots, as in {prompt:3}"),
        ("{a}{prompt:x}", "{prompt:x}, expected the number of slots"),
        ("{mask} only", "names no column"),
        ("{a}{mask}{mask}", "more than one {mask}"),
        ("", "names no column"),
    ],
)
def test_what_cannot_be_read_is_shown_with_its_place(text, message):
    with pytest.raises(ConfigError) as caught:
        Template.parse(text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"template": "{a"}, "a single '{'"),
        ({"template": "{a}", "text_columns": ("b",)}, "are not the template's fields"),
        ({"template": "{a}", "label_column": "a"}, "must differ"),
        ({"template": "{a}", "kind": "token-classification"}, "needs its words"),
        ({"template": "{a} {mask}", "kind": "generation"}, "take it out of the generation template"),
    ],
)
def test_a_template_that_does_not_fit_the_spec_is_refused(spec, message):
    with pytest.raises(ConfigError) as caught:
        DataSpec(train="a.csv", **spec)
    assert message in str(caught.value)


def test_a_template_names_its_columns_any_number_of_them(write):
    path = write("a.csv", "x,y,z,label\ngood,film,a,1\nbad,plot,the,0\n")
    splits = load_data(DataSpec(train=path, validation=path, template="{z} {x}, {y}: {mask}"))
    assert splits.text_columns == ("z", "x", "y")
    assert splits.split("train").texts[0] == ("a", "good", "film")
    other = load_data(DataSpec(train=path, validation=path, template="{z} {x} {y} {mask}"))
    assert other.fingerprint != splits.fingerprint
    with pytest.raises(DataError, match="no column 'w'"):
        load_data(DataSpec(train=path, template="{w} {x}"))


def test_slots_mask_and_anchors_stand_where_the_template_says(masked):
    template = Template.parse("{prompt:2} {x} was {prompt}{mask} {y}")
    encoded = encode(Rows([("good film", "bad")], [0]), masked, 32, "classification", template=template)
    assert tokens(masked, encoded.ids) == ["[CLS]", -1, -2, "good", "film", "was", -3, "[MASK]", "bad", "[SEP]"]
    assert encoded.type_ids is None
    batch, labels = EncodedSource(encoded, 1, pad_id=0).load(EncodedSource(encoded, 1, pad_id=0).plan()[0])
    assert batch["input_ids"][0].tolist() == encoded.ids.tolist()
    assert batch["attention_mask"].all()
    assert labels is not None
    assert labels.tolist() == [0]


def test_a_row_cannot_bring_a_mask_of_its_own(masked):
    template = Template.parse("{x} {mask}")
    encoded = encode(Rows([("good [MASK] film",)]), masked, 32, "classification", template=template)
    assert tokens(masked, encoded.ids) == ["[CLS]", "good", "film", "[MASK]", "[SEP]"]


def test_a_mask_needs_a_tokenizer_that_has_one(byte_level):
    with pytest.raises(ConfigError, match="has no mask token; leave"):
        encode(Rows([("a",)]), byte_level, 32, "classification", template=Template.parse("{x} {mask}"))


def test_text_and_fields_are_tokenised_as_one_string(byte_level):
    template = Template.parse("the {x} was: {y} ")
    encoded = encode(Rows([("film", "not very good")]), byte_level, 64, "classification", template=template)
    assert encoded.ids.tolist() == byte_level("the film was: not very good")["input_ids"]


def test_no_blank_is_left_alone_before_a_slot(byte_level):
    encoded = encode(Rows([("film",)]), byte_level, 64, "classification", template=Template.parse("{x} {prompt} was"))
    bos, film, was = (byte_level(text, add_special_tokens=False)["input_ids"] for text in ("<s>", "film", " was"))
    assert encoded.ids.tolist() == [*bos, *film, -1, *was]


@pytest.mark.parametrize("side", ["right", "left"])
@given(texts=st.tuples(WORDS, WORDS, WORDS), max_length=st.integers(10, 60))
@settings(max_examples=60, deadline=None)
def test_only_fields_are_cut_and_the_longest_first(masked, side, texts, max_length):
    template = Template.parse("{x} the {prompt:2} {y} {mask} was {z}")
    masked.truncation_side = side
    try:
        encoded = encode(Rows([texts]), masked, max_length, "classification", template=template)
    finally:
        masked.truncation_side = "right"
    got = tokens(masked, encoded.ids)
    own = ["[CLS]", "the", -1, -2, "[MASK]", "was", "[SEP]"]
    assert [token for token in got if token in own] == own
    whole = [text.split() for text in texts]
    parts = [got[1 : got.index("the")], got[got.index(-2) + 1 : got.index("[MASK]")], got[got.index("was") + 1 : -1]]
    for part, words in zip(parts, whole, strict=True):
        assert part == (words[: len(part)] if side == "right" else words[len(words) - len(part) :])
    sizes, kept = [len(words) for words in whole], [len(part) for part in parts]
    assert sum(kept) == min(sum(sizes), max_length - len(own))
    assert encoded.truncated == (sum(sizes) + len(own) > max_length)
    # What was cut is, but for a remainder of one, as long as the longest that stayed.
    assert all(k == size or k >= max(kept) - 1 for k, size in zip(kept, sizes, strict=True))


def test_cutting_knows_fields_by_the_string_that_they_are_in(byte_level):
    template = Template.parse("name: {x} text: {y}")
    long = Rows([("film", "good " * 40)])
    encoded = encode(long, byte_level, 30, "classification", template=template)
    kept = byte_level.decode(encoded.ids.tolist())
    assert kept.startswith("<s>name: film text: good good")
    assert (len(encoded.ids), encoded.truncated) == (30, 1)


def test_a_max_length_without_room_for_the_template_says_how_much_it_takes(masked):
    with pytest.raises(ConfigError, match=r"max_length must be at least 6, .* got 5"):
        encode(Rows([("a",)]), masked, 5, "classification", template=Template.parse("{prompt:2} the {x}"))


def test_rows_of_another_shape_are_refused(masked):
    with pytest.raises(DataError, match=r"takes 2 text\(s\) per row \(x, y\), got 1"):
        encode(Rows([("a",)]), masked, 20, "classification", template=Template.parse("{x} {y}"))


def test_the_cache_knows_the_template(masked, tmp_path, monkeypatch):
    rows = Rows([("good", "film")])
    first = encode(rows, masked, 20, "classification", tmp_path, template=Template.parse("{x} {mask} {y}"))
    encode(rows, masked, 20, "classification", tmp_path, template=Template.parse("{x} {y} {mask}"))
    encode(rows, masked, 20, "classification", tmp_path)
    assert len(list(tmp_path.iterdir())) == 3
    monkeypatch.setattr("intarsia.data.encoding.fill", None)  # a second tokenisation would crash
    again = encode(rows, masked, 20, "classification", tmp_path, template=Template.parse("{x} {mask} {y}"))
    assert again.ids.tolist() == first.ids.tolist()

"""Rows of generation: references are kept together, and inputs stay on one side of a split."""

from __future__ import annotations

import json

import pytest

from intarsia.data import DataSpec, load_data
from intarsia.errors import ConfigError, DataError

E2E = "mr,ref\na film,good film\na film,the film was good\nthe plot,bad plot\na film,very good\nthe cast,a cast\n"


def generation(write, content: str = E2E, **more):
    path = write("a.csv", content)
    return load_data(
        DataSpec(**{"train": path, "validation": path, "text_columns": ("mr",), "kind": "generation"} | more)
    )


def test_training_has_a_row_per_reference_and_scoring_a_row_per_input(write):
    splits = generation(write, test=write("t.csv", E2E))
    assert (splits.kind, splits.labels, splits.label_column) == ("generation", (), "ref")
    assert len(splits.split("train")) == 5
    assert splits.split("train").labels == [
        ["good film"],
        ["the film was good"],
        ["bad plot"],
        ["very good"],
        ["a cast"],
    ]
    for name in ("validation", "test"):
        rows = splits.split(name)
        assert rows.texts == [("a film",), ("the plot",), ("the cast",)]
        assert rows.labels == [["good film", "the film was good", "very good"], ["bad plot"], ["a cast"]]
        assert f"{name}: 5 rows, 3 distinct inputs" in splits.notes


def test_a_list_of_references_is_the_same_as_rows_of_one(write):
    lists = [{"mr": "x", "refs": ["one", "two"]}, {"mr": "y", "refs": "three"}]
    path = write("a.jsonl", "".join(json.dumps(row) + "\n" for row in lists))
    spec = DataSpec(train=path, validation=path, text_columns=("mr",), kind="generation")
    splits = load_data(spec)
    assert splits.split("train").texts == [("x",), ("x",), ("y",)]
    assert splits.split("train").labels == [["one"], ["two"], ["three"]]
    assert splits.split("validation").labels == [["one", "two"], ["three"]]


def test_no_input_is_on_both_sides_of_a_drawn_validation_split(write):
    lines = [f"input {i % 40},reference {i}" for i in range(200)]
    path = write("a.csv", "mr,ref\n" + "\n".join(lines))
    splits = load_data(DataSpec(train=path, text_columns=("mr",), kind="generation"))
    train, validation = splits.split("train"), splits.split("validation")
    assert not set(train.texts) & set(validation.texts)
    assert (len(train), len(validation)) == (180, 4)
    assert [len(references) for references in validation.labels or []] == [5] * 4


def test_a_test_file_without_references_can_still_be_generated_for(write):
    splits = generation(write, test=write("t.csv", "mr\na film\na film\n"))
    assert splits.split("test").labels is None
    assert len(splits.split("test")) == 2


def test_generation_is_never_guessed_but_named(write):
    lines = "".join(f"input {i},reference {i}\n" for i in range(30))
    with pytest.raises(DataError, match=r"hardly classes; .* set kind to generation, regression or classification"):
        load_data(DataSpec(train=write("a.csv", "text,label\n" + lines)))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"mr": "x", "ref": "a"}, {"mr": "y", "ref": " "}], "line 2: no text to generate in column 'ref'"),
        ([{"mr": "x", "ref": "a"}, {"mr": "y", "ref": []}], "line 2: no text to generate"),
        ([{"mr": "x", "ref": "a"}, {"mr": "y"}], "line 2: no text to generate"),
        ([{"mr": "x", "ref": ["a", ""]}], "line 1: no text to generate"),
        ([{"mr": "x", "ref": 3}], "holds an int; generation needs text or a list of texts; for labels to be generated"),
        ([{"mr": "x", "ref": ["\ud800"]}], "half a surrogate pair"),
    ],
)
def test_a_bad_target_is_one_clear_line(write, rows, message):
    path = write("a.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError) as caught:
        load_data(DataSpec(train=path, validation=path, text_columns=("mr",), label_column="ref", kind="generation"))
    assert message in str(caught.value)


CLASSES = "text,label\ngood film,1\nbad film,0\ngood film,0\nvery good,1.0\n"


def test_text_to_text_generates_a_word_for_each_label_and_groups_nothing(write):
    path = write("a.csv", CLASSES)
    spec = DataSpec(train=path, validation=path, kind="generation", text_to_text=True, label_words={"1": " great "})
    splits = load_data(spec)
    assert (splits.kind, splits.labels, splits.label_column) == ("generation", ("0", "great"), "label")
    assert splits.split("train").labels == [["great"], ["0"], ["0"], ["great"]]
    assert splits.split("validation").labels == splits.split("train").labels


def test_text_to_text_validation_is_stratified_by_label(write):
    lines = "".join(f"row {i},{'rare' if i % 10 == 0 else 'common'}\n" for i in range(200))
    path = write("a.csv", "text,label\n" + lines)
    splits = load_data(DataSpec(train=path, kind="generation", text_to_text=True))
    assert (splits.split("validation").labels or []).count(["rare"]) == 2
    assert len(splits.split("validation")) == 20


def test_a_text_to_text_task_brings_its_own_words(write):
    path, words = write("a.csv", CLASSES), {"0": "bad", "1": "great"}
    spec = {"test": path, "kind": "generation", "text_to_text": True}
    splits = load_data(DataSpec(**spec, labels=("great", "so-so", "bad"), label_words=words))
    assert splits.labels == ("great", "so-so", "bad")
    assert splits.split("test").labels == [["great"], ["bad"], ["bad"], ["great"]]
    with pytest.raises(DataError, match="label '1' is not among the training labels great, bad"):
        load_data(DataSpec(**spec, labels=("great", "bad")))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"0": "x", "1": "x "}, "labels '0' and '1' would both be generated as 'x'"),
        ({"0": "1"}, "labels '0' and '1' would both be generated as '1'"),
        ({"2": "x"}, "label_words names '2', and the labels are 0, 1"),
        ({"0": " "}, "the word of label '0' is empty"),
    ],
)
def test_words_that_cannot_tell_labels_apart_are_refused(write, words, message):
    path = write("a.csv", CLASSES)
    with pytest.raises(ConfigError, match=message):
        load_data(DataSpec(train=path, validation=path, kind="generation", text_to_text=True, label_words=words))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"text_to_text": True}, "set kind to generation, got None"),
        ({"text_to_text": True, "kind": "classification"}, "set kind to generation, got 'classification'"),
        ({"label_words": {"a": "b"}, "kind": "generation"}, "set text_to_text to true"),
        ({"labels": ("a", "b"), "kind": "generation"}, "legal outputs of a text-to-text task"),
    ],
)
def test_settings_of_generation_that_contradict_each_other(spec, message):
    with pytest.raises(ConfigError, match=message):
        DataSpec(train="a.csv", **spec)

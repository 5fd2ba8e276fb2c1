"""Bad input gives one clear line that names the place and what to do, never a traceback of ours."""

# ruff: noqa: E501 - the tables read best with one case per line

from __future__ import annotations

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from intarsia.data import DataSpec, load_data, load_rows_for_prediction
from intarsia.errors import ConfigError, DataError

GOOD = "text,label\ngood,a\nbad,b\nfine,a\nweak,b\n"


def jsonl(*rows: object) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


# name: (file name, content, more of the spec, fragment of the message)
FILES = {
    "missing column": ("a.csv", GOOD, {"text_columns": ("txt",)}, "no column 'txt' (--text-columns); its columns are text, label; did you mean 'text'?"),
    "missing label column": ("a.csv", GOOD, {"label_column": "lable"}, "did you mean 'label'?"),
    "no label column to guess": ("a.csv", "text,x,y\nq,1,2\n", {}, "which column is the label? The columns are text, x, y"),
    "no text column to guess": ("a.csv", "p,q,label\na b,c d,1\n", {}, "which column is the text? The columns are p, q, label; say which with --text-columns"),
    "no header": ("a.tsv", "0\tgood film\n1\tbad film\n0\tno plot\n", {}, "which column is the label? The columns are 0, good film; say which with --label-column c"),
    "empty file": ("a.csv", "", {}, "the file is empty"),
    "zero rows": ("a.csv", "text,label\n", {}, "zero rows; expected at least one after the header line"),
    "zero rows of JSON": ("a.jsonl", "\n\n", {}, "zero rows; expected at least one"),
    "blank CSV": ("a.csv", "\n\n", {}, "zero rows; the first line must name the columns"),
    "duplicate column": ("a.csv", "text,label,text\nx,1,y\n", {}, "column 'text' occurs 2 times"),
    "duplicate key": ("a.jsonl", '{"text": "x", "label": 1, "text": "y"}', {}, "line 1: not valid JSON: duplicate key 'text'"),
    "ragged, too short": ("a.csv", GOOD + "short\n", {}, "a.csv, line 6: 1 field, but the header names 2 columns"),
    "ragged, too long": ("a.tsv", "text\tlabel\nx\ty\tz\n", {}, "line 2: 3 fields, but the header names 2 columns; TSV is read without quoting"),
    "quote never closed": ("a.csv", GOOD + '"open,a\nmore,b\n', {}, "a.csv, line 6: broken quoting"),
    "text after a quote": ("a.csv", GOOD + '"shut"x,a\n', {}, "a.csv, line 6: broken quoting"),
    "mixed encodings": ("a.csv", b"text,label\ngood,a\ncr\xe8me,b\n", {}, "a.csv, line 3: byte 0xe8 is not UTF-8"),
    "mixed encodings after a BOM": ("a.csv", b"\xef\xbb\xbftext,label\n\xe8,a\n", {}, "a.csv, line 2: byte 0xe8 is not UTF-8"),
    "UTF-16": ("a.csv", GOOD.encode("utf-16"), {}, "UTF-16, expected UTF-8"),
    "UTF-32": ("a.csv", GOOD.encode("utf-32"), {}, "UTF-32, expected UTF-8; convert it with `iconv -f UTF-32"),
    "UTF-32, the other way round": ("a.csv", b"\x00\x00\xfe\xff" + GOOD.encode("utf-32-be"), {}, "UTF-32, expected"),
    "semicolons": ("a.csv", GOOD.replace(",", ";"), {}, "a.csv: columns must be separated by commas, and ';' stands between those of the header 'text;label'; write the file with commas"),
    "semicolons, and commas in the texts": ("a.csv", "text;label\nyes, good;a\n", {}, "separated by commas, and ';' stands"),
    "tabs": ("a.csv", GOOD.replace(",", "\t"), {}, "write the file with commas, or name it .tsv"),
    "commas": ("a.tsv", GOOD, {}, "columns must be separated by tabs, and ',' stands between those of the header 'text,label'; write the file with tabs, or name it .csv"),
    "carriage returns alone": ("a.tsv", GOOD.replace(",", "\t").replace("\n", "\r"), {}, "a.tsv: its lines end in a carriage return alone; convert it with `tr"),
    "carriage returns alone in JSON": ("a.jsonl", jsonl({"text": "x"}, {"text": "y"}).replace("\n", "\r"), {}, "carriage return alone"),
    "NUL byte": ("a.tsv", b"text\tlabel\nx\0y\ta\n", {}, "line 2: a NUL byte"),
    "gzip without its name": ("a.csv", gzip.compress(GOOD.encode()), {}, "add .gz to the file's name"),
    "gzip in name only": ("a.csv.gz", GOOD.encode(), {}, "not a complete gzip file"),
    "truncated gzip": ("a.csv.gz", gzip.compress(GOOD.encode() * 50)[:-20], {}, "not a complete gzip file"),
    "unknown format": ("a.xlsx", GOOD, {}, "unknown format, expected .csv, .tsv"),
    "a JSON document": ("a.json", "[]", {}, "JSON must be one object per line, in a .jsonl file"),
    "not JSON": ("a.jsonl", '{"text": "x", "label": 1}\n{text: 1}\n', {}, "a.jsonl, line 2: not valid JSON"),
    "JSON list per line": ("a.jsonl", '["x", 1]\n', {}, "a JSON list; expected one object per line"),
    "JSON nesting bomb": ("a.jsonl", '{"text": ' + "[" * 1_000_000 + "]" * 1_000_000 + "}", {}, "line 1: JSON nested too deeply"),
    "JSON integer of 5,000 digits": ("a.jsonl", '{"text": "x", "label": ' + "1" * 5000 + "}", {}, "line 1: not valid JSON"),
    "half a surrogate pair": ("a.jsonl", '{"text": "\\ud800", "label": 1}\n{"text": "x", "label": 2}', {}, "half a surrogate pair"),
    "half a surrogate pair in a label": ("a.jsonl", '{"text": "w", "label": "\\ud800"}\n{"text": "x", "label": "b"}', {}, "a.jsonl: column 'label' holds half a surrogate pair"),
    "half a surrogate pair for a column": ("a.jsonl", '{"\\ud800": "w", "label": 1}\n', {}, "the name of a column holds half a surrogate pair"),
    "not Parquet": ("a.parquet", GOOD, {}, "not a readable Parquet file"),
    "empty text": ("a.csv", GOOD + ",a\n  ,b\n", {}, "a.csv, line 6: empty text in column 'text'; fill it or drop the row; 2 such rows of 6"),
    "text missing in JSON": ("a.jsonl", jsonl({"text": "x", "label": 1}, {"label": 2}), {}, "line 2: empty text"),
    "text is a number": ("a.jsonl", jsonl({"text": 3, "label": 1}), {}, "holds an int, expected text"),
    "one class only": ("a.csv", "text,label\nx,a\ny,a\n", {}, "holds one label, 'a'; there is nothing to learn"),
    "no label": ("a.csv", GOOD + "x,\n", {}, "a.csv, line 6: no label in column 'label'; 1 such row of 5"),
    "label is an object": ("a.jsonl", jsonl({"text": "x", "label": {}}, {"text": "y", "label": 1}), {}, "holds a dict"),
    "fractions as classes": ("a.csv", "text,label\nx,1\ny,0.5\n", {"kind": "classification"}, "line 3: column 'label' holds fractions such as 0.5"),
    "nan in regression": ("a.csv", "text,label\nx,0.5\ny,nan\n", {}, "a.csv, line 3: nan in column 'label'; regression needs finite numbers"),
    "inf in regression": ("a.jsonl", '{"text": "x", "label": 0.5}\n{"text": "y", "label": Infinity}', {}, "line 2: inf in column"),
    "beyond fp32 in regression": ("a.csv", "text,label\nx,0.5\ny,1e200\n", {}, "a.csv, line 3: 1e+200 in column 'label'; regression needs finite numbers, up to 1e+38"),
    "word in regression": ("a.csv", "text,label\nx,0.5\ny,high\n", {"kind": "regression"}, "line 3: 'high' in column 'label' is no number"),
    "every label different": ("a.csv", "text,label\n" + "".join(f"t {i},l{i}\n" for i in range(30)), {}, "30 different values in 30 rows, hardly classes"),
    "label column taken as text": ("a.csv", GOOD, {"text_columns": ("label",)}, "which column is the label? The columns are text, label"),
    "tags and words differ": ("a.jsonl", jsonl({"tokens": ["a", "b"], "tags": ["O"]}), {}, "line 1: 2 words but 1 tags"),
    "an empty word": ("a.jsonl", jsonl({"tokens": ["a", " "], "tags": ["O", "O"]}), {}, "line 1: no words, or an empty word"),
    "token-classification in CSV": ("a.csv", GOOD, {"kind": "token-classification"}, "needs a list of words per row, in JSONL or Parquet"),
    "words where text is needed": ("a.jsonl", jsonl({"tokens": ["a"], "tags": ["O"]}), {"kind": "classification"}, "holds a list; classification needs text"),
    "list missing in one row": ("a.jsonl", jsonl({"text": "x", "labels": ["a"]}, {"text": "y"}), {}, "line 2: None in column 'labels'; multi-label needs a list"),
}  # fmt: skip


# name: (type of the second column, its value in every row, fragment of the message)
COLUMNS = {
    "dates beyond Python's": (pa.timestamp("ms"), 2**60, "a.parquet: column 'label' of type timestamp[ms] cannot be read"),
    "bytes": (pa.binary(), b"pos", "a.parquet, row 1: column 'label' holds a bytes; classification needs one value per row"),
    "a map": (pa.map_(pa.string(), pa.int64()), [("a", 1)], "row 1: [('a', 1)] in column 'label'; multi-label needs a list of labels"),
    "lists of bytes": (pa.list_(pa.binary()), [b"a"], "row 1: [b'a'] in column 'label'; multi-label needs a list of labels"),
}  # fmt: skip


@pytest.mark.parametrize(("kind", "value", "message"), COLUMNS.values(), ids=COLUMNS)
def test_a_parquet_column_that_holds_no_labels(tmp_path, kind, value, message):
    table = pa.table({"text": ["x", "y"], "label": pa.array([value] * 2, kind)})
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(DataError) as caught:
        load_data(DataSpec(train=tmp_path / "a.parquet"))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_is_said_to_be_one(tmp_path):
    for name in ("plain", "a.csv"):
        (tmp_path / name).mkdir()
        with pytest.raises(DataError, match="is a folder; expected a file"):
            load_data(DataSpec(train=tmp_path / name))


@pytest.mark.parametrize(("name", "content", "more", "message"), FILES.values(), ids=FILES)
def test_a_bad_training_file_is_one_clear_line(write, name, content, more, message):
    with pytest.raises(DataError) as caught:
        load_data(DataSpec(train=write(name, content), **more))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


# name: (content of the second file, its split, fragment of the message)
SECOND = {
    "label unseen in training": ("text,label\nx,a\ny,c\n", "test", "t.csv, line 3: label 'c' is not among the training labels a, b"),
    "misspelt label": ("text,label\nx,a \ny,B\n", "validation", "t.csv, line 3: label 'B' is not among the training labels a, b"),
    "text column missing": ("sentence,label\nx,a\n", "test", "t.csv: no column 'text' (--text-columns); its columns are sentence, label"),
    "label column missing": ("text,lable\nx,a\n", "validation", "no label column 'label'; its columns are text, lable; did you mean 'lable'?"),
    "one label missing": ("text,label\nx,a\ny,\n", "test", "t.csv, line 3: no label in column 'label'"),
}  # fmt: skip


@pytest.mark.parametrize(("content", "split", "message"), SECOND.values(), ids=SECOND)
def test_a_second_file_that_does_not_fit_the_first(write, content, split, message):
    train, second = write("a.csv", GOOD), write("t.csv", content)
    with pytest.raises(DataError) as caught:
        load_data(DataSpec(train=train, **{split: second}))
    assert message in str(caught.value)


# name: (spec, fragment of the message)
SPECS = {
    "nothing": ({}, "no data given"),
    "both": ({"data": "embedded:movies", "train": "a.csv"}, "give one or the other"),
    "neither embedded nor hub": ({"data": "train.csv"}, "data must be embedded:NAME or hub:NAME, got 'train.csv'; give a file with --train"),
    "misspelt set": ({"data": "embedded:question"}, "no embedded data set 'question'; there are movies"),
    "odd hub name": ({"data": "hub:a/b/c/d"}, "hub:a/b/c/d is no data set"),
    "no hub name": ({"data": "hub:"}, "hub: is no data set"),
    "misspelt kind": ({"train": "a.csv", "kind": "clasification"}, "did you mean 'classification'?"),
    "three text columns": ({"train": "a.csv", "text_columns": ("a", "b", "c")}, "one column, or two for a pair"),
    "text columns as a string": ({"train": "a.csv", "text_columns": "ab"}, "one column, or two for a pair"),
    "the same column twice": ({"train": "a.csv", "text_columns": ("a", "a")}, "must differ"),
    "fraction of 1": ({"train": "a.csv", "validation_fraction": 1.0}, "between 0 and 1, got 1.0"),
    "fraction of nan": ({"train": "a.csv", "validation_fraction": float("nan")}, "between 0 and 1, got nan"),
    "negative seed": ({"train": "a.csv", "split_seed": -1}, "must not be negative"),
}  # fmt: skip


@pytest.mark.parametrize(("spec", "message"), SPECS.values(), ids=SPECS)
def test_a_bad_spec_says_what_was_expected(spec, message):
    with pytest.raises((ConfigError, DataError)) as caught:
        load_data(DataSpec(**spec))
    assert message in str(caught.value)


def test_a_missing_file_names_its_nearest_neighbour(write):
    path = write("train.csv", GOOD)
    with pytest.raises(DataError, match=r"trian\.csv: no such file; did you mean 'train\.csv'\?"):
        load_data(DataSpec(train=path.with_name("trian.csv")))
    with pytest.raises(DataError, match=r"no such file$"):
        load_rows_for_prediction(path.parent / "nowhere" / "train.csv")


def test_a_folder_is_not_a_file(tmp_path):
    (tmp_path / "a.csv").mkdir()
    with pytest.raises(DataError, match="is a folder; expected a file"):
        load_data(DataSpec(train=tmp_path / "a.csv"))


def test_one_row_is_too_few_to_split(write):
    with pytest.raises(
        DataError, match="one training text for each of the 2 labels, so none can be set aside; give a validation file"
    ):
        load_data(DataSpec(train=write("a.csv", "text,label\nx,a\ny,b\n")))


def test_two_parquet_columns_of_one_name(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_arrays([pa.array(["x"]), pa.array(["y"])], ["text", "text"]), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="column 'text' occurs 2 times"):
        load_data(DataSpec(train=tmp_path / "a.parquet"))

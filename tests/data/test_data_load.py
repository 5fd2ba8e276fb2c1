"""Files, embedded sets and the hub become checked rows; what was guessed is said."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter

import pytest

from intarsia.data import DataSpec, load_data, load_rows_for_prediction
from intarsia.errors import DataError

CSV = "text,label\ngood film,pos\nbad film,neg\nvery good,pos\nvery bad,neg\n"


def test_importing_the_package_loads_no_heavy_module():
    code = (
        "import sys, intarsia.data; "
        "print([m for m in ('torch', 'datasets', 'pandas', 'pyarrow', 'transformers') if m in sys.modules])"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


def test_every_format_gives_the_same_rows(write, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"text": 'a "good", film', "label": "pos"}, {"text": "crème brûlée", "label": "neg"}] * 3
    rows = [{**row, "text": f"{row['text']} {i}"} for i, row in enumerate(rows)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    quoted = [(row["text"].replace('"', '""'), row["label"]) for row in rows]
    comma = "text,label\r\n" + "".join(f'"{text}",{label}\r\n' for text, label in quoted)
    tab = "text\tlabel\n" + "".join(f"{row['text']}\t{row['label']}\n" for row in rows)
    paths = [
        write("a.csv", comma),
        write("b.csv", b"\xef\xbb\xbf" + comma.encode()),
        write("c.csv.gz", comma),
        write("a.tsv", tab),
        write("b.TSV", tab.replace("\n", "\r\n")),
        write("b.tsv.gz", "\ufeff" + tab),
        write("a.jsonl", lines),
        write("b.jsonl.gz", "\ufeff" + lines.replace("\n", "\n\n")),
        tmp_path / "a.parquet",
    ]
    pq.write_table(
        pa.table({"text": [row["text"] for row in rows], "label": [row["label"] for row in rows]}), paths[-1]
    )
    loaded = [load_data(DataSpec(train=path, validation=path)) for path in paths]
    assert loaded[0].train is not None
    assert loaded[0].train.texts == [(row["text"],) for row in rows]
    assert loaded[0].train.labels == [1, 0] * 3
    assert loaded[0].labels == ("neg", "pos")
    assert loaded[0].test is None
    assert {splits.fingerprint for splits in loaded} == {loaded[0].fingerprint}


def test_a_tsv_like_mrpc_keeps_quote_marks_that_never_close(write):
    header = "label\tid1\tid2\tsentence1\tsentence2\n"
    path = write("mrpc.tsv", header + '1\t10\t20\t"It is good.\tHe said: "it is "good".\n0\t30\t40\tNo.\t"No\n')
    splits = load_data(DataSpec(train=path, validation=path))
    assert splits.text_columns == ("sentence1", "sentence2")
    assert splits.split("train").texts == [('"It is good.', 'He said: "it is "good".'), ("No.", '"No')]
    assert splits.split("train").labels == [1, 0]
    assert any("sentence1 and sentence2" in note for note in splits.notes)


def test_a_quoted_csv_field_holds_line_breaks_and_errors_still_name_the_right_line(write):
    good = 'text,label\n"two\nlines, one ""row""",a\nplain,b\n'
    splits = load_data(DataSpec(train=write("a.csv", good), validation=write("v.csv", good)))
    assert splits.split("train").texts[0] == ('two\nlines, one "row"',)
    with pytest.raises(DataError, match=r"b\.csv, line 5: 1 field,"):
        load_data(DataSpec(train=write("b.csv", good + "short\n")))


def test_a_tsv_keeps_unicode_line_separators_inside_a_text(write):
    path = write("a.tsv", "text\tlabel\none\u2028two\x85three\ta\nfour\tb\n")
    assert load_rows_for_prediction(path).texts[0] == ("one\u2028two\x85three",)


def test_a_line_of_two_megabytes_is_read(write):
    import csv

    before = csv.field_size_limit()
    path = write("long.csv", f"text,label\n{'long ' * 400_000},a\nshort,b\n")
    splits = load_data(DataSpec(train=path, validation=path))
    assert len(splits.split("train").texts[0][0]) == 2_000_000
    assert csv.field_size_limit() == before


@pytest.mark.parametrize(
    ("header", "texts", "label"),
    [
        ("idx,sentence,label", ("sentence",), "label"),
        ("premise,hypothesis,label,pairID", ("premise", "hypothesis"), "label"),
        ("question,sentence,idx,label", ("question", "sentence"), "label"),
        ("id,body,category", ("body",), "category"),
        (",spam,text", ("text",), "spam"),
        ("docID,remark,label", ("remark",), "label"),
        ("title,text,label", ("text",), "label"),
        ("Text,Label", ("Text",), "Label"),
        ("question,fine_label,label", ("question",), "label"),
        ("guid,remark,verdict", None, None),
        ("review,tweet,label", None, None),
        ("text,rating,stars", ("text",), None),
    ],
)
def test_columns_are_guessed_only_when_obvious(write, header, texts, label):
    words = {"id": "7", "idx": "7", "": "7", "pairID": "7", "guid": "g 7"}
    names = header.split(",")
    rows = [
        ",".join(words.get(name, f"{name} {i if name in (texts or names) else i % 2}") for name in names)
        for i in range(6)
    ]
    path = write("a.csv", header + "\n" + "\n".join(rows))
    if label is None:
        with pytest.raises(DataError, match=r"The columns are .*; say which with --(text-columns|label-column)"):
            load_data(DataSpec(train=path))
    else:
        splits = load_data(DataSpec(train=path))
        assert (splits.text_columns, splits.label_column) == (texts, label)
        assert [note for note in splits.notes if "column" in note]


def test_integer_labels_sort_by_number_whatever_their_format(write):
    lines = [("x", 10), ("y", "2"), ("z", 1.0), ("w", "10.0")]
    path = write("a.jsonl", "\n".join(json.dumps({"text": text, "label": label}) for text, label in lines))
    splits = load_data(DataSpec(train=path, validation=path))
    assert splits.labels == ("1", "2", "10")
    assert splits.split("train").labels == [2, 1, 0, 2]


def test_true_and_false_are_classes(write):
    path = write("a.jsonl", '{"text": "x", "label": true}\n{"text": "y", "label": false}\n')
    splits = load_data(DataSpec(train=path, validation=path))
    assert (splits.labels, splits.split("train").labels) == (("false", "true"), [1, 0])


def test_an_integer_that_no_float_holds_is_a_class(write):
    rows = "".join(f'{{"text": "t {i}", "label": {10**400 + i % 2}}}\n' for i in range(8))
    splits = load_data(DataSpec(train=write("a.jsonl", rows)))
    assert splits.labels == (str(10**400), str(10**400 + 1))


def test_fractions_are_guessed_to_be_regression_and_said(write):
    path = write("a.csv", "text,score\nx,0.5\ny,2\nz,-1e-3\n")
    splits = load_data(DataSpec(train=path, validation=path))
    assert (splits.kind, splits.labels, splits.split("train").labels) == ("regression", (), [0.5, 2.0, -0.001])
    assert any("regression" in note for note in splits.notes)


def test_lists_of_labels_are_multi_label(write):
    path = write(
        "a.jsonl", '{"text": "x", "labels": ["b", "a"]}\n{"text": "y", "labels": []}\n{"text": "z", "labels": ["c"]}\n'
    )
    splits = load_data(DataSpec(train=path, validation=path))
    assert (splits.kind, splits.labels) == ("multi-label", ("a", "b", "c"))
    assert splits.split("train").labels == [[1, 1, 0], [0, 0, 0], [0, 0, 1]]


def test_multi_label_in_csv_is_separated_by_a_bar(write):
    path = write("a.csv", "text,label\nx,b|a\ny,\nz,c\n")
    splits = load_data(DataSpec(train=path, validation=path, kind="multi-label"))
    assert splits.split("train").labels == [[1, 1, 0], [0, 0, 0], [0, 0, 1]]


def test_words_and_tags_are_token_classification(write):
    path = write(
        "a.jsonl",
        '{"tokens": ["Ada", "ran"], "ner_tags": ["B", "O"], "id": 1}\n{"tokens": ["No"], "ner_tags": ["O"]}\n',
    )
    splits = load_data(DataSpec(train=path, validation=path))
    assert (splits.kind, splits.labels) == ("token-classification", ("B", "O"))
    assert splits.split("train").texts == [("Ada", "ran"), ("No",)]
    assert splits.split("train").labels == [[0, 1], [1]]
    assert load_rows_for_prediction(path).texts == [("Ada", "ran"), ("No",)]


def test_a_task_brings_its_own_labels_in_its_own_order(write):
    spec = DataSpec(test=write("a.csv", CSV), labels=("pos", "neutral", "neg"))
    splits = load_data(spec)
    assert splits.labels == ("pos", "neutral", "neg")
    assert splits.split("test").labels == [0, 2, 0, 2]
    with pytest.raises(DataError, match=r"no 'train' split; there is test \(4 rows\)$"):
        splits.split("train")


@pytest.mark.parametrize("test", ["text\nx\ny\n", "text,label\nx,-1\ny,-1\n", "text,label\nx,\ny,\n"])
def test_a_test_file_without_labels_has_none(write, test):
    splits = load_data(DataSpec(train=write("a.csv", CSV), test=write("t.csv", test)))
    assert splits.split("test").labels is None
    assert any("unlabelled" in note for note in splits.notes)


def test_minus_one_is_a_label_where_training_has_it(write):
    train = "text,label\nx,-1\ny,1\nz,-1\nw,1\n"
    splits = load_data(DataSpec(train=write("a.csv", train), test=write("t.csv", "text,label\nx,-1\n")))
    assert (splits.labels, splits.split("test").labels) == (("-1", "1"), [0])


def test_validation_is_a_seeded_stratified_share(write):
    lines = [f"row {i},{'rare' if i == 7 else 'ab'[i % 4 == 0]}" for i in range(400)]
    path = write("a.csv", "text,label\n" + "\n".join(lines))
    splits = load_data(DataSpec(train=path))
    train, validation = splits.split("train"), splits.split("validation")
    assert len(train) + len(validation) == 400
    assert not set(train.texts) & set(validation.texts)
    assert Counter(validation.labels or []) == {0: 30, 1: 10}
    assert splits.labels.index("rare") in (train.labels or [])
    assert any("40 of 400" in note and "stratified" in note for note in splits.notes)
    assert load_data(DataSpec(train=path)).fingerprint == splits.fingerprint
    assert load_data(DataSpec(train=path, split_seed=1)).fingerprint != splits.fingerprint


def test_a_class_of_one_text_stays_in_training_however_large_the_share(write):
    lines = [f"row {i},{'ab'[i % 2]}" for i in range(20)] + ["alone,c"]
    splits = load_data(DataSpec(train=write("a.csv", "text,label\n" + "\n".join(lines)), validation_fraction=0.9))
    assert ("alone",) in splits.split("train").texts
    assert sorted(splits.split("train").labels) == [0, 1, 2]


@pytest.mark.parametrize("common", [0, 100])
def test_classes_of_few_texts_give_their_share_together(write, common):
    """Five texts of each of thirty classes: a tenth of each class alone would be none, and one row would choose."""
    lines = [f"row {i},rare {i % 30}" for i in range(150)] + [f"often {i},common" for i in range(common)]
    splits = load_data(DataSpec(train=write("a.csv", "text,label\n" + "\n".join(lines))))
    found = Counter(splits.labels[label] for label in splits.split("validation").labels or [])
    assert found.pop("common", 0) == common // 10
    assert list(found.values()) == [1] * 15
    assert set(splits.split("train").labels or []) == set(range(len(splits.labels)))


def test_equal_texts_stay_on_one_side_of_the_split(write):
    lines = [f"row {i // 3},{'ab'[i // 3 % 2]}" for i in range(300)]
    splits = load_data(DataSpec(train=write("a.csv", "text,label\n" + "\n".join(lines)), validation_fraction=0.3))
    assert not set(splits.split("train").texts) & set(splits.split("validation").texts)


def test_four_rows_still_give_a_validation_split(write):
    splits = load_data(DataSpec(train=write("a.csv", CSV)))
    assert (len(splits.split("train")), len(splits.split("validation"))) == (3, 1)


def test_prediction_needs_no_label_column(write):
    rows = load_rows_for_prediction(write("a.csv", "id,sentence1,sentence2\n1,x,y\n"))
    assert (rows.texts, rows.labels) == ([("x", "y")], None)
    spec = DataSpec(train=write("b.csv", CSV), test=write("c.csv", "text,other\nx,y\n"), text_columns=("other",))
    assert load_rows_for_prediction(spec).texts == [("y",)]
    with pytest.raises(DataError, match="no 'validation' file is given; there is train, test"):
        load_rows_for_prediction(spec, split="validation")


def test_labels_that_differ_in_case_alone_are_noted(write):
    splits = load_data(
        DataSpec(train=write("a.csv", "text,label\n" + "".join(f"t {i},{'Pp'[i % 2]}os\n" for i in range(20))))
    )
    assert splits.labels == ("Pos", "pos")
    assert "labels 'Pos' and 'pos' differ in case or blanks alone, and are two classes" in splits.notes


def test_texts_that_are_trained_on_and_scored_are_noted(write):
    train = write("a.csv", "text,label\n" + "".join(f"t {i},{'ab'[i % 2]}\n" for i in range(20)))
    test = write("b.csv", "text,label\nt 3,b\nnew,a\n")
    assert "test: 1 of 2 texts are training texts too" in load_data(DataSpec(train=train, test=test)).notes
    assert not any("training texts too" in note for note in load_data(DataSpec(train=train)).notes)


def test_two_byte_order_marks_are_none_of_the_first_columns_name(write):
    path = write(
        "a.csv", b"\xef\xbb\xbf" * 2 + b"text,label\n" + b"".join(b"t %d,%d\n" % (i, i % 2) for i in range(20))
    )
    assert load_data(DataSpec(train=path)).text_columns == ("text",)
